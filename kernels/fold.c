/* Owns reductions along one dimension of f32, f64 and i64: sixteen accumulators along a row, or one for each of some columns. */
#include "kernels/fold.h"

#include <stdatomic.h>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"

enum { LANES = 16, MANY = 64, COLUMNS = 64 };

/* FOLD makes name_row and name_columns. lanes: accumulators of a row, LANES, or MANY where their order does not matter, which GCC
 * makes better vectors of. acc: an accumulator's type, `init` its first value; `step` takes an element x into the accumulator s,
 * knowing `mean`; `join` takes a second accumulator t into s. */
#define FOLD(name, lanes, type, acc, init, step, join)                                             \
    static inline LSA_BODY void name##_row_body(acc *out, const type *in, int64_t n, double mean)  \
    {                                                                                              \
        acc lane[lanes];                                                                           \
        (void)mean;                                                                                \
        for (int l = 0; l < (lanes); l++) lane[l] = init;                                          \
        int64_t j = 0;                                                                             \
        for (; j + (lanes) <= n; j += (lanes))                                                     \
            for (int l = 0; l < (lanes); l++) {                                                    \
                type x = in[j + l];                                                                \
                acc s = lane[l];                                                                   \
                lane[l] = step;                                                                    \
            }                                                                                      \
        for (int l = 0; j + l < n; l++) {                                                          \
            type x = in[j + l];                                                                    \
            acc s = lane[l];                                                                       \
            lane[l] = step;                                                                        \
        }                                                                                          \
        for (int half = (lanes) / 2; half; half /= 2)                                              \
            for (int l = 0; l < half; l++) {                                                       \
                acc s = lane[l], t = lane[l + half];                                               \
                lane[l] = join;                                                                    \
            }                                                                                      \
        *out = lane[0];                                                                            \
    }                                                                                              \
    LSA_PATHS(name##_row, (acc * out, const type *in, int64_t n, double mean), (out, in, n, mean)) \
    static inline LSA_BODY void name##_block(acc *out, const type *in, int64_t n, int64_t inner,   \
                                             int64_t m, const double *means)                       \
    {                                                                                              \
        acc sums[COLUMNS];                                                                         \
        (void)means;                                                                               \
        for (int64_t c = 0; c < m; c++) sums[c] = init;                                            \
        for (int64_t j = 0; j < n; j++)                                                            \
            for (int64_t c = 0; c < m; c++) {                                                      \
                type x = in[j * inner + c];                                                        \
                double mean = means ? means[c] : 0;                                                \
                acc s = sums[c];                                                                   \
                (void)mean;                                                                        \
                sums[c] = step;                                                                    \
            }                                                                                      \
        memcpy(out, sums, (size_t)m * sizeof(acc));                                                \
    }                                                                                              \
    static inline LSA_BODY void name##_columns_body(acc *out, const type *in, int64_t n,           \
                                                    int64_t inner, int64_t m, const double *means) \
    {                                                                                              \
        if (m == COLUMNS)                                                                          \
            name##_block(out, in, n, inner, COLUMNS, means);                                       \
        else                                                                                       \
            name##_block(out, in, n, inner, m, means);                                             \
    }                                                                                              \
    LSA_PATHS(                                                                                     \
        name##_columns,                                                                            \
        (acc * out, const type *in, int64_t n, int64_t inner, int64_t m, const double *means),     \
        (out, in, n, inner, m, means))

#define LESS(x, s) ((x) < (s) || (x) != (x) ? (x) : (s))
#define MORE(x, s) ((x) > (s) || (x) != (x) ? (x) : (s))

