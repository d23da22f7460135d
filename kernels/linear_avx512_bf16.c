/* Owns the few-token loops of processors with AVX-512 BF16 and VBMI. */
#include "kernels/linear_private.h"

#if defined(__x86_64__)
#include "kernels/number_formats.h"

#define TARGET LSA_TARGET_AVX512_BF16
#define LANES 16
enum {
    HALVES_BY_LANE = 1,
    X_BF16_BYTES = 2,
    ROWS_OF_1 = 4,
    ROWS_OF_2 = 4,
    ROWS_OF_4 = 4,
    ROWS_OF_8 = 2
};

/* f32: four vectors, the second halves' in 2 and 3; bf16: two. */
typedef struct numbers {
    __m512i v[4];
} numbers;

/* Even columns of 32 bf16, odd columns. */
static inline TARGET LSA_BODY __m512i even(__m512i h) { return _mm512_slli_epi32(h, 16); }
static inline TARGET LSA_BODY __m512i odd(__m512i h)
{
    return _mm512_and_si512(h, _mm512_set1_epi32(-65536));
}

static inline TARGET LSA_BODY __m512i rounded(__m512 low, __m512 high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

/* bf16, f8 and f4 as two vectors of bf16; f4's even columns in one, the odd ones in the other. */
static inline TARGET LSA_BODY void decode_bf16(__m512i *a, __m512i *b, int dtype,
                                               const uint8_t *unit)
{
    if (dtype == LSA_BF16) {
        *a = _mm512_loadu_si512(unit);
        *b = _mm512_loadu_si512(unit + 64);
    } else if (dtype == LSA_F8_E4M3) {
        e4m3x64_to_bf16_vbmi(a, b, _mm512_loadu_si512(unit));
    } else {
        e2m1x64_to_bf16_nibbles(a, b, _mm256_loadu_si256((const __m256i *)unit));
    }
}

/* f32 and f16 as f32 in order. */
static inline TARGET LSA_BODY __m512 wide(int dtype, const uint8_t *unit, int i)
{
    if (dtype == LSA_F32) return _mm512_loadu_ps(unit + 64 * i);
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(unit + 32 * i)));
}

static inline LSA_BODY int is_wide(int dtype) { return dtype == LSA_F32 || dtype == LSA_F16; }

static inline TARGET LSA_BODY void decode(numbers *n, int dtype, int compute, const uint8_t *unit)
{
    if (is_wide(dtype)) {
        __m512 f[4];
        for (int i = 0; i < 4; i++) f[i] = wide(dtype, unit, i);
        for (int i = 0; i < 4; i++) n->v[i] = _mm512_castps_si512(f[i]);
        if (compute == LSA_COMPUTE_BF16) {
            n->v[0] = rounded(f[0], f[1]);
            n->v[1] = rounded(f[2], f[3]);
        }
        return;
    }
    __m512i a, b;
    decode_bf16(&a, &b, dtype, unit);
    if (compute == LSA_COMPUTE_BF16) {
        n->v[0] = a, n->v[1] = b;
    } else {
        n->v[0] = even(a), n->v[1] = odd(a);
        n->v[2] = even(b), n->v[3] = odd(b);
    }
}

static inline TARGET LSA_BODY void decode_scaled(numbers *n, int dtype, const uint8_t *unit,
                                                 float first, float second)
{
    __m512 f[4];
    if (is_wide(dtype)) {
        for (int i = 0; i < 4; i++) f[i] = wide(dtype, unit, i);
    } else {
        __m512i h[2];
        decode_bf16(&h[0], &h[1], dtype, unit);
        for (int i = 0; i < 4; i++)
            f[i] = bf16x16_to_f32_avx512(i % 2 ? _mm512_extracti64x4_epi64(h[i / 2], 1)
                                               : _mm512_castsi512_si256(h[i / 2]));
    }
    /* Two scales are f4's: either vector has the unit's first half in its first half. */
    __m512 s = _mm512_set1_ps(first), s2 = _mm512_set1_ps(second);
    n->v[0] = rounded(_mm512_mul_ps(f[0], s), _mm512_mul_ps(f[1], s2));
    n->v[1] = rounded(_mm512_mul_ps(f[2], s), _mm512_mul_ps(f[3], s2));
}

