/* Selection: a row of scores becomes a set of ids. */
#ifndef LSA_KERNELS_SELECT_H
#define LSA_KERNELS_SELECT_H
#include <stdint.h>

/* Every kernel here writes `bits`, the (n + 63) / 64 words of a set (core/base/set.h) of n ids,
 * whole. scores: [n] f32. NaN is never selected. -0 and 0 are equal. n = 0 is legal. */

/* The ids whose score is >= threshold, or > threshold when strict is not 0. None when threshold
 * is NaN. */
typedef int lsa_select_above_fn(uint64_t *bits, const float *scores, int64_t n, float threshold,
                                int32_t strict, void *stream);
lsa_select_above_fn lsa_select_above_cpu, lsa_select_above_cuda;

/* The k largest scores; ties go to the lower id. -inf is never selected; fewer than k
 * candidates, or none, is legal: all are selected. LSA_EARG when k < 0. workspace:
 * lsa_select_workspace(n) bytes, 64-byte aligned. */
typedef int lsa_select_topk_fn(uint64_t *bits, const float *scores, int64_t n, int64_t k,
                               void *workspace, void *stream);
lsa_select_topk_fn lsa_select_topk_cpu, lsa_select_topk_cuda;

/* The fewest largest scores whose sum reaches `mass` (0..1, else LSA_EARG) of the sum of all
 * positive scores; ties go to the lower id. Scores <= 0 are never selected. mass 0 selects none,
 * mass 1 every positive score. Sums are in f64. workspace: lsa_select_workspace(n) bytes,
 * 64-byte aligned. */
typedef int lsa_select_topp_fn(uint64_t *bits, const float *scores, int64_t n, double mass,
                               void *workspace, void *stream);
lsa_select_topp_fn lsa_select_topp_cpu, lsa_select_topp_cuda;

typedef int64_t lsa_select_workspace_fn(int64_t n);
lsa_select_workspace_fn lsa_select_workspace, lsa_select_workspace_cuda;

/* The arguments, as both halves check them. */
int lsa_select_above_check(int64_t n);
int lsa_select_topk_check(int64_t n, int64_t k);
int lsa_select_topp_check(int64_t n, double mass);

#endif
