/* Private to CUDA files: dense products of f32 by cuBLASLt. Its algorithm follows from the shapes alone, without sums that blocks
 * share, so that equal calls give equal bits. */
#ifndef LSA_GEMM_CUDA_H
#define LSA_GEMM_CUDA_H
#include <stdint.h>

/* A stored matrix: rows `stride` floats apart, matrices of a batch `step` floats. */
typedef struct lsa_gemm_matrix {
    const float *data;
    int64_t stride, step;
    bool transposed;
} lsa_gemm_matrix;

/* c = op(a) op(b) (gemm.h), `batch` times. op: what a message calls it. */
int lsa_gemm_batch_cuda(const char *op, float *c, int64_t c_stride, int64_t c_step,
                        lsa_gemm_matrix a, lsa_gemm_matrix b, int64_t m, int64_t n, int64_t k,
                        int64_t batch, void *stream);

#endif
