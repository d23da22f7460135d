/* Private to linear_avx*.c: the loops of the few-token path, around each file's own arithmetic.
 *
 * A group of rows goes through its columns in units of 64; a unit of a row is decoded once and
 * multiplied by every token. The order of every sum depends on the shape, the format and the
 * number of tokens alone.
 *
 * The including file defines TARGET, LANES (of a vector: 8 or 16), X_BF16_BYTES (of a number of
 * x when the arithmetic is bf16), ROWS_OF_1 .. ROWS_OF_8 (how many rows that many tokens leave
 * registers for); with 16 registers alone (LANES 8) add_unit_of_rows below, and otherwise for a
 * unit of numbers
 *   typedef ... numbers;
 *   void decode(numbers *n, int dtype, int compute, const uint8_t *unit);
 *   void decode_scaled(numbers *n, int dtype, const uint8_t *unit, float first, float second);
 *   void multiply(vector *first, vector *second, const numbers *n, int dtype, int compute, const uint8_t *x);
 * where first and second are the two halves of 32 columns, and decode_scaled rounds the
 * products to bf16. */
#ifndef LSA_LINEAR_ROWS_H
#define LSA_LINEAR_ROWS_H
#include "kernels/linear_lanes.h"
#include "kernels/linear_private.h"

/* What the scales multiply: nothing, the sums of blocks of whole units, the sums of half units, or
 * each number before it is rounded to bf16. */
enum { SCALE_NONE, SCALE_BLOCKS, SCALE_HALVES, SCALE_NUMBERS };

/* Constants of one instance of the loops. */
typedef struct variant {
    int dtype, compute, scaling, tokens, rows;
} variant;

static inline LSA_BODY int64_t unit_bytes(int dtype)
{
    return dtype == LSA_F4_E2M1   ? LSA_LINEAR_UNIT / 2
           : dtype == LSA_F8_E4M3 ? LSA_LINEAR_UNIT
           : dtype == LSA_F32     ? 4 * LSA_LINEAR_UNIT
                                  : 2 * LSA_LINEAR_UNIT;
}

/* How a row divides into units and blocks. */
typedef struct division {
    int64_t units, step;     /* of the row, of a block of scales */
    int64_t blocks, segment; /* scales of the row; units whose scales are held at once */
    int64_t row_bytes, x_unit,
        x_step; /* of x: from unit to unit, and in a unit from token to token */
    int halves; /* blocks are half units */
    /* The weight outgrows the caches. Its rows are prefetched then: they are short, and the
     * hardware starts afresh in each. */
    int large;
} division;

enum {
    MOST_ROWS = 4,
    MOST_SUMS = 16,
    MOST_SCALES = 256,
    HELD = MOST_SCALES + 16,
    GROUPS = 8,        /* of rows that share a stretch of columns */
    X_BYTES = 16 << 10 /* of x for those columns */
};

static inline LSA_BODY division division_of(const lsa_linear_call *call, variant v)
{
    const lsa_weight *w = call->w;
    division d = {.units = w->cols / LSA_LINEAR_UNIT};
    int many = w->scale && w->block_cols < w->cols;
    d.halves = v.scaling == SCALE_HALVES ||
               (v.scaling == SCALE_NUMBERS && many && w->block_cols < LSA_LINEAR_UNIT);
    d.blocks = many ? (w->cols + w->block_cols - 1) / w->block_cols : 1;
    d.step = !many ? d.units : d.halves ? 1 : w->block_cols / LSA_LINEAR_UNIT;
    d.segment = d.halves ? MOST_SCALES / 2 : d.step * MOST_SCALES;
    d.row_bytes = d.units * unit_bytes(v.dtype);
    d.large = w->rows * d.row_bytes > 1 << 19;
    d.x_unit = (v.compute == LSA_COMPUTE_BF16 ? X_BF16_BYTES : 4) * LSA_LINEAR_UNIT;
    d.x_step = d.x_unit;
    d.x_unit *= v.tokens;
    return d;
}

