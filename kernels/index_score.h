/* Index scoring: the Lightning Indexer's and the Memory Indexer's logits. */
#ifndef LSA_KERNELS_INDEX_SCORE_H
#define LSA_KERNELS_INDEX_SCORE_H
#include "kernels/kv_record.h"

/* The first two are LSA_COMPUTE_F32 and LSA_COMPUTE_BF16. */
enum { LSA_SCORE_F32 = 0, LSA_SCORE_BF16 = 1, LSA_SCORE_FP8 = 2 };

/* scores[t, s] = sum_h w[t, h] * max(0, q[t, h] . k_s)
 * (LSA paper, Eq. 4; DeepSeek-V4 report, Lightning Indexer)
 *
 * scores: row t at scores + t * score_stride, n floats.
 * q: [tokens, heads, dim] f32, rotated by lsa_hadamard when the keys are fp8.
 * w: [tokens, heads] f32, all constant factors already in it.
 * keys: n index keys of `key_format` (kv_record.h), key_stride bytes apart; need not be aligned.
 * scoring: LSA_SCORE_F32 multiplies in f32. LSA_SCORE_BF16 rounds q and the key's stored numbers (exact for fp8) to
 *   bf16. LSA_SCORE_FP8 rounds each query to e4m3 as kv_record.h's fp8 keys are, its scale multiplying the head's weight,
 *   and the key's numbers to bf16; the released deployment scores so. Sums are f32; the key's scale multiplies the
 *   finished sum. On a GPU whose tensor cores multiply e4m3, a head's sum of fp8 products keeps 13 bits behind the largest.
 * A score depends on its query and its key alone, to the last bit: never on n, the key's place or
 * the number of tokens. NaN passes. n = 0, tokens = 0 are legal.
 * workspace: lsa_index_score_workspace bytes, 64-byte aligned. */
typedef int lsa_index_score_fn(float *scores, const float *q, const float *w, const void *keys,
                               int64_t tokens, int64_t n, int64_t heads, int64_t dim,
                               int64_t key_stride, int64_t score_stride, int32_t key_format,
                               int32_t scoring, void *workspace, void *stream);
lsa_index_score_fn lsa_index_score_cpu;
lsa_index_score_fn lsa_index_score_cuda;

/* The arguments, as both check them: LSA_EARG for an unknown format or scoring, LSA_ESHAPE for
 * sizes that cannot be. */
enum { LSA_INDEX_MOST_DIM = 1024 };
int lsa_index_score_check(int64_t tokens, int64_t n, int64_t heads, int64_t dim, int64_t key_stride,
                          int64_t score_stride, int32_t key_format, int32_t scoring);

typedef int64_t lsa_index_score_workspace_fn(int64_t tokens, int64_t n, int64_t heads, int64_t dim,
                                             int32_t key_format, int32_t scoring);
lsa_index_score_workspace_fn lsa_index_score_workspace;

#endif
