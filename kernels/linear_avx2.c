/* Owns the few-token loops of processors with AVX2: everything in f32, in order. */
#include "kernels/linear_private.h"

#if defined(__x86_64__)
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX2
#define LANES 8
enum { X_BF16_BYTES = 4, ROWS_OF_1 = 4, ROWS_OF_2 = 2, ROWS_OF_4 = 2, ROWS_OF_8 = 1 };

#include "kernels/linear_rows.h"

static inline TARGET LSA_BODY __m256 rounded(__m256 v)
{
    return bf16x8_to_f32_avx2(f32x8_to_bf16_avx2(v));
}

/* Columns 8 i .. 8 i + 7 of a unit of f32, bf16 or f16. */
static inline TARGET LSA_BODY __m256 eight(variant v, const uint8_t *unit, int i)
{
    if (v.dtype == LSA_BF16)
        return bf16x8_to_f32_avx2(_mm_loadu_si128((const __m128i *)(unit + 16 * i)));
    __m256 n = v.dtype == LSA_F32
                   ? _mm256_loadu_ps((const float *)(unit + 32 * i))
                   : _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(unit + 16 * i)));
    return v.compute == LSA_COMPUTE_BF16 ? rounded(n) : n;
}

/* All of a unit of fp8 or fp4. */
static inline TARGET LSA_BODY void decode(__m256 out[8], variant v, const uint8_t *unit)
{
    const __m256i *c = (const __m256i *)unit;
    if (v.dtype == LSA_F4_E2M1) {
        const e2m1_tables t = e2m1_tables_avx2();
        e2m1x64_to_f32_avx2(out, _mm256_loadu_si256(c), &t);
    } else {
        e4m3x32_to_f32_avx2(out, _mm256_loadu_si256(c));
        e4m3x32_to_f32_avx2(out + 4, _mm256_loadu_si256(c + 1));
    }
}

/* Eight columns of every row are multiplied by every token before the next eight are, since registers hold no more. A token's sum
 * takes the halves of a unit by turns; one or two tokens have a sum a half, and so has each half with a scale. */
static inline TARGET LSA_BODY void add_unit_of_rows(vector (*part)[2], const uint8_t *unit,
                                                    int64_t step, const uint8_t *x, int64_t x_step,
                                                    variant v, const float *scale,
                                                    int64_t scale_step, int halves)
{
    const int by_halves = v.scaling == SCALE_HALVES;
    const int small = v.dtype == LSA_F4_E2M1 || v.dtype == LSA_F8_E4M3;
    __m256 numbers[MOST_ROWS][8], sum[MOST_SUMS];
    for (int r = 0; small && r < v.rows; r++) decode(numbers[r], v, unit + r * step);
#pragma GCC unroll 8
    for (int k = 0; k < 8; k++) {
        const int i = by_halves ? k : k / 2 + k % 2 * 4, half = i / 4;
        const int at = v.tokens <= 2 ? half : 0;
        if (by_halves && k % 4 == 0)
            for (int j = 0; j < v.rows * v.tokens; j++) sum[j] = zero();
#pragma GCC unroll 4
        for (int r = 0; r < v.rows; r++) {
            __m256 n = small ? numbers[r][i] : eight(v, unit + r * step, i);
            if (v.scaling == SCALE_NUMBERS)
                n = rounded(_mm256_mul_ps(n, all(scale[r * scale_step + half * halves])));
#pragma GCC unroll 8
            for (int t = 0; t < v.tokens; t++) {
                __m256 *to = by_halves ? &sum[r * v.tokens + t] : &part[r * v.tokens + t][at];
                *to = fma_of(n, _mm256_loadu_ps((const float *)(x + t * x_step + 32 * i)), *to);
                /* In this order: or all of x would be loaded first, onto the stack. */
                if (v.tokens > 2) __asm__ volatile("" : "+x"(*to)::"memory");
            }
        }
        if (by_halves && k % 4 == 3)
#pragma GCC unroll 8
            for (int j = 0; j < v.rows * v.tokens; j++)
                part[j][at] = fma_of(sum[j], all(scale[j / v.tokens * scale_step + half * halves]),
                                     part[j][at]);
    }
}

F32_LOOPS(lsa_linear_rows_avx2)

#endif