/* The scales that a group of rows needs for a segment: those of row r at of + r * step. */
typedef struct scale_rows {
    const float *of;
    int64_t step; /* 0 where all rows are of one block */
    float held[MOST_ROWS][HELD];
} scale_rows;

/* n scales, at most MOST_SCALES, from the `from`-th on of the rows first_row .. last_row, at most v.rows; last_row stands in
 * beyond. */
static inline TARGET LSA_BODY void load_scales(scale_rows *s, const lsa_weight *w,
                                               int64_t first_row, int64_t last_row, int64_t from,
                                               int64_t n, variant v, division d)
{
    s->of = s->held[0];
    s->step = 0;
    if (n > d.blocks - from) n = d.blocks - from;
    int64_t block_row = first_row / w->block_rows, next = (block_row + 1) * w->block_rows;
    if (last_row >= next) s->step = HELD;
    for (int64_t r = 0; r < (s->step ? v.rows : 1); r++) {
        if (first_row + r == next && first_row + r <= last_row) block_row++, next += w->block_rows;
        int64_t first = block_row * d.blocks + from;
        if (w->scale_dtype == LSA_F32)
            memcpy(s->held[r], (const float *)w->scale + first, (size_t)n * sizeof(float));
        else
            scales_of_codes(s->held[r], (const uint8_t *)w->scale + first, n);
    }
}

/* sum: [rows][tokens]; rows past `count` and tokens past the call's are dropped. */
static inline TARGET LSA_BODY void store(const lsa_linear_call *call, int64_t row, int64_t count,
                                         variant v, const vector *sum)
{
    float out[4];
    const int n = v.rows;
    for (int t = 0; t < v.tokens; t += 4 / n) {
        const vector *s = sum + t;
        __m128 four = sum_of_four(s[0], s[1 % n * v.tokens + 1 / n], s[2 % n * v.tokens + 2 / n],
                                  s[3 % n * v.tokens + 3 / n]);
        if (n == 4 && count == 4 && t < call->tokens) {
            _mm_storeu_ps(call->y + t * call->y_stride + row, four);
            continue;
        }
        _mm_storeu_ps(out, four);
        for (int i = 0; i < 4; i++)
            if (t + i / n < call->tokens && i % n < count)
                call->y[(t + i / n) * call->y_stride + row + i % n] = out[i];
    }
}

#if LANES == 16
/* Adds one unit of one row to part [tokens][2]. */
static inline TARGET LSA_BODY void add_unit(vector (*part)[2], const uint8_t *unit,
                                            const uint8_t *x, int64_t x_step, variant v,
                                            const float *first, const float *second)
{
    const int other = v.tokens <= 2;
    numbers n;
    if (v.scaling == SCALE_NUMBERS)
        decode_scaled(&n, v.dtype, unit, *first, *second);
    else
        decode(&n, v.dtype, v.compute, unit);
    for (int t = 0; t < v.tokens; t++) {
        if (v.scaling == SCALE_HALVES && HALVES_BY_LANE) {
            vector a = zero();
            multiply(&a, &a, &n, v.dtype, v.compute, x + t * x_step);
            part[t][0] = fma_of(a, half_scales(first), part[t][0]);
        } else if (v.scaling == SCALE_HALVES) {
            vector a = zero(), b = zero();
            multiply(&a, &b, &n, v.dtype, v.compute, x + t * x_step);
            part[t][0] = fma_of(a, all(*first), part[t][0]);
            part[t][other] = fma_of(b, all(*second), part[t][other]);
        } else {
            multiply(&part[t][0], &part[t][other], &n, v.dtype, v.compute, x + t * x_step);
        }
    }
}

