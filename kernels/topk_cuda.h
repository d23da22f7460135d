/* Private to CUDA files: top-k of rows whose lengths only the GPU knows. */
#ifndef LSA_TOPK_CUDA_H
#define LSA_TOPK_CUDA_H
#include <cuda_runtime.h>

extern "C" {
#include "kernels/topk.h"
}

/* lsa_topk_cuda of lengths[r] <= n scores of row r; NULL: n of each. */
int lsa_topk_of_lengths(int32_t *ids, float *values, int32_t *counts, const float *scores,
                        const int32_t *lengths, int64_t rows, int64_t n, int64_t score_stride,
                        int32_t k, cudaStream_t stream);

#endif
