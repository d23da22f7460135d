/* The gradient of root mean square normalisation. */
#ifndef LSA_KERNELS_RMSNORM_GRADIENT_H
#define LSA_KERNELS_RMSNORM_GRADIENT_H
#include <stdint.h>

/* Of y[r] = x[r] * s[r] * weight, s[r] = rsqrt(mean(x[r]^2) + eps) (rmsnorm.h), with dy = d loss / d y:
 *   dx[r] = s[r] * (weight dy[r] - x[r] * s[r]^2 * mean(weight dy[r] x[r]))
 *   dweight = sum over r, in their order, of dy[r] x[r] s[r]
 * dx may be dy. dweight: [n]. rows = 0 gives zeros. */
typedef int lsa_rmsnorm_gradient_fn(float *dx, float *dweight, const float *dy, const float *x,
                                    const float *weight, int64_t rows, int64_t n, float eps,
                                    void *stream);
lsa_rmsnorm_gradient_fn lsa_rmsnorm_gradient_cpu, lsa_rmsnorm_gradient_cuda;

/* The arguments, as both halves check them. */
int lsa_rmsnorm_gradient_check(int64_t rows, int64_t n);

#endif