/* Adds one unit of each row to part [rows][tokens][2]: row r's at unit + r * step, its scales at scale + r * scale_step. */
static inline TARGET LSA_BODY void add_unit_of_rows(vector (*part)[2], const uint8_t *unit,
                                                    int64_t step, const uint8_t *x, int64_t x_step,
                                                    variant v, const float *scale,
                                                    int64_t scale_step, int halves)
{
    for (int r = 0; r < v.rows; r++) {
        const float *of = v.scaling == SCALE_NONE ? NULL : scale + r * scale_step;
        add_unit(part + r * v.tokens, unit + r * step, x, x_step, v, of, of + halves);
    }
}
#else
static inline TARGET LSA_BODY void add_unit_of_rows(vector (*part)[2], const uint8_t *unit,
                                                    int64_t step, const uint8_t *x, int64_t x_step,
                                                    variant v, const float *scale,
                                                    int64_t scale_step, int halves);
#endif

/* sum += part * scale, each row by its own, and starts the parts afresh; one or two sums are in
 * a part. */
static inline TARGET LSA_BODY void add_parts(vector *sum, vector (*part)[2], variant v,
                                             const scale_rows *s, int64_t block)
{
    for (int i = 0; i < v.rows * v.tokens; i++) {
        vector p = v.tokens <= 2 ? add(part[i][0], part[i][1]) : part[i][0];
        sum[i] = s ? fma_of(p, all(s->of[i / v.tokens * s->step + block]), sum[i]) : add(p, sum[i]);
        part[i][0] = part[i][1] = zero();
    }
}

/* Where a group of rows stands: row r of it at + r * step. Few pointers, so that they stay in
 * registers. */
typedef struct cursor {
    const uint8_t *at, *x;
    int64_t step;
} cursor;

/* `units` units of v.rows rows. */
static inline TARGET LSA_BODY cursor add_units(vector (*part)[2], cursor c, int64_t units,
                                               const scale_rows *s, int64_t block, variant v,
                                               division d)
{
    const uint8_t *ahead = c.at + v.rows * d.row_bytes;
    for (int64_t u = 0; u < units; u++) {
        add_unit_of_rows(part, c.at, c.step, c.x, d.x_step, v,
                         v.scaling == SCALE_NONE ? NULL : s->of + block,
                         v.scaling == SCALE_NONE ? 0 : s->step, d.halves);
        if (d.large)
            for (int r = 0; r < v.rows; r++)
                for (int64_t line = 0; line < unit_bytes(v.dtype); line += 64)
                    _mm_prefetch((const char *)ahead + r * c.step + line, _MM_HINT_T0);
        if (d.halves) block += 2;
        c.at += unit_bytes(v.dtype);
        ahead += unit_bytes(v.dtype);
        c.x += d.x_unit;
    }
    return c;
}

/* Adds `units` units from the `from`-th on of v.rows rows from `row` of the call on; or of one row, as often. A block of scales that
 * began is whole. */
static inline TARGET LSA_BODY void add_columns(vector *sum, vector (*part)[2],
                                               const lsa_linear_call *call, const void *x,
                                               int64_t row, int one, int64_t from, int64_t units,
                                               variant v, division d)
{
    scale_rows s;
    const int64_t first_row = call->row_from + row, end = from + units;
    cursor c = {(const uint8_t *)call->w->data + first_row * d.row_bytes +
                    from * unit_bytes(v.dtype),
                (const uint8_t *)x + from * d.x_unit, one ? 0 : d.row_bytes};
    if (v.scaling == SCALE_NONE) add_units(part, c, units, NULL, 0, v, d);
    for (int64_t at = from; v.scaling != SCALE_NONE && at < end; at += d.segment) {
        int64_t n = end - at < d.segment ? end - at : d.segment;
        load_scales(&s, call->w, first_row, one ? first_row : first_row + v.rows - 1,
                    at / d.step << d.halves, (n + d.step - 1) / d.step << d.halves, v, d);
        if (d.halves) {
            c = add_units(part, c, n, &s, 0, v, d);
            continue;
        }
        for (int64_t u = 0, block = 0; u < n; u += d.step, block++) {
            c = add_units(part, c, n - u < d.step ? n - u : d.step, &s, block, v, d);
            if (v.scaling == SCALE_BLOCKS) add_parts(sum, part, v, &s, block);
        }
    }
}

