/* Private to kv_record.c and kv_record.cu: the arithmetic of fp8 records. */
#ifndef LSA_KV_RECORD_PRIVATE_H
#define LSA_KV_RECORD_PRIVATE_H
#include "kernels/number_formats.h"

enum {
    LSA_KV_TILE = 64,
    LSA_KV_LEAST_AMAX = 0x38d1b717, /* the bits of 1e-4f */
    LSA_INDEX_MOST_FP8_DIM = 4096
};

/* The larger of `most`, the bits of a positive number, and the bits of |x|: positive numbers order as their bits do,
 * NaN last. */
static inline LSA_BODY uint32_t larger_bits(uint32_t most, float x)
{
    uint32_t a = f32_bits(x) & 0x7fffffff;
    return a > most ? a : most;
}

/* The e8m0 byte of 2^ceil(log2(amax / 448)): 448 is 1.75 * 2^8. 0xff when amax is not a number. */
static inline LSA_BODY uint8_t tile_scale(uint32_t amax)
{
    uint32_t byte = (amax >> 23) - 8 + ((amax & 0x7fffff) > 0x600000);
    return (uint8_t)pick(amax >= 0x7f800000, 255, byte);
}

static inline LSA_BODY uint8_t tile_code(float x, uint8_t scale)
{
    float inverse = f32_from_bits((uint32_t)(254 - scale) << 23);
    return (uint8_t)pick(scale == 255, 0x7f, f32_to_e4m3(x * inverse));
}

/* NaN times NaN takes the sign of whichever operand the compiler puts first: it is not computed. */
static inline LSA_BODY float tile_number(uint8_t code, float scale)
{
    return scale != scale ? scale : e4m3_to_f32(code) * scale;
}

/* An index key's scale; NaN when amax is not a number. */
static inline LSA_BODY float key_scale(uint32_t amax)
{
    return amax >= 0x7f800000 ? f32_from_bits(0x7fc00000) : f32_from_bits(amax) / 448;
}

static inline LSA_BODY uint8_t key_code(float x, float scale)
{
    return scale != scale ? 0x7f : f32_to_e4m3(x / scale);
}

#endif
