/* Owns the tiles of processors with AVX-512 BF16 and VBMI, for factors that are rounded: bf16. */
#if defined(__x86_64__)
#include "kernels/linear_tiles.h"
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX512_BF16
#define LANES 16
enum { ROWS = 6, TILE_ROWS = 12, NUMBER_BYTES = 2 };

typedef __m512i numbers;
static inline TARGET LSA_BODY numbers load(const uint8_t *p) { return _mm512_loadu_si512(p); }
static inline TARGET LSA_BODY __m512 multiply_add(numbers a, numbers b, __m512 sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/* The bf16 of each e4m3 magnitude times a scale, by halves. */
typedef struct table {
    uint32_t made, scale; /* whether there is one, and for what, as bits */
    __m512i high[2], low[2];
} table;

static inline LSA_BODY table new_table(void) { return (table){0}; }

static const uint16_t e4m3_bf16[128] = {
#define WHOLE(c) LSA_E4M3_BF16(c)
    LSA_E4M3_64(WHOLE, 0), LSA_E4M3_64(WHOLE, 64)};

static inline TARGET LSA_BODY __m512i rounded(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static inline TARGET LSA_BODY void make_table(table *t, float scale)
{
    const __m512i low = _mm512_set_epi8(
        126, 124, 122, 120, 118, 116, 114, 112, 110, 108, 106, 104, 102, 100, 98, 96, 94, 92, 90,
        88, 86, 84, 82, 80, 78, 76, 74, 72, 70, 68, 66, 64, 62, 60, 58, 56, 54, 52, 50, 48, 46, 44,
        42, 40, 38, 36, 34, 32, 30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i high = _mm512_or_si512(low, _mm512_set1_epi8(1));
    const __m512 by = _mm512_set1_ps(scale);
    if (t->made && t->scale == f32_bits(scale)) return;
    t->made = 1;
    t->scale = f32_bits(scale);
    for (int half = 0; half < 2; half++) {
        __m512i h[2];
        for (int i = 0; i < 2; i++) {
            const __m256i *c = (const __m256i *)(e4m3_bf16 + 64 * half + 32 * i);
            h[i] = rounded(_mm512_mul_ps(bf16x16_to_f32_avx512(_mm256_loadu_si256(c)), by),
                           _mm512_mul_ps(bf16x16_to_f32_avx512(_mm256_loadu_si256(c + 1)), by));
        }
        t->low[half] = _mm512_permutex2var_epi8(h[0], low, h[1]);
        t->high[half] = _mm512_permutex2var_epi8(h[0], high, h[1]);
    }
}

/* 32 of them. */
static inline TARGET LSA_BODY void decode_e2m1(uint8_t *out, const uint8_t *codes, float scale)
{
    const __m512 value =
        _mm512_setr_ps(0.0f, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
    __m512 scaled = _mm512_mul_ps(value, _mm512_set1_ps(scale));
    /* Each byte once a 32-bit pair of words; the upper word's nibble is 4 bits further. A word's fifth bit counts: the numbers are there
     * twice. */
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)codes));
    v = _mm512_or_si512(v, _mm512_slli_epi32(v, 12));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi16(v, rounded(scaled, scaled)));
}

static inline TARGET LSA_BODY void decode_unit(uint8_t *out, const uint8_t *unit, int dtype,
                                               table *t, const float *scale, int round)
{
    (void)round;
    if (dtype == LSA_F4_E2M1) {
        decode_e2m1(out, unit, scale[0]);
        decode_e2m1(out + 64, unit + 16, scale[1]);
        return;
    }
    /* unpack works within 128-bit lanes: lane k takes the 8-byte groups k and k + 4. */
    __m512i c = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7),
                                         _mm512_loadu_si512(unit));
    const int same = f32_bits(scale[0]) == f32_bits(scale[1]);
    for (int half = 0; half < (same ? 1 : 2); half++) {
        make_table(t, scale[half]);
        __m512i high = _mm512_permutex2var_epi8(t->high[0], c, t->high[1]);
        __m512i low = _mm512_permutex2var_epi8(t->low[0], c, t->low[1]);
        /* high ^ (c & sign): a scale can be negative. */
        high = _mm512_ternarylogic_epi32(high, c, _mm512_set1_epi8(INT8_MIN), 0x78);
        if (!half) _mm512_storeu_si512(out, _mm512_unpacklo_epi8(low, high));
        if (half || same) _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi8(low, high));
    }
}

/* Tables hold any product. */
static inline LSA_BODY int found_nan(const table *t)
{
    (void)t;
    return 0;
}

static inline TARGET LSA_BODY void decode_unit_with_care(uint8_t *out, const uint8_t *unit,
                                                         int dtype, const table *t,
                                                         const float *scale, int round)
{
    table made = *t;
    decode_unit(out, unit, dtype, &made, scale, round);
}

#include "kernels/linear_tile.h"

const lsa_linear_tiles lsa_linear_tiles_avx512_bf16 = {TILE_ROWS, ROWS, 1,      5,
                                                       5,         96,   decode, multiply};

#endif
