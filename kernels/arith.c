/* Owns arithmetic, functions and comparisons of four dtypes: loops that the compiler makes vectors of, in pieces for threads.
 */
#include "kernels/arith.h"

#include <stdatomic.h>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum { LANES = 16, PIECE = 1 << 15 }; /* PIECE: elements one thread takes at a time */

/* ---- pieces whose operands lie flat, or are one number ---- */

/* One loop for each of flat with flat, flat with a number, a number with flat. */
#define LOOPS(expression)                                                                          \
    if (a_step && b_step)                                                                          \
        for (int64_t i = 0; i < n; i++) {                                                          \
            x = a[i], y = b[i];                                                                    \
            out[i] = expression;                                                                   \
        }                                                                                          \
    else if (a_step)                                                                               \
        for (int64_t i = 0; i < n; i++) {                                                          \
            x = a[i], y = *b;                                                                      \
            out[i] = expression;                                                                   \
        }                                                                                          \
    else                                                                                           \
        for (int64_t i = 0; i < n; i++) {                                                          \
            x = *a, y = b[i];                                                                      \
            out[i] = expression;                                                                   \
        }                                                                                          \
    break

#define FLOAT_ARITH(name, type, power)                                                             \
    static inline LSA_BODY void name##_body(type *out, const type *a, const type *b, int64_t n,    \
                                            int a_step, int b_step, int32_t op)                    \
    {                                                                                              \
        type x, y;                                                                                 \
        switch (op) {                                                                              \
        case LSA_ADD:                                                                              \
            LOOPS(x + y);                                                                          \
        case LSA_SUB:                                                                              \
            LOOPS(x - y);                                                                          \
        case LSA_MUL:                                                                              \
            LOOPS(x *y);                                                                           \
        case LSA_DIV:                                                                              \
            LOOPS(x / y);                                                                          \
        case LSA_MIN:                                                                              \
            LOOPS(x != x || x < y ? x : y);                                                        \
        case LSA_MAX:                                                                              \
            LOOPS(x != x || x > y ? x : y);                                                        \
        case LSA_POW:                                                                              \
            if (!b_step && *b == 2) {                                                              \
                for (int64_t i = 0; i < n; i++) out[i] = a[i] * a[i];                              \
                break;                                                                             \
            }                                                                                      \
            LOOPS(power(x, y));                                                                    \
        }                                                                                          \
    }                                                                                              \
    LSA_PATHS(                                                                                     \
        name,                                                                                      \
        (type * out, const type *a, const type *b, int64_t n, int a_step, int b_step, int32_t op), \
        (out, a, b, n, a_step, b_step, op))

FLOAT_ARITH(arith_f32, float, powf)
FLOAT_ARITH(arith_f64, double, pow)

/* Whether x to the y-th does not fit. */
static int power_i64(int64_t x, int64_t y, int64_t *out)
{
    int64_t result = 1;
    *out = 0;
    if (y < 0) return 1;
    if (x == 0 || x == 1 || x == -1) {
        *out = y == 0 || x == 1 ? 1 : x == 0 ? 0 : y % 2 ? -1 : 1;
        return 0;
    }
    for (; y > 0; y--)
        if (__builtin_mul_overflow(result, x, &result)) return 1;
    *out = result;
    return 0;
}

/* Whether a result does not fit 64 bits. */
static int exact(int64_t *out, int64_t x, int64_t y, int32_t op)
{
    switch (op) {
    case LSA_ADD:
        return __builtin_add_overflow(x, y, out);
    case LSA_SUB:
        return __builtin_sub_overflow(x, y, out);
    case LSA_MUL:
        return __builtin_mul_overflow(x, y, out);
    case LSA_MIN:
        *out = x < y ? x : y;
        return 0;
    case LSA_MAX:
        *out = x > y ? x : y;
        return 0;
    default:
        return power_i64(x, y, out);
    }
}

/* As LOOPS, of what sets out[i] and notes in `over` what does not fit. */
#define CHECKED(statement)                                                                         \
    for (int64_t i = 0; i < n; i++) {                                                              \
        x = a[a_step ? i : 0], y = b[b_step ? i : 0];                                              \
        statement;                                                                                 \
    }                                                                                              \
    break

