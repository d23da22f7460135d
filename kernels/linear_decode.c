/* Owns the way from a stored weight to f32 numbers, for any dtype and any block of scales. */
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

static inline LSA_BODY float scale_at(const lsa_weight *w, int64_t i)
{
    return w->scale_dtype == LSA_F32 ? ((const float *)w->scale)[i]
                                     : e8m0_to_f32(((const uint8_t *)w->scale)[i]);
}

static inline LSA_BODY void multiply_scales(float *out, const lsa_weight *w, int64_t row,
                                            int64_t col, int64_t n)
{
    int64_t across = (w->cols + w->block_cols - 1) / w->block_cols;
    int64_t first = row / w->block_rows * across, block = col / w->block_cols;
    for (int64_t i = 0; i < n; block++) {
        int64_t end = (block + 1) * w->block_cols - col;
        float s = scale_at(w, first + block);
        if (end > n) end = n;
        for (; i < end; i++) out[i] *= s;
    }
}

static inline LSA_BODY void numbers(float *out, const lsa_weight *w, int64_t from, int64_t n)
{
    const uint8_t *bytes = w->data;
    switch (w->dtype) {
    case LSA_F32:
        memcpy(out, bytes + from * 4, (size_t)n * 4);
        break;
    case LSA_BF16:
        for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(((const uint16_t *)w->data)[from + i]);
        break;
    case LSA_F16:
        for (int64_t i = 0; i < n; i++) out[i] = f16_to_f32(((const uint16_t *)w->data)[from + i]);
        break;
    case LSA_F8_E4M3:
        for (int64_t i = 0; i < n; i++) out[i] = e4m3_to_f32(bytes[from + i]);
        break;
    default:
        for (int64_t i = 0; i < n; i++) {
            int64_t at = from + i;
            out[i] = e2m1_to_f32(bytes[at / 2] >> at % 2 * 4);
        }
    }
}

static inline LSA_BODY void decode_body(float *out, const lsa_weight *w, int64_t row, int64_t col,
                                        int64_t n, int32_t round)
{
    numbers(out, w, row * w->cols + col, n);
    if (w->scale) multiply_scales(out, w, row, col, n);
    if (round)
        for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(f32_to_bf16(out[i]));
}

LSA_PATHS(decode,
          (float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n, int32_t round),
          (out, w, row, col, n, round))

#if defined(__x86_64__)

/* Sixteen numbers from the n-th number of data on; n is even for fp4. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512 sixteen(const uint8_t *data, int64_t n, int dtype)
{
    switch (dtype) {
    case LSA_F32:
        return _mm512_loadu_ps(data + 4 * n);
    case LSA_BF16:
        return bf16x16_to_f32_avx512(_mm256_loadu_si256((const __m256i *)(data + 2 * n)));
    case LSA_F16:
        return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(data + 2 * n)));
    case LSA_F8_E4M3:
        return e4m3x16_to_f32_avx512(_mm_loadu_si128((const __m128i *)(data + n)));
    default:
        return e2m1x16_to_f32_avx512(_mm_loadl_epi64((const __m128i *)(data + n / 2)));
    }
}

static inline LSA_TARGET_AVX512 LSA_BODY __m512 finished(__m512 v, __m512 scale, int32_t round)
{
    v = _mm512_mul_ps(v, scale);
    return round ? bf16x16_to_f32_avx512(f32x16_to_bf16_avx512(v)) : v;
}

/* n numbers from the from-th on, times scale. */
static inline LSA_TARGET_AVX512 LSA_BODY void stretch(float *out, const uint8_t *data, int64_t from,
                                                      int64_t n, __m512 scale, int dtype,
                                                      int32_t round)
{
    const int bits = dtype == LSA_F32       ? 32
                     : dtype == LSA_F8_E4M3 ? 8
                     : dtype == LSA_F4_E2M1 ? 4
                                            : 16;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, finished(sixteen(data, from + i, dtype), scale, round));
    if (i < n) {
        uint8_t last[64] = {0};
        memcpy(last, data + (from + i) * bits / 8, (size_t)(((n - i) * bits + 7) / 8));
        _mm512_mask_storeu_ps(out + i, (__mmask16)((1u << (n - i)) - 1),
                              finished(sixteen(last, 0, dtype), scale, round));
    }
}

static inline LSA_TARGET_AVX512 LSA_BODY void decode_blocks(float *out, const lsa_weight *w,
                                                            int64_t row, int64_t col, int64_t n,
                                                            int dtype, int32_t round)
{
    int64_t across = w->scale ? (w->cols + w->block_cols - 1) / w->block_cols : 0;
    int64_t first = w->scale ? row / w->block_rows * across : 0,
            block = w->scale ? col / w->block_cols : 0;
    for (int64_t i = 0, end; i < n; i = end, block++) {
        end = w->scale ? (block + 1) * w->block_cols - col : n;
        if (end > n) end = n;
        __m512 scale = _mm512_set1_ps(w->scale ? scale_at(w, first + block) : 1.0f);
        stretch(out + i, w->data, row * w->cols + col + i, end - i, scale, dtype, round);
    }
}

LSA_TARGET_AVX512 static void decode_512(float *out, const lsa_weight *w, int64_t row, int64_t col,
                                         int64_t n, int32_t round)
{
    switch (w->dtype) {
    case LSA_F32:
        decode_blocks(out, w, row, col, n, LSA_F32, round);
        break;
    case LSA_BF16:
        decode_blocks(out, w, row, col, n, LSA_BF16, round);
        break;
    case LSA_F16:
        decode_blocks(out, w, row, col, n, LSA_F16, round);
        break;
    case LSA_F8_E4M3:
        decode_blocks(out, w, row, col, n, LSA_F8_E4M3, round);
        break;
    default:
        decode_blocks(out, w, row, col, n, LSA_F4_E2M1, round);
    }
}

#endif

void lsa_linear_decode(float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n,
                       int32_t round)
{
#if defined(__x86_64__)
    int odd = w->dtype == LSA_F4_E2M1 && (col % 2 || (w->scale && w->block_cols % 2));
    if (!odd && lsa_cpu_level() >= LSA_CPU_AVX512) {
        decode_512(out, w, row, col, n, round);
        return;
    }
#endif
    decode(out, w, row, col, n, round);
}
