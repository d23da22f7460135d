// The Walsh-Hadamard transform on the GPU, with the CPU's bits: the same butterflies in the same order.
#include "kernels/cuda_launch.h"
#include "kernels/hadamard_cuda.h"

extern "C" {
#include "kernels/hadamard.h"
}

enum { THREADS = 256, LEAST_TILE = 1024, MOST_TILE = 8192 };

// ---- kernels ----

// Rows, or parts of rows, of dim values. Grid: (tiles), block: 256, shared: 4 tile bytes.
__global__ static void hadamard_tiles(float *x, int64_t n, int tile, int dim, float scale)
{
    extern __shared__ float held[];
    for (int64_t from = (int64_t)blockIdx.x * tile; from < n; from += (int64_t)gridDim.x * tile) {
        int count = (int)min((int64_t)tile, n - from);
        for (int i = threadIdx.x; i < count; i += THREADS) held[i] = x[from + i];
        __syncthreads();
        lsa_butterflies(held, count, dim);
        for (int i = threadIdx.x; i < count; i += THREADS) x[from + i] = held[i] * scale;
        __syncthreads();
    }
}

// Butterflies of one distance, beyond a tile. Grid: (ceil(n / 512)), block: 256.
__global__ static void hadamard_far(float *x, int64_t n, int64_t distance, float scale)
{
    for (int64_t p = lsa_thread(); p < n / 2; p += lsa_threads()) {
        int64_t i = 2 * p - (p & (distance - 1));
        float low = x[i], high = x[i + distance];
        x[i] = (low + high) * scale;
        x[i + distance] = (low - high) * scale;
    }
}

// ---- launcher ----

int lsa_hadamard_cuda(float *x, int64_t rows, int64_t dim, void *stream)
{
    int rc = lsa_hadamard_check(rows, dim);
    if (rc || rows == 0) return rc;
    float scale = (float)(1 / sqrt((double)dim));
    int64_t n = rows * dim, near = dim < MOST_TILE ? dim : (int64_t)MOST_TILE;
    int tile = (int)(near < LEAST_TILE ? (int64_t)LEAST_TILE : near);
    hadamard_tiles<<<lsa_blocks(n, tile), THREADS, tile * sizeof(float), (cudaStream_t)stream>>>(
        x, n, tile, (int)near, near == dim ? scale : 1.0f);
    for (int64_t h = near; h < dim; h *= 2)
        hadamard_far<<<lsa_blocks(n / 2, THREADS), THREADS, 0, (cudaStream_t)stream>>>(
            x, n, h, 2 * h == dim ? scale : 1.0f);
    return lsa_launched("hadamard", rows, dim);
}
