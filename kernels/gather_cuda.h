/* Private to CUDA files: copying records by warps. A warp takes 4 KB at a time, eight 16-byte loads in flight a thread, so that few
 * multiprocessors keep the bus full whatever its latency. */
#ifndef LSA_GATHER_CUDA_H
#define LSA_GATHER_CUDA_H
#include "kernels/cuda_launch.h"

enum { LSA_IN_FLIGHT = 8, LSA_PART_WORDS = LSA_IN_FLIGHT * LSA_WARP /* of 16 bytes */ };

/* How many parts a record has; one where there is less. */
__device__ static inline int64_t lsa_parts_of(int64_t bytes)
{
    int64_t parts = (bytes / 16 + LSA_PART_WORDS - 1) / LSA_PART_WORDS;
    return parts ? parts : 1;
}

/* Copies a part of a record; both lie on 16 bytes. All lanes of a warp. */
__device__ static inline void lsa_copy_part(uint8_t *target, const uint8_t *source, int64_t bytes,
                                            int64_t part)
{
    int64_t words = bytes / 16, lane = threadIdx.x % LSA_WARP, at = part * LSA_PART_WORDS + lane;
    const uint4 *in = (const uint4 *)source;
    uint4 *out = (uint4 *)target, held[LSA_IN_FLIGHT];
#pragma unroll
    for (int j = 0; j < LSA_IN_FLIGHT; j++)
        if (at + j * LSA_WARP < words) held[j] = __ldcs(in + at + j * LSA_WARP);
#pragma unroll
    for (int j = 0; j < LSA_IN_FLIGHT; j++)
        if (at + j * LSA_WARP < words) out[at + j * LSA_WARP] = held[j];
    if (part == 0 && lane < bytes % 16) target[words * 16 + lane] = source[words * 16 + lane];
}

#endif
