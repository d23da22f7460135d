/* Owns the many-token path: weight rows made dense in the workspace, some at a time, and multiplied by the BLAS. */
#include <stddef.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "core/base/try.h"
#include "kernels/convert.h"
#include "kernels/gemm.h"
#include "kernels/linear_private.h"
#include "kernels/linear_tiles.h"
#include "kernels/number_formats.h"

enum {
    MOST_WEIGHTS = 1 << 20, /* numbers that are dense at a time: 4 MiB, for the caches to keep */
    LEAST_ROWS = 64,
    MOST_X = 1 << 22, /* numbers of x that are held rounded */
    PIECE = 1024,     /* columns; even, since two fp4 are a byte */
    DECODED_PER_NS = 4,
    ROUNDED_PER_NS = 4
};

/* Rows that are dense at a time. */
static int64_t rows_held(const lsa_weight *w, int64_t rows)
{
    int64_t most = MOST_WEIGHTS / (w->cols + 1);
    if (most < LEAST_ROWS) most = LEAST_ROWS;
    return rows < most ? rows : most;
}

/* Tokens whose x is held rounded at a time. */
static int64_t tokens_held(const lsa_weight *w, int64_t tokens)
{
    int64_t most = MOST_X / (w->cols + 1);
    if (most < 64) most = 64;
    return tokens < most ? tokens : most;
}

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/* Whether rounded factors are multiplied as bf16 here, or as f32 that have no more than its bits: then nothing is written down in bf16
 * to be widened again. */
static int is_bf16(int32_t compute)
{
    return compute == LSA_COMPUTE_BF16 && lsa_gemm_bf16_workspace(1, 1, 1) == 0;
}

/* Dense rows and, where x is rounded, that. */
int64_t lsa_linear_matrix_workspace(const lsa_weight *w, int64_t tokens, int32_t compute)
{
    int64_t dense = rows_held(w, w->rows) * w->cols, x = tokens_held(w, tokens) * w->cols;
    int64_t size = is_bf16(compute) ? 2 : 4;
    return aligned(size * dense) + (compute == LSA_COMPUTE_BF16 ? aligned(size * x) : 0);
}

typedef struct dense_rows {
    void *out;
    const lsa_weight *w;
    const lsa_linear_tiles *tiles; /* or NULL */
    int64_t row;
    int32_t compute;
} dense_rows;

static void decode_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dense_rows *d = context;
    int64_t cols = d->w->cols;
    for (int64_t r = from; r < to; r++)
        lsa_linear_decode((float *)d->out + r * cols, d->w, d->row + r, 0, cols,
                          d->compute == LSA_COMPUTE_BF16);
}

/* By pieces that stay in the cache between the two. */
static void decode_rows_bf16(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dense_rows *d = context;
    int64_t cols = d->w->cols, n;
    float piece[PIECE];
    for (int64_t r = from; r < to; r++)
        for (int64_t c = 0; c < cols; c += n) {
            n = cols - c < PIECE ? cols - c : PIECE;
            lsa_linear_decode(piece, d->w, d->row + r, c, n, 0);
            lsa_convert_cpu((uint16_t *)d->out + r * cols + c, piece, n, LSA_BF16, LSA_F32, NULL);
        }
}

static void decode_by_tiles(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dense_rows *d = context;
    int64_t step = d->w->cols * (int64_t)sizeof(float);
    lsa_linear_tiles_decode(d->tiles, (uint8_t *)d->out + from * step, d->w, d->row + from,
                            to - from, d->compute);
}

static void densify(void *out, const lsa_weight *w, int64_t row, int64_t rows, int32_t compute)
{
    const lsa_linear_tiles *tiles = lsa_linear_tiles_for(w);
    lsa_parts_fn *decode = is_bf16(compute) ? decode_rows_bf16 : decode_rows;
    if (tiles && !is_bf16(compute)) decode = decode_by_tiles;
    lsa_parallel(lsa_threads_for(rows * w->cols / DECODED_PER_NS), rows, decode,
                 &(dense_rows){out, w, tiles, row, compute});
}

/* y of tokens whose x, x_stride numbers apart, is as the product takes it. */
static int multiply(const lsa_linear_call *call, const void *x, int64_t x_stride, void *dense)
{
    const lsa_weight *w = call->w;
    const int bf16 = is_bf16(call->compute), dtype = bf16 ? LSA_BF16 : LSA_F32;
    const int stored = w->dtype == dtype && !w->scale && (bf16 || call->compute == LSA_COMPUTE_F32);
    int64_t held = stored ? call->rows : rows_held(w, call->rows);
    for (int64_t r = 0; r < call->rows; r += held) {
        int64_t n = call->rows - r < held ? call->rows - r : held;
        const void *rows = dense;
        if (stored)
            rows = (const uint8_t *)w->data + (call->row_from + r) * w->cols * (bf16 ? 2 : 4);
        else
            densify(dense, w, call->row_from + r, n, call->compute);
        if (bf16)
            LSA_TRY(lsa_gemm_bf16_cpu(call->y + r, x, rows, call->tokens, n, w->cols,
                                      call->y_stride, x_stride, w->cols, NULL, NULL));
        else
            LSA_TRY(lsa_gemm_cpu(call->y + r, x, rows, call->tokens, n, w->cols, call->y_stride,
                                 x_stride, w->cols, 0, 1, NULL));
    }
    return LSA_OK;
}

static inline LSA_BODY void to_bf16_body(float *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = bf16_to_f32(f32_to_bf16(x[i]));
}

LSA_PATHS(to_bf16, (float *out, const float *x, int64_t n), (out, x, n))

typedef struct rounded_rows {
    void *out;
    const float *x;
    int64_t cols, stride;
    int bf16;
} rounded_rows;

static void round_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const rounded_rows *d = context;
    for (int64_t i = from; i < to; i++) {
        const float *x = d->x + i * d->stride;
        if (d->bf16)
            lsa_convert_cpu((uint16_t *)d->out + i * d->cols, x, d->cols, LSA_BF16, LSA_F32, NULL);
        else
            to_bf16((float *)d->out + i * d->cols, x, d->cols);
    }
}

int lsa_linear_matrix(const lsa_linear_call *call, void *workspace)
{
    const lsa_weight *w = call->w;
    if (call->compute == LSA_COMPUTE_F32) return multiply(call, call->x, call->x_stride, workspace);
    const int bf16 = is_bf16(call->compute);
    int64_t most = rows_held(w, w->rows) * w->cols, held = tokens_held(w, call->tokens);
    void *rounded = (char *)workspace + aligned((bf16 ? 2 : 4) * most);
    for (int64_t t = 0; t < call->tokens; t += held) {
        lsa_linear_call part = *call;
        part.tokens = call->tokens - t < held ? call->tokens - t : held;
        part.y = call->y + t * call->y_stride;
        lsa_parallel(
            lsa_threads_for(part.tokens * w->cols / ROUNDED_PER_NS), part.tokens, round_rows,
            &(rounded_rows){rounded, call->x + t * call->x_stride, w->cols, call->x_stride, bf16});
        LSA_TRY(multiply(&part, rounded, w->cols, workspace));
    }
    return LSA_OK;
}
