/* Owns the tiles of processors with AVX-512: f32. */
#if defined(__x86_64__)
#include "kernels/linear_tiles.h"
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX512
#define LANES 16
enum { ROWS = 6, TILE_ROWS = 6, NUMBER_BYTES = 4 };

typedef __m512 numbers;
static inline TARGET LSA_BODY numbers load(const uint8_t *p) { return _mm512_loadu_ps(p); }
static inline TARGET LSA_BODY __m512 multiply_add(numbers a, numbers b, __m512 sum)
{
    return _mm512_fmadd_ps(a, b, sum);
}

/* The bytes of which one was a NaN. */
typedef struct table {
    __mmask64 nan;
} table;

static inline LSA_BODY table new_table(void) { return (table){0}; }

static inline LSA_BODY int found_nan(const table *t) { return t->nan != 0; }

static inline TARGET LSA_BODY void put(uint8_t *out, int i, __m512 v, int round)
{
    if (round) v = bf16x16_to_f32_avx512(f32x16_to_bf16_avx512(v));
    _mm512_storeu_ps(out + 64 * i, v);
}

static inline TARGET LSA_BODY void decode_unit_with_care(uint8_t *out, const uint8_t *unit,
                                                         int dtype, const table *t,
                                                         const float *scale, int round)
{
    (void)t;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512 v = dtype == LSA_F4_E2M1
                       ? e2m1x16_to_f32_avx512(_mm_loadl_epi64((const __m128i *)(unit + 8 * i)))
                       : e4m3x16_to_f32_avx512(_mm_loadu_si128((const __m128i *)(unit + 16 * i)));
        put(out, i, _mm512_mul_ps(v, _mm512_set1_ps(scale[i / 2])), round);
    }
}

/* An e4m3 that is no NaN is an f16, seven bits further up, of 256 times the number: its subnormals, too. */
static inline TARGET LSA_BODY void decode_unit(uint8_t *out, const uint8_t *unit, int dtype,
                                               table *t, const float *scale, int round)
{
    if (dtype == LSA_F4_E2M1) {
        decode_unit_with_care(out, unit, dtype, t, scale, round);
        return;
    }
    t->nan |= _mm512_cmpeq_epi8_mask(
        _mm512_or_si512(_mm512_loadu_si512(unit), _mm512_set1_epi8(INT8_MIN)),
        _mm512_set1_epi8(-1));
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
        const __m512 by = _mm512_mul_ps(_mm512_set1_ps(scale[half]), _mm512_set1_ps(256));
        __m512i h = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(unit + 32 * half)));
        h = _mm512_and_si512(_mm512_slli_epi16(h, 7), _mm512_set1_epi16((int16_t)0xbf80));
        __m256i low = _mm512_castsi512_si256(h), high = _mm512_extracti64x4_epi64(h, 1);
        put(out, 2 * half, _mm512_mul_ps(_mm512_cvtph_ps(low), by), round);
        put(out, 2 * half + 1, _mm512_mul_ps(_mm512_cvtph_ps(high), by), round);
    }
}

#include "kernels/linear_tile.h"

const lsa_linear_tiles lsa_linear_tiles_avx512 = {TILE_ROWS, ROWS, 0, 5, 5, 96, decode, multiply};

#endif