/* In 64 bits, where nothing but powers overflows; *over is not 0 where a result does not fit 32. */
static inline LSA_BODY void quick_i32_body(int32_t *out, const int32_t *a, const int32_t *b,
                                           int64_t n, int a_step, int b_step, int32_t op,
                                           int64_t *over)
{
    int64_t x, y, r, lost = 0;
    switch (op) {
    case LSA_ADD:
        CHECKED(r = x + y; out[i] = (int32_t)r; lost |= r - (int32_t)r);
    case LSA_SUB:
        CHECKED(r = x - y; out[i] = (int32_t)r; lost |= r - (int32_t)r);
    case LSA_MUL:
        CHECKED(r = x * y; out[i] = (int32_t)r; lost |= r - (int32_t)r);
    default:
        CHECKED(lost |= exact(&r, x, y, op); out[i] = (int32_t)r; lost |= r - (int32_t)r);
    }
    *over = lost;
}
LSA_PATHS(quick_i32,
          (int32_t * out, const int32_t *a, const int32_t *b, int64_t n, int a_step, int b_step,
           int32_t op, int64_t *over),
          (out, a, b, n, a_step, b_step, op, over))

/* A sum overflows where its sign is neither side's. */
static inline LSA_BODY void quick_i64_body(int64_t *out, const int64_t *a, const int64_t *b,
                                           int64_t n, int a_step, int b_step, int32_t op,
                                           int64_t *over)
{
    int64_t x, y, r, lost = 0;
    switch (op) {
    case LSA_ADD:
        CHECKED(r = (int64_t)((uint64_t)x + (uint64_t)y); out[i] = r; lost |= (x ^ r) & (y ^ r));
    case LSA_SUB:
        CHECKED(r = (int64_t)((uint64_t)x - (uint64_t)y); out[i] = r; lost |= (x ^ y) & (x ^ r));
    default:
        CHECKED(lost |= -(int64_t)exact(&r, x, y, op); out[i] = r);
    }
    *over = lost < 0;
}
LSA_PATHS(quick_i64,
          (int64_t * out, const int64_t *a, const int64_t *b, int64_t n, int a_step, int b_step,
           int32_t op, int64_t *over),
          (out, a, b, n, a_step, b_step, op, over))

#define COMPARE(name, type)                                                                        \
    static inline LSA_BODY void name##_body(uint8_t *out, const type *a, const type *b, int64_t n, \
                                            int a_step, int b_step, int32_t op)                    \
    {                                                                                              \
        type x, y;                                                                                 \
        switch (op) {                                                                              \
        case LSA_LT:                                                                               \
            LOOPS(x < y);                                                                          \
        case LSA_LE:                                                                               \
            LOOPS(x <= y);                                                                         \
        case LSA_EQ:                                                                               \
            LOOPS(x == y);                                                                         \
        case LSA_NE:                                                                               \
            LOOPS(x != y);                                                                         \
        case LSA_GT:                                                                               \
            LOOPS(x > y);                                                                          \
        case LSA_GE:                                                                               \
            LOOPS(x >= y);                                                                         \
        }                                                                                          \
    }                                                                                              \
    LSA_PATHS(name,                                                                                \
              (uint8_t * out, const type *a, const type *b, int64_t n, int a_step, int b_step,     \
               int32_t op),                                                                        \
              (out, a, b, n, a_step, b_step, op))

COMPARE(compare_f32, float)
COMPARE(compare_f64, double)
COMPARE(compare_i32, int32_t)
COMPARE(compare_i64, int64_t)

/* ---- operands that repeat ---- */

typedef struct operands {
    const char *a, *b;
    int64_t a_period, b_period, size; /* size: bytes of an element */
} operands;

/* Whether an operand goes on from element to element: not where it is a number, or repeats each number. */
static int steps(int64_t period) { return period > 1; }

/* How many elements from `at` on go on in one step, at most `left`. */
static int64_t flat(int64_t at, int64_t left, int64_t period)
{
    if (period == 1) return left;
    int64_t every = period < 0 ? -period : period, whole = every - at % every;
    return whole < left ? whole : left;
}

/* Where element `at` is. */
static const void *place(const char *x, int64_t at, int64_t period, int64_t size)
{
    return x + (period < 0 ? at / -period : at % period) * size;
}

static int divides(int64_t period, int64_t n)
{
    return period != 0 && period > -INT64_MAX && n % period == 0;
}

