/* A batch of decode steps, from queries to a loss and its gradients: the Memory Indexer's training. */
#ifndef LSA_KERNELS_INDEX_LEARN_H
#define LSA_KERNELS_INDEX_LEARN_H
#include "kernels/index_loss.h"
#include "kernels/kv_record.h"

/* What one query is set against: keys of a format, one after the other; the positives' ids come first. */
typedef struct lsa_index_sample {
    const void *keys;
    const int32_t *ids;   /* [positives + negatives] of the keys */
    const float *weights; /* [positives + negatives] */
    int64_t positives, negatives;
} lsa_index_sample;

/* Of each of n samples: losses[i] (index_loss.h) of the logits (index_gradient.h) of query i, q + i * heads * dim with head
 * weights w + i * heads, and the gradients dq [n, heads, dim], dw [n, heads] of share * losses[i].
 *
 * Everything that is pointed to, samples and theirs too, lies where the device reads it; `how` in host memory. most: at least the
 * ids of any sample, which a GPU does not check. A sample's results depend on nothing but the sample where it runs on a CPU; on a GPU, on n and `most`
 * too. Samples without ids have a loss and gradients of 0. workspace: lsa_index_learn_workspace bytes, 64-byte aligned.
 * LSA_ESHAPE, LSA_EARG. */
typedef int lsa_index_learn_fn(double *losses, float *dq, float *dw, const float *q, const float *w,
                               const lsa_index_sample *samples, int64_t n, int64_t most,
                               int64_t heads, int64_t dim, int32_t key_format,
                               const lsa_index_loss *how, float share, void *workspace,
                               void *stream);
lsa_index_learn_fn lsa_index_learn_cpu, lsa_index_learn_cuda;

typedef int64_t lsa_index_learn_workspace_fn(int64_t n, int64_t most, int64_t heads, int64_t dim);
lsa_index_learn_workspace_fn lsa_index_learn_workspace, lsa_index_learn_workspace_cuda;

/* The arguments, as both halves check them. */
int lsa_index_learn_check(int64_t n, int64_t most, int64_t heads, int64_t dim, int32_t key_format,
                          const lsa_index_loss *how);

#endif
