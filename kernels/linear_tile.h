/* Private to linear_tiles_avx*.c: the loops around each file's decoding and arithmetic.
 *
 * The including file defines TARGET and LANES as for linear_lanes.h, ROWS (that multiply takes), TILE_ROWS, NUMBER_BYTES (of a number in a
 * tile) and
 *   typedef ... numbers; numbers load(const uint8_t *p); vector multiply_add(numbers a, numbers b, vector sum);
 *   typedef ... table; what it remembers from unit to unit
 *   table new_table(void);
 *   void decode_unit(uint8_t *out, const uint8_t *unit, int dtype, table *t, const float *scale, int round);
 *   void decode_unit_with_care(...); the same, for NaN and scales of 2^119 and more, too
 *   int found_nan(const table *t); whether it was wanted
 * which write a unit of small numbers, its halves times their scales. */
#ifndef LSA_LINEAR_TILE_H
#define LSA_LINEAR_TILE_H
#include "kernels/linear_lanes.h"
#include "kernels/linear_tiles.h"

enum {
    UNIT_BYTES = LSA_LINEAR_UNIT * NUMBER_BYTES,
    TILE_ROW_BYTES = LSA_TILE_UNITS * UNIT_BYTES,
    VECTOR_BYTES = 4 * LANES
};
_Static_assert(TILE_ROW_BYTES *TILE_ROWS == (int)LSA_TILE_BYTES && TILE_ROWS % ROWS == 0 &&
                   TILE_ROWS <= (int)LSA_TILE_MOST_ROWS,
               "tiles fill their memory and divide into what is multiplied at once");

TARGET static void multiply(float *sums, int64_t sums_step, const void *tile, const void *x,
                            int64_t units)
{
    const uint8_t *w = tile, *xs = x;
    vector sum[ROWS][LSA_TILE_TOKENS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int t = 0; t < LSA_TILE_TOKENS; t++) sum[r][t] = zero();
    for (int64_t u = 0; u < units; u++) {
#pragma GCC unroll 8
        for (int at = 0; at < UNIT_BYTES; at += VECTOR_BYTES) {
            numbers row[ROWS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) row[r] = load(w + r * TILE_ROW_BYTES + at);
#pragma GCC unroll 4
            for (int t = 0; t < LSA_TILE_TOKENS; t++) {
                numbers token = load(xs + t * UNIT_BYTES + at);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; r++) sum[r][t] = multiply_add(row[r], token, sum[r][t]);
            }
        }
        w += UNIT_BYTES;
        xs += LSA_TILE_TOKENS * UNIT_BYTES;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        float *to = sums + r * sums_step;
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to),
                                     sum_of_four(sum[r][0], sum[r][1], sum[r][2], sum[r][3])));
    }
}

enum { HALVES = 2 * LSA_TILE_UNITS };

/* The scales of a tile's half units: row r's at of[r]. */
typedef struct tile_scales {
    const float *of[LSA_TILE_MOST_ROWS];
    float held[LSA_TILE_MOST_ROWS][HALVES];
    int large; /* some are at least 2^119, or NaN */
} tile_scales;

static inline TARGET LSA_BODY void load_scales(tile_scales *s, const lsa_weight *w, int64_t row,
                                               int64_t rows, int64_t unit, int64_t units)
{
    const int64_t across = w->scale ? (w->cols + w->block_cols - 1) / w->block_cols : 0;
    const int64_t col = unit * LSA_LINEAR_UNIT, first = w->scale ? col / w->block_cols : 0;
    int64_t last = -1, n = 1, next = w->scale ? (first + 1) * w->block_cols : col;
    uint8_t block[HALVES] = {0};
    int large = 0;
    for (int64_t h = 0; w->scale && h < 2 * units; h++) {
        if (col + h * (LSA_LINEAR_UNIT / 2) == next) n++, next += w->block_cols;
        block[h] = (uint8_t)(n - 1);
    }
    for (int64_t r = 0; r < rows; r++) {
        const int64_t block_row = w->scale ? (row + r) / w->block_rows : 0;
        float shared[HALVES] = {1}, *blocks = n == 2 * units ? s->held[r] : shared;
        s->of[r] = s->held[r];
        if (block_row == last) {
            s->of[r] = s->of[r - 1];
            continue;
        }
        last = block_row;
        const int64_t at = block_row * across + first;
        if (w->scale && w->scale_dtype == LSA_F32) {
            memcpy(blocks, (const float *)w->scale + at, (size_t)n * sizeof *blocks);
        } else if (w->scale) {
            uint8_t codes[HALVES] = {0};
            const uint8_t *stored = (const uint8_t *)w->scale + at;
            if (n == HALVES) /* a constant's copy is an instruction */
                memcpy(codes, stored, HALVES);
            else
                memcpy(codes, stored, (size_t)n);
            for (int i = 0; i < HALVES; i++) blocks[i] = e8m0_to_f32(codes[i]);
        }
        for (int64_t i = 0; i < n; i++) large |= !(fabsf(blocks[i]) < 0x1p119f);
        for (int64_t h = 0; blocks == shared && h < 2 * units; h++)
            s->held[r][h] = blocks[block[h]];
    }
    s->large = large;
}

