/* Private to convert.c and convert.cu: integers and f32. */
#ifndef LSA_CONVERT_PRIVATE_H
#define LSA_CONVERT_PRIVATE_H
#include "kernels/number_formats.h"

/* Rounds to odd: a second rounding, to 22 bits or fewer, then gives what one would have. */
static inline LSA_BODY float i64_to_f32_odd(int64_t v)
{
    uint64_t u = v < 0 ? -(uint64_t)v : (uint64_t)v;
#ifdef __CUDA_ARCH__
    int drop = 40 - __clzll((long long)(u | 1));
#else
    int drop = 40 - __builtin_clzll(u | 1);
#endif
    if (drop > 0) {
        uint64_t rest = u & ((UINT64_C(1) << drop) - 1);
        u = (u >> drop | (rest != 0)) << drop;
    }
    return v < 0 ? -(float)u : (float)u;
}

static inline LSA_BODY float f64_to_f32_odd(double v)
{
    float f = (float)v;
    uint32_t u;
    if ((double)f == v || v != v) return f;
    memcpy(&u, &f, sizeof u);
    u -= fabs((double)f) > fabs(v); /* toward zero; infinity becomes the largest number */
    u |= 1;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline LSA_BODY int64_t f64_to_i64(double x)
{
    int64_t v = (int64_t)(x > -0x1p63 && x < 0x1p63 ? x : 0);
    v = x >= 0x1p63 ? INT64_MAX : v;
    return x <= -0x1p63 ? INT64_MIN : v;
}

static inline LSA_BODY int32_t f32_to_i32(float x)
{
    int32_t in_range = x > -0x1p31f && x < 0x1p31f, v = (int32_t)(in_range ? x : 0);
    v = x >= 0x1p31f ? INT32_MAX : v;
    return x <= -0x1p31f ? INT32_MIN : v;
}

static inline LSA_BODY int64_t f32_to_i64(float x)
{
    int32_t in_range = x > -0x1p63f && x < 0x1p63f;
    int64_t v = (int64_t)(in_range ? x : 0);
    v = x >= 0x1p63f ? INT64_MAX : v;
    return x <= -0x1p63f ? INT64_MIN : v;
}

static inline LSA_BODY int64_t clamp(int64_t v, int64_t low, int64_t high)
{
    return v < low ? low : v > high ? high : v;
}

#endif
