/* Owns the tiles of processors with AVX2: f32. */
#if defined(__x86_64__)
#include "kernels/linear_tiles.h"
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX2
#define LANES 8
enum { ROWS = 3, TILE_ROWS = 6, NUMBER_BYTES = 4 };

typedef __m256 numbers;
static inline TARGET LSA_BODY numbers load(const uint8_t *p)
{
    return _mm256_loadu_ps((const float *)p);
}
static inline TARGET LSA_BODY __m256 multiply_add(numbers a, numbers b, __m256 sum)
{
    return _mm256_fmadd_ps(a, b, sum);
}

/* The largest magnitude of each byte so far: 0xff is a NaN's. */
typedef struct table {
    __m256i largest;
    __m256i sign, f16; /* of bytes; an f16's bits that an e4m3 has, too */
    e2m1_tables e2m1;
} table;

/* The compiler would make constants anew for each unit; these it can't tell from variables. */
static inline TARGET LSA_BODY table new_table(void)
{
    table t = {_mm256_setzero_si256(), _mm256_set1_epi8(INT8_MIN),
               _mm256_set1_epi16((int16_t)0xbf80), e2m1_tables_avx2()};
    __asm__("" : "+x"(t.sign), "+x"(t.f16));
    __asm__("" : "+x"(t.e2m1.turns), "+x"(t.e2m1.high), "+x"(t.e2m1.low), "+x"(t.e2m1.nibble));
    return t;
}

static inline TARGET LSA_BODY int found_nan(const table *t)
{
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(t->largest, _mm256_set1_epi8(-1))) != 0;
}

static inline TARGET LSA_BODY void put(uint8_t *out, int i, __m256 v, int round)
{
    if (round) v = bf16x8_to_f32_avx2(f32x8_to_bf16_avx2(v));
    _mm256_store_ps((float *)out + 8 * i, v);
}

static inline TARGET LSA_BODY void decode_unit_with_care(uint8_t *out, const uint8_t *unit,
                                                         int dtype, const table *t,
                                                         const float *scale, int round)
{
    const __m256i *c = (const __m256i *)unit;
    const __m256 by[2] = {_mm256_set1_ps(scale[0]), _mm256_set1_ps(scale[1])};
    __m256 v[8];
    if (dtype == LSA_F4_E2M1) {
        e2m1x64_to_f32_avx2(v, _mm256_loadu_si256(c), &t->e2m1);
    } else {
        e4m3x32_to_f32_avx2(v, _mm256_loadu_si256(c));
        e4m3x32_to_f32_avx2(v + 4, _mm256_loadu_si256(c + 1));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) put(out, i, _mm256_mul_ps(v[i], by[i / 4]), round);
}

/* An e4m3 that is no NaN is an f16, seven bits further up, of 256 times the number: its subnormals, too. */
static inline TARGET LSA_BODY void decode_unit(uint8_t *out, const uint8_t *unit, int dtype,
                                               table *t, const float *scale, int round)
{
    if (dtype == LSA_F4_E2M1) {
        decode_unit_with_care(out, unit, dtype, t, scale, round);
        return;
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const __m256 by = _mm256_mul_ps(_mm256_set1_ps(scale[half]), _mm256_set1_ps(256));
        const __m128i *codes = (const __m128i *)(unit + 32 * half);
        t->largest = _mm256_max_epu8(
            t->largest, _mm256_or_si256(_mm256_loadu_si256((const __m256i *)codes), t->sign));
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            __m256i h = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128(codes + i)), 7);
            h = _mm256_and_si256(h, t->f16);
            __m128i low = _mm256_castsi256_si128(h), high = _mm256_extracti128_si256(h, 1);
            put(out, 4 * half + 2 * i, _mm256_mul_ps(_mm256_cvtph_ps(low), by), round);
            put(out, 4 * half + 2 * i + 1, _mm256_mul_ps(_mm256_cvtph_ps(high), by), round);
        }
    }
}

#include "kernels/linear_tile.h"

const lsa_linear_tiles lsa_linear_tiles_avx2 = {TILE_ROWS, ROWS, 5, 5, INT32_MAX, decode, multiply};

#endif
