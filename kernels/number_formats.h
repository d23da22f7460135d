/* Private to C and CUDA files: the small float formats, one number at a time and, in C, by the vector.
 *
 * One at a time: exact to the standard, round to nearest even, without branches, so that loops over
 * them vectorise. By the vector: the same bits, for the kernels that stream weights and records.
 * A NaN keeps its sign and the top of its payload and becomes quiet, as F16C does it. */
#ifndef LSA_NUMBER_FORMATS_H
#define LSA_NUMBER_FORMATS_H
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#include "kernels/cuda_lane.h"
#else
#include "core/base/simd.h"
#endif

static inline LSA_BODY uint32_t f32_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline LSA_BODY float f32_from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* A select that GCC turns into a blend. */
static inline LSA_BODY uint32_t pick(int condition, uint32_t yes, uint32_t no)
{
    return condition ? yes : no;
}

static inline LSA_BODY float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }

static inline LSA_BODY uint16_t f32_to_bf16(float x)
{
    uint32_t u = f32_bits(x);
    uint32_t rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return (uint16_t)pick((u & 0x7fffffff) > 0x7f800000, u >> 16 | 0x40, rounded);
}

static inline LSA_BODY float f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, a = (uint32_t)(h & 0x7fff) << 13;
    /* 2^-14 (1 + m) - 2^-14 normalises a subnormal. */
    uint32_t small = f32_bits(f32_from_bits(a | 0x38800000) - f32_from_bits(0x38800000));
    uint32_t special = a | 0x7f800000 | (uint32_t)((h & 0x3ff) != 0) << 22;
    uint32_t u = pick(a < 0x00800000, small, a + 0x38000000);
    return f32_from_bits(sign | pick(a >= 0x0f800000, special, u));
}

static inline LSA_BODY uint16_t f32_to_f16(float x)
{
    uint32_t u = f32_bits(x), a = u & 0x7fffffff;
    /* Numbers of 0.5's binade are 2^-24 apart, as f16's subnormals are: the addition rounds. */
    uint32_t small = f32_bits(f32_from_bits(a) + 0.5f) - 0x3f000000;
    uint32_t normal = (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
    uint32_t r = pick(a < 0x38800000, small, normal);
    r = pick(a >= 0x47800000, 0x7c00, r);
    r = pick(a > 0x7f800000, 0x7e00 | (a >> 13 & 0x3ff), r);
    return (uint16_t)(r | (u >> 16 & 0x8000));
}

static inline LSA_BODY float e4m3_to_f32(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 0x80) << 24, a = (uint32_t)(c & 0x7f) << 20;
    uint32_t small = f32_bits(f32_from_bits(a | 0x3c800000) - f32_from_bits(0x3c800000));
    uint32_t u = pick(a < 0x00800000, small, a + 0x3c000000);
    return f32_from_bits(sign | pick(a == 0x07f00000, 0x7fc00000, u));
}

/* Saturates to 448. */
static inline LSA_BODY uint8_t f32_to_e4m3(float x)
{
    uint32_t u = f32_bits(x), a = u & 0x7fffffff;
    /* Numbers of 2^14's binade are 2^-9 apart, as the subnormals are. */
    uint32_t small = f32_bits(f32_from_bits(a) + 16384.0f) - 0x46800000;
    uint32_t normal = (a - 0x3c000000 + 0x7ffff + (a >> 20 & 1)) >> 20;
    uint32_t r = pick(a < 0x3c800000, small, normal);
    r = pick(a > 0x43e00000, 0x7e, r);
    r = pick(a > 0x7f800000, 0x7f, r);
    return (uint8_t)(r | (u >> 24 & 0x80));
}

static inline LSA_BODY float e8m0_to_f32(uint8_t c)
{
    uint32_t u = pick(c == 0, 0x00400000, (uint32_t)c << 23);
    return f32_from_bits(pick(c == 255, 0x7fc00000, u));
}