/* Several groups go through as many columns as leave x in the cache, and then through the next ones: every row reads all of x. What
 * they sum waits in between. */
static inline TARGET LSA_BODY void rows_body(const lsa_linear_call *call, const void *x,
                                             int64_t from, int64_t to, variant v)
{
    const division d = division_of(call, v);
    vector held[GROUPS][3 * MOST_SUMS];
    int64_t first[GROUPS];
    int one[GROUPS];
    const int64_t fit = X_BYTES / d.x_unit / d.step * d.step;
    const int64_t stretch = fit ? fit : d.step;
    for (int64_t row = from; row < to;) {
        int groups = 0;
        for (; groups < GROUPS && row < to; row += one[groups++] ? 1 : v.rows) {
            first[groups] = row;
            one[groups] = to - row < v.rows;
        }
        for (int64_t at = 0, n; at < d.units; at += n) {
            n = d.units - at < stretch ? d.units - at : stretch;
            for (int g = 0; g < groups; g++) {
                /* store takes four sums at a time, if not all of them to memory. */
                vector sum[MOST_SUMS], part[MOST_SUMS][2];
                for (int i = 0; i < v.rows * v.tokens || i < 4; i++) {
                    sum[i] = at ? held[g][3 * i] : zero();
                    part[i][0] = at ? held[g][3 * i + 1] : zero();
                    part[i][1] = at ? held[g][3 * i + 2] : zero();
                }
                add_columns(sum, part, call, x, first[g], one[g], at, n, v, d);
                if (at + n < d.units) {
                    for (int i = 0; i < v.rows * v.tokens || i < 4; i++) {
                        held[g][3 * i] = sum[i];
                        held[g][3 * i + 1] = part[i][0];
                        held[g][3 * i + 2] = part[i][1];
                    }
                    continue;
                }
                if (v.scaling != SCALE_BLOCKS) add_parts(sum, part, v, NULL, 0);
                store(call, first[g], one[g] ? 1 : v.rows, v, sum);
            }
        }
    }
}

#define ROWS_OF(name, dtype, compute, scaling, tokens, rows)                                       \
    TARGET static void name##_##tokens(const lsa_linear_call *call, const void *x, int64_t from,   \
                                       int64_t to)                                                 \
    {                                                                                              \
        rows_body(call, x, from, to, (variant){dtype, compute, scaling, tokens, rows});            \
    }

/* name_1, name_2, name_4, name_8, and name[] of them. Where blocks end soon, their parts and
 * the sums share the registers, which leaves room for fewer rows. */
#define FEWER(rows, dtype, scaling)                                                                \
    (LANES == 16 && dtype == LSA_F8_E4M3 && scaling == SCALE_BLOCKS && rows > 1 ? rows / 2 : rows)
