/* Owns the many-token path: weight rows made dense in the workspace, some at a time, and multiplied by the BLAS. */
#include <stddef.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/convert.h"
#include "kernels/gemm.h"
#include "kernels/linear_private.h"

enum {
    MOST_WEIGHTS = 1 << 20, /* numbers that are dense at a time: 4 MiB, for the caches to keep */
    LEAST_ROWS = 64,
    MOST_X = 1 << 22, /* numbers of x that are held rounded */
    PIECE = 1024,     /* columns; even, since two fp4 are a byte */
    DECODED_PER_NS = 4
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

/* f32: dense rows. bf16: those in bf16, the bf16 of x, and what the product takes. */
int64_t lsa_linear_matrix_workspace(const lsa_weight *w, int64_t tokens, int32_t compute)
{
    int64_t dense = rows_held(w, w->rows) * w->cols, held = tokens_held(w, tokens);
    if (compute != LSA_COMPUTE_BF16) return aligned(dense * (int64_t)sizeof(float));
    return aligned(2 * dense) + aligned(2 * held * w->cols) +
           lsa_gemm_bf16_workspace(held, w->rows, w->cols);
}

typedef struct dense_rows {
    void *out;
    const lsa_weight *w;
    int64_t row;
} dense_rows;

static void decode_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const dense_rows *d = context;
    int64_t cols = d->w->cols;
    for (int64_t r = from; r < to; r++)
        lsa_linear_decode((float *)d->out + r * cols, d->w, d->row + r, 0, cols, 0);
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

static void densify(void *out, const lsa_weight *w, int64_t row, int64_t rows, int bf16)
{
    lsa_parallel(lsa_threads_for(rows * w->cols / DECODED_PER_NS), rows,
                 bf16 ? decode_rows_bf16 : decode_rows, &(dense_rows){out, w, row});
}

/* Whether the weight is stored as the product wants it. */
static int is_dense(const lsa_weight *w, int32_t dtype) { return w->dtype == dtype && !w->scale; }

static int multiply_f32(const lsa_linear_call *call, float *dense)
{
    const lsa_weight *w = call->w;
    int64_t held = is_dense(w, LSA_F32) ? call->rows : rows_held(w, call->rows);
    for (int64_t r = 0; r < call->rows; r += held) {
        int64_t n = call->rows - r < held ? call->rows - r : held;
        const float *rows = (const float *)w->data + (call->row_from + r) * w->cols;
        if (!is_dense(w, LSA_F32)) {
            densify(dense, w, call->row_from + r, n, 0);
            rows = dense;
        }
        int rc = lsa_gemm_cpu(call->y + r, call->x, rows, call->tokens, n, w->cols, call->y_stride,
                              call->x_stride, w->cols, 0, 1, NULL);
        if (rc) return rc;
    }
    return LSA_OK;
}

/* For tokens whose x is rounded: x16 [tokens, cols]. */
static int multiply_bf16(const lsa_linear_call *call, const uint16_t *x16, uint16_t *dense,
                         void *product)
{
    const lsa_weight *w = call->w;
    int64_t held = is_dense(w, LSA_BF16) ? call->rows : rows_held(w, call->rows);
    for (int64_t r = 0; r < call->rows; r += held) {
        int64_t n = call->rows - r < held ? call->rows - r : held;
        const uint16_t *rows = (const uint16_t *)w->data + (call->row_from + r) * w->cols;
        if (!is_dense(w, LSA_BF16)) {
            densify(dense, w, call->row_from + r, n, 1);
            rows = dense;
        }
        int rc = lsa_gemm_bf16_cpu(call->y + r, x16, rows, call->tokens, n, w->cols, call->y_stride,
                                   w->cols, w->cols, product, NULL);
        if (rc) return rc;
    }
    return LSA_OK;
}

/* Rows of x in bf16, packed: at once where they are packed already, for each call has its price. */
static void round_rows(uint16_t *out, const float *x, int64_t rows, int64_t cols, int64_t stride)
{
    if (stride == cols) {
        lsa_convert_cpu(out, x, rows * cols, LSA_BF16, LSA_F32, NULL);
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        lsa_convert_cpu(out + i * cols, x + i * stride, cols, LSA_BF16, LSA_F32, NULL);
}

int lsa_linear_matrix(const lsa_linear_call *call, void *workspace)
{
    const lsa_weight *w = call->w;
    if (call->compute == LSA_COMPUTE_F32) return multiply_f32(call, workspace);
    int64_t most = rows_held(w, w->rows) * w->cols, held = tokens_held(w, call->tokens);
    uint16_t *dense = workspace, *x16 = (uint16_t *)(void *)((char *)workspace + aligned(2 * most));
    void *product = (char *)x16 + aligned(2 * held * w->cols);
    for (int64_t t = 0; t < call->tokens; t += held) {
        lsa_linear_call part = *call;
        part.tokens = call->tokens - t < held ? call->tokens - t : held;
        part.y = call->y + t * call->y_stride;
        round_rows(x16, call->x + t * call->x_stride, part.tokens, w->cols, call->x_stride);
        int rc = multiply_bf16(&part, x16, dense, product);
        if (rc) return rc;
    }
    return LSA_OK;
}