static int check_periods(const char *what, int64_t n, int64_t a_period, int64_t b_period)
{
    if (n >= 0 && divides(a_period, n) && divides(b_period, n)) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "%s: %lld elements meet a period of %lld", what, (long long)n,
                    (long long)(n >= 0 && divides(a_period, n) ? b_period : a_period));
}

/* A call. apply takes m elements from `at` on, throughout which x and y step or do not: a_step and b_step. */
typedef struct elements elements;
typedef void apply_fn(elements *e, int64_t at, const void *x, const void *y, int64_t m, int a_step,
                      int b_step);
struct elements {
    void *out;
    operands s;
    int64_t n;
    int32_t op;
    apply_fn *apply;
    atomic_int lost; /* whether an integer does not fit */
};

#define APPLY(kind, type)                                                                          \
    static void apply_##kind(elements *e, int64_t at, const void *x, const void *y, int64_t m,     \
                             int a_step, int b_step)                                               \
    {                                                                                              \
        kind((type *)e->out + at, x, y, m, a_step, b_step, e->op);                                 \
    }
APPLY(arith_f32, float)
APPLY(arith_f64, double)
APPLY(compare_f32, uint8_t)
APPLY(compare_f64, uint8_t)
APPLY(compare_i32, uint8_t)
APPLY(compare_i64, uint8_t)

static void apply_integers(elements *e, int64_t at, const void *x, const void *y, int64_t m,
                           int a_step, int b_step)
{
    int64_t over;
    if (e->s.size == 4)
        quick_i32((int32_t *)e->out + at, x, y, m, a_step, b_step, e->op, &over);
    else
        quick_i64((int64_t *)e->out + at, x, y, m, a_step, b_step, e->op, &over);
    if (over) e->lost = 1;
}

static void apply_pieces(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    elements *e = context;
    const operands s = e->s;
    int64_t end = to * PIECE < e->n ? to * PIECE : e->n, m;
    for (int64_t at = from * PIECE; at < end; at += m) {
        int a_step = steps(s.a_period), b_step = steps(s.b_period);
        int64_t am = flat(at, end - at, s.a_period), bm = flat(at, end - at, s.b_period);
        m = am < bm ? am : bm;
        if (!a_step && !b_step) a_step = m = 1;
        e->apply(e, at, place(s.a, at, s.a_period, s.size), place(s.b, at, s.b_period, s.size), m,
                 a_step, b_step);
    }
}

static void apply_to_all(elements *e)
{
    lsa_parallel(lsa_threads_for(e->n / 4), (e->n + PIECE - 1) / PIECE, apply_pieces, e);
}

static int64_t integer_at(const char *x, int64_t at, int64_t period, int64_t size)
{
    const void *element = place(x, at, period, size);
    return size == 4 ? *(const int32_t *)element : *(const int64_t *)element;
}

/* Names the first element whose result does not fit. */
static int too_large(operands s, int64_t n, int32_t op)
{
    static const char *const names[] = {"add", "sub", "mul", "div", "minimum", "maximum", "pow"};
    int64_t i = 0, x = 0, y = 0, r = 0;
    for (; i < n; i++) {
        x = integer_at(s.a, i, s.a_period, s.size), y = integer_at(s.b, i, s.b_period, s.size);
        if (exact(&r, x, y, op) || (s.size == 4 && r != (int32_t)r)) break;
    }
    return lsa_fail(LSA_EARG, "%s: element %lld, of %lld and %lld, does not fit %s", names[op],
                    (long long)i, (long long)x, (long long)y, s.size == 4 ? "i32" : "i64");
}

int lsa_arith_cpu(void *out, const void *a, const void *b, int64_t n, int64_t a_period,
                  int64_t b_period, int32_t op, int32_t dtype, void *stream)
{
    if (op < LSA_ADD || op > LSA_POW) return lsa_fail(LSA_EARG, "arith: op %d is unknown", op);
    int rc = check_periods("arith", n, a_period, b_period);
    if (rc || n == 0) return rc;
    operands s = {a, b, a_period, b_period, lsa_dtype_size(dtype)};
    if (dtype == LSA_F32 && a_period == n && b_period > 0 && op <= LSA_DIV)
        return lsa_binary_cpu(out, a, b, n, b_period, op, stream);
    elements e = {.out = out, .s = s, .n = n, .op = op};
    if (dtype == LSA_F32)
        e.apply = apply_arith_f32;
    else if (dtype == LSA_F64)
        e.apply = apply_arith_f64;
    else if ((dtype == LSA_I64 || dtype == LSA_I32) && op != LSA_DIV)
        e.apply = apply_integers;
    else
        return lsa_fail(LSA_EDTYPE, "arith: op %d has no %s", op, lsa_dtype_name(dtype));
    apply_to_all(&e);
    return e.lost ? too_large(s, n, op) : LSA_OK;
}

