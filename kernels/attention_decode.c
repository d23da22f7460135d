/* Decodes records into rows of floats, for every code path. */
#include "kernels/attention_tile.h"
#include "kernels/kv_record.h"
#include "kernels/number_formats.h"

static inline LSA_BODY void decode_record(float *out, const uint8_t *record, int64_t dim,
                                          int64_t rope_dim, int32_t format)
{
    int64_t i = 0;
    if (format == LSA_KV_F32) {
        memcpy(out, record, (size_t)dim * sizeof(float));
        i = dim;
    }
    int64_t nope = format == LSA_KV_FP8 ? dim - rope_dim : 0;
    const uint8_t *rest = record + nope, *scales = rest + rope_dim * 2;
    for (; i < nope; i++) out[i] = e4m3_to_f32(record[i]) * e8m0_to_f32(scales[i / 64]);
    for (; i < dim; i++) {
        uint16_t half;
        memcpy(&half, rest + (i - nope) * 2, sizeof half);
        out[i] = bf16_to_f32(half);
    }
    for (; i % 16; i++) out[i] = 0;
}

static void decode_generic(float *tile, const float **rows, const uint8_t *const *records,
                           int64_t n, int64_t stride, int64_t dim, int64_t rope_dim, int32_t format)
{
    for (int64_t j = 0; j < n; j++, tile += stride) {
        decode_record(tile, records[j], dim, rope_dim, format);
        rows[j] = tile;
    }
}

#if defined(__x86_64__)

LSA_TARGET_AVX2 static void decode_avx2(float *tile, const float **rows,
                                        const uint8_t *const *records, int64_t n, int64_t stride,
                                        int64_t dim, int64_t rope_dim, int32_t format)
{
    int64_t nope = format == LSA_KV_FP8 ? dim - rope_dim : 0;
    if (format == LSA_KV_F32 || dim % 16 || nope % 16) {
        decode_generic(tile, rows, records, n, stride, dim, rope_dim, format);
        return;
    }
    for (int64_t j = 0; j < n; j++, tile += stride) {
        const uint8_t *rest = records[j] + nope, *scales = rest + rope_dim * 2;
        rows[j] = tile;
        for (int64_t i = 0; i < nope; i += 8) {
            __m256 v = e4m3x8_to_f32_avx2(_mm_loadl_epi64((const void *)(records[j] + i)));
            _mm256_storeu_ps(tile + i,
                             _mm256_mul_ps(v, _mm256_set1_ps(e8m0_to_f32(scales[i / 64]))));
        }
        for (int64_t i = nope; i < dim; i += 8)
            _mm256_storeu_ps(tile + i, bf16x8_to_f32_avx2(
                                           _mm_loadu_si128((const void *)(rest + (i - nope) * 2))));
    }
}

/* 64 stored numbers times their scale. */
static inline LSA_TARGET_AVX512 LSA_BODY void store_tile_avx512(float *out, __m512i first,
                                                                __m512i second, float scale)
{
    __m512 s = _mm512_set1_ps(scale);
    _mm512_storeu_ps(out, _mm512_mul_ps(bf16x16_to_f32_avx512(_mm512_castsi512_si256(first)), s));
    _mm512_storeu_ps(out + 16,
                     _mm512_mul_ps(bf16x16_to_f32_avx512(_mm512_extracti64x4_epi64(first, 1)), s));
    _mm512_storeu_ps(out + 32,
                     _mm512_mul_ps(bf16x16_to_f32_avx512(_mm512_castsi512_si256(second)), s));
    _mm512_storeu_ps(out + 48,
                     _mm512_mul_ps(bf16x16_to_f32_avx512(_mm512_extracti64x4_epi64(second, 1)), s));
}