static inline TARGET LSA_BODY void multiply(__m512 *first, __m512 *second, const numbers *n,
                                            int dtype, int compute, const uint8_t *x)
{
    (void)dtype;
    if (compute == LSA_COMPUTE_BF16) {
        *first = _mm512_dpbf16_ps(*first, (__m512bh)n->v[0], (__m512bh)_mm512_loadu_si512(x));
        *second =
            _mm512_dpbf16_ps(*second, (__m512bh)n->v[1], (__m512bh)_mm512_loadu_si512(x + 64));
    } else {
        *first = _mm512_fmadd_ps(_mm512_castsi512_ps(n->v[0]), _mm512_loadu_ps(x), *first);
        *second = _mm512_fmadd_ps(_mm512_castsi512_ps(n->v[2]), _mm512_loadu_ps(x + 128), *second);
        *first = _mm512_fmadd_ps(_mm512_castsi512_ps(n->v[1]), _mm512_loadu_ps(x + 64), *first);
        *second = _mm512_fmadd_ps(_mm512_castsi512_ps(n->v[3]), _mm512_loadu_ps(x + 192), *second);
    }
}

#include "kernels/linear_rows.h"

#define BOTH(name, dtype, scaling, suffix)                                                         \
    ROWS(name##_f32##suffix, dtype, LSA_COMPUTE_F32, scaling)                                      \
    ROWS(name##_bf16##suffix, dtype, LSA_COMPUTE_BF16, scaling)

BOTH(f32, LSA_F32, SCALE_NONE, )
BOTH(bf16, LSA_BF16, SCALE_NONE, )
BOTH(f16, LSA_F16, SCALE_NONE, )
BOTH(f8, LSA_F8_E4M3, SCALE_NONE, )
BOTH(f8, LSA_F8_E4M3, SCALE_BLOCKS, _blocks)
BOTH(f4, LSA_F4_E2M1, SCALE_NONE, )
BOTH(f4, LSA_F4_E2M1, SCALE_BLOCKS, _blocks)
BOTH(f4, LSA_F4_E2M1, SCALE_HALVES, _halves)
ROWS(f8_bf16_numbers, LSA_F8_E4M3, LSA_COMPUTE_BF16, SCALE_NUMBERS)
ROWS(f4_bf16_numbers, LSA_F4_E2M1, LSA_COMPUTE_BF16, SCALE_NUMBERS)

/* By SCALE_*. */
static lsa_linear_rows_fn *const *const F8_F32[] = {f8_f32, f8_f32_blocks, NULL, NULL};
static lsa_linear_rows_fn *const *const F8_BF16[] = {f8_bf16, f8_bf16_blocks, NULL,
                                                     f8_bf16_numbers};
static lsa_linear_rows_fn *const *const F4_F32[] = {f4_f32, f4_f32_blocks, f4_f32_halves, NULL};
static lsa_linear_rows_fn *const *const F4_BF16[] = {f4_bf16, f4_bf16_blocks, f4_bf16_halves,
                                                     f4_bf16_numbers};

lsa_linear_rows_fn *lsa_linear_rows_avx512_bf16(const lsa_linear_call *call, int32_t *x_layout)
{
    int bf16 = call->compute == LSA_COMPUTE_BF16, t = token_class(call->tokens);
    int scaling = scaling_of(call), dtype = call->w->dtype;
    *x_layout = bf16 ? LSA_LINEAR_X_BF16 : is_wide(dtype) ? LSA_LINEAR_X_F32 : LSA_LINEAR_X_SPLIT;
    if (dtype == LSA_F4_E2M1) *x_layout |= LSA_LINEAR_X_NIBBLES;
    if (scaling < 0) return NULL;
    switch (dtype) {
    case LSA_F32:
        return bf16 ? f32_bf16[t] : f32_f32[t];
    case LSA_BF16:
        return bf16 ? bf16_bf16[t] : bf16_f32[t];
    case LSA_F16:
        return bf16 ? f16_bf16[t] : f16_f32[t];
    case LSA_F8_E4M3:
        return (bf16 ? F8_BF16 : F8_F32)[scaling][t];
    default:
        return (bf16 ? F4_BF16 : F4_F32)[scaling][t];
    }
}

#endif
