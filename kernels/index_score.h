/* Index scoring: the Lightning Indexer's and the Memory Indexer's logits. */
#ifndef LSA_KERNELS_INDEX_SCORE_H
#define LSA_KERNELS_INDEX_SCORE_H
#include "kernels/kv_record.h"

/* scores[t, s] = sum_h w[t, h] * max(0, q[t, h] . k_s)
 * (LSA paper, Eq. 4; DeepSeek-V4 report, Lightning Indexer)
 *
 * scores: row t at scores + t * score_stride, n floats.
 * q: [tokens, heads, dim] f32, rotated by lsa_hadamard when the keys are fp8.
 * w: [tokens, heads] f32, all constant factors already in it.
 * keys: n index keys of `key_format` (kv_record.h), key_stride bytes apart; need not be aligned.
 * compute: LSA_COMPUTE_F32 multiplies in f32; LSA_COMPUTE_BF16 rounds q and the key's stored
 *   numbers (exact for fp8) to bf16, sums in f32. The e4m3 scale multiplies the finished sum.
 * A score depends on its query and its key alone, to the last bit: never on n, the key's place or
 * the number of tokens. NaN passes. n = 0, tokens = 0 are legal.
 * workspace: lsa_index_score_workspace bytes, 64-byte aligned. */
typedef int lsa_index_score_fn(float *scores, const float *q, const float *w, const void *keys,
                               int64_t tokens, int64_t n, int64_t heads, int64_t dim,
                               int64_t key_stride, int64_t score_stride, int32_t key_format,
                               int32_t compute, void *workspace, void *stream);
lsa_index_score_fn lsa_index_score_cpu;
lsa_index_score_fn lsa_index_score_cuda;

/* The arguments, as both check them: LSA_EARG for an unknown format or compute, LSA_ESHAPE for
 * sizes that cannot be. */
enum { LSA_INDEX_MOST_DIM = 1024 };
int lsa_index_score_check(int64_t tokens, int64_t n, int64_t heads, int64_t dim, int64_t key_stride,
                          int64_t score_stride, int32_t key_format, int32_t compute);

typedef int64_t lsa_index_score_workspace_fn(int64_t tokens, int64_t n, int64_t heads, int64_t dim,
                                             int32_t key_format, int32_t compute);
lsa_index_score_workspace_fn lsa_index_score_workspace;

#endif
