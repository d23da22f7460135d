/* Owns the few-token path: every row of the weight is read once, for at most LSA_LINEAR_GROUP tokens. */
#include "core/cpu.h"
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

enum { PIECE = 512 };

/* x, rounded and padded, token t at t * lsa_linear_padded(cols). */
static int64_t padded(int64_t cols) { return (cols + 63) / 64 * 64; }

int64_t lsa_linear_vector_workspace(const lsa_weight *w, int64_t tokens)
{
    if (tokens > LSA_LINEAR_GROUP) tokens = LSA_LINEAR_GROUP;
    return tokens * padded(w->cols) * (int64_t)sizeof(float);
}

/* One row against all tokens. */
static inline LSA_BODY void row_body(const lsa_linear_call *call, const float *x, int64_t r)
{
    const lsa_weight *w = call->w;
    float piece[PIECE];
    f32x16 sum[LSA_LINEAR_GROUP] = {{0}};
    for (int64_t from = 0; from < w->cols; from += PIECE) {
        int64_t n = w->cols - from < PIECE ? w->cols - from : PIECE;
        lsa_linear_decode(piece, w, call->row_from + r, from, n, call->compute == LSA_COMPUTE_BF16);
        for (int64_t t = 0; t < call->tokens; t++) {
            const float *xt = x + t * padded(w->cols) + from;
            f32x16 s = sum[t];
            int64_t i = 0;
            for (; i + 16 <= n; i += 16) s += f32x16_load(piece + i) * f32x16_load(xt + i);
            if (i < n) s += f32x16_load_n(piece + i, n - i) * f32x16_load_n(xt + i, n - i);
            sum[t] = s;
        }
    }
    for (int64_t t = 0; t < call->tokens; t++) call->y[t * call->y_stride + r] = f32x16_sum(sum[t]);
}

LSA_PATHS(row, (const lsa_linear_call *call, const float *x, int64_t r), (call, x, r))

static void prepare_x(float *out, const lsa_linear_call *call)
{
    for (int64_t t = 0; t < call->tokens; t++) {
        float *to = out + t * padded(call->w->cols);
        const float *from = call->x + t * call->x_stride;
        for (int64_t i = 0; i < call->w->cols; i++)
            to[i] = call->compute == LSA_COMPUTE_BF16 ? bf16_to_f32(f32_to_bf16(from[i])) : from[i];
    }
}

void lsa_linear_vector(const lsa_linear_call *call, void *workspace)
{
    float *x = workspace;
    prepare_x(x, call);
    int threads = lsa_threads_for(call->rows * call->w->cols / 8 * call->tokens);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < call->rows; r++) row(call, x, r);
}
