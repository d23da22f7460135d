/* Owns reductions along one dimension, in one order whatever the code path and the thread count. */
#include "kernels/reduce.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum { LANES = 16 };

typedef double f64x8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef float f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i32x8 __attribute__((vector_size(32), aligned(4), may_alias));

static inline LSA_BODY f64x8 widen(const float *p)
{
    f32x8 v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, f64x8);
}

static inline LSA_BODY float sum_row(const float *x, int64_t n, int mean)
{
    f64x8 low = {0}, high = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        low += widen(x + i);
        high += widen(x + i + 8);
    }
    if (i < n) {
        float rest[LANES] = {0};
        memcpy(rest, x + i, (size_t)(n - i) * sizeof(float));
        low += widen(rest);
        high += widen(rest + 8);
    }
    low += high;
    double a[8];
    memcpy(a, &low, sizeof a);
    double sum = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    return (float)(mean ? sum / (double)n : sum);
}

/* The better of a and b where neither is NaN. */
static inline LSA_BODY f32x16 better(f32x16 a, f32x16 b, int max)
{
    return max ? f32x16_select(b > a, b, a) : f32x16_select(b < a, b, a);
}

static inline LSA_BODY f32x8 better8(f32x8 a, f32x8 b, int max)
{
    i32x8 mask = max ? b > a : b < a;
    return (f32x8)((mask & (i32x8)b) | (~mask & (i32x8)a));
}

/* NaN is noted aside, and comes out in the end. */
static inline LSA_BODY float best_of_row(const float *x, int64_t n, int max)
{
    const float worst = max ? -INFINITY : INFINITY;
    f32x16 best = f32x16_set(worst);
    i32x16 nan = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        f32x16 v = f32x16_load(x + i);
        nan |= v != v;
        best = better(best, v, max);
    }
    if (i < n) {
        f32x16 v = f32x16_set(worst);
        memcpy(&v, x + i, (size_t)(n - i) * sizeof(float));
        nan |= v != v;
        best = better(best, v, max);
    }
    f32x8 half[2];
    i32x8 nans[2];
    memcpy(half, &best, sizeof best);
    memcpy(nans, &nan, sizeof nan);
    f32x8 b = better8(half[0], half[1], max);
    nans[0] |= nans[1];
    b = better8(b, __builtin_shuffle(b, (i32x8){4, 5, 6, 7, 0, 1, 2, 3}), max);
    b = better8(b, __builtin_shuffle(b, (i32x8){2, 3, 0, 1, 6, 7, 4, 5}), max);
    b = better8(b, __builtin_shuffle(b, (i32x8){1, 0, 3, 2, 5, 4, 7, 6}), max);
    int64_t any[4];
    memcpy(any, nans, sizeof any);
    return any[0] | any[1] | any[2] | any[3] ? NAN : b[0];
}

static inline LSA_BODY void rows_body(float *out, const float *in, int64_t rows, int64_t n,
                                      int32_t op)
{
    for (int64_t r = 0; r < rows; r++, in += n) {
        switch (op) {
        case LSA_REDUCE_SUM:
            out[r] = sum_row(in, n, 0);
            break;
        case LSA_REDUCE_MEAN:
            out[r] = sum_row(in, n, 1);
            break;
        case LSA_REDUCE_MIN:
            out[r] = best_of_row(in, n, 0);
            break;
        default:
            out[r] = best_of_row(in, n, 1);
            break;
        }
    }
}
LSA_PATHS(rows, (float *out, const float *in, int64_t rows, int64_t n, int32_t op),
          (out, in, rows, n, op))

enum {
    COLUMNS = 64, /* side by side: whole cache lines of every row */
    PART = 4096   /* columns of a task */
};

/* m columns (at most COLUMNS), j going down them. */
static inline LSA_BODY void column_block(float *out, const float *in, int64_t n, int64_t inner,
                                         int64_t m, int32_t op)
{
    double a[COLUMNS];
    for (int64_t c = 0; c < m; c++)
        a[c] = op == LSA_REDUCE_MIN ? INFINITY : op == LSA_REDUCE_MAX ? -INFINITY : 0.0;
    for (int64_t j = 0; j < n; j++) {
        const float *x = in + j * inner;
        if (op == LSA_REDUCE_MIN)
            for (int64_t c = 0; c < m; c++) a[c] = a[c] < x[c] || a[c] != a[c] ? a[c] : x[c];
        else if (op == LSA_REDUCE_MAX)
            for (int64_t c = 0; c < m; c++) a[c] = a[c] > x[c] || a[c] != a[c] ? a[c] : x[c];
        else
            for (int64_t c = 0; c < m; c++) a[c] += x[c];
    }
    for (int64_t c = 0; c < m; c++)
        out[c] = (float)(op == LSA_REDUCE_MEAN ? a[c] / (double)n : a[c]);
}

