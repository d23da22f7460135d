/* Owns lsa_linear_cpu: checks the call and gives it to the path that suits its number of tokens. */
#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/linear_private.h"
#include "kernels/linear_tiles.h"

enum {
    FEW_TOKENS = 48,      /* more than these repay a dense weight, */
    FEW_TOKENS_BF16 = 96, /* and rounded factors */
    DECODED_PER_NS = 4
};

static int is_few(int64_t tokens, int32_t compute)
{
    return tokens <= (compute == LSA_COMPUTE_BF16 ? FEW_TOKENS_BF16 : FEW_TOKENS);
}

static int check_weight(const char *op, const lsa_weight *w, int64_t row_from, int64_t rows)
{
    if (w->dtype != LSA_F32 && w->dtype != LSA_BF16 && w->dtype != LSA_F16 &&
        w->dtype != LSA_F8_E4M3 && w->dtype != LSA_F4_E2M1)
        return lsa_fail(LSA_EDTYPE, "%s: weight dtype %d is not f32, bf16, f16, f8_e4m3 or f4_e2m1",
                        op, w->dtype);
    if (w->scale && w->scale_dtype != LSA_F32 && w->scale_dtype != LSA_F8_E8M0)
        return lsa_fail(LSA_EDTYPE, "%s: scale dtype %d is not f32 or f8_e8m0", op, w->scale_dtype);
    if (w->rows < 0 || w->cols < 0 || rows < 0 || row_from < 0 || row_from > w->rows - rows)
        return lsa_fail(LSA_ESHAPE, "%s: rows %lld .. %lld of a weight [%lld, %lld]", op,
                        (long long)row_from, (long long)(row_from + rows), (long long)w->rows,
                        (long long)w->cols);
    if (w->dtype == LSA_F4_E2M1 && w->cols % 2)
        return lsa_fail(LSA_ESHAPE, "%s: packed fp4 with an odd number of columns, %lld", op,
                        (long long)w->cols);
    if (w->scale && (w->block_rows < 1 || w->block_cols < 1))
        return lsa_fail(LSA_ESHAPE, "%s: scale blocks of %lld x %lld", op, (long long)w->block_rows,
                        (long long)w->block_cols);
    return 0;
}

int lsa_linear_check(const lsa_weight *w, int64_t tokens, int64_t row_from, int64_t rows,
                     int64_t x_stride, int64_t y_stride, int32_t compute)
{
    int rc = check_weight("linear", w, row_from, rows);
    if (rc) return rc;
    if (compute != LSA_COMPUTE_F32 && compute != LSA_COMPUTE_BF16)
        return lsa_fail(LSA_EARG, "linear: compute %d is not f32 or bf16", compute);
    if (tokens < 0) return lsa_fail(LSA_ESHAPE, "linear: %lld tokens", (long long)tokens);
    if (tokens > 1 && (x_stride < w->cols || y_stride < rows))
        return lsa_fail(
            LSA_ESHAPE, "linear: x_stride %lld of %lld columns, y_stride %lld of %lld rows",
            (long long)x_stride, (long long)w->cols, (long long)y_stride, (long long)rows);
    return 0;
}

int lsa_linear_cpu(float *y, const float *x, const lsa_weight *w, int64_t tokens, int64_t row_from,
                   int64_t rows, int64_t x_stride, int64_t y_stride, int32_t compute,
                   void *workspace, void *stream)
{
    (void)stream;
    int rc = lsa_linear_check(w, tokens, row_from, rows, x_stride, y_stride, compute);
    if (rc || tokens == 0 || rows == 0) return rc;
    lsa_linear_call call = {y, x, w, tokens, row_from, rows, x_stride, y_stride, compute};
    const lsa_linear_tiles *tiles = lsa_linear_tiles_for(w);
    if (tiles && lsa_linear_tiles_suit(tiles, w, tokens)) {
        lsa_linear_by_tiles(tiles, &call, workspace);
        return LSA_OK;
    }
    if (!is_few(tokens, compute)) return lsa_linear_matrix(&call, workspace);
    for (int64_t t = 0; t < tokens; t += LSA_LINEAR_GROUP) {
        call.x = x + t * x_stride;
        call.y = y + t * y_stride;
        call.tokens = tokens - t < LSA_LINEAR_GROUP ? tokens - t : LSA_LINEAR_GROUP;
        lsa_linear_vector(&call, workspace);
    }
    return 0;
}

int64_t lsa_linear_workspace(const lsa_weight *w, int64_t tokens, int64_t rows, int32_t compute)
{
    (void)rows;
    int64_t bytes = lsa_linear_vector_workspace(w, tokens),
            tiles = lsa_linear_tiles_workspace(w, tokens), matrix = 0;
    if (!is_few(tokens, compute)) matrix = lsa_linear_matrix_workspace(w, tokens, compute);
    if (bytes < tiles) bytes = tiles;
    return bytes > matrix ? bytes : matrix;
}

typedef struct rows_call {
    float *out;
    const lsa_weight *w;
    int64_t row_from;
} rows_call;

static void decode_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const rows_call *c = context;
    for (int64_t r = from; r < to; r++)
        lsa_linear_decode(c->out + r * c->w->cols, c->w, c->row_from + r, 0, c->w->cols, 0);
}

int lsa_weight_rows(float *out, const lsa_weight *w, int64_t row_from, int64_t rows)
{
    int rc = check_weight("weight_rows", w, row_from, rows);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(rows * w->cols / DECODED_PER_NS), rows, decode_rows,
                 &(rows_call){out, w, row_from});
    return 0;
}
