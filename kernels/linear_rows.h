/* Private to linear_avx512*.c: the loops of the few-token path, around each file's own arithmetic.
 *
 * A group of rows goes through its columns in units of 64; a unit of a row is decoded once and multiplied by every
 * token. The order of every sum depends on the shape, the format and the number of tokens alone.
 *
 * The including file defines TARGET, and for a unit of numbers
 *   typedef ... numbers;
 *   void decode(numbers *n, int dtype, int compute, const uint8_t *unit);
 *   void decode_scaled(numbers *n, int dtype, const uint8_t *unit, float first, float second);
 *   void multiply(__m512 *first, __m512 *second, const numbers *n, int dtype, int compute, const uint8_t *x);
 * where first and second are the two halves of 32 columns, and decode_scaled rounds the products to bf16. */
#ifndef LSA_LINEAR_ROWS_H
#define LSA_LINEAR_ROWS_H
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

/* What the scales multiply: the sums of blocks of whole units, the sums of half units, or each number before it
 * is rounded to bf16. */
enum { SCALE_BLOCKS, SCALE_HALVES, SCALE_NUMBERS };

/* Constants of one instance of the loops. */
typedef struct variant {
    int dtype, compute, scaling, tokens, rows;
} variant;

static inline LSA_BODY int64_t unit_bytes(int dtype)
{
    return dtype == LSA_F4_E2M1 ? LSA_LINEAR_UNIT / 2 : dtype == LSA_F8_E4M3 ? LSA_LINEAR_UNIT :
           dtype == LSA_F32 ? 4 * LSA_LINEAR_UNIT : 2 * LSA_LINEAR_UNIT;
}

/* The scales of one row. */
typedef struct row_scales {
    const uint8_t *at;
    int32_t dtype;
} row_scales;

static inline LSA_BODY float scale_of(row_scales s, int64_t block)
{
    return !s.at ? 1.0f : s.dtype == LSA_F32 ? ((const float *)s.at)[block] : e8m0_to_f32(s.at[block]);
}

static inline LSA_BODY row_scales scales_of(const lsa_weight *w, int64_t row)
{
    row_scales s = {NULL, w->scale_dtype};
    if (!w->scale) return s;
    int64_t across = (w->cols + w->block_cols - 1) / w->block_cols;
    s.at = (const uint8_t *)w->scale + row / w->block_rows * across * (s.dtype == LSA_F32 ? 4 : 1);
    return s;
}

