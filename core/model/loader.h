/* Private to this folder: the tensors of a model, by both names that they can have. */
#ifndef LSA_LOADER_H
#define LSA_LOADER_H
#include "core/files/checkpoint.h"
#include "core/model/model.h"

/* A list of what a model frees: blocks of memory and views that keep the mappings. */
typedef struct lsa_held {
    struct lsa_held *next;
    lsa_tensor *tensor;
    void *block;
} lsa_held;

struct lsa_model_memory {
    lsa_held *first;
    uint64_t vectors; /* hash of the small tensors, which are copied and not held */
};

typedef struct lsa_loader {
    lsa_model *model;
    const lsa_config *config;
    lsa_checkpoint *checkpoint;
    const lsa_random *random; /* in place of a checkpoint; else NULL */
} lsa_loader;

/* The beginning of names in transformers' scheme and in the released one, after an outer beginning. */
typedef struct lsa_scope {
    const struct lsa_scope *outer;
    const char *transformers, *released;
} lsa_scope;

/* A weight as it is stored; experts in one tensor add a dimension in front. */
typedef struct lsa_stored {
    int64_t place;
    const lsa_tensor *data, *scale;
    int64_t rows, cols;             /* of one expert, unpacked */
    int64_t scale_rows, scale_cols; /* likewise */
    int64_t block_rows, block_cols;
    int32_t dtype, scale_dtype;
} lsa_stored;

/* Memory, zeroed, that the model frees. */
void *lsa_loader_block(lsa_model *model, int64_t bytes);

/* The tensor of either name; *place is -1 where there is neither. A random model has whatever is looked for. */
int lsa_loader_find(const lsa_loader *loader, int64_t *place, const lsa_scope *scope,
                    const char *transformers, const char *released);

/* A small tensor as f32, and one of n numbers. */
int lsa_load_floats(lsa_loader *loader, const float **out, const lsa_scope *scope,
                    const char *transformers, const char *released, int32_t rank,
                    const int64_t *shape);
int lsa_load_vector(lsa_loader *loader, const float **out, const lsa_scope *scope,
                    const char *transformers, const char *released, int64_t n);

/* A weight of either name, from the checkpoint or drawn; then rows from .. from + rows - 1 of one expert (0 where there is no such
 * dimension) of it. */
int lsa_load_stored(lsa_loader *loader, lsa_stored *stored, const lsa_scope *scope,
                    const char *transformers, const char *released, int32_t rank,
                    const int64_t *shape);
int lsa_stored_rows(const lsa_loader *loader, lsa_weight *out, const lsa_stored *stored,
                    int64_t expert, int64_t from, int64_t rows);

/* Both, of a whole matrix. */
int lsa_load_weight(lsa_loader *loader, lsa_weight *out, const lsa_scope *scope,
                    const char *transformers, const char *released, int64_t rows, int64_t cols);

/* The table of hash routing, as int32, every expert in range. */
int lsa_load_token_experts(lsa_loader *loader, lsa_layer *layer, const lsa_scope *scope);

#endif
