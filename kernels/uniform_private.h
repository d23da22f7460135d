/* Private to uniform.c and uniform.cu: SplitMix64 at any place of its sequence. */
#ifndef LSA_UNIFORM_PRIVATE_H
#define LSA_UNIFORM_PRIVATE_H
#ifdef __CUDACC__
#include "kernels/cuda_lane.h"
#else
#include "core/base/simd.h"
#endif

/* The finisher of SplitMix64, whose state advances by a constant; its top 24 bits as a number of [0, 1). */
static inline LSA_BODY float uniform_at(uint64_t seed, int64_t i)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)i + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)(int32_t)((z ^ (z >> 31)) >> 40) * 0x1p-24f;
}

#endif
