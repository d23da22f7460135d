/* Owns random numbers of the normal distribution that need no state. Its log, sine and cosine are its own, so that they are vectors
 * and the numbers the same on every machine. */
#include "kernels/normal.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"

enum { PAIRS = 1 << 13 }; /* that one thread takes at a time */

/* Output i of SplitMix64, whose state advances by a constant. */
static inline LSA_BODY uint64_t mixed(uint64_t seed, uint64_t i)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (i + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* log u for u in 2^-53 .. 1: of u = m 2^e with m in sqrt(1/2) .. sqrt(2), by the series of 2 artanh((m - 1) / (m + 1)). */
static inline LSA_BODY double log_unit(double u)
{
    int64_t bits;
    memcpy(&bits, &u, sizeof bits);
    int64_t shifted = bits - 0x3fe6a09e667f3bcd; /* sqrt(1/2) */
    int32_t e = (int32_t)(shifted >> 52);
    bits -= (int64_t)e * ((int64_t)1 << 52);
    double m;
    memcpy(&m, &bits, sizeof m);
    double s = (m - 1) / (m + 1), z = s * s, p = 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    return (double)e * 0.69314718055994530942 + (2 * s + 2 * s * z * p);
}

/* cos and sin of 2 pi v for v in 0 .. 1: of what is left of the nearest quarter, by Taylor's series. */
static inline LSA_BODY void turn(double v, double *cosine, double *sine)
{
    double quarter = (4 * v + 6755399441055744.0) - 6755399441055744.0; /* 1.5 * 2^52 rounds */
    double x = (4 * v - quarter) * 1.57079632679489661923, z = x * x;
    double c = z * (1.0 / 20922789888000) - 1.0 / 87178291200;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = 1 - z * (0.5 - z * c);
    double s = z * (1.0 / 355687428096000) - 1.0 / 1307674368000;
    s = s * z + 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = x - x * z * (1.0 / 6 - z * s);
    /* Quarters 1 and 3 exchange the two; 2 and 3 turn the sine, 1 and 2 the cosine. */
    double odd = quarter == 1 || quarter == 3 ? 1 : 0;
    double a = odd * s + (1 - odd) * c, b = odd * c + (1 - odd) * s;
    *cosine = quarter == 1 || quarter == 2 ? -a : a;
    *sine = quarter == 2 || quarter == 3 ? -b : b;
}

/* Both numbers of pairs from the first on. */
static inline LSA_BODY void pairs_body(float *out, int64_t first, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) {
        uint64_t at = 2 * (uint64_t)(first + i);
        double u = (double)(int64_t)((mixed(seed, at) >> 11) + 1) * 0x1p-53;
        double v = (double)(int64_t)(mixed(seed, at + 1) >> 11) * 0x1p-53, cosine, sine;
        turn(v, &cosine, &sine);
        double radius = sqrt(-2 * log_unit(u));
        out[2 * i] = (float)(radius * cosine);
        out[2 * i + 1] = (float)(radius * sine);
    }
}
LSA_PATHS(pairs, (float *out, int64_t first, int64_t n, uint64_t seed), (out, first, n, seed))

typedef struct drawing {
    float *out;
    int64_t whole;
    uint64_t seed;
} drawing;

static void draw_pairs(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const drawing *d = context;
    int64_t at = from * PAIRS, end = to * PAIRS < d->whole ? to * PAIRS : d->whole;
    pairs(d->out + 2 * at, at, end - at, d->seed);
}

int lsa_normal_cpu(float *out, int64_t n, uint64_t seed, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "normal: %lld elements", (long long)n);
    int64_t whole = n / 2;
    lsa_parallel(lsa_threads_for(n * 4), (whole + PAIRS - 1) / PAIRS, draw_pairs,
                 &(drawing){out, whole, seed});
    if (n % 2) {
        float last[2];
        pairs(last, whole, 1, seed);
        out[n - 1] = last[0];
    }
    return LSA_OK;
}
