// Sums of softmaxes on the GPU. Blocks share out the columns; each finds the rows' largest values and denominators for
// itself, in one order, for there is no workspace to hand them over in.
#include "kernels/cuda_launch.h"
#include "kernels/vector_math.h"

extern "C" {
#include "kernels/softmax_sum.h"
}

enum { THREADS = 512, COLUMNS = 8192 };

// ---- helpers ----

// The largest of a block's values; NaN where one of them is.
__device__ static float block_largest(float v, float *shared)
{
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2)
        v = f32x16_larger(v, __shfl_xor_sync(0xffffffff, v, step)).lane;
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = v;
    __syncthreads();
    for (int i = 0; i < THREADS / LSA_WARP; i++) v = f32x16_larger(v, shared[i]).lane;
    return v;
}

// ---- kernels ----

// Grid: (ceil(n / 8192)), block: 512, shared: 0.2 KB.
__global__ static void __launch_bounds__(THREADS)
    softmax_sum_columns(float *out, const float *in, int64_t rows, int64_t n)
{
    __shared__ float largests[THREADS / LSA_WARP];
    __shared__ double sums[THREADS / LSA_WARP];
    int64_t from = (int64_t)blockIdx.x * COLUMNS, to = min(n, from + COLUMNS);
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) out[i] = 0;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = in + r * n;
        float largest = -INFINITY;
        for (int64_t i = threadIdx.x; i < n; i += THREADS)
            largest = f32x16_larger(largest, x[i]).lane;
        largest = block_largest(largest, largests);
        double sum = 0;
        for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += expf(x[i] - largest);
        double all = lsa_block_sum(sum, sums);
        float share = largest - largest == 0 ? (float)(1.0 / all) : NAN;
        for (int64_t i = from + threadIdx.x; i < to; i += THREADS)
            out[i] += expf(x[i] - largest) * share;
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_softmax_sum_cuda(float *out, const float *in, int64_t rows, int64_t n, void *stream)
{
    int rc = lsa_softmax_sum_check(rows, n);
    if (rc || n == 0) return rc;
    unsigned blocks = (unsigned)((n + COLUMNS - 1) / COLUMNS);
    softmax_sum_columns<<<blocks, THREADS, 0, (cudaStream_t)stream>>>(out, in, rows, n);
    return lsa_launched("softmax_sum", rows, n);
}
