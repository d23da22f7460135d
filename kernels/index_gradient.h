/* Index scores of chosen keys, and their gradient: the Memory Indexer's training. */
#ifndef LSA_KERNELS_INDEX_GRADIENT_H
#define LSA_KERNELS_INDEX_GRADIENT_H
#include "kernels/kv_record.h"

/* logits[i] = sum_h w[h] * max(0, q[h] . k[ids[i]])   (LSA paper, Eq. 4), of one query, in f32.
 *
 * q: [heads, dim], rotated by lsa_hadamard where the keys are fp8; w: [heads], all constant factors in it.
 * keys: index keys of `key_format`, key_stride bytes apart; ids: [n], each of a key that is there. Runs on the calling
 * thread alone: callers give every thread a query of its own. n = 0 is legal. What the gradient needs
 * stays in the workspace: lsa_index_gradient_workspace bytes, 64-byte aligned. */
typedef int lsa_index_gather_fn(float *logits, const float *q, const float *w, const void *keys,
                                const int32_t *ids, int64_t n, int64_t heads, int64_t dim,
                                int64_t key_stride, int32_t key_format, void *workspace,
                                void *stream);
lsa_index_gather_fn lsa_index_gather_cpu;

/* Of a loss with slope[i] = d loss / d logits[i]: dq [heads, dim] and dw [heads]. The keys are constants. A product of
 * exactly 0 has the gradient 0. Follows lsa_index_gather with the same n, heads, dim and workspace, once. */
typedef int lsa_index_gradient_fn(float *dq, float *dw, const float *slope, const float *w,
                                  int64_t n, int64_t heads, int64_t dim, void *workspace,
                                  void *stream);
lsa_index_gradient_fn lsa_index_gradient_cpu;

typedef int64_t lsa_index_gradient_workspace_fn(int64_t n, int64_t heads, int64_t dim);
lsa_index_gradient_workspace_fn lsa_index_gradient_workspace;

#endif
