/* Owns sums of softmaxes on the CPU. Exponentials are taken twice, for the denominators and for the sums: that is sooner done than
 * writing them to memory and back. */
#include "kernels/softmax_sum.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum {
    GROUP = 64,     /* rows whose denominators are known at a time */
    COLUMNS = 1024, /* of a task */
    BLOCK = 256     /* exponentials at a time */
};

typedef double f64x8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef float f32x8 __attribute__((vector_size(32), aligned(4), may_alias));

/* A row's largest value, and one over the sum of e^(x - largest). */
typedef struct scale {
    float largest, share;
} scale;

static inline LSA_BODY f32x16 load(const float *x, int64_t m)
{
    if (m >= 16) return f32x16_load(x);
    f32x16 v = f32x16_set(-INFINITY);
    memcpy(&v, x, (size_t)m * sizeof *x);
    return v;
}

/* e^x, x <= 0, within 2 ulp; below -87 it is 0. Fused, so that each path gives the same bits. */
static inline LSA_BODY float exp_of(float x)
{
    const float rounder = 12582912.0f; /* adding it rounds to an integer, which the low bits hold */
    float y = x > -87.0f ? x : -87.0f;
    float shifted = fmaf(y, 1.44269504088896341f, rounder), whole = shifted - rounder;
    float r = fmaf(whole, 2.12194440e-4f, fmaf(whole, -0.693359375f, y));
    float p = fmaf(r, 1.9875691500e-4f, 1.3981999507e-3f);
    p = fmaf(p, r, 8.3334519073e-3f);
    p = fmaf(p, r, 4.1665795894e-2f);
    p = fmaf(p, r, 1.6666665459e-1f);
    p = fmaf(p, r, 5.0000001201e-1f);
    p = fmaf(p, r * r, r) + 1.0f;
    int32_t n, bits;
    memcpy(&n, &shifted, sizeof n);
    memcpy(&bits, &p, sizeof bits);
    bits += (int32_t)((uint32_t)(n - 0x4b400000) << 23);
    memcpy(&p, &bits, sizeof p);
    return x > -87.0f ? p : 0.0f;
}

/* m <= BLOCK exponentials, zeros behind them. */
static inline LSA_BODY void exps(float *e, const float *x, int64_t m, float largest)
{
    for (int64_t j = 0; j < m; j++) e[j] = exp_of(x[j] - largest);
    for (int64_t j = m; j < BLOCK; j++) e[j] = 0.0f;
}

static inline LSA_BODY void scale_of_body(scale *out, const float *x, int64_t n)
{
    f32x16 most[2] = {load(x, n), f32x16_set(-INFINITY)};
    for (int64_t i = 16; i < n; i += 16)
        most[i / 16 % 2] = f32x16_larger(most[i / 16 % 2], load(x + i, n - i));
    f32x16 both = f32x16_larger(most[0], most[1]);
    float largest = -INFINITY, e[BLOCK];
    for (int i = 0; i < 16; i++)
        largest = both[i] > largest || both[i] != both[i] ? both[i] : largest;
    f64x8 sum[2] = {{0}, {0}};
    for (int64_t i = 0; i < n; i += BLOCK) {
        exps(e, x + i, n - i < BLOCK ? n - i : BLOCK, largest);
        for (int64_t j = 0; j < BLOCK; j += 16) {
            f32x8 half[2];
            memcpy(half, e + j, sizeof half);
            sum[0] += __builtin_convertvector(half[0], f64x8);
            sum[1] += __builtin_convertvector(half[1], f64x8);
        }
    }
    f64x8 s = sum[0] + sum[1];
    double all = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
    *out = (scale){largest, largest - largest == 0 ? (float)(1.0 / all) : NAN};
}
LSA_PATHS(scale_of, (scale * out, const float *x, int64_t n), (out, x, n))

/* Adds a row's m columns to out. */
static inline LSA_BODY void add_body(float *out, const float *x, int64_t m, scale s)
{
    float e[BLOCK];
    for (int64_t i = 0; i < m; i += BLOCK) {
        int64_t many = m - i < BLOCK ? m - i : BLOCK;
        exps(e, x + i, many, s.largest);
        for (int64_t j = 0; j < many; j++) out[i + j] += e[j] * s.share;
    }
}
LSA_PATHS(add, (float *out, const float *x, int64_t m, scale s), (out, x, m, s))

int lsa_softmax_sum_check(int64_t rows, int64_t n)
{
    if (rows >= 0 && n >= 0) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "softmax_sum: shape [%lld, %lld]", (long long)rows, (long long)n);
}

/* Some rows at a time: their scales, then columns of all of them. */
typedef struct call {
    float *out;
    const float *in;
    int64_t rows, n;
    scale scales[GROUP];
} call;

static void find_scales(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    call *c = context;
    for (int64_t r = from; r < to; r++) scale_of(&c->scales[r], c->in + r * c->n, c->n);
}

static void add_columns(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const call *c = context;
    for (int64_t at = from * COLUMNS; at < to * COLUMNS && at < c->n; at += COLUMNS)
        for (int64_t r = 0; r < c->rows; r++)
            add(c->out + at, c->in + r * c->n + at, c->n - at < COLUMNS ? c->n - at : COLUMNS,
                c->scales[r]);
}

int lsa_softmax_sum_cpu(float *out, const float *in, int64_t rows, int64_t n, void *stream)
{
    (void)stream;
    int rc = lsa_softmax_sum_check(rows, n);
    if (rc || n == 0) return rc;
    memset(out, 0, (size_t)n * sizeof *out);
    int threads = lsa_threads_for(rows * n);
    for (int64_t from = 0; from < rows; from += GROUP) {
        call c = {.out = out, .in = in + from * n, .n = n};
        c.rows = rows - from < GROUP ? rows - from : GROUP;
        lsa_parallel(threads, c.rows, find_scales, &c);
        lsa_parallel(threads, (n + COLUMNS - 1) / COLUMNS, add_columns, &c);
    }
    return LSA_OK;
}
