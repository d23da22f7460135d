/* What tests/number_formats_spec.lua compiles: the vector functions over arrays, beside the scalar
 * ones, and F16C's. n is a multiple of 64. */
#include "kernels/number_formats.h"

#define SCALAR(name, out_type, in_type, op)                                                        \
    void scalar_##name(out_type *out, const in_type *in, int64_t n)                                \
    {                                                                                              \
        for (int64_t i = 0; i < n; i++) out[i] = op;                                               \
    }

#define NIBBLE (uint8_t)(in[i / 2] >> (i % 2 * 4))
SCALAR(bf16_to_f32, float, uint16_t, bf16_to_f32(in[i]))
SCALAR(f32_to_bf16, uint16_t, float, f32_to_bf16(in[i]))
SCALAR(f16_to_f32, float, uint16_t, f16_to_f32(in[i]))
SCALAR(f32_to_f16, uint16_t, float, f32_to_f16(in[i]))
SCALAR(e4m3_to_f32, float, uint8_t, e4m3_to_f32(in[i]))
SCALAR(e4m3_to_bf16, uint16_t, uint8_t, f32_to_bf16(e4m3_to_f32(in[i])))
SCALAR(e2m1_to_f32, float, uint8_t, e2m1_to_f32(NIBBLE))
SCALAR(e2m1_to_bf16, uint16_t, uint8_t, f32_to_bf16(e2m1_to_f32(NIBBLE)))

#if defined(__x86_64__)
#define VECTOR(target, name, out_type, in_type, step, body)                                        \
    target void name(out_type *out, const in_type *in, int64_t n)                                  \
    {                                                                                              \
        for (int64_t i = 0; i < n; i += step) body;                                                \
    }
#define AVX2(...) VECTOR(LSA_TARGET_AVX2, __VA_ARGS__)
#define AVX512(...) VECTOR(LSA_TARGET_AVX512, __VA_ARGS__)
#define LOAD_128(p) _mm_loadu_si128((const __m128i *)(p))
#define LOAD_256(p) _mm256_loadu_si256((const __m256i *)(p))
#define LOAD_64(p) _mm_loadl_epi64((const __m128i *)(p))

AVX2(avx2_bf16_to_f32, float, uint16_t, 8,
     _mm256_storeu_ps(out + i, bf16x8_to_f32_avx2(LOAD_128(in + i))))
AVX2(avx2_f32_to_bf16, uint16_t, float, 8,
     _mm_storeu_si128((__m128i *)(out + i), f32x8_to_bf16_avx2(_mm256_loadu_ps(in + i))))
AVX2(avx2_f16_to_f32, float, uint16_t, 8,
     _mm256_storeu_ps(out + i, _mm256_cvtph_ps(LOAD_128(in + i))))
AVX2(avx2_f32_to_f16, uint16_t, float, 8,
     _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), 0)))
AVX2(avx2_e4m3_to_f32, float, uint8_t, 8,
     _mm256_storeu_ps(out + i, e4m3x8_to_f32_avx2(LOAD_64(in + i))))
AVX2(avx2_e2m1_to_f32, float, uint8_t, 8,
     _mm256_storeu_ps(out + i, e2m1x8_to_f32_avx2(_mm_loadu_si32(in + i / 2))))

AVX512(avx512_bf16_to_f32, float, uint16_t, 16,
       _mm512_storeu_ps(out + i, bf16x16_to_f32_avx512(LOAD_256(in + i))))
AVX512(avx512_f32_to_bf16, uint16_t, float, 16,
       _mm256_storeu_si256((__m256i *)(out + i), f32x16_to_bf16_avx512(_mm512_loadu_ps(in + i))))
AVX512(avx512_e4m3_to_f32, float, uint8_t, 16,
       _mm512_storeu_ps(out + i, e4m3x16_to_f32_avx512(LOAD_128(in + i))))
AVX512(avx512_e4m3_to_bf16, uint16_t, uint8_t, 32,
       _mm512_storeu_si512(out + i, e4m3x32_to_bf16_avx512(LOAD_256(in + i))))
AVX512(avx512_e2m1_to_f32, float, uint8_t, 16,
       _mm512_storeu_ps(out + i, e2m1x16_to_f32_avx512(LOAD_64(in + i / 2))))
AVX512(avx512_e2m1_to_bf16, uint16_t, uint8_t, 32,
       _mm512_storeu_si512(out + i, e2m1x32_to_bf16_avx512(LOAD_128(in + i / 2))))

LSA_TARGET_AVX512_BF16 void avx512_bf16_e4m3_to_bf16(uint16_t *out, const uint8_t *in, int64_t n)
{
    for (int64_t i = 0; i < n; i += 64) {
        __m512i first, second;
        e4m3x64_to_bf16_vbmi(&first, &second, _mm512_loadu_si512(in + i));
        _mm512_storeu_si512(out + i, first);
        _mm512_storeu_si512(out + i + 32, second);
    }
}
#endif
