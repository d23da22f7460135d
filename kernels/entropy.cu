// Entropy on the GPU: a block a row.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/entropy.h"
}

enum { THREADS = 512 };

// ---- kernels ----

__device__ static float block_largest(float own, float *shared)
{
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2)
        own = fmaxf(own, __shfl_xor_sync(0xffffffff, own, step));
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = own;
    __syncthreads();
    for (int i = 0; i < THREADS / LSA_WARP; i++) own = fmaxf(own, shared[i]);
    return own;
}

// Grid: (rows), block: 512.
__global__ static void __launch_bounds__(THREADS, 2)
    entropy_row(double *out, const float *rows, int64_t n, int64_t vocab)
{
    __shared__ float tops[THREADS / LSA_WARP];
    __shared__ double sums[THREADS / LSA_WARP], weights[THREADS / LSA_WARP];
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x) {
        const float *logits = rows + r * vocab;
        float top = -INFINITY; // fmaxf passes NaN over
        for (int64_t i = threadIdx.x; i < vocab; i += THREADS) top = fmaxf(top, logits[i]);
        double most = block_largest(top, tops), sum = 0, weighted = 0;
        for (int64_t i = threadIdx.x; i < vocab; i += THREADS) {
            double d = logits[i] - most, e = exp(d);
            sum += e; // a NaN among the logits shows here
            if (e > 0) weighted += e * d;
        }
        sum = lsa_block_sum(sum, sums);
        weighted = lsa_block_sum(weighted, weights);
        if (threadIdx.x == 0) out[r] = isinf(most) ? nan("") : log(sum) - weighted / sum;
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_entropy_cuda(double *out, const float *logits, int64_t n, int64_t vocab, void *stream)
{
    int rc = lsa_entropy_check(n, vocab);
    if (rc || n == 0) return rc;
    entropy_row<<<lsa_blocks(n, 1), THREADS, 0, (cudaStream_t)stream>>>(out, logits, n, vocab);
    return lsa_launched("entropy", n, vocab);
}