/* m columns of one outer element. */
static inline LSA_BODY void columns_body(float *out, const float *in, int64_t n, int64_t inner,
                                         int64_t m, int32_t op)
{
    int64_t i = 0;
    for (; i + COLUMNS <= m; i += COLUMNS) column_block(out + i, in + i, n, inner, COLUMNS, op);
    if (i < m) column_block(out + i, in + i, n, inner, m - i, op);
}
LSA_PATHS(columns, (float *out, const float *in, int64_t n, int64_t inner, int64_t m, int32_t op),
          (out, in, n, inner, m, op))

typedef struct call {
    float *out;
    const float *in;
    int64_t n, inner;
    int32_t op;
} call;

static int64_t parts_of(int64_t inner) { return (inner + PART - 1) / PART; }

static void reduce_columns(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const call *c = context;
    int64_t parts = parts_of(c->inner);
    for (int64_t task = first; task < end; task++) {
        int64_t o = task / parts, from = task % parts * PART, left = c->inner - from;
        columns(c->out + o * c->inner + from, c->in + o * c->n * c->inner + from, c->n, c->inner,
                left < PART ? left : PART, c->op);
    }
}

static void reduce_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const call *c = context;
    rows(c->out + from, c->in + from * c->n, to - from, c->n, c->op);
}

int lsa_reduce_check(int64_t outer, int64_t n, int64_t inner, int32_t op)
{
    if (op < LSA_REDUCE_SUM || op > LSA_REDUCE_MAX)
        return lsa_fail(LSA_EARG, "reduce: op %d is unknown", op);
    if (outer < 0 || n < 0 || inner < 0)
        return lsa_fail(LSA_ESHAPE, "reduce: shape [%lld, %lld, %lld]", (long long)outer,
                        (long long)n, (long long)inner);
    if (outer > 0 && inner > 0 && n == 0 && (op == LSA_REDUCE_MIN || op == LSA_REDUCE_MAX))
        return lsa_fail(LSA_ESHAPE, "reduce: no elements to take the %s of",
                        op == LSA_REDUCE_MIN ? "minimum" : "maximum");
    return LSA_OK;
}

int lsa_reduce_cpu(float *out, const float *in, int64_t outer, int64_t n, int64_t inner, int32_t op,
                   void *stream)
{
    (void)stream;
    int rc = lsa_reduce_check(outer, n, inner, op);
    if (rc || outer == 0 || inner == 0) return rc;
    int threads = lsa_threads_for(outer * n * inner / 8);
    call c = {out, in, n, inner, op};
    if (inner > 1)
        lsa_parallel(threads, outer * parts_of(inner), reduce_columns, &c);
    else
        lsa_parallel(threads, outer, reduce_rows, &c);
    return LSA_OK;
}

static inline LSA_BODY void find_body(const float *x, int64_t n, float value, int64_t *at)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        i32x16 same = f32x16_load(x + i) == value;
        int32_t any = 0;
        for (int j = 0; j < LANES; j++) any |= same[j];
        if (any) break;
    }
    while (i < n && x[i] != value) i++;
    *at = i;
}
LSA_PATHS(find, (const float *x, int64_t n, float value, int64_t *at), (x, n, value, at))

static inline LSA_BODY void largest_body(const float *x, int64_t n, float *value)
{
    f32x16 best = f32x16_set(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        f32x16 v = f32x16_load(x + i);
        best = f32x16_select(v > best, v, best);
    }
    float a[LANES];
    memcpy(a, &best, sizeof a);
    for (; i < n; i++)
        if (x[i] > a[0]) a[0] = x[i];
    for (int j = 1; j < LANES; j++)
        if (a[j] > a[0]) a[0] = a[j];
    *value = a[0];
}
LSA_PATHS(largest, (const float *x, int64_t n, float *value), (x, n, value))

int lsa_argmax_check(int64_t rows, int64_t n)
{
    if (rows >= 0 && n >= 0 && n <= INT32_MAX) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "argmax: shape [%lld, %lld]", (long long)rows, (long long)n);
}

int lsa_argmax_cpu(int32_t *ids, const float *in, int64_t rows, int64_t n, void *stream)
{
    (void)stream;
    int rc = lsa_argmax_check(rows, n);
    if (rc) return rc;
    for (int64_t r = 0; r < rows; r++) {
        float value;
        int64_t at;
        largest(in + r * n, n, &value);
        find(in + r * n, n, value, &at); /* -inf where all is NaN: then nothing equals it */
        ids[r] = at < n ? (int32_t)at : -1;
    }
    return LSA_OK;
}
