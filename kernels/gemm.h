/* Dense products of f32 matrices: what the gradients of linear layers need (dX = dY W, dW = dY^T X). */
#ifndef LSA_KERNELS_GEMM_H
#define LSA_KERNELS_GEMM_H
#include <stdint.h>

/* c = op(a) b: op(a) [m, k] is a, or the transpose of a [k, m] where transpose_a is not 0; b: [k, n]; c: [m, n].
 *
 * Rows of what is stored are c_stride, a_stride, b_stride floats apart. m, n or k of 0 is legal (k = 0 writes zeros).
 * c overlaps neither a nor b. An element is summed in an order that depends on k alone, never on m, n or the threads.
 * LSA_ESHAPE. */
typedef int lsa_gemm_fn(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k, int64_t c_stride,
                        int64_t a_stride, int64_t b_stride, int32_t transpose_a, void *stream);
lsa_gemm_fn lsa_gemm_cpu;

#endif
