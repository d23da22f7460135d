// Reductions on the GPU, in the order that the contract gives, so with the CPU's bits.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/reduce.h"
}

enum { THREADS = 256, LANES = 16, ARGMAX_THREADS = 512 };

// ---- helpers ----

__device__ static double nothing_of(int32_t op)
{
    return op == LSA_REDUCE_MIN ? INFINITY : op == LSA_REDUCE_MAX ? -INFINITY : 0.0;
}

// NaN, once met, stays.
__device__ static double joined(double a, double b, int32_t op)
{
    if (op == LSA_REDUCE_MIN) return a < b || a != a ? a : b;
    if (op == LSA_REDUCE_MAX) return a > b || a != a ? a : b;
    return a + b;
}

// The larger value of the lower place; NaN never wins.
__device__ static void take_larger(float &value, int32_t &id, float v, int32_t i)
{
    if (v > value || (v == value && (uint32_t)i < (uint32_t)id)) {
        value = v;
        id = i;
    }
}

// ---- kernels ----

// Sixteen threads a row: partial sum j mod 16 each, then pairwise. Grid: (ceil(rows / 16)), block: 256.
__global__ static void reduce_rows(float *out, const float *in, int64_t rows, int64_t n, int32_t op)
{
    int lane = threadIdx.x % LANES;
    int64_t stride = lsa_threads() / LANES, whole = (rows + stride - 1) / stride * stride;
    for (int64_t r = lsa_thread() / LANES; r < whole; r += stride) { // the same rounds in a warp
        double a = nothing_of(op);
        if (r < rows)
            for (int64_t j = lane; j < n; j += LANES) a = joined(a, in[r * n + j], op);
#pragma unroll
        for (int step = LANES / 2; step; step /= 2)
            a = joined(a, __shfl_down_sync(0xffffffff, a, step, LANES), op);
        if (r < rows && lane == 0) out[r] = (float)(op == LSA_REDUCE_MEAN ? a / (double)n : a);
    }
}

// A column a thread, j ascending. Grid: (ceil(outer inner / 256)), block: 256.
__global__ static void reduce_columns(float *out, const float *in, int64_t outer, int64_t n,
                                      int64_t inner, int32_t op)
{
    for (int64_t i = lsa_thread(); i < outer * inner; i += lsa_threads()) {
        const float *x = in + i / inner * n * inner + i % inner;
        double a = nothing_of(op);
        for (int64_t j = 0; j < n; j++) a = joined(a, x[j * inner], op);
        out[i] = (float)(op == LSA_REDUCE_MEAN ? a / (double)n : a);
    }
}

// A block a row; place -1 loses every tie. Grid: (rows), block: 512, shared: 128 B.
__global__ static void argmax_row(int32_t *ids, const float *in, int64_t rows, int64_t n)
{
    __shared__ float values[ARGMAX_THREADS / LSA_WARP];
    __shared__ int32_t places[ARGMAX_THREADS / LSA_WARP];
    for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
        float value = -INFINITY;
        int32_t id = -1;
        for (int64_t i = threadIdx.x; i < n; i += ARGMAX_THREADS)
            take_larger(value, id, in[r * n + i], (int32_t)i);
#pragma unroll
        for (int step = LSA_WARP / 2; step; step /= 2) {
            float v = __shfl_xor_sync(0xffffffff, value, step);
            int32_t i = __shfl_xor_sync(0xffffffff, id, step);
            take_larger(value, id, v, i);
        }
        if (threadIdx.x % LSA_WARP == 0) {
            values[threadIdx.x / LSA_WARP] = value;
            places[threadIdx.x / LSA_WARP] = id;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int i = 1; i < ARGMAX_THREADS / LSA_WARP; i++)
                take_larger(value, id, values[i], places[i]);
            ids[r] = id;
        }
        __syncthreads();
    }
}

// ---- launchers ----

int lsa_reduce_cuda(float *out, const float *in, int64_t outer, int64_t n, int64_t inner,
                    int32_t op, void *stream)
{
    int rc = lsa_reduce_check(outer, n, inner, op);
    if (rc || outer == 0 || inner == 0) return rc;
    cudaStream_t s = (cudaStream_t)stream;
    if (inner == 1)
        reduce_rows<<<lsa_blocks(outer, THREADS / LANES), THREADS, 0, s>>>(out, in, outer, n, op);
    else
        reduce_columns<<<lsa_blocks(outer * inner, THREADS), THREADS, 0, s>>>(out, in, outer, n,
                                                                              inner, op);
    return lsa_launched("reduce", outer, n, inner);
}

int lsa_argmax_cuda(int32_t *ids, const float *in, int64_t rows, int64_t n, void *stream)
{
    int rc = lsa_argmax_check(rows, n);
    if (rc || rows == 0) return rc;
    argmax_row<<<lsa_blocks(rows, 1), ARGMAX_THREADS, 0, (cudaStream_t)stream>>>(ids, in, rows, n);
    return lsa_launched("argmax", rows, n);
}
