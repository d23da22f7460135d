/* Private to C and CUDA files: exp and its relatives on sixteen floats; on a GPU on one, a thread's.
 *
 * Only single operations in a written order (no contraction into fma), so that every code path
 * gives the same bits. The errors named here are those that tests/vector_math_spec.lua measures
 * against double precision. */
#ifndef LSA_VECTOR_MATH_H
#define LSA_VECTOR_MATH_H
#ifdef __CUDACC__
#include "kernels/cuda_lane.h"
#else
#include "core/base/simd.h"
#endif

/* yes where the mask is set (-1), no elsewhere (0). */
static inline LSA_BODY f32x16 f32x16_select(i32x16 mask, f32x16 yes, f32x16 no)
{
    return (f32x16)((mask & (i32x16)yes) | (~mask & (i32x16)no));
}

/* Masks come from signs, because GCC compares vectors wider than the processor's lane by lane and
 * shifts them whole. a < b; unspecified where either is NaN or both are the same infinity. */
static inline LSA_BODY i32x16 f32x16_below(f32x16 a, f32x16 b) { return (i32x16)(a - b) >> 31; }

static inline LSA_BODY i32x16 i32x16_is_zero(i32x16 v)
{
    return ~((v | (i32x16) - (u32x16)v) >> 31); /* unsigned: the least integer has no negative */
}

static inline LSA_BODY i32x16 f32x16_is_nan(f32x16 v)
{
    return (0x7f800000 - ((i32x16)v & 0x7fffffff)) >> 31;
}

/* NaN in v stays NaN. */
static inline LSA_BODY f32x16 f32x16_at_least(f32x16 v, float low)
{
    f32x16 bound = f32x16_set(low);
    return f32x16_select(f32x16_below(v, bound) & ~f32x16_is_nan(v), bound, v);
}

static inline LSA_BODY f32x16 f32x16_at_most(f32x16 v, float high)
{
    f32x16 bound = f32x16_set(high);
    return f32x16_select(f32x16_below(bound, v) & ~f32x16_is_nan(v), bound, v);
}

/* The larger, the smaller of two, NaN where either is. */
static inline LSA_BODY f32x16 f32x16_larger(f32x16 a, f32x16 b)
{
    i32x16 nan = f32x16_is_nan(a) | f32x16_is_nan(b);
    return f32x16_select(nan, a + b, f32x16_select(f32x16_below(b, a), a, b));
}

static inline LSA_BODY f32x16 f32x16_smaller(f32x16 a, f32x16 b)
{
    i32x16 nan = f32x16_is_nan(a) | f32x16_is_nan(b);
    return f32x16_select(nan, a + b, f32x16_select(f32x16_below(a, b), a, b));
}

static inline LSA_BODY f32x16 f32x16_abs(f32x16 v) { return (f32x16)((i32x16)v & 0x7fffffff); }

/* e^v within 1 ulp, denormal results included; -inf gives 0, above 88.73 +inf, NaN NaN. */
static inline LSA_BODY f32x16 f32x16_exp(f32x16 v)
{
    /* Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits. */
    const float rounder = 12582912.0f;
    f32x16 low = f32x16_set(-104.0f), high = f32x16_set(89.0f);
    f32x16 x = f32x16_select(f32x16_below(v, low), low, v);
    x = f32x16_select(f32x16_below(high, x), high, x);
    f32x16 shifted = x * 1.44269504088896341f + rounder;
    i32x16 n = (i32x16)shifted - 0x4b400000;
    f32x16 whole = shifted - rounder;

    /* ln 2 in two parts; the first has 9 bits, so its product with n is exact. */
    f32x16 r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;

    f32x16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;

    /* Two factors, because 2^128 and 2^-150 are no floats. */
    i32x16 half = n >> 1;
    f32x16 a = (f32x16)((half + 127) << 23), b = (f32x16)((n - half + 127) << 23);
    return f32x16_select(f32x16_is_nan(v), v, p * a * b);
}

/* 1 / (1 + e^-v) within 3 ulp at any size. */
static inline LSA_BODY f32x16 f32x16_sigmoid(f32x16 v)
{
    f32x16 e = f32x16_exp(-f32x16_abs(v));
    return f32x16_select((i32x16)v >> 31, e, f32x16_set(1.0f)) / (e + 1.0f);
}

/* log(1 + u) for u in 0..1, within 2 ulp. */
static inline LSA_BODY f32x16 f32x16_log1p_unit(f32x16 u)
{
    /* 1 + u = (1 + f) 2^0 or (1 + f) 2^1, with f in sqrt(1/2) - 1 .. sqrt(2) - 1 and free of rounding. */
    i32x16 upper = f32x16_below(f32x16_set(0.41421356f), u);
    f32x16 f = f32x16_select(upper, u * 0.5f - 0.5f, u);
    f32x16 z = f * f;
    f32x16 p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    f32x16 low = f * z * p - z * 0.5f;
    f32x16 one = f32x16_select(upper, f32x16_set(1.0f), f32x16_set(0.0f));
    return (low + one * -2.12194440e-4f + f) + one * 0.693359375f;
}

/* log v within 2 ulp, denormals included; 0 gives -inf, less than 0 NaN, +inf +inf, NaN NaN. */
static inline LSA_BODY f32x16 f32x16_log(f32x16 v)
{
    i32x16 tiny = f32x16_below(v, f32x16_set(1.17549435e-38f));
    f32x16 x = f32x16_select(tiny, v * 8388608.0f, v); /* 2^23 makes denormals normal */
    x = f32x16_select(v > 0.0f, x, f32x16_set(1.0f));  /* what has no log is put in below */
    i32x16 bits = (i32x16)x;

    /* x = m 2^e with m in sqrt(1/2) .. sqrt(2): 0x3f3504f3 is sqrt(1/2), where the seam is. */
    i32x16 shifted = bits - 0x3f3504f3;
    i32x16 e = shifted >> 23;
    f32x16 f = (f32x16)(bits - (e << 23)) - 1.0f;
    e -= tiny & 23;
    f32x16 n = f32x16_of(e);

    f32x16 z = f * f;
    f32x16 p = f * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    f32x16 y = (f * z * p - z * 0.5f + n * -2.12194440e-4f + f) + n * 0.693359375f;

    i32x16 whole = (i32x16)v;
    y = f32x16_select(whole >> 31, f32x16_set(NAN), y);
    y = f32x16_select(i32x16_is_zero(whole & 0x7fffffff), f32x16_set(-INFINITY), y);
    return f32x16_select(i32x16_is_zero(whole ^ 0x7f800000) | f32x16_is_nan(v), v, y);
}

/* log(1 + e^v) within 3 ulp at any size; -inf gives 0, +inf +inf. */
static inline LSA_BODY f32x16 f32x16_softplus(f32x16 v)
{
    f32x16 tail = f32x16_log1p_unit(f32x16_exp(-f32x16_abs(v)));
    return f32x16_at_least(v, 0.0f) + tail;
}

#endif
