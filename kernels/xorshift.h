/* Private to C and CUDA files: the generator of lua/lsa/cycle/rng.lua, xorshift64* (S. Vigna, "An experimental
 * exploration of Marsaglia's xorshift generators, scrambled", 2016). */
#ifndef LSA_XORSHIFT_H
#define LSA_XORSHIFT_H
#ifdef __CUDACC__
#include "kernels/cuda_lane.h"
#else
#include "core/base/simd.h"
#endif

/* The next number, in [0, 1). A state of 0 stays 0. */
static inline LSA_BODY double lsa_xorshift(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return (double)((x * 2685821657736338717u) >> 11) * 0x1p-53;
}

#endif
