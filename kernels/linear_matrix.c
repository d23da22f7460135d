/* Owns the many-token path: panels of weight rows, decoded and transposed, against all tokens.
 *
 * A panel holds DEPTH columns of WIDTH rows, column by column, in the first cache; a tile of
 * tokens is multiplied by it with every sum in a register. Each output is summed in order of
 * its columns, DEPTH at a time, so it depends neither on the number of threads nor on the other
 * tokens and rows of the call.
 *
 * Why no library: on one core of an AMD EPYC of the Zen 5 family, 512 x [128, 128] runs at 232
 * GFLOP/s here, 235 in oneDNN 2.6.3 and 113 in OpenBLAS 0.3.21 (which knows no such processor
 * and takes Haswell's kernels); in bf16 at 409 with x and W still f32, 467 in oneDNN with both
 * bf16 beforehand, OpenBLAS has none (`lsa bench linear`, experiments/peers/gemm_libraries.c).
 * The libraries would need every weight dense first, oneDNN some tenths of a millisecond for
 * each new shape, and either would let the number of threads change the sums. */
#include "core/cpu.h"
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

enum {
    WIDTH = LSA_LINEAR_WIDTH,
    DEPTH = LSA_LINEAR_DEPTH,
    LEAST_SHARE = 48, /* tokens for which a thread decodes a panel of its own */
    MOST_X = 1 << 22, /* numbers of x that are held rounded */
    FLOPS_PER_NS = 100
};

/* One panel's rows for some of the tokens. */
static void panel_of_rows(const lsa_linear_call *call, lsa_linear_path path, const float *x,
                          int64_t x_step, int64_t row, int64_t token, int64_t tokens)
{
    _Alignas(64) float panel[WIDTH * DEPTH];
    const int64_t words = path.pairs ? (call->w->cols + 1) / 2 : call->w->cols;
    int64_t n = call->rows - row < WIDTH ? call->rows - row : WIDTH;
    for (int64_t k = 0; k < words; k += DEPTH) {
        int64_t d = words - k < DEPTH ? words - k : DEPTH;
        path.pack(panel, call->w, call->row_from + row, n, path.pairs ? 2 * k : k, d,
                  call->compute == LSA_COMPUTE_BF16);
        path.tile(call->y + token * call->y_stride + row, call->y_stride, x + token * x_step + k,
                  x_step, panel, d, tokens, n, k > 0);
    }
}

/* All rows for tokens whose x is held. */
static void panels(const lsa_linear_call *call, lsa_linear_path path, const float *x,
                   int64_t x_step)
{
    int64_t count = (call->rows + WIDTH - 1) / WIDTH;
    int threads = lsa_threads_for(2 * call->tokens * call->rows * call->w->cols / FLOPS_PER_NS);
    int64_t most = call->tokens / LEAST_SHARE, shares = count >= 2 * threads ? 1 : threads;
    if (shares > most) shares = most < 1 ? 1 : most;
    int64_t share = (call->tokens + shares - 1) / shares;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < count * shares; i++) {
        int64_t token = i % shares * share, rest = call->tokens - token;
        if (rest > 0)
            panel_of_rows(call, path, x, x_step, i / shares * WIDTH, token,
                          rest < share ? rest : share);
    }
}

/* Words of a token's x, rounded. */
static int64_t rounded_step(const lsa_weight *w, int pairs)
{
    return pairs ? (w->cols + 1) / 2 : w->cols;
}

static int64_t tokens_held(const lsa_weight *w, int64_t tokens)
{
    int64_t most = MOST_X / (w->cols + 1);
    if (most < 64) most = 64;
    return tokens < most ? tokens : most;
}

int64_t lsa_linear_matrix_workspace(const lsa_weight *w, int64_t tokens, int32_t compute)
{
    return compute == LSA_COMPUTE_BF16 ? tokens_held(w, tokens) * w->cols * (int64_t)sizeof(float)
                                       : 0;
}

void lsa_linear_matrix(const lsa_linear_call *call, void *workspace)
{
    lsa_linear_path path = lsa_linear_path_for(call->compute);
    if (call->w->cols == 0) {
        for (int64_t t = 0; t < call->tokens; t++)
            memset(call->y + t * call->y_stride, 0, (size_t)call->rows * sizeof(float));
    } else if (call->compute == LSA_COMPUTE_F32) {
        panels(call, path, call->x, call->x_stride);
    } else {
        int64_t step = rounded_step(call->w, path.pairs), held = tokens_held(call->w, call->tokens);
        for (int64_t t = 0; t < call->tokens; t += held) {
            lsa_linear_call part = *call;
            part.tokens = call->tokens - t < held ? call->tokens - t : held;
            part.y = call->y + t * call->y_stride;
            for (int64_t i = 0; i < part.tokens; i++)
                path.round((float *)workspace + i * step, call->x + (t + i) * call->x_stride,
                           call->w->cols);
            panels(&part, path, workspace, step);
        }
    }
}
