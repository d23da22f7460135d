/* Private to linear_avx*.c: the loops of the few-token path, around each file's own arithmetic.
 *
 * A group of rows goes through its columns in units of 64; a unit of a row is decoded once and
 * multiplied by every token. The order of every sum depends on the shape, the format and the
 * number of tokens alone.
 *
 * The including file defines TARGET, LANES (of a vector: 8 or 16), X_BF16_BYTES (of a number of
 * x when the arithmetic is bf16), ROWS_OF_1 .. ROWS_OF_8 (how many rows that many tokens leave
 * registers for), and for a unit of numbers
 *   typedef ... numbers;
 *   void decode(numbers *n, int dtype, int compute, const uint8_t *unit);
 *   void decode_scaled(numbers *n, int dtype, const uint8_t *unit, float first, float second);
 *   void multiply(vector *first, vector *second, const numbers *n, int dtype, int compute, const uint8_t *x);
 * where first and second are the two halves of 32 columns, and decode_scaled rounds the
 * products to bf16. */
#ifndef LSA_LINEAR_ROWS_H
#define LSA_LINEAR_ROWS_H
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

#if LANES == 16
typedef __m512 vector;
static inline TARGET LSA_BODY vector zero(void) { return _mm512_setzero_ps(); }
static inline TARGET LSA_BODY vector all(float x) { return _mm512_set1_ps(x); }
static inline TARGET LSA_BODY vector add(vector a, vector b) { return _mm512_add_ps(a, b); }
static inline TARGET LSA_BODY vector fma_of(vector a, vector b, vector c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* a, b, c and d summed across, in the same order each. */
static inline TARGET LSA_BODY __m128 sum_of_four(vector a, vector b, vector c, vector d)
{
    vector ab = add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    vector cd = add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    vector v = add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
#else
typedef __m256 vector;
static inline TARGET LSA_BODY vector zero(void) { return _mm256_setzero_ps(); }
static inline TARGET LSA_BODY vector all(float x) { return _mm256_set1_ps(x); }
static inline TARGET LSA_BODY vector add(vector a, vector b) { return _mm256_add_ps(a, b); }
static inline TARGET LSA_BODY vector fma_of(vector a, vector b, vector c)
{
    return _mm256_fmadd_ps(a, b, c);
}

static inline TARGET LSA_BODY __m128 sum_of_four(vector a, vector b, vector c, vector d)
{
    vector ab = add(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    vector cd = add(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    vector v = add(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
#endif

/* What the scales multiply: the sums of blocks of whole units, the sums of half units, or each
 * number before it is rounded to bf16. */
enum { SCALE_BLOCKS, SCALE_HALVES, SCALE_NUMBERS };

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
    int64_t row_bytes, x_unit, x_step;
    int halves; /* blocks are half units */
} division;

enum { MOST_ROWS = 4, MOST_SUMS = 16, MOST_SCALES = 256 };

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
    d.x_unit = (v.compute == LSA_COMPUTE_BF16 ? X_BF16_BYTES : 4) * LSA_LINEAR_UNIT;
    d.x_step = d.units * d.x_unit;
    return d;
}

/* Scales `from` .. of a row of blocks, at most MOST_SCALES. */
static inline TARGET LSA_BODY void load_scales(float *out, const lsa_weight *w, int64_t block_row,
                                               int64_t from, int64_t blocks)
{
    int64_t n = blocks - from < MOST_SCALES ? blocks - from : MOST_SCALES,
            first = block_row * blocks + from;
    if (w->scale_dtype == LSA_F32) {
        memcpy(out, (const float *)w->scale + first, (size_t)n * sizeof *out);
    } else {
        const uint8_t *codes = (const uint8_t *)w->scale + first;
        for (int64_t i = 0; i < n; i++) out[i] = e8m0_to_f32(codes[i]);
    }
}

/* The scales of v.rows rows from first_row on; rows of the same block share theirs. */
static inline TARGET LSA_BODY void group_scales(const float **scale,
                                                float (*held)[MOST_SCALES + 16],
                                                const lsa_weight *w, int64_t first_row,
                                                int64_t last, int64_t from, variant v, division d)
{
    if (!w->scale) {
        held[0][0] = 1;
        for (int r = 0; r < v.rows; r++) scale[r] = held[0];
        return;
    }
    int64_t block_row = first_row / w->block_rows, next = (block_row + 1) * w->block_rows;
    for (int r = 0; r < v.rows; r++) {
        scale[r] = r ? scale[r - 1] : held[0];
        if (r && (r > last || first_row + r < next)) continue;
        if (r) block_row++, next += w->block_rows;
        scale[r] = held[r];
        load_scales(held[r], w, block_row, from, d.blocks);
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
        if (v.scaling == SCALE_HALVES) {
            vector a = zero(), b = zero();
            multiply(&a, &b, &n, v.dtype, v.compute, x + t * x_step);
            part[t][0] = fma_of(a, all(*first), part[t][0]);
            part[t][other] = fma_of(b, all(*second), part[t][other]);
        } else {
            multiply(&part[t][0], &part[t][other], &n, v.dtype, v.compute, x + t * x_step);
        }
    }
}

/* sum += part * scale, each row by its own, and starts the parts afresh; one or two sums are in
 * a part. */
static inline TARGET LSA_BODY void add_parts(vector *sum, vector (*part)[2], variant v,
                                             const float *const *scale, int64_t block)
{
    for (int i = 0; i < v.rows * v.tokens; i++) {
        vector p = v.tokens <= 2 ? add(part[i][0], part[i][1]) : part[i][0];
        sum[i] = scale ? fma_of(p, all(scale[i / v.tokens][block]), sum[i]) : add(p, sum[i]);
        part[i][0] = part[i][1] = zero();
    }
}

/* `units` units of v.rows rows. */
static inline TARGET LSA_BODY const uint8_t *add_units(vector (*part)[2], const uint8_t **at,
                                                       const uint8_t *x, int64_t units,
                                                       const float *const *scale, int64_t first,
                                                       variant v, division d)
{
    for (int64_t u = 0; u < units; u++) {
        for (int r = 0; r < v.rows; r++) {
            add_unit(part + r * v.tokens, at[r], x, d.x_step, v, scale[r] + first,
                     scale[r] + first + d.halves);
            /* Rows are short, and the hardware's prefetching starts afresh in each. */
            for (int64_t line = 0; line < unit_bytes(v.dtype); line += 64)
                _mm_prefetch((const char *)at[r] + v.rows * d.row_bytes + line, _MM_HINT_T0);
            at[r] += unit_bytes(v.dtype);
        }
        if (d.halves) first += 2;
        x += d.x_unit;
    }
    return x;
}

/* Rows row .. row + count - 1 of the call, count <= v.rows: the last one stands in for those
 * missing. */
static inline TARGET LSA_BODY void group(const lsa_linear_call *call, const uint8_t *x, int64_t row,
                                         int64_t count, variant v, division d)
{
    const uint8_t *at[MOST_ROWS];
    const float *scale[MOST_ROWS];
    float held[MOST_ROWS][MOST_SCALES + 16];
    vector sum[MOST_SUMS], part[MOST_SUMS][2];
    int64_t first_row = call->row_from + row;
    for (int r = 0; r < v.rows; r++)
        at[r] = (const uint8_t *)call->w->data +
                (first_row + (r < count ? r : count - 1)) * d.row_bytes;
    /* store takes four sums at a time, if not all of them to memory. */
    for (int i = 0; i < v.rows * v.tokens || i < 4; i++) sum[i] = part[i][0] = part[i][1] = zero();

    for (int64_t done = 0; done < d.units; done += d.segment) {
        int64_t units = d.units - done < d.segment ? d.units - done : d.segment;
        group_scales(scale, held, call->w, first_row, count - 1, done / d.step << d.halves, v, d);
        if (d.halves) {
            x = add_units(part, at, x, units, scale, 0, v, d);
            continue;
        }
        for (int64_t u = 0, block = 0; u < units; u += d.step, block++) {
            x = add_units(part, at, x, units - u < d.step ? units - u : d.step, scale, block, v, d);
            if (v.scaling == SCALE_BLOCKS) add_parts(sum, part, v, scale, block);
        }
    }
    if (v.scaling != SCALE_BLOCKS) add_parts(sum, part, v, NULL, 0);
    store(call, row, count, v, sum);
}

static inline TARGET LSA_BODY void rows_body(const lsa_linear_call *call, const void *x,
                                             int64_t from, int64_t to, variant v)
{
    const division d = division_of(call, v);
    for (int64_t row = from; row < to; row += v.rows)
        group(call, x, row, to - row < v.rows ? to - row : v.rows, v, d);
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
    (dtype == LSA_F8_E4M3 && scaling == SCALE_BLOCKS && rows > 1 ? rows / 2 : rows)
#define ROWS(name, dtype, compute, scaling)                                                        \
    ROWS_OF(name, dtype, compute, scaling, 1, ROWS_OF_1)                                           \
    ROWS_OF(name, dtype, compute, scaling, 2, FEWER(ROWS_OF_2, dtype, scaling))                    \
    ROWS_OF(name, dtype, compute, scaling, 4, FEWER(ROWS_OF_4, dtype, scaling))                    \
    ROWS_OF(name, dtype, compute, scaling, 8, FEWER(ROWS_OF_8, dtype, scaling))                    \
    static lsa_linear_rows_fn *const name[] = {name##_1, name##_2, name##_4, name##_8};

/* The SCALE_* that suits a call, or -1: partial units and other blocks of scales take the
 * general path. */
static inline int scaling_of(const lsa_linear_call *call)
{
    const lsa_weight *w = call->w;
    if (w->cols % LSA_LINEAR_UNIT || w->cols == 0) return -1;
    int whole = !w->scale || w->block_cols >= w->cols || w->block_cols % LSA_LINEAR_UNIT == 0;
    int halves = w->scale && w->block_cols == LSA_LINEAR_UNIT / 2;
    if (!whole && !halves) return -1;
    if (w->scale && w->scale_dtype == LSA_F32 && call->compute == LSA_COMPUTE_BF16)
        return SCALE_NUMBERS;
    return whole ? SCALE_BLOCKS : SCALE_HALVES;
}

static inline int token_class(int64_t tokens)
{
    return tokens > 4 ? 3 : tokens > 2 ? 2 : tokens > 1 ? 1 : 0;
}

/* All loops of a path that multiplies in f32, x in order, and the function that picks from
 * them. Numbers that bf16 holds need no rounding, so one loop serves both kinds of arithmetic. */
#define F32_LOOPS(pick)                                                                            \
    ROWS(f32_f32, LSA_F32, LSA_COMPUTE_F32, SCALE_BLOCKS)                                          \
    ROWS(f32_bf16, LSA_F32, LSA_COMPUTE_BF16, SCALE_BLOCKS)                                        \
    ROWS(f16_f32, LSA_F16, LSA_COMPUTE_F32, SCALE_BLOCKS)                                          \
    ROWS(f16_bf16, LSA_F16, LSA_COMPUTE_BF16, SCALE_BLOCKS)                                        \
    ROWS(bf16_any, LSA_BF16, LSA_COMPUTE_F32, SCALE_BLOCKS)                                        \
    ROWS(f8_any, LSA_F8_E4M3, LSA_COMPUTE_F32, SCALE_BLOCKS)                                       \
    ROWS(f4_any, LSA_F4_E2M1, LSA_COMPUTE_F32, SCALE_BLOCKS)                                       \
    ROWS(f4_any_halves, LSA_F4_E2M1, LSA_COMPUTE_F32, SCALE_HALVES)                                \
    ROWS(f8_bf16_numbers, LSA_F8_E4M3, LSA_COMPUTE_BF16, SCALE_NUMBERS)                            \
    ROWS(f4_bf16_numbers, LSA_F4_E2M1, LSA_COMPUTE_BF16, SCALE_NUMBERS)                            \
    lsa_linear_rows_fn *pick(const lsa_linear_call *call, int32_t *x_layout)                       \
    {                                                                                              \
        int bf16 = call->compute == LSA_COMPUTE_BF16, t = token_class(call->tokens),               \
            dtype = call->w->dtype;                                                                \
        *x_layout = LSA_LINEAR_X_F32;                                                              \
        switch (scaling_of(call)) {                                                                \
        case SCALE_BLOCKS:                                                                         \
            switch (dtype) {                                                                       \
            case LSA_F32:                                                                          \
                return bf16 ? f32_bf16[t] : f32_f32[t];                                            \
            case LSA_F16:                                                                          \
                return bf16 ? f16_bf16[t] : f16_f32[t];                                            \
            case LSA_BF16:                                                                         \
                return bf16_any[t];                                                                \
            case LSA_F8_E4M3:                                                                      \
                return f8_any[t];                                                                  \
            default:                                                                               \
                return f4_any[t];                                                                  \
            }                                                                                      \
        case SCALE_HALVES:                                                                         \
            return dtype == LSA_F4_E2M1 ? f4_any_halves[t] : NULL;                                 \
        case SCALE_NUMBERS:                                                                        \
            return dtype == LSA_F8_E4M3   ? f8_bf16_numbers[t]                                     \
                   : dtype == LSA_F4_E2M1 ? f4_bf16_numbers[t]                                     \
                                          : NULL;                                                  \
        default:                                                                                   \
            return NULL;                                                                           \
        }                                                                                          \
    }

#endif
