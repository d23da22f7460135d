/* Owns the way from a stored weight to f32 numbers, for any dtype and any block of scales. */
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

static inline LSA_BODY float scale_at(const lsa_weight *w, int64_t i)
{
    return w->scale_dtype == LSA_F32 ? ((const float *)w->scale)[i] : e8m0_to_f32(((const uint8_t *)w->scale)[i]);
}

static inline LSA_BODY void multiply_scales(float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n)
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

static inline LSA_BODY void decode_body(float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n,
                                        int32_t round)
{
    numbers(out, w, row * w->cols + col, n);
    if (w->scale) multiply_scales(out, w, row, col, n);
    if (round)
        for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(f32_to_bf16(out[i]));
}

LSA_PATHS(decode, (float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n, int32_t round),
          (out, w, row, col, n, round))

void lsa_linear_decode(float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n, int32_t round)
{
    decode(out, w, row, col, n, round);
}