int lsa_compare_cpu(uint8_t *out, const void *a, const void *b, int64_t n, int64_t a_period,
                    int64_t b_period, int32_t op, int32_t dtype, void *stream)
{
    (void)stream;
    if (op < LSA_LT || op > LSA_GE) return lsa_fail(LSA_EARG, "compare: op %d is unknown", op);
    int rc = check_periods("compare", n, a_period, b_period);
    if (rc || n == 0) return rc;
    elements e = {out, {a, b, a_period, b_period, lsa_dtype_size(dtype)}, n, op, NULL, 0};
    if (dtype == LSA_F32)
        e.apply = apply_compare_f32;
    else if (dtype == LSA_F64)
        e.apply = apply_compare_f64;
    else if (dtype == LSA_I32)
        e.apply = apply_compare_i32;
    else if (dtype == LSA_I64)
        e.apply = apply_compare_i64;
    else
        return lsa_fail(LSA_EDTYPE, "compare: there is no comparison of %s", lsa_dtype_name(dtype));
    apply_to_all(&e);
    return LSA_OK;
}

/* ---- functions ---- */

/* tanh within 3 ulp: a polynomial (S. Moshier, Cephes) near 0, where 1 - 2 / (e^2v + 1) would lose its digits. */
static inline LSA_BODY f32x16 tanh16(f32x16 v)
{
    f32x16 size = f32x16_abs(v), z = v * v;
    f32x16 p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z + -5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z + -3.33332819422e-1f;
    f32x16 near = p * z * v + v, far = 1.0f - 2.0f / (f32x16_exp(size + size) + 1.0f);
    i32x16 sign = (i32x16)v & (i32x16)f32x16_set(-0.0f);
    f32x16 result = f32x16_select(f32x16_below(size, f32x16_set(0.625f)), near, far);
    return f32x16_select(f32x16_is_nan(v), v, (f32x16)((i32x16)result | sign));
}

static inline LSA_BODY void tanh_row(float *out, const float *a, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) f32x16_store(out + i, tanh16(f32x16_load(a + i)));
    if (i < n) f32x16_store_n(out + i, tanh16(f32x16_load_n(a + i, n - i)), n - i);
}

static inline LSA_BODY void map_f32_body(float *out, const float *a, int64_t n, int32_t op)
{
#define EACH(expression)                                                                           \
    for (int64_t i = 0; i < n; i++) out[i] = expression;                                           \
    break
    switch (op) {
    case LSA_MAP_ABS:
        EACH(fabsf(a[i]));
    case LSA_MAP_NEG:
        EACH(-a[i]);
    case LSA_MAP_ROUND:
        EACH(rintf(a[i]));
    case LSA_MAP_FLOOR:
        EACH(floorf(a[i]));
    case LSA_MAP_CEIL:
        EACH(ceilf(a[i]));
    case LSA_MAP_SQRT:
        EACH(sqrtf(a[i]));
    default:
        tanh_row(out, a, n);
    }
}
LSA_PATHS(map_f32, (float *out, const float *a, int64_t n, int32_t op), (out, a, n, op))

static void map_f64(double *out, const double *a, int64_t n, int32_t op)
{
    switch (op) {
    case LSA_MAP_ABS:
        EACH(fabs(a[i]));
    case LSA_MAP_NEG:
        EACH(-a[i]);
    case LSA_MAP_ROUND:
        EACH(rint(a[i]));
    case LSA_MAP_FLOOR:
        EACH(floor(a[i]));
    case LSA_MAP_CEIL:
        EACH(ceil(a[i]));
    case LSA_MAP_SQRT:
        EACH(sqrt(a[i]));
    case LSA_MAP_TANH:
        EACH(tanh(a[i]));
    case LSA_MAP_EXP:
        EACH(exp(a[i]));
    case LSA_MAP_LOG:
        EACH(log(a[i]));
    default:
        EACH(1 / (1 + exp(-a[i])));
    }
#undef EACH
}