/* `dims` bf16 numbers, zeros up to a multiple of 16. */
static inline LSA_TARGET_AVX512 LSA_BODY void decode_bf16_avx512(float *out, const uint8_t *in,
                                                                 int64_t dims)
{
    int64_t i = 0;
    for (; i + 16 <= dims; i += 16)
        _mm512_storeu_ps(out + i,
                         bf16x16_to_f32_avx512(_mm256_loadu_si256((const void *)(in + i * 2))));
    if (i == dims) return;
    __mmask16 lanes = (__mmask16)((1 << (dims - i)) - 1);
    _mm512_storeu_ps(out + i, bf16x16_to_f32_avx512(_mm256_maskz_loadu_epi16(lanes, in + i * 2)));
}

/* Whole tiles are stored; what is too much is overwritten by the padding, the rope values or the
 * next row. */
#define DECODE_FP8(tile_to_bf16)                                                                   \
    int64_t nope = dim - rope_dim;                                                                 \
    for (int64_t j = 0; j < n; j++, tile += stride) {                                              \
        const uint8_t *rest = records[j] + nope, *scales = rest + rope_dim * 2;                    \
        rows[j] = tile;                                                                            \
        for (int64_t i = 0; i < nope; i += 64) {                                                   \
            __mmask64 lanes = _bzhi_u64(UINT64_MAX, (uint32_t)(nope - i < 64 ? nope - i : 64));    \
            __m512i first, second, c = _mm512_maskz_loadu_epi8(lanes, records[j] + i);             \
            tile_to_bf16;                                                                          \
            store_tile_avx512(tile + i, first, second, e8m0_to_f32(scales[i / 64]));               \
        }                                                                                          \
        if (dim % 16) _mm512_storeu_ps(tile + dim, _mm512_setzero_ps());                           \
        decode_bf16_avx512(tile + nope, rest, rope_dim);                                           \
    }

LSA_TARGET_AVX512_BF16 static void decode_fp8_vbmi(float *tile, const float **rows,
                                                   const uint8_t *const *records, int64_t n,
                                                   int64_t stride, int64_t dim, int64_t rope_dim){
    DECODE_FP8(e4m3x64_to_bf16_vbmi(&first, &second, c))}

LSA_TARGET_AVX512
    static void decode_fp8_avx512(float *tile, const float **rows, const uint8_t *const *records,
                                  int64_t n, int64_t stride, int64_t dim, int64_t rope_dim)
{
    DECODE_FP8(first = e4m3x32_to_bf16_avx512(_mm512_castsi512_si256(c));
               second = e4m3x32_to_bf16_avx512(_mm512_extracti64x4_epi64(c, 1)))
}

LSA_TARGET_AVX512 static void decode_avx512(float *tile, const float **rows,
                                            const uint8_t *const *records, int64_t n,
                                            int64_t stride, int64_t dim, int64_t rope_dim,
                                            int32_t format)
{
    if (format == LSA_KV_FP8)
        decode_fp8_avx512(tile, rows, records, n, stride, dim, rope_dim);
    else if (format == LSA_KV_F32)
        decode_generic(tile, rows, records, n, stride, dim, rope_dim, format);
    else
        for (int64_t j = 0; j < n; j++, tile += stride) {
            decode_bf16_avx512(tile, records[j], dim);
            rows[j] = tile;
        }
}

LSA_TARGET_AVX512_BF16 static void decode_vbmi(float *tile, const float **rows,
                                               const uint8_t *const *records, int64_t n,
                                               int64_t stride, int64_t dim, int64_t rope_dim,
                                               int32_t format)
{
    if (format == LSA_KV_FP8)
        decode_fp8_vbmi(tile, rows, records, n, stride, dim, rope_dim);
    else
        decode_avx512(tile, rows, records, n, stride, dim, rope_dim, format);
}

#endif

lsa_attention_decode_fn *lsa_attention_decode_now(void)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512_BF16) return decode_vbmi;
    if (level == LSA_CPU_AVX512) return decode_avx512;
    if (level == LSA_CPU_AVX2) return decode_avx2;
#endif
    return decode_generic;
}
