// RMSNorm on the GPU. What a thread sums, and how threads' sums meet, follows from n alone.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/rmsnorm.h"
}

enum { SHORT = 512, SHORT_ROWS = 8, THREADS = 256, HELD = 4 }; // vectors a thread

// ---- kernels ----

__device__ static float squares(float4 v, float sum)
{
    return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
}

__device__ static float4 scaled(float4 v, float scale, float4 w)
{
    return make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
}

// A row by `threads` threads, `thread` one of them, in fours.
__device__ static float row_squares(const float *x, int64_t n, int thread, int threads, bool whole)
{
    float sum = 0;
    for (int64_t i = 4 * thread; i < n; i += 4 * threads)
        sum = squares(lsa_load4(x, i, n, whole), sum);
    return sum;
}

__device__ static void write_row(float *y, const float *x, const float *weight, int64_t n,
                                 float scale, int thread, int threads, bool whole)
{
    float4 w = {1, 1, 1, 1};
    for (int64_t i = 4 * thread; i < n; i += 4 * threads) {
        if (weight) w = lsa_load4(weight, i, n, whole);
        lsa_store4(y, i, n, whole, scaled(lsa_load4(x, i, n, whole), scale, w));
    }
}

// A warp a row. Grid: (ceil(rows / 8)), block: 256.
__global__ static void rmsnorm_short(float *y, const float *x, const float *weight, int64_t rows,
                                     int64_t n, float eps, bool whole)
{
    int lane = threadIdx.x % LSA_WARP;
    for (int64_t r = lsa_thread() / LSA_WARP; r < rows; r += lsa_threads() / LSA_WARP) {
        float sum = lsa_warp_sum(row_squares(x + r * n, n, lane, LSA_WARP, whole));
        float scale = 1.0f / sqrtf(sum / (float)n + eps);
        write_row(y + r * n, x + r * n, weight, n, scale, lane, LSA_WARP, whole);
    }
}

// A block a row, which threads keep from its sum to its scaling where it is not too long. Grid: (rows), block: 256, shared: 32 B.
__global__ static void __launch_bounds__(THREADS, 2)
    rmsnorm_long(float *y, const float *x, const float *weight, int64_t rows, int64_t n, float eps,
                 bool whole)
{
    __shared__ float sums[THREADS / LSA_WARP];
    lsa_after_previous();
    bool held = n <= HELD * 4 * THREADS;
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        float4 v[HELD], w[HELD];
        float own = 0;
        if (held) {
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                int64_t at = 4 * (i * THREADS + (int64_t)threadIdx.x);
                v[i] = lsa_load4(x + r * n, at, n, whole);
                w[i] = weight ? lsa_load4(weight, at, n, whole) : make_float4(1, 1, 1, 1);
            }
#pragma unroll
            for (int i = 0; i < HELD; i++) own = squares(v[i], own);
        } else {
            own = row_squares(x + r * n, n, threadIdx.x, THREADS, whole);
        }
        float scale = 1.0f / sqrtf(lsa_block_sum(own, sums) / (float)n + eps);
        if (held) {
#pragma unroll
            for (int i = 0; i < HELD; i++)
                lsa_store4(y + r * n, 4 * (i * THREADS + (int64_t)threadIdx.x), n, whole,
                           scaled(v[i], scale, w[i]));
        } else {
            write_row(y + r * n, x + r * n, weight, n, scale, threadIdx.x, THREADS, whole);
        }
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_rmsnorm_cuda(float *y, const float *x, const float *weight, int64_t rows, int64_t n,
                     float eps, void *stream)
{
    int rc = lsa_rmsnorm_check(rows, n);
    if (rc || rows == 0) return rc;
    bool whole = n % 4 == 0 && ((uintptr_t)y | (uintptr_t)x | (uintptr_t)weight) % 16 == 0;
    if (n <= SHORT)
        rmsnorm_short<<<lsa_blocks(rows, SHORT_ROWS), THREADS, 0, (cudaStream_t)stream>>>(
            y, x, weight, rows, n, eps, whole);
    else
        lsa_launch(rmsnorm_long, lsa_blocks(rows, 1), THREADS, 0, stream, y, x, weight, rows, n,
                   eps, whole);
    return lsa_launched("rmsnorm", rows, n);
}