/* a, b, c and d summed across, in the same order each. */
static inline TARGET LSA_BODY __m128 sum_of_four(__m512 a, __m512 b, __m512 c, __m512 d)
{
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512 v = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* sum: [rows][tokens], 2 or 4 rows; those past `count` and tokens past the call's are dropped. */
static inline TARGET LSA_BODY void store(const lsa_linear_call *call, int64_t row, int64_t count, variant v,
                                         const __m512 *sum)
{
    float out[4];
    for (int t = 0; t < v.tokens; t += 4 / v.rows) {
        const __m512 *s = sum + t;
        if (v.rows == 4) {
            __m128 four = sum_of_four(s[0], s[v.tokens], s[2 * v.tokens], s[3 * v.tokens]);
            if (count == 4 && t < call->tokens) {
                _mm_storeu_ps(call->y + t * call->y_stride + row, four);
                continue;
            }
            _mm_storeu_ps(out, four);
        } else {
            _mm_storeu_ps(out, sum_of_four(s[0], s[v.tokens], s[1], s[v.tokens + 1]));
        }
        for (int i = 0; i < 4; i++)
            if (t + i / v.rows < call->tokens && i % v.rows < count)
                call->y[(t + i / v.rows) * call->y_stride + row + i % v.rows] = out[i];
    }
}

/* Adds one unit of one row to part [tokens][2]. */
static inline TARGET LSA_BODY void add_unit(__m512 (*part)[2], const uint8_t *unit, const uint8_t *x, int64_t x_step,
                                            variant v, int chains, row_scales scales, int64_t block, int64_t last)
{
    numbers n;
    float first = 1, second = 1;
    if (v.scaling != SCALE_BLOCKS) {
        first = scale_of(scales, block);
        second = scale_of(scales, last);
    }
    if (v.scaling == SCALE_NUMBERS) decode_scaled(&n, v.dtype, unit, first, second);
    else decode(&n, v.dtype, v.compute, unit);
    for (int t = 0; t < v.tokens; t++) {
        if (v.scaling == SCALE_HALVES) {
            __m512 a = _mm512_setzero_ps(), b = _mm512_setzero_ps();
            multiply(&a, &b, &n, v.dtype, v.compute, x + t * x_step);
            part[t][0] = _mm512_fmadd_ps(a, _mm512_set1_ps(first), part[t][0]);
            part[t][chains - 1] = _mm512_fmadd_ps(b, _mm512_set1_ps(second), part[t][chains - 1]);
        } else {
            multiply(&part[t][0], &part[t][chains - 1], &n, v.dtype, v.compute, x + t * x_step);
        }
    }
}

/* Rows row .. row + count - 1 of the call, count <= v.rows: the last one stands in for those missing. */
static inline TARGET LSA_BODY void group(const lsa_linear_call *call, const uint8_t *x, int64_t row, int64_t count,
                                         variant v)
{
    enum { MOST_ROWS = 4, MOST_SUMS = 16 };
    const lsa_weight *w = call->w;
    const int chains = v.tokens <= 2 ? 2 : 1;
    const int64_t bytes = unit_bytes(v.dtype), whole = w->cols / LSA_LINEAR_UNIT;
    const int64_t units = lsa_linear_padded(w->cols) / LSA_LINEAR_UNIT;
    const int64_t x_unit = (v.compute == LSA_COMPUTE_BF16 ? X_BF16_BYTES : 4) * LSA_LINEAR_UNIT;
    const int64_t x_step = units * x_unit;
    const int64_t row_bytes = w->cols * bytes / LSA_LINEAR_UNIT, rest = row_bytes - whole * bytes;
    const int64_t blocks = w->scale && w->block_cols < w->cols ? (w->cols + w->block_cols - 1) / w->block_cols : 1;
    const int64_t step = v.scaling == SCALE_BLOCKS && blocks > 1 ? w->block_cols / LSA_LINEAR_UNIT : units;

    const uint8_t *at[MOST_ROWS];
    row_scales scales[MOST_ROWS];
    uint8_t tail[MOST_ROWS][4 * LSA_LINEAR_UNIT];
    for (int r = 0; r < v.rows; r++) {
        int64_t actual = call->row_from + row + (r < count ? r : count - 1);
        at[r] = (const uint8_t *)w->data + actual * row_bytes;
        scales[r] = scales_of(w, actual);
        if (rest) {
            memset(tail[r], 0, sizeof tail[r]);
            memcpy(tail[r], at[r] + whole * bytes, (size_t)rest);
        }
    }

    __m512 sum[MOST_SUMS];
    for (int i = 0; i < v.rows * v.tokens; i++) sum[i] = _mm512_setzero_ps();
    int64_t u = 0, edge = whole;
    for (int64_t b = 0; u < units; b++) {
        __m512 part[MOST_SUMS][2];
        for (int i = 0; i < v.rows * v.tokens; i++) part[i][0] = part[i][1] = _mm512_setzero_ps();
        int64_t stop = u + step < units ? u + step : units;
        for (;;) {
            for (int64_t end = stop < edge ? stop : edge; u < end; u++) {
                int64_t first = u * LSA_LINEAR_UNIT / (w->scale ? w->block_cols : 1);
                int64_t second = (u * LSA_LINEAR_UNIT + 32) / (w->scale ? w->block_cols : 1);
                if (second >= blocks) second = blocks - 1;
                for (int r = 0; r < v.rows; r++) {
                    add_unit(part + r * v.tokens, at[r], x, x_step, v, chains, scales[r], first, second);
                    at[r] += bytes;
                }
                x += x_unit;
            }
            if (u == stop) break;
            for (int r = 0; r < v.rows; r++) at[r] = tail[r];
            edge = units;
        }
        for (int r = 0; r < v.rows; r++) {
            __m512 s = _mm512_set1_ps(v.scaling == SCALE_BLOCKS ? scale_of(scales[r], b) : 1.0f);
            for (int t = 0; t < v.tokens; t++) {
                __m512 *p = part[r * v.tokens + t];
                if (chains == 2) p[0] = _mm512_add_ps(p[0], p[1]);
                sum[r * v.tokens + t] = _mm512_fmadd_ps(p[0], s, sum[r * v.tokens + t]);
            }
        }
    }
    store(call, row, count, v, sum);
}

static inline TARGET LSA_BODY void rows_body(const lsa_linear_call *call, const void *x, int64_t from, int64_t to,
                                             variant v)
{
    for (int64_t row = from; row < to; row += v.rows)
        group(call, x, row, to - row < v.rows ? to - row : v.rows, v);
}

#define ROWS_OF(name, dtype, compute, scaling, tokens, rows)                                             \
    TARGET static void name##_##tokens(const lsa_linear_call *call, const void *x, int64_t from, int64_t to) \
    {                                                                                                    \
        rows_body(call, x, from, to, (variant){dtype, compute, scaling, tokens, rows});                  \
    }

/* name_1, name_2, name_4, name_8, and name[] of them. */
#define ROWS(name, dtype, compute, scaling)                \
    ROWS_OF(name, dtype, compute, scaling, 1, 4)           \
    ROWS_OF(name, dtype, compute, scaling, 2, 4)           \
    ROWS_OF(name, dtype, compute, scaling, 4, 4)           \
    ROWS_OF(name, dtype, compute, scaling, 8, 2)           \
    static lsa_linear_rows_fn *const name[] = {name##_1, name##_2, name##_4, name##_8};

/* The SCALE_* that suits a call, or -1: scales of other blocks take the general path. */
static inline int scaling_of(const lsa_linear_call *call)
{
    const lsa_weight *w = call->w;
    int whole = !w->scale || w->block_cols >= w->cols || w->block_cols % LSA_LINEAR_UNIT == 0;
    int halves = w->scale && w->block_cols == LSA_LINEAR_UNIT / 2;
    if (!whole && !halves) return -1;
    if (w->scale && w->scale_dtype == LSA_F32 && call->compute == LSA_COMPUTE_BF16) return SCALE_NUMBERS;
    return whole ? SCALE_BLOCKS : SCALE_HALVES;
}

static inline int token_class(int64_t tokens) { return tokens > 4 ? 3 : tokens > 2 ? 2 : tokens > 1 ? 1 : 0; }

#endif
