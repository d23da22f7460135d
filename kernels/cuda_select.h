/* Private to CUDA files: the order of scores as integers, and places in a compaction. */
#ifndef LSA_CUDA_SELECT_H
#define LSA_CUDA_SELECT_H
#include <math.h>

#include "kernels/cuda_launch.h"

/* Unsigned integers in the order of the floats; -0 is 0. NaN and -inf, which are never selected, are 0, and so below
 * every other. */
__device__ static inline uint32_t lsa_score_key(float x)
{
    uint32_t u = __float_as_uint(x + 0.0f);
    if (!(x > -INFINITY)) return 0;
    return u >> 31 ? ~u : u | 0x80000000u;
}

/* How many of a block's threads before this one have `flag`, and how many have it in all. shared: a number a warp; there
 * are barriers before and after its use. */
__device__ static inline int lsa_block_rank(bool flag, int *all, int *shared)
{
    unsigned mask = __ballot_sync(0xffffffff, flag), lane = threadIdx.x % LSA_WARP;
    __syncthreads();
    if (lane == 0) shared[threadIdx.x / LSA_WARP] = __popc(mask);
    __syncthreads();
    int before = 0, total = 0;
    for (unsigned i = 0; i < blockDim.x / LSA_WARP; i++) {
        if (i == threadIdx.x / LSA_WARP) before = total;
        total += shared[i];
    }
    *all = total;
    return before + __popc(mask & ((1u << lane) - 1));
}

enum { LSA_BINS = 2048 }; /* of a histogram of eleven bits */

/* The sum of a warp's values up to a lane, with its own. */
__device__ static inline uint32_t lsa_warp_prefix(uint32_t v, int lane)
{
#pragma unroll
    for (int step = 1; step < LSA_WARP; step *= 2) {
        uint32_t other = __shfl_up_sync(0xffffffff, v, step);
        if (lane >= step) v += other;
    }
    return v;
}

/* How much all threads before this one have, and in *all what all have. shared: a number a warp; there is a barrier before it is */
/* read, and none behind. */
template <int WARPS>
__device__ static inline uint32_t lsa_block_prefix(uint32_t v, uint32_t *all, uint32_t *shared)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    uint32_t sum = lsa_warp_prefix(v, lane);
    if (lane == LSA_WARP - 1) shared[warp] = sum;
    __syncthreads();
    uint32_t others = lsa_warp_prefix(lane < WARPS ? shared[lane] : 0, lane);
    *all = __shfl_sync(0xffffffff, others, LSA_WARP - 1);
    uint32_t before = __shfl_sync(0xffffffff, others, warp ? warp - 1 : 0);
    return (warp ? before : 0) + sum - v;
}

/* Counts a key where `here`; lanes with the same bin count together. All lanes of a warp. */
__device__ static inline void lsa_count_in(uint32_t *bins, uint32_t bin, bool here)
{
    unsigned alike = __match_any_sync(0xffffffff, here ? bin : 0xffffffffu);
    if (here && (alike & ((1u << threadIdx.x % LSA_WARP) - 1)) == 0)
        atomicAdd(&bins[bin], (uint32_t)__popc(alike));
}

/* Of a histogram of which a thread has PER bins, the last thread the first ones: the bin where, from the largest down, the `need`-th
 * is, and how many are above it, in found; false where there are fewer. first: the thread's first bin. All threads. */
template <int PER, int WARPS>
__device__ static inline bool lsa_find_in(const uint32_t (&own)[PER], uint32_t first, uint32_t need,
                                          uint32_t *found, uint32_t *warps)
{
    uint32_t mine = 0, all;
#pragma unroll
    for (int i = 0; i < PER; i++) mine += own[i];
    uint32_t before = lsa_block_prefix<WARPS>(mine, &all, warps);
    if (before < need && before + mine >= need) {
        int i = PER - 1;
#pragma unroll
        for (int j = PER - 1; j > 0; j--) {
            if (i == j && before + own[j] < need) {
                before += own[j];
                i--;
            }
        }
        found[0] = first + i;
        found[1] = before;
    }
    __syncthreads();
    return all >= need;
}

/* Of a word's bits, before which there are `before` others, leaves those that are among the first `most`; how many that is. */
__device__ static inline uint32_t lsa_take_lowest(uint32_t *word, uint32_t before, uint32_t most)
{
    uint32_t count = __popc(*word);
    while (*word && before + count > most) {
        *word &= ~(0x80000000u >> __clz(*word));
        count--;
    }
    return count;
}

#endif