/* Down a column of units before the next: rows share blocks of scales, and what was made of one serves all of them. Numbers that are
 * not finite want care: whether there are any shows when it was not taken. */
static inline TARGET LSA_BODY void decode_body(uint8_t *out, int64_t out_step, const lsa_weight *w,
                                               int64_t row, int64_t rows, int64_t unit,
                                               int64_t units, const tile_scales *scales, int dtype,
                                               int round)
{
    const int64_t bytes = dtype == LSA_F4_E2M1 ? LSA_LINEAR_UNIT / 2 : LSA_LINEAR_UNIT;
    const int64_t row_bytes = w->cols / LSA_LINEAR_UNIT * bytes;
    const uint8_t *data = (const uint8_t *)w->data + row * row_bytes + unit * bytes;
    const uint8_t *ahead = row + 2 * rows <= w->rows ? data + rows * row_bytes : data;
    for (int careful = scales->large; careful < 2; careful++) {
        table t = new_table();
        for (int64_t u = 0; u < units; u++)
            for (int64_t r = 0; r < rows; r++) {
                const float *scale = scales->of[r] + 2 * u;
                const uint8_t *from = data + r * row_bytes + u * bytes;
                uint8_t *to = out + r * out_step + u * UNIT_BYTES;
                _mm_prefetch((const char *)ahead + r * row_bytes + u * bytes, _MM_HINT_T0);
                if (careful)
                    decode_unit_with_care(to, from, dtype, &t, scale, round);
                else
                    decode_unit(to, from, dtype, &t, scale, round);
            }
        if (careful || !found_nan(&t)) return;
    }
}

#define DECODE(name, dtype, round)                                                                 \
    TARGET static void name(void *out, int64_t out_step, const lsa_weight *w, int64_t row,         \
                            int64_t rows, int64_t unit, int64_t units, const tile_scales *scales)  \
    {                                                                                              \
        decode_body(out, out_step, w, row, rows, unit, units, scales, dtype, round);               \
    }

DECODE(decode_f8, LSA_F8_E4M3, 0)
DECODE(decode_f4, LSA_F4_E2M1, 0)
DECODE(decode_f8_rounded, LSA_F8_E4M3, 1)
DECODE(decode_f4_rounded, LSA_F4_E2M1, 1)

TARGET static void decode(void *out, int64_t out_step, const lsa_weight *w, int64_t row,
                          int64_t rows, int64_t unit, int64_t units, int round)
{
    const int f4 = w->dtype == LSA_F4_E2M1;
    tile_scales scales;
    for (int64_t end = unit + units, n; unit < end; unit += n) {
        n = end - unit < LSA_TILE_UNITS ? end - unit : LSA_TILE_UNITS;
        load_scales(&scales, w, row, rows, unit, n);
        if (round)
            (f4 ? decode_f4_rounded : decode_f8_rounded)(out, out_step, w, row, rows, unit, n,
                                                         &scales);
        else
            (f4 ? decode_f4 : decode_f8)(out, out_step, w, row, rows, unit, n, &scales);
        out = (uint8_t *)out + n * UNIT_BYTES;
    }
}

#endif
