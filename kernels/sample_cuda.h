/* Private to CUDA files: one row's token, by a block or a cluster of them; warps share the row's parts. */
#ifndef LSA_SAMPLE_CUDA_H
#define LSA_SAMPLE_CUDA_H
#include <cooperative_groups.h>

#include "kernels/cuda_launch.h"
#include "kernels/xorshift.h"

enum {
    SAMPLE_THREADS = 1024,
    SAMPLE_PARTS = SAMPLE_THREADS / LSA_WARP,
    SAMPLE_BLOCKS = 8,   // of a cluster at most
    SAMPLE_GROUPS = 4096 // of neighbours whose sums a block holds
};

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

// The largest of logits from .. to - 1, in all threads; at < 0 where a NaN is.
__device__ static top largest(const float *logits, int64_t from, int64_t to, top *shared)
{
    constexpr int AHEAD = 4;
    top own = {-INFINITY, INT32_MAX};
    for (int64_t i = from + threadIdx.x; i < to; i += AHEAD * SAMPLE_THREADS) {
        float v[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            v[a] = i + a * SAMPLE_THREADS < to ? logits[i + a * SAMPLE_THREADS] : -INFINITY;
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            if (i + a * SAMPLE_THREADS < to)
                own = larger(own, v[a] == v[a] ? top{v[a], (int32_t)(i + a * SAMPLE_THREADS)}
                                               : top{0, -1});
    }
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

// The token drawn from `vocab` logits (kernels/sample.h), in all threads of a cluster of 1, 2, 4 or 8 blocks that share the row's
// parts; *state moves where it draws. A block draws once. Ends with a barrier.
__device__ static int32_t token_of(const float *logits, uint64_t *state, double temperature,
                                   int32_t vocab)
{
    __shared__ top tops[SAMPLE_PARTS], of_blocks[SAMPLE_BLOCKS];
    __shared__ double parts[SAMPLE_PARTS], groups[SAMPLE_GROUPS];
    __shared__ int32_t token;
    cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    int blocks = (int)cluster.num_blocks(), rank = (int)cluster.block_rank();
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int own_parts = SAMPLE_PARTS / blocks;
    int64_t each = ((int64_t)vocab + SAMPLE_PARTS - 1) / SAMPLE_PARTS, end = vocab;
    each = (each + LSA_WARP - 1) / LSA_WARP * LSA_WARP;
    uint64_t moved = *state;
    int64_t from = min(end, rank * own_parts * each), to = min(end, from + own_parts * each);
    top first = largest(logits, from, to, tops);
    if (threadIdx.x < blocks) cluster.map_shared_rank(of_blocks, threadIdx.x)[rank] = first;
    cluster.sync();
    first = of_blocks[0];
    for (int b = 1; b < blocks; b++) first = larger(first, of_blocks[b]);
    bool none = first.at < 0 || isinf(first.logit);
    if (none || temperature == 0) { // the same in all threads
        __syncthreads();
        return none ? -1 : first.at;
    }
    // Warps that share a part take its groups of neighbours in turns, if there is room for their sums.
    double most = first.logit, own = 0;
    int64_t of_part = each / LSA_WARP;
    bool held = own_parts * of_part <= SAMPLE_GROUPS;
    int part = rank * own_parts + warp / blocks;
    double *own_groups = groups + warp / blocks * of_part;
    from = min(end, part * each), to = min(end, from + each);
    if (held)
#pragma unroll 2
        for (int64_t g = warp % blocks; g < of_part; g += blocks) {
            double sum =
                lsa_warp_sum(weight_of(logits, from + g * LSA_WARP + lane, to, most, temperature));
            if (lane == 0) own_groups[g] = sum;
        }
    __syncthreads();
    if (warp % blocks == 0) {
#pragma unroll 1
        for (int64_t g = 0; g < of_part; g++)
            own += held ? own_groups[g]
                        : lsa_warp_sum(
                              weight_of(logits, from + g * LSA_WARP + lane, to, most, temperature));
        if (lane < blocks) cluster.map_shared_rank(parts, lane)[part] = own;
    }
    cluster.sync();
    if (warp == 0) {
        double sum = 0, before = 0;
#pragma unroll 1
        for (int p = 0; p < SAMPLE_PARTS; p++) sum += parts[p];
        double left = lsa_xorshift(&moved) * sum;
        int64_t found_part = 0, group = 0, found = 0;
#pragma unroll 1
        for (int p = 0; p < SAMPLE_PARTS; p++)
            if (falls_below(parts[p], p, &left, &found_part, &before)) break;
        if (found_part / own_parts == rank) { // the same in all lanes
            left = before;
            from = min(end, found_part * each), to = min(end, from + each);
            own_groups = groups + (found_part - rank * own_parts) * of_part;
#pragma unroll 1
            for (int64_t g = 0; g < of_part; g++) {
                double some = held ? own_groups[g]
                                   : lsa_warp_sum(weight_of(logits, from + g * LSA_WARP + lane, to,
                                                            most, temperature));
                if (falls_below(some, g, &left, &group, &before)) break;
            }
            left = before;
            found = from + group * LSA_WARP;
            double e = weight_of(logits, found + lane, to, most, temperature);
            int64_t first_id = found;
#pragma unroll 1
            for (int i = 0; i < LSA_WARP; i++)
                if (falls_below(__shfl_sync(0xffffffff, e, i), first_id + i, &left, &found,
                                &before))
                    break;
            if (lane < blocks) *cluster.map_shared_rank(&token, lane) = (int32_t)found;
            if (lane == 0) *state = moved;
        }
    }
    cluster.sync();
    return token;
}

#endif
