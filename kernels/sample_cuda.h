/* Private to CUDA files: one row's token, by a block; a warp takes a part of the row. */
#ifndef LSA_SAMPLE_CUDA_H
#define LSA_SAMPLE_CUDA_H
#include "kernels/cuda_launch.h"
#include "kernels/xorshift.h"

enum { SAMPLE_THREADS = 1024, SAMPLE_PARTS = SAMPLE_THREADS / LSA_WARP };

// A logit and where it is; a NaN anywhere stays.
struct top {
    float logit;
    int32_t at; // -1: a NaN
};

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
    for (int64_t i = threadIdx.x; i < n; i += SAMPLE_THREADS)
        own = larger(own, logits[i] == logits[i] ? top{logits[i], (int32_t)i} : top{0, -1});
    own = warp_largest(own);
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = own;
    __syncthreads();
    return warp_largest(shared[threadIdx.x % LSA_WARP]);
}

// e of the logit at i, 0 beyond the part.
__device__ static double weight_of(const float *logits, int64_t i, int64_t end, double most,
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

// The token drawn from `vocab` logits (kernels/sample.h), in all threads of the block; *state moves where it draws. Ends with a
// barrier.
__device__ static int32_t token_of(const float *logits, uint64_t *state, double temperature,
                                   int32_t vocab)
{
    __shared__ top tops[SAMPLE_PARTS];
    __shared__ double parts[SAMPLE_PARTS];
    __shared__ int32_t token;
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int64_t each = ((int64_t)vocab + SAMPLE_PARTS - 1) / SAMPLE_PARTS;
    each = (each + LSA_WARP - 1) / LSA_WARP * LSA_WARP;
    top first = largest(logits, vocab, tops);
    bool none = first.at < 0 || isinf(first.logit);
    if (none || temperature == 0) { // the same in all threads
        __syncthreads();
        return none ? -1 : first.at;
    }
    double most = first.logit, own = 0;
    int64_t from = warp * each, to = min(from + each, (int64_t)vocab);
#pragma unroll 1
    for (int64_t i = from; i < to; i += LSA_WARP)
        own += lsa_warp_sum(weight_of(logits, i + lane, to, most, temperature));
    if (lane == 0) parts[warp] = own;
    __syncthreads();
    if (warp == 0) {
        double sum = 0, before = 0;
#pragma unroll 1
        for (int p = 0; p < SAMPLE_PARTS; p++) sum += parts[p];
        uint64_t moved = *state;
        double left = lsa_xorshift(&moved) * sum;
        int64_t part = 0, group = 0, found = 0;
#pragma unroll 1
        for (int p = 0; p < SAMPLE_PARTS; p++)
            if (falls_below(parts[p], p, &left, &part, &before)) break;
        left = before;
        from = part * each, to = min(from + each, (int64_t)vocab);
        group = from;
#pragma unroll 1
        for (int64_t i = from; i < to; i += LSA_WARP) {
            double some = lsa_warp_sum(weight_of(logits, i + lane, to, most, temperature));
            if (falls_below(some, i, &left, &group, &before)) break;
        }
        left = before;
        found = group;
        double e = weight_of(logits, group + lane, to, most, temperature);
#pragma unroll 1
        for (int i = 0; i < LSA_WARP; i++)
            if (falls_below(__shfl_sync(0xffffffff, e, i), group + i, &left, &found, &before))
                break;
        if (lane == 0) token = (int32_t)found, *state = moved;
    }
    __syncthreads();
    return token;
}

#endif
