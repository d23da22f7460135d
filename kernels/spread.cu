// The highest value near each element, on the GPU: windows that double, in shared memory.
#include "kernels/cuda_launch.h"
#include "kernels/vector_math.h"

extern "C" {
#include "kernels/spread.h"
}

enum { THREADS = 256, BLOCK = 1024, MOST = BLOCK + 2 * LSA_SPREAD_MOST };

// ---- kernels ----

// held[i] begins as element from - radius + i and ends as the largest of the 2 radius + 1 from there on; in a step it
// takes in what lies behind it, so threads read before any of them writes. Grid: (ceil(n / 1024)), block: 256,
// shared: 8 KB.
__global__ static void spread_block(float *out, const float *x, int64_t n, int radius)
{
    __shared__ float held[MOST];
    for (int64_t from = (int64_t)blockIdx.x * BLOCK; from < n; from += (int64_t)gridDim.x * BLOCK) {
        int m = (int)min((int64_t)BLOCK, n - from), width = m + 2 * radius;
        for (int i = threadIdx.x; i < width; i += THREADS) {
            int64_t at = from - radius + i;
            held[i] = at >= 0 && at < n ? x[at] : -INFINITY;
        }
        for (int done = 0, step; done < 2 * radius; done += step) {
            float next[MOST / THREADS];
            step = min(done + 1, 2 * radius - done);
            __syncthreads();
#pragma unroll
            for (int j = 0; j < MOST / THREADS; j++) {
                int i = threadIdx.x + j * THREADS;
                if (i + step < width) next[j] = f32x16_larger(held[i], held[i + step]).lane;
            }
            __syncthreads();
#pragma unroll
            for (int j = 0; j < MOST / THREADS; j++) {
                int i = threadIdx.x + j * THREADS;
                if (i + step < width) held[i] = next[j];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < m; i += THREADS) out[from + i] = held[i];
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_spread_cuda(float *out, const float *x, int64_t n, int64_t radius, void *stream)
{
    int rc = lsa_spread_check(n, radius);
    if (rc || n == 0) return rc;
    spread_block<<<lsa_blocks(n, BLOCK), THREADS, 0, (cudaStream_t)stream>>>(out, x, n,
                                                                             (int)radius);
    return lsa_launched("spread", n, radius);
}