#define ROWS(name, dtype, compute, scaling)                                                        \
    ROWS_OF(name, dtype, compute, scaling, 1, ROWS_OF_1)                                           \
    ROWS_OF(name, dtype, compute, scaling, 2, FEWER(ROWS_OF_2, dtype, scaling))                    \
    ROWS_OF(name, dtype, compute, scaling, 4, FEWER(ROWS_OF_4, dtype, scaling))                    \
    ROWS_OF(name, dtype, compute, scaling, 8, FEWER(ROWS_OF_8, dtype, scaling))                    \
    static lsa_linear_rows_fn *const name[] = {name##_1, name##_2, name##_4, name##_8};

/* The SCALE_* that suits a call, or -1: partial units, blocks of other sizes and scales of
 * numbers wider than 8 bits take the general path. */
static inline int scaling_of(const lsa_linear_call *call)
{
    const lsa_weight *w = call->w;
    if (w->cols % LSA_LINEAR_UNIT || w->cols == 0) return -1;
    if (!w->scale) return SCALE_NONE;
    if (w->dtype != LSA_F8_E4M3 && w->dtype != LSA_F4_E2M1) return -1;
    int whole = w->block_cols >= w->cols || w->block_cols % LSA_LINEAR_UNIT == 0;
    int halves = w->dtype == LSA_F4_E2M1 && w->block_cols == LSA_LINEAR_UNIT / 2;
    if (!whole && !halves) return -1;
    if (w->scale_dtype == LSA_F32 && call->compute == LSA_COMPUTE_BF16) return SCALE_NUMBERS;
    return whole ? SCALE_BLOCKS : SCALE_HALVES;
}

static inline int token_class(int64_t tokens)
{
    return tokens > 4 ? 3 : tokens > 2 ? 2 : tokens > 1 ? 1 : 0;
}

/* All loops of a path that multiplies in f32, x in order, and the function that picks from
 * them. Numbers that bf16 holds need no rounding, so one loop serves both kinds of arithmetic. */
#define F32_LOOPS(pick)                                                                            \
    ROWS(f32_f32, LSA_F32, LSA_COMPUTE_F32, SCALE_NONE)                                            \
    ROWS(f32_bf16, LSA_F32, LSA_COMPUTE_BF16, SCALE_NONE)                                          \
    ROWS(f16_f32, LSA_F16, LSA_COMPUTE_F32, SCALE_NONE)                                            \
    ROWS(f16_bf16, LSA_F16, LSA_COMPUTE_BF16, SCALE_NONE)                                          \
    ROWS(bf16_any, LSA_BF16, LSA_COMPUTE_F32, SCALE_NONE)                                          \
    ROWS(f8_any, LSA_F8_E4M3, LSA_COMPUTE_F32, SCALE_NONE)                                         \
    ROWS(f8_any_blocks, LSA_F8_E4M3, LSA_COMPUTE_F32, SCALE_BLOCKS)                                \
    ROWS(f8_bf16_numbers, LSA_F8_E4M3, LSA_COMPUTE_BF16, SCALE_NUMBERS)                            \
    ROWS(f4_any, LSA_F4_E2M1, LSA_COMPUTE_F32, SCALE_NONE)                                         \
    ROWS(f4_any_blocks, LSA_F4_E2M1, LSA_COMPUTE_F32, SCALE_BLOCKS)                                \
    ROWS(f4_any_halves, LSA_F4_E2M1, LSA_COMPUTE_F32, SCALE_HALVES)                                \
    ROWS(f4_bf16_numbers, LSA_F4_E2M1, LSA_COMPUTE_BF16, SCALE_NUMBERS)                            \
    static lsa_linear_rows_fn *const *const F8[] = {f8_any, f8_any_blocks, NULL, f8_bf16_numbers}; \
    static lsa_linear_rows_fn *const *const F4[] = {f4_any, f4_any_blocks, f4_any_halves,          \
                                                    f4_bf16_numbers};                              \
    lsa_linear_rows_fn *pick(const lsa_linear_call *call, int32_t *x_layout)                       \
    {                                                                                              \
        int bf16 = call->compute == LSA_COMPUTE_BF16, t = token_class(call->tokens);               \
        int scaling = scaling_of(call);                                                            \
        *x_layout = LSA_LINEAR_X_F32;                                                              \
        if (scaling < 0) return NULL;                                                              \
        switch (call->w->dtype) {                                                                  \
        case LSA_F32:                                                                              \
            return bf16 ? f32_bf16[t] : f32_f32[t];                                                \
        case LSA_F16:                                                                              \
            return bf16 ? f16_bf16[t] : f16_f32[t];                                                \
        case LSA_BF16:                                                                             \
            return bf16_any[t];                                                                    \
        case LSA_F8_E4M3:                                                                          \
            return F8[scaling][t];                                                                 \
        default:                                                                                   \
            return F4[scaling][t];                                                                 \
        }                                                                                          \
    }

#endif