/* The exponent, rounded to nearest by the mantissa; a tie goes up between normal numbers and down
 * to 2^-127. Past 2^127, negative, NaN: 0xff. */
static inline LSA_BODY uint8_t f32_to_e8m0(float x)
{
    uint32_t u = f32_bits(x);
    uint32_t r = (u + 0x3fffff + (u >= 0x00800000)) >> 23;
    r = pick(u >= 0x7f800000, 255, r);
    return (uint8_t)pick(u == 0x80000000, 0, r);
}

/* The low four bits. */
static inline LSA_BODY float e2m1_to_f32(uint8_t c)
{
    uint32_t sign = (uint32_t)(c & 8) << 28, a = (uint32_t)(c & 7) << 22;
    uint32_t u = pick(a < 0x00800000, pick(a == 0, 0, 0x3f000000), a + 0x3f000000);
    return f32_from_bits(sign | u);
}

#if defined(__x86_64__) && !defined(__CUDACC__)

/* ---- AVX2: 8 numbers ---- */

static inline LSA_TARGET_AVX2 LSA_BODY __m256 bf16x8_to_f32_avx2(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

static inline LSA_TARGET_AVX2 LSA_BODY __m128i f32x8_to_bf16_avx2(__m256 x)
{
    __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(_mm256_srli_epi32(r, 16), _mm256_or_si256(high, _mm256_set1_epi32(0x40)),
                           nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

/* The low 8 bytes of c. */
static inline LSA_TARGET_AVX2 LSA_BODY __m256 e4m3x8_to_f32_avx2(__m128i c)
{
    const __m256 subnormal =
        _mm256_setr_ps(0, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f, 0x7p-9f);
    __m256i v = _mm256_cvtepu8_epi32(c);
    __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(v, 7), 31);
    __m256i a = _mm256_and_si256(v, _mm256_set1_epi32(0x7f));
    __m256i normal = _mm256_add_epi32(_mm256_slli_epi32(a, 20), _mm256_set1_epi32(0x3c000000));
    __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), a);
    __m256i is_nan = _mm256_cmpeq_epi32(a, _mm256_set1_epi32(0x7f));
    __m256i r = _mm256_blendv_epi8(normal, _mm256_set1_epi32(0x7fc00000), is_nan);
    __m256i small = _mm256_castps_si256(_mm256_permutevar8x32_ps(subnormal, v));
    r = _mm256_or_si256(_mm256_blendv_epi8(r, small, is_small), sign);
    return _mm256_castsi256_ps(r);
}

/* 32 bf16, of each lane's bytes: fours of a lane's numbers, low lane and high lane, in out[i]. */
static inline LSA_TARGET_AVX2 LSA_BODY void bf16_bytes_to_f32_avx2(__m256 out[4], __m256i bottom,
                                                                   __m256i top)
{
    const __m256i zero = _mm256_setzero_si256();
    __m256i b[2] = {_mm256_unpacklo_epi8(bottom, top), _mm256_unpackhi_epi8(bottom, top)};
    for (int k = 0; k < 2; k++) {
        out[2 * k] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, b[k]));
        out[2 * k + 1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, b[k]));
    }
}

/* 32 bytes: numbers 8 i .. 8 i + 7 in out[i]. Their bf16 are made byte by byte; fours of numbers are put by turns in the two lanes
 * first, so that unpacking leaves them in order. */
