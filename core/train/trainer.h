/* The Memory Indexer's training, away from the model: a dual encoder of hidden states (queries) and index keys, which
 * are constants, one for each target layer (LSA paper, Sec. 3). The caller chooses the samples. */
#ifndef LSA_TRAINER_H
#define LSA_TRAINER_H
#include "kernels/adamw.h"
#include "kernels/index_loss.h"
#include "kernels/kv_record.h"

/* What is trained: see core/model/indexer.h for the maths. fp8 keys are rotated, so queries are rotated with them. */
typedef struct lsa_trainer_shape {
    int64_t layers, hidden, rank, heads, dim, rope_dim;
    float norm_eps;
    int32_t key_format; /* LSA_KV_* */
} lsa_trainer_shape;

/* One decode step, as one layer sees it. */
typedef struct lsa_training_sample {
    const void *hidden;   /* [hidden], f32 or bf16 */
    const void *keys;     /* index keys of the document, one after the other */
    const int32_t *ids;   /* [positives + negatives] of the keys, the positives first */
    const float *weights; /* [positives + negatives] */
    int64_t positives, negatives, key_count, position;
    int32_t hidden_dtype;
} lsa_training_sample;

/* A layer's parts: wq_a [rank, hidden], q_norm [rank], wq_b [heads * dim, rank], weights_proj [heads, hidden]. */
enum { LSA_TRAIN_A = 0, LSA_TRAIN_NORM = 1, LSA_TRAIN_B = 2, LSA_TRAIN_W = 3, LSA_TRAIN_PARTS = 4 };

/* What is kept of every part, in f32. */
enum {
    LSA_TRAIN_VALUE = 0,
    LSA_TRAIN_GRADIENT = 1,
    LSA_TRAIN_FIRST = 2,
    LSA_TRAIN_SECOND = 3,
    LSA_TRAIN_KINDS = 4
};

typedef struct lsa_trainer lsa_trainer;

/* All weights and moments 0. inv_freq: [rope_dim / 2], copied. device: LSA_CPU, or LSA_CUDA for the GPU of number `gpu`: then
 * weights, moments and gradients lie there, and stay readable from the host under the pointers below; samples are host memory
 * still, and of their keys those come to the GPU that are asked for. LSA_ESHAPE for a shape that no indexer has, LSA_EDEVICE,
 * LSA_EARG for a GPU that is not there. */
int lsa_trainer_new(lsa_trainer **out, const lsa_trainer_shape *shape, const float *inv_freq,
                    int32_t device, int32_t gpu);
void lsa_trainer_free(lsa_trainer *trainer);

/* All of one kind, in one piece: lsa_trainer_count floats (parts are padded with zeros to 16). */
int64_t lsa_trainer_count(const lsa_trainer *trainer);
float *lsa_trainer_all(lsa_trainer *trainer, int32_t kind);

/* One part of layer 0 .. layers-1; NULL where there is no such part. lsa_trainer_part_shape gives its rows and columns. */
float *lsa_trainer_part(lsa_trainer *trainer, int32_t kind, int64_t layer, int32_t part);
int lsa_trainer_part_shape(const lsa_trainer *trainer, int32_t part, int64_t *rows, int64_t *cols);

/* Adds share * the sum of the n samples' losses to *loss, and makes the layer's gradients those of that sum. Equal samples
 * give equal bits. Samples without ids are legal and add nothing; n may be 0. LSA_EARG for an id that is no key,
 * LSA_EINTR. */
int lsa_trainer_gradients(lsa_trainer *trainer, int64_t layer, const lsa_training_sample *samples,
                          int64_t n, const lsa_index_loss *how, double share, double *loss);

/* Logits [key_count] of one hidden state against all of a document's keys, with the weights as they are now. */
int lsa_trainer_logits(lsa_trainer *trainer, int64_t layer, const lsa_training_sample *sample,
                       float *logits);

/* One AdamW step over everything, gradients scaled down to the norm `clip` where they exceed it (0: never). *norm is
 * theirs before; where it is no finite number, nothing is changed. how->gradient_scale is set here. */
int lsa_trainer_update(lsa_trainer *trainer, lsa_adamw *how, double clip, double *norm);

#endif
