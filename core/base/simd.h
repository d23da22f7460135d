/* Private to C files: vectors of 16 floats that the compiler lowers to whatever the code path has,
 * and wrappers that compile one body for every code path.
 *
 * A body is `static inline LSA_BODY`; LSA_PATHS(name, (parameters), (arguments)) makes `name` out of
 * `name_body`, compiled for generic, AVX2 and AVX-512 and chosen by lsa_cpu_level() at each call.
 * Sixteen lanes in every path mean the same order of summation in every path. */
#ifndef LSA_SIMD_H
#define LSA_SIMD_H
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/base/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define LSA_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi2")))
#define LSA_TARGET_AVX512                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c,bmi2,prefer-" \
                          "vector-width=512")))
#define LSA_TARGET_AVX512_BF16                                                                     \
    __attribute__((target("avx512bf16,avx512vbmi,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,"   \
                          "avx512cd,avx2,fma,f16c,bmi2,prefer-vector-width=512")))
#endif

#define LSA_BODY __attribute__((always_inline))

typedef float f32x16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i32x16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u32x16 __attribute__((vector_size(64), aligned(4), may_alias));

static inline LSA_BODY f32x16 f32x16_load(const float *p)
{
    f32x16 v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline LSA_BODY void f32x16_store(float *p, f32x16 v) { memcpy(p, &v, sizeof v); }

static inline LSA_BODY f32x16 f32x16_set(float x) { return x - (f32x16){0}; }

/* To the nearest float. */
static inline LSA_BODY f32x16 f32x16_of(i32x16 v) { return __builtin_convertvector(v, f32x16); }

/* The first n (0..16) floats, the rest zero. */
static inline LSA_BODY f32x16 f32x16_load_n(const float *p, int64_t n)
{
    f32x16 v = {0};
    memcpy(&v, p, (size_t)n * sizeof(float));
    return v;
}

static inline LSA_BODY void f32x16_store_n(float *p, f32x16 v, int64_t n)
{
    memcpy(p, &v, (size_t)n * sizeof(float));
}

/* Pairwise, so that the order does not depend on the path. */
static inline LSA_BODY float f32x16_sum(f32x16 v)
{
    float a[16];
    memcpy(a, &v, sizeof a);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) a[i] += a[i + step];
    return a[0];
}

#if defined(__x86_64__)
/* r[i], word j <- r[j], word i */
LSA_TARGET_AVX2
static inline LSA_BODY void lsa_transpose8_avx2(__m256 r[8])
{
    __m256 t[8], u[8];
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
        u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
        u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
        u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x20);
        r[4 + i] = _mm256_permute2f128_ps(u[i], u[4 + i], 0x31);
    }
}

/* The same of 16. */
LSA_TARGET_AVX512
static inline LSA_BODY void lsa_transpose16_avx512(__m512i r[16])
{
    __m512i t[16], u[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        u[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        __m512i a = _mm512_shuffle_i32x4(u[i], u[4 + i], 0x88),
                b = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0x88);
        __m512i c = _mm512_shuffle_i32x4(u[i], u[4 + i], 0xdd),
                d = _mm512_shuffle_i32x4(u[8 + i], u[12 + i], 0xdd);
        r[i] = _mm512_shuffle_i32x4(a, b, 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(c, d, 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(a, b, 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(c, d, 0xdd);
    }
}
#endif

#if defined(__x86_64__)
#define LSA_PATHS(name, params, args)                                                              \
    LSA_TARGET_AVX512 static void name##_avx512 params { name##_body args; }                       \
    LSA_TARGET_AVX2 static void name##_avx2 params { name##_body args; }                           \
    static void name##_generic params { name##_body args; }                                        \
    static void name params                                                                        \
    {                                                                                              \
        int level = lsa_cpu_level();                                                               \
        if (level >= LSA_CPU_AVX512)                                                               \
            name##_avx512 args;                                                                    \
        else if (level == LSA_CPU_AVX2)                                                            \
            name##_avx2 args;                                                                      \
        else                                                                                       \
            name##_generic args;                                                                   \
    }
#else
#define LSA_PATHS(name, params, args)                                                              \
    static void name params { name##_body args; }
#endif

#endif
