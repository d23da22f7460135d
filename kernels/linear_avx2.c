/* Owns the few-token loops of processors with AVX2: everything in f32, in order. */
#include "kernels/linear_private.h"

#if defined(__x86_64__)
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX2
#define LANES 8
enum {
    HALVES_BY_LANE = 0,
    X_BF16_BYTES = 4,
    ROWS_OF_1 = 4,
    ROWS_OF_2 = 2,
    ROWS_OF_4 = 2,
    ROWS_OF_8 = 1
};

typedef struct numbers {
    __m256 v[8];
} numbers;

static inline TARGET LSA_BODY __m256 eight(int dtype, const uint8_t *unit, int i)
{
    int32_t four_bytes;
    switch (dtype) {
    case LSA_F32:
        return _mm256_loadu_ps((const float *)(unit + 32 * i));
    case LSA_BF16:
        return bf16x8_to_f32_avx2(_mm_loadu_si128((const __m128i *)(unit + 16 * i)));
    case LSA_F16:
        return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(unit + 16 * i)));
    case LSA_F8_E4M3:
        return e4m3x8_to_f32_avx2(_mm_loadl_epi64((const __m128i *)(unit + 8 * i)));
    default:
        memcpy(&four_bytes, unit + 4 * i, sizeof four_bytes);
        return e2m1x8_to_f32_avx2(_mm_cvtsi32_si128(four_bytes));
    }
}

static inline TARGET LSA_BODY __m256 rounded(__m256 v)
{
    return bf16x8_to_f32_avx2(f32x8_to_bf16_avx2(v));
}

static inline TARGET LSA_BODY void decode(numbers *n, int dtype, int compute, const uint8_t *unit)
{
    for (int i = 0; i < 8; i++) {
        n->v[i] = eight(dtype, unit, i);
        if (compute == LSA_COMPUTE_BF16 && (dtype == LSA_F32 || dtype == LSA_F16))
            n->v[i] = rounded(n->v[i]);
    }
}

static inline TARGET LSA_BODY void decode_scaled(numbers *n, int dtype, const uint8_t *unit,
                                                 float first, float second)
{
    for (int i = 0; i < 8; i++)
        n->v[i] =
            rounded(_mm256_mul_ps(eight(dtype, unit, i), _mm256_set1_ps(i < 4 ? first : second)));
}

static inline TARGET LSA_BODY void multiply(__m256 *first, __m256 *second, const numbers *n,
                                            int dtype, int compute, const uint8_t *x)
{
    (void)dtype, (void)compute;
    for (int i = 0; i < 4; i++) {
        *first = _mm256_fmadd_ps(n->v[i], _mm256_loadu_ps((const float *)(x + 32 * i)), *first);
        *second = _mm256_fmadd_ps(n->v[i + 4], _mm256_loadu_ps((const float *)(x + 32 * i + 128)),
                                  *second);
    }
}

#include "kernels/linear_rows.h"

F32_LOOPS(lsa_linear_rows_avx2)

#endif
