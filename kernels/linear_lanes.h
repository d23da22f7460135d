/* Private to linear_avx*.c and linear_tiles_avx*.c: vectors of floats. The including file defines TARGET and LANES (8 or 16). */
#ifndef LSA_LINEAR_LANES_H
#define LSA_LINEAR_LANES_H
#include "kernels/number_formats.h"

#if LANES == 16
typedef __m512 vector;
static inline TARGET LSA_BODY vector zero(void) { return _mm512_setzero_ps(); }
static inline TARGET LSA_BODY vector all(float x) { return _mm512_set1_ps(x); }
static inline TARGET LSA_BODY vector add(vector a, vector b) { return _mm512_add_ps(a, b); }
static inline TARGET LSA_BODY vector fma_of(vector a, vector b, vector c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* a, b, c and d summed across, in the same order each. */
static inline TARGET LSA_BODY __m128 sum_of_four(vector a, vector b, vector c, vector d)
{
    vector ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vector cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vector v = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* The first scale in the first 8 lanes, the second in the others. */
static inline TARGET LSA_BODY vector half_scales(const float *scales)
{
    double pair;
    memcpy(&pair, scales, sizeof pair);
    const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutevar_ps(_mm512_castpd_ps(_mm512_set1_pd(pair)), half);
}

/* n scales, and as many more floats as fill a vector. */
static inline TARGET LSA_BODY void scales_of_codes(float *out, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 some = (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
        _mm512_storeu_ps(out + i, e8m0x16_to_f32_avx512(_mm_maskz_loadu_epi8(some, codes + i)));
    }
}
#else
typedef __m256 vector;
static inline TARGET LSA_BODY vector zero(void) { return _mm256_setzero_ps(); }
static inline TARGET LSA_BODY vector all(float x) { return _mm256_set1_ps(x); }
static inline TARGET LSA_BODY vector add(vector a, vector b) { return _mm256_add_ps(a, b); }
static inline TARGET LSA_BODY vector fma_of(vector a, vector b, vector c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline TARGET LSA_BODY __m128 sum_of_four(vector a, vector b, vector c, vector d)
{
    vector ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vector cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vector v = add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}

static inline TARGET LSA_BODY vector half_scales(const float *scales) { return all(*scales); }

static inline TARGET LSA_BODY void scales_of_codes(float *out, const uint8_t *codes, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = e8m0_to_f32(codes[i]);
}
#endif

#endif