#define FOLDS_OF(type, kind, lowest, highest)                                                      \
    FOLD(least_##kind, MANY, type, type, highest, LESS(x, s), LESS(t, s))                          \
    FOLD(most_##kind, MANY, type, type, lowest, MORE(x, s), MORE(t, s))                            \
    FOLD(first_##kind, MANY, type, type, highest, (x < s ? x : s), (t < s ? t : s))                \
    FOLD(last_##kind, MANY, type, type, lowest, (x > s ? x : s), (t > s ? t : s))                  \
    FOLD(squares_##kind, LANES, type, double, 0, s + (double)x * (double)x, s + t)                 \
    FOLD(deviations_##kind, LANES, type, double, 0, s + ((double)x - mean) * ((double)x - mean),   \
         s + t)                                                                                    \
    FOLD(nonzero_##kind, MANY, type, int64_t, 0, s + (x != 0), s + t)                              \
    FOLD(sum_##kind, LANES, type, double, 0, s + (double)x, s + t)

FOLDS_OF(float, f32, -INFINITY, INFINITY)
FOLDS_OF(double, f64, -INFINITY, INFINITY)
FOLDS_OF(int64_t, i64, INT64_MIN, INT64_MAX)

/* Sums of i64 in two halves, neither of which 2^31 elements overflow. */
FOLD(high, MANY, int64_t, int64_t, 0, s + (x >> 32), s + t)
FOLD(low, MANY, int64_t, int64_t, 0, s + (x & 0xffffffff), s + t)

/* What a task has: some columns (m, at most COLUMNS) of one outer element, or m = inner = 1. */
typedef struct task {
    const void *in;
    int64_t n, inner, m;
} task;

#define RUN(name, type, t, result, means)                                                          \
    do {                                                                                           \
        if ((t)->inner == 1)                                                                       \
            name##_row(result, (const type *)(t)->in, (t)->n, (means) ? (means)[0] : 0);           \
        else                                                                                       \
            name##_columns(result, (const type *)(t)->in, (t)->n, (t)->inner, (t)->m, means);      \
    } while (0)

static int exact_sums(int64_t *out, const task *t)
{
    int64_t high[COLUMNS], low[COLUMNS];
    const double *none = NULL;
    RUN(high, int64_t, t, high, none);
    RUN(low, int64_t, t, low, none);
    for (int64_t c = 0; c < t->m; c++) {
        __int128 sum = (__int128)high[c] * ((int64_t)1 << 32) + low[c];
        if (sum < INT64_MIN || sum > INT64_MAX) return LSA_EARG;
        out[c] = (int64_t)sum;
    }
    return LSA_OK;
}

/* Skips blocks in which nothing equals v. */
#define FIND(kind, type)                                                                           \
    static inline LSA_BODY void find_##kind##_body(int64_t *at, const type *x, int64_t n, type v)  \
    {                                                                                              \
        int64_t j = 0;                                                                             \
        for (int any = 0; j + MANY <= n; j += MANY) {                                              \
            for (int l = 0; l < MANY; l++) any |= x[j + l] == v;                                   \
            if (any) break;                                                                        \
        }                                                                                          \
        *at = j;                                                                                   \
    }                                                                                              \
    LSA_PATHS(find_##kind, (int64_t * at, const type *x, int64_t n, type v), (at, x, n, v))
FIND(f32, float)
FIND(f64, double)
FIND(i64, int64_t)

#define TASK_OF(kind, type)                                                                        \
    static void places_##kind(int64_t *out, const task *t, int32_t op)                             \
    {                                                                                              \
        type best[COLUMNS];                                                                        \
        const double *none = NULL;                                                                 \
        if (op == LSA_FOLD_ARGMIN)                                                                 \
            RUN(first_##kind, type, t, best, none);                                                \
        else                                                                                       \
            RUN(last_##kind, type, t, best, none);                                                 \
        for (int64_t c = 0; c < t->m; c++) {                                                       \
            const type *x = (const type *)t->in + c;                                               \
            int64_t j = 0;                                                                         \
            if (t->inner == 1) find_##kind(&j, x, t->n, best[c]);                                  \
            while (j < t->n && !(x[j * t->inner] == best[c])) j++;                                 \
            out[c] = j < t->n ? j : -1;                                                            \
        }                                                                                          \
    }                                                                                              \
    static void floats_##kind(double *out, const task *t, int32_t op)                              \
    {                                                                                              \
        type best[COLUMNS];                                                                        \
        double means[COLUMNS];                                                                     \
        const double *none = NULL;                                                                 \
        switch (op) {                                                                              \
        case LSA_FOLD_SUM:                                                                         \
            RUN(sum_##kind, type, t, out, none);                                                   \
            break;                                                                                 \
        case LSA_FOLD_SQUARES:                                                                     \
            RUN(squares_##kind, type, t, out, none);                                               \
            break;                                                                                 \
        case LSA_FOLD_DEVIATIONS:                                                                  \
            RUN(sum_##kind, type, t, means, none);                                                 \
            for (int64_t c = 0; c < t->m; c++) means[c] /= (double)t->n;                           \
            none = means;                                                                          \
            RUN(deviations_##kind, type, t, out, none);                                            \
            break;                                                                                 \
        default:                                                                                   \
            if (op == LSA_FOLD_MIN)                                                                \
                RUN(least_##kind, type, t, best, none);                                            \
            else                                                                                   \
                RUN(most_##kind, type, t, best, none);                                             \
            for (int64_t c = 0; c < t->m; c++) out[c] = (double)best[c];                           \
        }                                                                                          \
    }                                                                                              \
    static void integers_##kind(int64_t *out, const task *t, int32_t op)                           \
    {                                                                                              \
        const double *none = NULL;                                                                 \
        if (op == LSA_FOLD_NONZERO)                                                                \
            RUN(nonzero_##kind, type, t, out, none);                                               \
        else                                                                                       \
            places_##kind(out, t, op);                                                             \
    }

TASK_OF(f32, float)
TASK_OF(f64, double)
TASK_OF(i64, int64_t)

static int run_i64(void *out, const task *t, int32_t op)
{
    const double *none = NULL;
    if (op == LSA_FOLD_SUM) return exact_sums(out, t);
    if (op == LSA_FOLD_MIN)
        RUN(least_i64, int64_t, t, (int64_t *)out, none);
    else if (op == LSA_FOLD_MAX)
        RUN(most_i64, int64_t, t, (int64_t *)out, none);
    else if (op >= LSA_FOLD_NONZERO)
        integers_i64(out, t, op);
    else
        floats_i64(out, t, op);
    return LSA_OK;
}

static int run(void *out, const task *t, int32_t op, int32_t dtype)
{
    if (dtype == LSA_I64) return run_i64(out, t, op);
    if (dtype == LSA_F32) {
        if (op >= LSA_FOLD_NONZERO)
            integers_f32(out, t, op);
        else
            floats_f32(out, t, op);
    } else {
        if (op >= LSA_FOLD_NONZERO)
            integers_f64(out, t, op);
        else
            floats_f64(out, t, op);
    }
    return LSA_OK;
}

static int check_shape(const char *what, int64_t outer, int64_t n, int64_t inner, int32_t dtype)
{
    if (dtype != LSA_F32 && dtype != LSA_F64 && dtype != LSA_I64)
        return lsa_fail(LSA_EDTYPE, "%s: there is none of %s", what, lsa_dtype_name(dtype));
    if (outer < 0 || n < 0 || inner < 0 || n > INT32_MAX)
        return lsa_fail(LSA_ESHAPE, "%s: shape [%lld, %lld, %lld]", what, (long long)outer,
                        (long long)n, (long long)inner);
    return LSA_OK;
}

typedef struct folding {
    void *out;
    const void *in;
    int64_t n, inner, size;
    int32_t op, dtype;
    atomic_int lost; /* whether an integer sum does not fit */
} folding;

static int64_t parts_of(int64_t inner) { return (inner + COLUMNS - 1) / COLUMNS; }

static void fold_columns(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    folding *f = context;
    int64_t parts = parts_of(f->inner), inner = f->inner;
    for (int64_t at = from; at < to; at++) {
        int64_t o = at / parts, c = at % parts * COLUMNS;
        task t = {(const char *)f->in + (o * f->n * inner + c) * f->size, f->n, inner,
                  inner - c < COLUMNS ? inner - c : COLUMNS};
        if (run((char *)f->out + (o * inner + c) * 8, &t, f->op, f->dtype) < 0) f->lost = 1;
    }
}

int lsa_fold_cpu(void *out, const void *in, int64_t outer, int64_t n, int64_t inner, int32_t op,
                 int32_t dtype, void *stream)
{
    (void)stream;
    if (op < LSA_FOLD_SUM || op > LSA_FOLD_ARGMAX)
        return lsa_fail(LSA_EARG, "fold: op %d is unknown", op);
    int rc = check_shape("fold", outer, n, inner, dtype);
    if (rc || outer == 0 || inner == 0) return rc;
    if (n == 0 && (op == LSA_FOLD_MIN || op == LSA_FOLD_MAX))
        return lsa_fail(LSA_ESHAPE, "no elements to take the %s of",
                        op == LSA_FOLD_MIN ? "minimum" : "maximum");
    folding f = {out, in, n, inner, lsa_dtype_size(dtype), op, dtype, 0};
    lsa_parallel(lsa_threads_for(outer * n * inner / 4), outer * parts_of(inner), fold_columns, &f);
    return f.lost ? lsa_fail(LSA_EARG, "sum: a sum does not fit 64 bits") : LSA_OK;
}

/* ---- running sums ---- */

#define RUNNING(kind, type)                                                                        \
    static void running_##kind(type *out, const type *in, int64_t n, int64_t inner, int64_t m)     \
    {                                                                                              \
        double sum[COLUMNS] = {0};                                                                 \
        if (inner == 1) {                                                                          \
            double one = 0;                                                                        \
            for (int64_t j = 0; j < n; j++) out[j] = (type)(one += (double)in[j]);                 \
            return;                                                                                \
        }                                                                                          \
        for (int64_t j = 0; j < n; j++)                                                            \
            for (int64_t c = 0; c < m; c++)                                                        \
                out[j * inner + c] = (type)(sum[c] += (double)in[j * inner + c]);                  \
    }
RUNNING(f32, float)
RUNNING(f64, double)

static int running_i64(int64_t *out, const int64_t *in, int64_t n, int64_t inner, int64_t m)
{
    int64_t sum[COLUMNS] = {0};
    for (int64_t j = 0; j < n; j++)
        for (int64_t c = 0; c < m; c++) {
            if (__builtin_add_overflow(sum[c], in[j * inner + c], &sum[c])) return LSA_EARG;
            out[j * inner + c] = sum[c];
        }
    return LSA_OK;
}

static void sum_columns(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    folding *f = context;
    int64_t n = f->n, inner = f->inner, parts = parts_of(inner);
    for (int64_t at = first; at < end; at++) {
        int64_t o = at / parts, c = at % parts * COLUMNS;
        int64_t m = inner - c < COLUMNS ? inner - c : COLUMNS;
        void *to = (char *)f->out + (o * n * inner + c) * f->size;
        const void *from = (const char *)f->in + (o * n * inner + c) * f->size;
        if (f->dtype == LSA_F32)
            running_f32(to, from, n, inner, m);
        else if (f->dtype == LSA_F64)
            running_f64(to, from, n, inner, m);
        else if (running_i64(to, from, n, inner, m) < 0)
            f->lost = 1;
    }
}

int lsa_cumsum_cpu(void *out, const void *in, int64_t outer, int64_t n, int64_t inner,
                   int32_t dtype, void *stream)
{
    (void)stream;
    int rc = check_shape("cumsum", outer, n, inner, dtype);
    if (rc || outer == 0 || inner == 0) return rc;
    folding f = {out, in, n, inner, lsa_dtype_size(dtype), 0, dtype, 0};
    lsa_parallel(lsa_threads_for(outer * n * inner), outer * parts_of(inner), sum_columns, &f);
    return f.lost ? lsa_fail(LSA_EARG, "cumsum: a sum does not fit 64 bits") : LSA_OK;
}

static inline LSA_BODY void dot_body(double *out, const float *a, const float *b, int64_t n)
{
    double lane[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int l = 0; l < LANES; l++) lane[l] += (double)a[j + l] * (double)b[j + l];
    for (int l = 0; j + l < n; l++) lane[l] += (double)a[j + l] * (double)b[j + l];
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] += lane[l + half];
    *out = lane[0];
}
LSA_PATHS(dot, (double *out, const float *a, const float *b, int64_t n), (out, a, b, n))

int lsa_dot_cpu(double *out, const float *a, const float *b, int64_t n, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "dot: %lld elements", (long long)n);
    dot(out, a, b, n);
    return LSA_OK;
}
