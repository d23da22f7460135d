/* Owns arithmetic on f32 elements, sixteen at a time, the same in every code path. */
#include "kernels/elementwise.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum { LANES = 16, PIECE = 1 << 16 }; /* PIECE: elements one thread takes at a time */

static inline LSA_BODY f32x16 apply_binary(f32x16 a, f32x16 b, int32_t op)
{
    switch (op) {
    case LSA_ADD:
        return a + b;
    case LSA_SUB:
        return a - b;
    case LSA_MUL:
        return a * b;
    case LSA_DIV:
        return a / b;
    case LSA_MIN:
        return f32x16_smaller(a, b);
    default:
        return f32x16_larger(a, b);
    }
}

/* b_step: 1 for element by element, 0 for one number (b[0] only). */
static inline LSA_BODY void binary_row(float *out, const float *a, const float *b, int64_t n,
                                       int64_t b_step, int32_t op)
{
    f32x16 fixed = f32x16_set(b[0]);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        f32x16_store(out + i,
                     apply_binary(f32x16_load(a + i), b_step ? f32x16_load(b + i) : fixed, op));
    if (i < n) {
        f32x16 y = b_step ? f32x16_load_n(b + i, n - i) : fixed;
        f32x16_store_n(out + i, apply_binary(f32x16_load_n(a + i, n - i), y, op), n - i);
    }
}

static inline LSA_BODY void binary_piece_body(float *out, const float *a, const float *b, int64_t n,
                                              int64_t b_step, int32_t op)
{
    /* One loop for each op, so that none of them branches. */
    switch (op) {
    case LSA_ADD:
        binary_row(out, a, b, n, b_step, LSA_ADD);
        break;
    case LSA_SUB:
        binary_row(out, a, b, n, b_step, LSA_SUB);
        break;
    case LSA_MUL:
        binary_row(out, a, b, n, b_step, LSA_MUL);
        break;
    case LSA_DIV:
        binary_row(out, a, b, n, b_step, LSA_DIV);
        break;
    case LSA_MIN:
        binary_row(out, a, b, n, b_step, LSA_MIN);
        break;
    case LSA_MAX:
        binary_row(out, a, b, n, b_step, LSA_MAX);
        break;
    }
}
LSA_PATHS(binary_piece,
          (float *out, const float *a, const float *b, int64_t n, int64_t b_step, int32_t op),
          (out, a, b, n, b_step, op))

int lsa_binary_check(int64_t n, int64_t period, int32_t op)
{
    if (op < LSA_ADD || op > LSA_MAX) return lsa_fail(LSA_EARG, "binary: op %d is unknown", op);
    if (n < 0 || (n > 0 && (period < 1 || n % period)))
        return lsa_fail(LSA_ESHAPE, "binary: %lld elements meet a period of %lld", (long long)n,
                        (long long)period);
    return LSA_OK;
}

int lsa_unary_check(int64_t n, int32_t op)
{
    if (op < LSA_EXP || op > LSA_SIGMOID) return lsa_fail(LSA_EARG, "unary: op %d is unknown", op);
    if (n < 0) return lsa_fail(LSA_ESHAPE, "unary: %lld elements", (long long)n);
    return LSA_OK;
}

typedef struct binary_call {
    float *out;
    const float *a, *b;
    int64_t length, pieces, period;
    int32_t op;
} binary_call;

static void binary_pieces(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const binary_call *c = context;
    for (int64_t p = first; p < end; p++) {
        int64_t from = p % c->pieces * PIECE, at = p / c->pieces * c->length + from;
        int64_t m = c->length - from < PIECE ? c->length - from : PIECE;
        binary_piece(c->out + at, c->a + at, c->period == 1 ? c->b : c->b + from, m, c->period != 1,
                     c->op);
    }
}

int lsa_binary_cpu(float *out, const float *a, const float *b, int64_t n, int64_t period,
                   int32_t op, void *stream)
{
    (void)stream;
    int rc = lsa_binary_check(n, period, op);
    if (rc || n == 0) return rc;
    int64_t length = period == 1 ? n : period, pieces = (length + PIECE - 1) / PIECE,
            all = n / length * pieces;
    lsa_parallel(lsa_threads_for(n / 4), all, binary_pieces,
                 &(binary_call){out, a, b, length, pieces, period, op});
    return LSA_OK;
}

static inline LSA_BODY f32x16 apply_unary(f32x16 a, int32_t op)
{
    switch (op) {
    case LSA_EXP:
        return f32x16_exp(a);
    case LSA_LOG:
        return f32x16_log(a);
    default:
        return f32x16_sigmoid(a);
    }
}

static inline LSA_BODY void unary_row(float *out, const float *a, int64_t n, int32_t op)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) f32x16_store(out + i, apply_unary(f32x16_load(a + i), op));
    if (i < n) f32x16_store_n(out + i, apply_unary(f32x16_load_n(a + i, n - i), op), n - i);
}

static inline LSA_BODY void unary_piece_body(float *out, const float *a, int64_t n, int32_t op)
{
    switch (op) {
    case LSA_EXP:
        unary_row(out, a, n, LSA_EXP);
        break;
    case LSA_LOG:
        unary_row(out, a, n, LSA_LOG);
        break;
    case LSA_SIGMOID:
        unary_row(out, a, n, LSA_SIGMOID);
        break;
    }
}
LSA_PATHS(unary_piece, (float *out, const float *a, int64_t n, int32_t op), (out, a, n, op))

typedef struct unary_call {
    float *out;
    const float *a;
    int64_t n;
    int32_t op;
} unary_call;

static void unary_pieces(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const unary_call *c = context;
    int64_t at = from * PIECE, end = to * PIECE < c->n ? to * PIECE : c->n;
    unary_piece(c->out + at, c->a + at, end - at, c->op);
}

int lsa_unary_cpu(float *out, const float *a, int64_t n, int32_t op, void *stream)
{
    (void)stream;
    int rc = lsa_unary_check(n, op);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n), (n + PIECE - 1) / PIECE, unary_pieces,
                 &(unary_call){out, a, n, op});
    return LSA_OK;
}

int lsa_scale_cpu(float *x, float factor, int64_t n, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
    return LSA_OK;
}
