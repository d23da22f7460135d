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

#endif
