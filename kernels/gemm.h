/* Dense matrix products, by oneDNN and, on a GPU, by cuBLASLt: prefill's linear layers and the gradients of training. */
#ifndef LSA_KERNELS_GEMM_H
#define LSA_KERNELS_GEMM_H
#include <stdint.h>

/* c = op(a) op(b), f32: op(a) [m, k] is a, or the transpose of a [k, m] where transpose_a is not 0; op(b) [k, n] is b, or the
 * transpose of b [n, k]; c [m, n].
 *
 * Rows of what is stored are c_stride, a_stride, b_stride floats apart. m, n or k of 0 is legal (k = 0 writes zeros).
 * c overlaps neither a nor b. Equal calls on equally many threads give equal bits. LSA_ESHAPE; LSA_EINTR on a CPU, where Ctrl-C comes in a
 * product of seconds. */
typedef int lsa_gemm_fn(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k,
                        int64_t c_stride, int64_t a_stride, int64_t b_stride, int32_t transpose_a,
                        int32_t transpose_b, void *stream);
lsa_gemm_fn lsa_gemm_cpu, lsa_gemm_cuda;

/* The arguments, as both halves check them. */
int lsa_gemm_check(int64_t m, int64_t n, int64_t k, int64_t c_stride, int64_t a_stride,
                   int64_t b_stride, int32_t transpose_a, int32_t transpose_b);

/* c = a b^T with bf16 factors and f32 sums: a [m, k], b [n, k], c [m, n]; strides in elements. As above otherwise.
 *
 * A processor for which oneDNN has no product of bf16 (x86 without AVX-512) takes that of f32, some rows of a and of b
 * at a time widened in the workspace. Nothing is rounded by that; only the order of a sum differs between processors.
 * workspace: lsa_gemm_bf16_workspace(m, n, k) bytes, 64-byte aligned. */
typedef int lsa_gemm_bf16_fn(float *c, const uint16_t *a, const uint16_t *b, int64_t m, int64_t n,
                             int64_t k, int64_t c_stride, int64_t a_stride, int64_t b_stride,
                             void *workspace, void *stream);
lsa_gemm_bf16_fn lsa_gemm_bf16_cpu;

/* Bytes of workspace: at most 8 MiB, or 128 rows of k f32 where those are more; enough for a smaller m or n. May be 0. */
typedef int64_t lsa_gemm_bf16_workspace_fn(int64_t m, int64_t n, int64_t k);
lsa_gemm_bf16_workspace_fn lsa_gemm_bf16_workspace;

#endif
