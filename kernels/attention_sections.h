/* Private to attention.cu and attention_heads.h: sections of a query's keys, and how their sums are joined. */
#ifndef LSA_ATTENTION_SECTIONS_H
#define LSA_ATTENTION_SECTIONS_H
#include "kernels/attention_cuda.h"

enum {
    WARPS = 4, // of a block; a lane has 4 numbers of each 128 of a head or key
    THREADS = WARPS * LSA_WARP,
    WARP_HEADS = 4,
    GROUP = WARPS * WARP_HEADS, // heads that share a decoded key
    TILE = 32,                  // keys; a lane's own in the softmax
    SECTION = 128,              // keys that one online softmax covers
    QUADS = 4,                  // keys whose scores are summed together
    MOST_DIM = 512,
    SPLIT_ROWS = 16 // calls of so many queries are split by sections
};

__device__ static int64_t sections_for(int64_t keys) { return (keys + SECTION - 1) / SECTION; }

static int64_t sections_of(int64_t keys) { return (keys + SECTION - 1) / SECTION; }

__device__ static float dot4(float4 a, float4 b, float sum)
{
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ static float warp_max(float v)
{
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, step));
    return v;
}

// One head's sums and those of a section: *mine and *other are what values are multiplied by.
__device__ static void join(float &max, float &sum, float part_max, float part_sum, float *mine,
                            float *other)
{
    float larger = fmaxf(max, part_max), base = finite_max(larger);
    *mine = expf(max - base);
    *other = expf(part_max - base);
    sum = __fadd_rn(__fmul_rn(sum, *mine), __fmul_rn(part_sum, *other));
    max = larger;
}

__device__ static float joined(float value, float mine, float part, float other)
{
    return fmaf(part, other, __fmul_rn(value, mine));
}

__device__ static float4 joined4(float4 v, float mine, float4 part, float other)
{
    return make_float4(joined(v.x, mine, part.x, other), joined(v.y, mine, part.y, other),
                       joined(v.z, mine, part.z, other), joined(v.w, mine, part.w, other));
}

// Section `index` of a query: its keys are from .. end - 1 of its window or of its records. False: it has none.
__device__ static bool section_at(const call &c, const query &q, int64_t index, bool *records,
                                  int64_t *from, int64_t *end)
{
    *records = index >= c.window_sections;
    *from = (*records ? index - c.window_sections : index) * SECTION;
    *end = min(*records ? q.records : q.position + 1 - q.first, *from + SECTION);
    return *from < *end;
}

#endif
