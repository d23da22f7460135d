/* Root mean square normalisation. */
#ifndef LSA_KERNELS_RMSNORM_H
#define LSA_KERNELS_RMSNORM_H
#include <stdint.h>

/* y[r] = x[r] * rsqrt(mean(x[r]^2) + eps) * weight, in f32, for `rows` contiguous rows of n floats.
 * weight: [n], or NULL for the unweighted norm. y may be x. */
typedef int lsa_rmsnorm_fn(float *y, const float *x, const float *weight, int64_t rows, int64_t n,
                           float eps, void *stream);
lsa_rmsnorm_fn lsa_rmsnorm_cpu, lsa_rmsnorm_cuda;

/* The arguments, as both check them: LSA_ESHAPE. */
int lsa_rmsnorm_check(int64_t rows, int64_t n);

#endif
