// Drawing tokens on the GPU: a block a row, a warp a part of it.
#include "kernels/cuda_launch.h"
#include "kernels/xorshift.h"

extern "C" {
#include "kernels/sample.h"
}

enum { THREADS = 1024, PARTS = THREADS / LSA_WARP };

// A logit and where it is; a NaN anywhere stays.
struct top {
    float logit;
    int32_t at; // -1: a NaN
};

// ---- helpers ----

__device__ static top larger(top a, top b)
{
    if (a.at < 0) return a;
    if (b.at < 0) return b;
    return b.logit > a.logit || (b.logit == a.logit && b.at < a.at) ? b : a;
}

__device__ static top warp_largest(top own)
{
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2) {
        top other = {__shfl_xor_sync(0xffffffff, own.logit, step),
                     __shfl_xor_sync(0xffffffff, own.at, step)};
        own = larger(own, other);
    }
    return own;
}

// The largest of a row, in all threads; at < 0 where a NaN is.
__device__ static top largest(const float *logits, int32_t n, top *shared)
{
    top own = {-INFINITY, INT32_MAX};
    for (int64_t i = threadIdx.x; i < n; i += THREADS)
        own = larger(own, logits[i] == logits[i] ? top{logits[i], (int32_t)i} : top{0, -1});
    own = warp_largest(own);
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = own;
    __syncthreads();
    return warp_largest(shared[threadIdx.x % LSA_WARP]);
}

// e of the logit at i, 0 beyond the part.
__device__ static double weight_at(const float *logits, int64_t i, int64_t end, double most,
                                   double temperature)
{
    return i < end ? exp((logits[i] - most) / temperature) : 0;
}

// One step of the search: takes a sum off. Returns whether the search ends there; `found` and `before` are the last place
// with a positive sum and what was left in front of it.
__device__ static bool falls_below(double sum, int64_t place, double *left, int64_t *found,
                                   double *before)
{
    if (sum > 0) *found = place, *before = *left;
    *left -= sum;
    return *left < 0;
}

// ---- kernels ----

// Grid: (rows), block: 1024.
__global__ static void __launch_bounds__(THREADS, 1)
    sample_row(int32_t *tokens, const float *rows, uint64_t *states, const double *temperatures,
               int64_t n, int32_t vocab)
{
    __shared__ top tops[PARTS];
    __shared__ double parts[PARTS];
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int64_t each = ((int64_t)vocab + PARTS - 1) / PARTS;
    each = (each + LSA_WARP - 1) / LSA_WARP * LSA_WARP;
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x) {
        const float *logits = rows + r * vocab;
        double temperature = temperatures[r];
        top first = largest(logits, vocab, tops);
        bool none = first.at < 0 || isinf(first.logit);
        if (none || temperature == 0) { // the same in all threads
            if (threadIdx.x == 0) tokens[r] = none ? -1 : first.at;
            __syncthreads();
            continue;
        }
        double most = first.logit, own = 0;
        int64_t from = warp * each, to = min(from + each, (int64_t)vocab);
#pragma unroll 1
        for (int64_t i = from; i < to; i += LSA_WARP)
            own += lsa_warp_sum(weight_at(logits, i + lane, to, most, temperature));
        if (lane == 0) parts[warp] = own;
        __syncthreads();
        if (warp == 0) {
            double sum = 0, before = 0;
#pragma unroll 1
            for (int p = 0; p < PARTS; p++) sum += parts[p];
            uint64_t state = states[r];
            double left = lsa_xorshift(&state) * sum;
            int64_t part = 0, group = 0, found = 0;
#pragma unroll 1
            for (int p = 0; p < PARTS; p++)
                if (falls_below(parts[p], p, &left, &part, &before)) break;
            left = before;
            from = part * each, to = min(from + each, (int64_t)vocab);
            group = from;
#pragma unroll 1
            for (int64_t i = from; i < to; i += LSA_WARP) {
                double some = lsa_warp_sum(weight_at(logits, i + lane, to, most, temperature));
                if (falls_below(some, i, &left, &group, &before)) break;
            }
            left = before;
            found = group;
            double e = weight_at(logits, group + lane, to, most, temperature);
#pragma unroll 1
            for (int i = 0; i < LSA_WARP; i++)
                if (falls_below(__shfl_sync(0xffffffff, e, i), group + i, &left, &found, &before))
                    break;
            if (lane == 0) tokens[r] = (int32_t)found, states[r] = state;
        }
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_sample_cuda(int32_t *tokens, const float *logits, uint64_t *states,
                    const double *temperatures, int64_t n, int64_t vocab, void *stream)
{
    int rc = lsa_sample_check(n, vocab);
    if (rc || n == 0) return rc;
    sample_row<<<lsa_blocks(n, 1), THREADS, 0, (cudaStream_t)stream>>>(
        tokens, logits, states, temperatures, n, (int32_t)vocab);
    return lsa_launched("sample");
}
