/* Sums, means, minima, maxima along one dimension. */
#ifndef LSA_KERNELS_REDUCE_H
#define LSA_KERNELS_REDUCE_H
#include <stdint.h>

enum { LSA_REDUCE_SUM = 0, LSA_REDUCE_MEAN = 1, LSA_REDUCE_MIN = 2, LSA_REDUCE_MAX = 3 };

/* out[o, i] = op over j of in[o, j, i]; in: [outer, n, inner] f32, out: [outer, inner] f32.
 *
 * Sums run in f64, in an order that depends on n and inner alone: sixteen partial sums (element
 * j goes to number j mod 16) added pairwise where inner is 1, j ascending otherwise; rounded to
 * f32 once. NaN in gives NaN out, for every op. n = 0: sums are 0, means NaN, LSA_ESHAPE for min
 * and max. */
typedef int lsa_reduce_fn(float *out, const float *in, int64_t outer, int64_t n, int64_t inner,
                          int32_t op, void *stream);
lsa_reduce_fn lsa_reduce_cpu, lsa_reduce_cuda;

/* ids[r] = where row r of in [rows, n] has its largest value, the lowest such place; NaN never
 * wins; -1 where nothing but NaN, or nothing, is there. */
typedef int lsa_argmax_fn(int32_t *ids, const float *in, int64_t rows, int64_t n, void *stream);
lsa_argmax_fn lsa_argmax_cpu, lsa_argmax_cuda;

/* The arguments, as both halves check them. */
int lsa_reduce_check(int64_t outer, int64_t n, int64_t inner, int32_t op);
int lsa_argmax_check(int64_t rows, int64_t n);

#endif
