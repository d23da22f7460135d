/* Arithmetic on f32 elements. */
#ifndef LSA_KERNELS_ELEMENTWISE_H
#define LSA_KERNELS_ELEMENTWISE_H
#include <stdint.h>

enum { LSA_ADD = 0, LSA_SUB = 1, LSA_MUL = 2, LSA_DIV = 3, LSA_MIN = 4, LSA_MAX = 5 };

/* out[i] = a[i] op b[i mod period], for i < n. period divides n: n for tensors of one shape, the
 * size of the trailing dimensions for a row that meets every row, 1 for a number. LSA_MIN and
 * LSA_MAX are NaN where either side is. out may be a, and b where period is n; otherwise they do
 * not overlap. */
typedef int lsa_binary_fn(float *out, const float *a, const float *b, int64_t n, int64_t period,
                          int32_t op, void *stream);
lsa_binary_fn lsa_binary_cpu, lsa_binary_cuda;

enum { LSA_EXP = 0, LSA_LOG = 1, LSA_SIGMOID = 2 };

/* out[i] = op(a[i]), for i < n. exp within 1 ulp, log within 2 (log 0 = -inf, log of less =
 * NaN), sigmoid (1 / (1 + e^-a)) within 3; NaN gives NaN. out may be a. */
typedef int lsa_unary_fn(float *out, const float *a, int64_t n, int32_t op, void *stream);
lsa_unary_fn lsa_unary_cpu, lsa_unary_cuda;

/* The arguments, as both halves check them. */
int lsa_binary_check(int64_t n, int64_t period, int32_t op);
int lsa_unary_check(int64_t n, int32_t op);

/* x[i] *= factor, for i < n. */
typedef int lsa_scale_fn(float *x, float factor, int64_t n, void *stream);
lsa_scale_fn lsa_scale_cpu, lsa_scale_cuda;

#endif
