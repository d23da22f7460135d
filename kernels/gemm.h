/* Dense products of f32 matrices: what the gradients of linear layers need (dX = dY W, dW = dY^T X). */
#ifndef LSA_KERNELS_GEMM_H
#define LSA_KERNELS_GEMM_H
#include <stdint.h>

/* c = op(a) op(b), plus c where `accumulate` is not 0. op(x) is x, or its transpose where transpose_x is not 0.
 *
 * op(a): [m, k], op(b): [k, n], c: [m, n]; rows of what is stored are a_stride, b_stride, c_stride floats apart.
 * m, n or k of 0 is legal (k = 0 writes zeros, or leaves c). c overlaps neither a nor b. Equal arguments give equal
 * bits as long as lsa_threads() is the same. LSA_ESHAPE. */
typedef int lsa_gemm_fn(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k,
                        int64_t c_stride, int64_t a_stride, int64_t b_stride, int32_t transpose_a,
                        int32_t transpose_b, int32_t accumulate, void *stream);
lsa_gemm_fn lsa_gemm_cpu;

#endif
