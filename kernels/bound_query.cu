// The queries of page bounds, on the GPU.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/bound_query.h"
}

enum { THREADS = 128 };

// ---- kernels ----

__device__ static float above(float x) { return x < 0 ? 0 : x; }

__device__ static float below(float x) { return x > 0 ? 0 : x; }

// A head a block. Grid: (rows heads), block: 128.
__global__ static void bound_query_head(float *both, float *weights, const float *q, const float *w,
                                        int64_t rows, int64_t heads, int64_t dim)
{
    for (int64_t i = blockIdx.x; i < rows * heads; i += gridDim.x) {
        int64_t r = i / heads, h = i % heads;
        const float *x = q + i * dim;
        float *most = both + (r * 2 * heads + h) * 2 * dim, *least = most + heads * 2 * dim;
        for (int64_t d = threadIdx.x; d < dim; d += THREADS) {
            most[d] = least[dim + d] = above(x[d]);
            most[dim + d] = least[d] = below(x[d]);
        }
        if (threadIdx.x == 0) {
            weights[r * 2 * heads + h] = above(w[i]);
            weights[(r * 2 + 1) * heads + h] = below(w[i]);
        }
    }
}

// ---- launcher ----

int lsa_bound_query_cuda(float *both, float *weights, const float *q, const float *w, int64_t rows,
                         int64_t heads, int64_t dim, void *stream)
{
    int rc = lsa_bound_query_check(rows, heads, dim);
    if (rc || rows == 0 || heads == 0) return rc;
    bound_query_head<<<lsa_blocks(rows * heads, 1), THREADS, 0, (cudaStream_t)stream>>>(
        both, weights, q, w, rows, heads, dim);
    return lsa_launched("bound_query", rows, heads, dim);
}