static inline LSA_TARGET_AVX2 LSA_BODY void e4m3x32_to_f32_avx2(__m256 out[4], __m256i c)
{
    const __m256i subnormal_top = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0x3b, 0x3b, 0x3b, 0x3c, 0x3c, 0x3c, 0x3c, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m256i subnormal_bottom = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, INT8_MIN, (char)0xc0, 0, 0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0));
    c = _mm256_permutevar8x32_epi32(c, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
    __m256i a = _mm256_and_si256(c, _mm256_set1_epi8(0x7f));
    __m256i small = _mm256_cmpgt_epi8(_mm256_set1_epi8(8), a);
    __m256i nan = _mm256_cmpeq_epi8(a, _mm256_set1_epi8(0x7f));
    __m256i top = _mm256_and_si256(_mm256_srli_epi16(a, 4), _mm256_set1_epi8(15));
    __m256i bottom = _mm256_and_si256(_mm256_slli_epi16(a, 4), _mm256_set1_epi8((char)0xf0));
    top = _mm256_add_epi8(top, _mm256_set1_epi8(0x3c));
    top = _mm256_blendv_epi8(top, _mm256_shuffle_epi8(subnormal_top, a), small);
    bottom = _mm256_blendv_epi8(bottom, _mm256_shuffle_epi8(subnormal_bottom, a), small);
    /* 480 would be 0x43f0; a NaN is 0x7fc0. */
    top = _mm256_or_si256(top, _mm256_and_si256(nan, _mm256_set1_epi8(0x3c)));
    bottom = _mm256_andnot_si256(_mm256_and_si256(nan, _mm256_set1_epi8(0x30)), bottom);
    top = _mm256_or_si256(top, _mm256_and_si256(c, _mm256_set1_epi8(INT8_MIN)));
    bf16_bytes_to_f32_avx2(out, bottom, top);
}

/* What e2m1x64_to_f32_avx2 looks up: bytes in its order; the two bytes of each bf16. */
typedef struct e2m1_tables {
    __m256i turns, high, low, nibble;
} e2m1_tables;

static inline LSA_TARGET_AVX2 LSA_BODY e2m1_tables e2m1_tables_avx2(void)
{
    return (e2m1_tables){
        _mm256_broadcastsi128_si256(
            _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)),
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0x3f, 0x3f, 0x3f, 0x40, 0x40, 0x40, 0x40,
                                                  INT8_MIN, (char)0xbf, (char)0xbf, (char)0xbf,
                                                  (char)0xc0, (char)0xc0, (char)0xc0, (char)0xc0)),
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, INT8_MIN, (char)0xc0, 0, 0x40, INT8_MIN,
                                                  (char)0xc0, 0, 0, INT8_MIN, (char)0xc0, 0, 0x40,
                                                  INT8_MIN, (char)0xc0)),
        _mm256_set1_epi8(15)};
}

/* 32 bytes, low nibble first: numbers 8 i .. 8 i + 7 in out[i]. As e4m3x32_to_f32_avx2. */
static inline LSA_TARGET_AVX2 LSA_BODY void e2m1x64_to_f32_avx2(__m256 out[8], __m256i c,
                                                                const e2m1_tables *t)
{
    c = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(c, t->turns), 0xd8);
    __m256i even = _mm256_and_si256(c, t->nibble);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi16(c, 4), t->nibble);
    __m256i h[2] = {_mm256_unpacklo_epi8(even, odd), _mm256_unpackhi_epi8(even, odd)};
    for (int i = 0; i < 2; i++)
        bf16_bytes_to_f32_avx2(out + 4 * i, _mm256_shuffle_epi8(t->low, h[i]),
                               _mm256_shuffle_epi8(t->high, h[i]));
}

/* The low 4 bytes of c, low nibble first. */
static inline LSA_TARGET_AVX2 LSA_BODY __m256 e2m1x8_to_f32_avx2(__m128i c)
{
    const __m256 magnitude = _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6);
    __m256i v = _mm256_set1_epi32(_mm_cvtsi128_si32(c));
    v = _mm256_srlv_epi32(v, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    __m256i sign = _mm256_slli_epi32(_mm256_srli_epi32(v, 3), 31);
    return _mm256_or_ps(_mm256_permutevar8x32_ps(magnitude, v), _mm256_castsi256_ps(sign));
}

/* ---- AVX-512: 16 or 32 numbers ---- */

