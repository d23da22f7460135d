/* A model's weights, as its checkpoint stores them. */
#ifndef LSA_MODEL_H
#define LSA_MODEL_H
#include "core/base/tensor.h"
#include "core/model/config.h"
#include "kernels/experts.h"
#include "kernels/table.h"

typedef struct lsa_hc_weights {
    lsa_weight fn;             /* [(2 + hc) * hc, hc * hidden]; the head's: [hc, hc * hidden] */
    const float *base, *scale; /* [(2 + hc) * hc], [3]; the head's: [hc], [1] */
} lsa_hc_weights;

/* width = 2 * dim with overlap (CSA, index keys), dim without (HCA). */
typedef struct lsa_compressor_weights {
    lsa_weight kv, gate; /* [width, hidden] */
    const float *bias;   /* position_bias [m, width] */
    const float *norm;   /* [dim] */
} lsa_compressor_weights;

typedef struct lsa_layer {
    lsa_hc_weights attn_hc, ffn_hc;
    const float *attn_norm, *ffn_norm; /* [hidden] */
    lsa_weight q_a, q_b, kv, o_a,
        o_b; /* [q_rank, hidden] [heads * head_dim, q_rank] [head_dim, hidden]
                                                [o_groups * o_rank, heads * head_dim / o_groups] [hidden, o_groups * o_rank] */
    const float *q_a_norm, *kv_norm, *sinks; /* [q_rank] [head_dim] [heads] */
    lsa_compressor_weights compressor;       /* CSA and HCA layers */
    lsa_compressor_weights index_keys;       /* CSA layers */
    lsa_weight index_q_b,
        index_weights;            /* [index_heads * index_dim, q_rank] [index_heads, hidden] */
    lsa_weight router;            /* [experts, hidden] */
    const float *router_bias;     /* [experts] or NULL */
    const int32_t *token_experts; /* [vocab, experts_per_token] or NULL */
    lsa_expert_weights *experts;  /* [experts] */
    lsa_expert_weights shared;    /* moe_hidden * shared_experts wide */
} lsa_layer;

typedef struct lsa_model {
    lsa_config config;
    lsa_weight embed, head; /* [vocab, hidden] */
    const float *norm;      /* [hidden] */
    lsa_hc_weights hc_head;
    lsa_layer *layers;                /* [config.layers] */
    float *main_freq, *compress_freq; /* inv_freq [rope_dim / 2] */
    int64_t weight_bytes;             /* of all weights, as stored */
    const lsa_kernels *kernels;       /* of the device where the weights lie */
    int32_t memory_kind; /* LSA_MEMORY_*: of what sessions and activations of this model keep */
    int32_t gpu;         /* which one has the weights; 0 on a CPU */
    struct lsa_model_device *device;
    struct lsa_model_memory *memory; /* what keeps the pointers alive */
} lsa_model;

/* Loads a directory: config.json and model.safetensors, or model.safetensors.index.json with its shards; names and
 * number formats of transformers or of the released checkpoint. Large weights stay mapped, as stored; small f32 vectors
 * are copied. Missing, duplicate or misshapen tensors are errors that name tensor, file and both shapes. */
int lsa_model_load(lsa_model **out, const char *directory);

/* Weights that are drawn, not loaded: all follow from the seed and their names. */
typedef struct lsa_random {
    uint64_t seed;
    int32_t
        dtype; /* LSA_F32 or LSA_BF16: of all weights; LSA_RANDOM_RELEASED: as the released checkpoint has them, fp8, experts fp4 */
} lsa_random;

enum { LSA_RANDOM_RELEASED = -1 };

/* A model of random weights. config: the text of a config.json; name: what messages call it. */
int lsa_model_random(lsa_model **out, const char *config, const char *name,
                     const lsa_random *random);
void lsa_model_free(lsa_model *model);

/* Copies the weights to the GPU, where sessions of the model run from then on; before there are any. They stay readable from the
 * host under the model's pointers. After a failure (LSA_EDEVICE, LSA_ENOMEM) the model is only to be freed. */
int lsa_model_to_gpu(lsa_model *model);
void lsa_model_device_free(struct lsa_model_device *device);

/* What tells one model from another: hashes of its configuration and of its weights, of which large ones are sampled. */
void lsa_model_identity(const lsa_model *model, uint64_t *config, uint64_t *weights);

#endif