static int map_i64(int64_t *out, const int64_t *a, int64_t n, int32_t op)
{
    if (op > LSA_MAP_CEIL) return lsa_fail(LSA_EDTYPE, "map: op %d has no i64", op);
    for (int64_t i = 0; i < n; i++) {
        int negate = op == LSA_MAP_NEG || (op == LSA_MAP_ABS && a[i] < 0);
        if (negate && a[i] == INT64_MIN)
            return lsa_fail(LSA_EARG, "%s: element %lld, of %lld, does not fit 64 bits",
                            op == LSA_MAP_NEG ? "neg" : "abs", (long long)i, (long long)a[i]);
        out[i] = negate ? -a[i] : a[i];
    }
    return LSA_OK;
}

typedef struct mapping {
    void *out;
    const void *a;
    int64_t n;
    int32_t op, dtype;
} mapping;

static void map_pieces(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const mapping *c = context;
    int64_t at = from * PIECE, m = (to * PIECE < c->n ? to * PIECE : c->n) - at;
    if (c->dtype == LSA_F32)
        map_f32((float *)c->out + at, (const float *)c->a + at, m, c->op);
    else
        map_f64((double *)c->out + at, (const double *)c->a + at, m, c->op);
}

int lsa_map_cpu(void *out, const void *a, int64_t n, int32_t op, int32_t dtype, void *stream)
{
    if (op < LSA_MAP_ABS || op > LSA_MAP_SIGMOID)
        return lsa_fail(LSA_EARG, "map: op %d is unknown", op);
    if (n < 0) return lsa_fail(LSA_ESHAPE, "map: %lld elements", (long long)n);
    if (dtype == LSA_I64) return map_i64(out, a, n, op);
    if (dtype != LSA_F32 && dtype != LSA_F64)
        return lsa_fail(LSA_EDTYPE, "map: there are no functions of %s", lsa_dtype_name(dtype));
    if (dtype == LSA_F32 && op >= LSA_MAP_EXP)
        return lsa_unary_cpu(out, a, n, op - LSA_MAP_EXP + LSA_EXP, stream);
    int threads = lsa_threads_for(dtype == LSA_F64 && op >= LSA_MAP_TANH ? n * 16 : n);
    lsa_parallel(threads, (n + PIECE - 1) / PIECE, map_pieces, &(mapping){out, a, n, op, dtype});
    return LSA_OK;
}

static inline LSA_BODY void sequence_body(void *out, int64_t n, double first, double from,
                                          double step, int32_t dtype)
{
    /* first: how many elements came before; 32-bit counters become f64 in vectors. */
#define EACH(type)                                                                                 \
    for (int32_t i = 0; i < n; i++) ((type *)out)[i] = (type)(from + step * (first + (double)i));  \
    break
    switch (dtype) {
    case LSA_F32:
        EACH(float);
    case LSA_F64:
        EACH(double);
    case LSA_I32:
        EACH(int32_t);
    default:
        EACH(int64_t);
    }
#undef EACH
}
LSA_PATHS(sequence, (void *out, int64_t n, double first, double from, double step, int32_t dtype),
          (out, n, first, from, step, dtype))

int lsa_sequence_cpu(void *out, int64_t n, double from, double step, int32_t dtype, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "sequence: %lld elements", (long long)n);
    if (dtype != LSA_F32 && dtype != LSA_F64 && dtype != LSA_I32 && dtype != LSA_I64)
        return lsa_fail(LSA_EDTYPE, "sequence: there is none of %s", lsa_dtype_name(dtype));
    for (int64_t at = 0; at < n; at += PIECE)
        sequence((char *)out + at * lsa_dtype_size(dtype), n - at < PIECE ? n - at : PIECE,
                 (double)at, from, step, dtype);
    return LSA_OK;
}

int lsa_mark_cpu(uint64_t *bits, const uint8_t *mask, int64_t n, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "mark: %lld ids", (long long)n);
    for (int64_t from_id = 0; from_id < n; from_id += 64) {
        int64_t m = n - from_id < 64 ? n - from_id : 64;
        uint64_t word = 0;
        for (int64_t i = 0; i < m; i++) word |= (uint64_t)(mask[from_id + i] != 0) << i;
        bits[from_id / 64] = word;
    }
    return LSA_OK;
}