static inline LSA_TARGET_AVX512 LSA_BODY __m512 bf16x16_to_f32_avx512(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* Unlike vcvtneps2bf16, subnormals keep their value. */
static inline LSA_TARGET_AVX512 LSA_BODY __m256i f32x16_to_bf16_avx512(__m512 x)
{
    __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(_mm512_srli_epi32(r, 16), nan, high, _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(r);
}

static inline LSA_TARGET_AVX512 LSA_BODY __m512 e4m3x16_to_f32_avx512(__m128i c)
{
    const __m512 subnormal = _mm512_setr_ps(0, 0x1p-9f, 0x2p-9f, 0x3p-9f, 0x4p-9f, 0x5p-9f, 0x6p-9f,
                                            0x7p-9f, 0, 0, 0, 0, 0, 0, 0, 0);
    __m512i v = _mm512_cvtepi8_epi32(c), a = _mm512_and_si512(v, _mm512_set1_epi32(0x7f));
    __m512i r = _mm512_add_epi32(_mm512_slli_epi32(a, 20), _mm512_set1_epi32(0x3c000000));
    __mmask16 is_small = _mm512_testn_epi32_mask(v, _mm512_set1_epi32(0x78));
    __mmask16 is_nan = _mm512_cmpeq_epi32_mask(a, _mm512_set1_epi32(0x7f));
    r = _mm512_castps_si512(
        _mm512_mask_permutexvar_ps(_mm512_castsi512_ps(r), is_small, v, subnormal));
    r = _mm512_mask_mov_epi32(r, is_nan, _mm512_set1_epi32(0x7fc00000));
    /* r | (v & sign): v is sign-extended. */
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(r, v, _mm512_set1_epi32(INT32_MIN), 0xf8));
}

static inline LSA_TARGET_AVX512 LSA_BODY __m512 e8m0x16_to_f32_avx512(__m128i c)
{
    __m512i v = _mm512_cvtepu8_epi32(c), r = _mm512_slli_epi32(v, 23);
    r = _mm512_mask_mov_epi32(r, _mm512_testn_epi32_mask(v, v), _mm512_set1_epi32(0x00400000));
    r = _mm512_mask_mov_epi32(r, _mm512_cmpeq_epi32_mask(v, _mm512_set1_epi32(255)),
                              _mm512_set1_epi32(0x7fc00000));
    return _mm512_castsi512_ps(r);
}

/* 32 e4m3 numbers as 32 bf16, exactly. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512i e4m3x32_to_bf16_avx512(__m256i c)
{
    const __m512i subnormal = _mm512_castsi128_si512(
        _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
    __m512i v = _mm512_cvtepi8_epi16(c), a = _mm512_and_si512(v, _mm512_set1_epi16(0x7f));
    __m512i r = _mm512_add_epi16(_mm512_slli_epi16(a, 4), _mm512_set1_epi16(0x3c00));
    __mmask32 is_small = _mm512_testn_epi16_mask(v, _mm512_set1_epi16(0x78));
    __mmask32 is_nan = _mm512_cmpeq_epi16_mask(a, _mm512_set1_epi16(0x7f));
    r = _mm512_mask_permutexvar_epi16(r, is_small, a, subnormal);
    r = _mm512_mask_mov_epi16(r, is_nan, _mm512_set1_epi16(0x7fc0));
    return _mm512_ternarylogic_epi32(r, v, _mm512_set1_epi16(INT16_MIN), 0xf8);
}

/* The low 8 bytes of c, low nibble first. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512 e2m1x16_to_f32_avx512(__m128i c)
{
    const __m512 value =
        _mm512_setr_ps(0.0f, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    const __m512i shift =
        _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    __m512i v = _mm512_permutexvar_epi32(half, _mm512_castsi128_si512(c));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(v, shift), value);
}

/* 16 bytes, low nibble first, as 32 bf16. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512i e2m1x32_to_bf16_avx512(__m128i c)
{
    const __m512i value = _mm512_broadcast_i64x4(
        _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, INT16_MIN,
                          (int16_t)0xbf00, (int16_t)0xbf80, (int16_t)0xbfc0, (int16_t)0xc000,
                          (int16_t)0xc040, (int16_t)0xc080, (int16_t)0xc0c0));
    /* Each byte once a 32-bit pair of words; the upper word's nibble is 4 bits further. */
    __m512i v = _mm512_cvtepu8_epi32(c);
    v = _mm512_or_si512(v, _mm512_slli_epi32(v, 12));
    return _mm512_permutexvar_epi16(v, value);
}

