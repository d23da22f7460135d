/* Queries that score pages by the bounds of their keys (Quest, arXiv 2406.10774). */
#ifndef LSA_KERNELS_BOUND_QUERY_H
#define LSA_KERNELS_BOUND_QUERY_H
#include <stdint.h>

/* Against a page's record [high, low] of 2 dim, head h of the result is the most that q_h . k can
 * be for a key within the bounds, head heads + h the least: with q+ = max(q, 0), q- = min(q, 0)
 *   both[r, h] = [q+, q-]           weights[r, h] = max(w, 0)
 *   both[r, heads + h] = [q-, q+]   weights[r, heads + h] = min(w, 0)
 * q: [rows, heads, dim], w: [rows, heads]; both: [rows, 2 heads, 2 dim], weights: [rows, 2 heads],
 * apart from them. Any size may be 0; LSA_ESHAPE below. NaN stays. */
typedef int lsa_bound_query_fn(float *both, float *weights, const float *q, const float *w,
                               int64_t rows, int64_t heads, int64_t dim, void *stream);
lsa_bound_query_fn lsa_bound_query_cpu, lsa_bound_query_cuda;

/* The sizes, as both check them. */
int lsa_bound_query_check(int64_t rows, int64_t heads, int64_t dim);

#endif
