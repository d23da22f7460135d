/* Owns the few-token loops of processors with AVX-512 but without its BF16: everything in f32,
 * in order. */
#include "kernels/linear_private.h"

#if defined(__x86_64__)
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX512
#define LANES 16
enum {
    HALVES_BY_LANE = 0,
    X_BF16_BYTES = 4,
    ROWS_OF_1 = 4,
    ROWS_OF_2 = 4,
    ROWS_OF_4 = 4,
    ROWS_OF_8 = 2
};

typedef struct numbers {
    __m512 v[4];
} numbers;

static inline TARGET LSA_BODY __m512 sixteen(int dtype, const uint8_t *unit, int i)
{
    switch (dtype) {
    case LSA_F32:
        return _mm512_loadu_ps(unit + 64 * i);
    case LSA_BF16:
        return bf16x16_to_f32_avx512(_mm256_loadu_si256((const __m256i *)(unit + 32 * i)));
    case LSA_F16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(unit + 32 * i)));
    case LSA_F8_E4M3:
        return e4m3x16_to_f32_avx512(_mm_loadu_si128((const __m128i *)(unit + 16 * i)));
    default:
        return e2m1x16_to_f32_avx512(_mm_loadl_epi64((const __m128i *)(unit + 8 * i)));
    }
}

static inline TARGET LSA_BODY __m512 rounded(__m512 v)
{
    return bf16x16_to_f32_avx512(f32x16_to_bf16_avx512(v));
}

static inline TARGET LSA_BODY void decode(numbers *n, int dtype, int compute, const uint8_t *unit)
{
    for (int i = 0; i < 4; i++) {
        n->v[i] = sixteen(dtype, unit, i);
        if (compute == LSA_COMPUTE_BF16 && (dtype == LSA_F32 || dtype == LSA_F16))
            n->v[i] = rounded(n->v[i]);
    }
}

static inline TARGET LSA_BODY void decode_scaled(numbers *n, int dtype, const uint8_t *unit,
                                                 float first, float second)
{
    for (int i = 0; i < 4; i++)
        n->v[i] =
            rounded(_mm512_mul_ps(sixteen(dtype, unit, i), _mm512_set1_ps(i < 2 ? first : second)));
}

static inline TARGET LSA_BODY void multiply(__m512 *first, __m512 *second, const numbers *n,
                                            int dtype, int compute, const uint8_t *x)
{
    (void)dtype, (void)compute;
    *first = _mm512_fmadd_ps(n->v[0], _mm512_loadu_ps(x), *first);
    *second = _mm512_fmadd_ps(n->v[2], _mm512_loadu_ps(x + 128), *second);
    *first = _mm512_fmadd_ps(n->v[1], _mm512_loadu_ps(x + 64), *first);
    *second = _mm512_fmadd_ps(n->v[3], _mm512_loadu_ps(x + 192), *second);
}

#include "kernels/linear_rows.h"

F32_LOOPS(lsa_linear_rows_avx512)

#endif