/* 32 bytes as bf16: the low nibbles in *low, the high ones in *high. */
static inline LSA_TARGET_AVX512 LSA_BODY void e2m1x64_to_bf16_nibbles(__m512i *low, __m512i *high,
                                                                      __m256i c)
{
    /* Twice, as a word's fifth bit counts in its index. */
    const __m512i value = _mm512_broadcast_i64x4(
        _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, INT16_MIN,
                          (int16_t)0xbf00, (int16_t)0xbf80, (int16_t)0xbfc0, (int16_t)0xc000,
                          (int16_t)0xc040, (int16_t)0xc080, (int16_t)0xc0c0));
    __m512i words = _mm512_cvtepu8_epi16(c);
    *low = _mm512_permutexvar_epi16(words, value);
    *high = _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4), value);
}

/* ---- AVX-512 VBMI ---- */

/* The bf16 of each e4m3 magnitude, by halves. */
#define LSA_E4M3_BF16(c)                                                                           \
    ((c) == 0x7f ? 0x7fc0                                                                          \
     : (c) >= 8  ? 0x3c00 + (c)*16                                                                 \
     : (c) >= 4  ? 0x3c00 + ((c)-4) * 32                                                           \
     : (c) >= 2  ? 0x3b80 + ((c)-2) * 64                                                           \
                 : (c)*0x3b00)
#define LSA_E4M3_4(half, c) half(c), half(c + 1), half(c + 2), half(c + 3)
#define LSA_E4M3_16(half, c)                                                                       \
    LSA_E4M3_4(half, c), LSA_E4M3_4(half, c + 4), LSA_E4M3_4(half, c + 8), LSA_E4M3_4(half, c + 12)
#define LSA_E4M3_64(half, c)                                                                       \
    LSA_E4M3_16(half, c), LSA_E4M3_16(half, c + 16), LSA_E4M3_16(half, c + 32),                    \
        LSA_E4M3_16(half, c + 48)
#define LSA_E4M3_HIGH(c) (LSA_E4M3_BF16(c) >> 8)
#define LSA_E4M3_LOW(c) (LSA_E4M3_BF16(c) & 255)

static const uint8_t e4m3_bf16_high[128] = {LSA_E4M3_64(LSA_E4M3_HIGH, 0),
                                            LSA_E4M3_64(LSA_E4M3_HIGH, 64)};
static const uint8_t e4m3_bf16_low[128] = {LSA_E4M3_64(LSA_E4M3_LOW, 0),
                                           LSA_E4M3_64(LSA_E4M3_LOW, 64)};

/* 64 e4m3 numbers as bf16: the first 32 in *first, the others in *second. */
static inline LSA_TARGET_AVX512_BF16 LSA_BODY void e4m3x64_to_bf16_vbmi(__m512i *first,
                                                                        __m512i *second, __m512i c)
{
    /* unpack works within 128-bit lanes: lane k takes the 8-byte groups k and k + 4. */
    c = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), c);
    __m512i high = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_bf16_high), c,
                                            _mm512_loadu_si512(e4m3_bf16_high + 64));
    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_bf16_low), c,
                                           _mm512_loadu_si512(e4m3_bf16_low + 64));
    high = _mm512_ternarylogic_epi32(high, c, _mm512_set1_epi8(INT8_MIN), 0xf8);
    *first = _mm512_unpacklo_epi8(low, high);
    *second = _mm512_unpackhi_epi8(low, high);
}

#endif
#endif
