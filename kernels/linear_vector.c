/* Owns the few-token path: every row of the weight is read once, for at most LSA_LINEAR_GROUP
 * tokens. */
#include "core/base/cpu.h"
#include "core/base/parallel.h"
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

enum { PIECE = 512, NUMBERS_PER_NS = 16 };

int64_t lsa_linear_vector_workspace(const lsa_weight *w, int64_t tokens)
{
    if (tokens > LSA_LINEAR_GROUP / 2) tokens = LSA_LINEAR_GROUP;
    return (tokens == 3 ? 4 : tokens) * lsa_linear_padded(w->cols) * (int64_t)sizeof(float);
}

typedef float f32x4 __attribute__((vector_size(16), aligned(4), may_alias));

/* One row against all tokens: any format, any columns, in vectors that every processor has. */
static void one_row(const lsa_linear_call *call, const float *x, int64_t r)
{
    const lsa_weight *w = call->w;
    float piece[PIECE];
    f32x4 sum[LSA_LINEAR_GROUP][4] = {{{0}}};
    for (int64_t from = 0; from < w->cols; from += PIECE) {
        int64_t n = w->cols - from < PIECE ? w->cols - from : PIECE, whole = (n + 15) / 16 * 16;
        lsa_linear_decode(piece, w, call->row_from + r, from, n, call->compute == LSA_COMPUTE_BF16);
        memset(piece + n, 0, (size_t)(whole - n) * sizeof *piece);
        for (int64_t t = 0; t < call->tokens; t++) {
            const f32x4 *p = (const f32x4 *)piece,
                        *xt = (const f32x4 *)(x + t * lsa_linear_padded(w->cols) + from);
            f32x4 a = sum[t][0], b = sum[t][1], c = sum[t][2], d = sum[t][3];
            for (int64_t i = 0; i < whole / 4; i += 4) {
                a += p[i] * xt[i];
                b += p[i + 1] * xt[i + 1];
                c += p[i + 2] * xt[i + 2];
                d += p[i + 3] * xt[i + 3];
            }
            sum[t][0] = a, sum[t][1] = b, sum[t][2] = c, sum[t][3] = d;
        }
    }
    for (int64_t t = 0; t < call->tokens; t++) {
        f32x4 s = (sum[t][0] + sum[t][2]) + (sum[t][1] + sum[t][3]);
        call->y[t * call->y_stride + r] = (s[0] + s[2]) + (s[1] + s[3]);
    }
}

static void general(const lsa_linear_call *call, const void *x, int64_t from, int64_t to)
{
    for (int64_t r = from; r < to; r++) one_row(call, x, r);
}

/* 64 columns. */
static inline LSA_BODY void prepare_unit(void *out, const float *x, int32_t layout, int32_t round)
{
    float *f = out;
    uint16_t *h = out;
    if (layout == LSA_LINEAR_X_BF16) {
        for (int i = 0; i < 64; i++) h[i] = f32_to_bf16(x[i]);
    } else if (layout == LSA_LINEAR_X_SPLIT) {
        for (int i = 0; i < 16; i++) {
            f[i] = x[2 * i], f[i + 16] = x[2 * i + 1];
            f[i + 32] = x[2 * i + 32], f[i + 48] = x[2 * i + 33];
        }
    } else {
        for (int i = 0; i < 64; i++) f[i] = round ? bf16_to_f32(f32_to_bf16(x[i])) : x[i];
    }
}

/* Units `step` bytes apart. */
static inline LSA_BODY void prepare_body(void *out, const float *x, int64_t cols, int32_t layout,
                                         int32_t round, int64_t step)
{
    for (int64_t from = 0; from < cols; from += 64) {
        const float *unit = x + from;
        float ragged[64] = {0}, nibbles[64];
        if (cols - from < 64) {
            memcpy(ragged, unit, (size_t)(cols - from) * sizeof *x);
            unit = ragged;
        }
        if (layout & LSA_LINEAR_X_NIBBLES) {
            for (int i = 0; i < 32; i++)
                nibbles[i] = unit[2 * i], nibbles[i + 32] = unit[2 * i + 1];
            unit = nibbles;
        }
        prepare_unit((uint8_t *)out + from / 64 * step, unit, layout & ~LSA_LINEAR_X_NIBBLES,
                     round);
    }
}

LSA_PATHS(prepare,
          (void *out, const float *x, int64_t cols, int32_t layout, int32_t round, int64_t step),
          (out, x, cols, layout, round, step))

void lsa_linear_prepare(void *out, const float *x, int64_t cols, int32_t layout, int32_t round,
                        int64_t step)
{
    prepare(out, x, cols, layout, round, step);
}

static lsa_linear_rows_fn *rows_for(const lsa_linear_call *call, int32_t *x_layout)
{
    lsa_linear_rows_fn *rows = NULL;
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512_BF16)
        rows = lsa_linear_rows_avx512_bf16(call, x_layout);
    else if (level >= LSA_CPU_AVX512)
        rows = lsa_linear_rows_avx512(call, x_layout);
    else if (level >= LSA_CPU_AVX2)
        rows = lsa_linear_rows_avx2(call, x_layout);
#endif
    if (!rows) {
        *x_layout = LSA_LINEAR_X_F32;
        rows = general;
    }
    return rows;
}

/* A call's rows by fours, as the products take them. */
typedef struct shared_rows {
    const lsa_linear_call *call;
    lsa_linear_rows_fn *rows;
    const void *x;
} shared_rows;

static void multiply_quads(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const shared_rows *s = context;
    int64_t end = 4 * to < s->call->rows ? 4 * to : s->call->rows;
    s->rows(s->call, s->x, 4 * from, end);
}

void lsa_linear_vector(const lsa_linear_call *call, void *workspace)
{
    const lsa_weight *w = call->w;
    int32_t layout;
    lsa_linear_rows_fn *rows = rows_for(call, &layout);
    const int64_t n = call->tokens, unit = LSA_LINEAR_UNIT * ((layout & LSA_LINEAR_X_BF16) ? 2 : 4);
    const int64_t held = n > LSA_LINEAR_GROUP / 2 ? LSA_LINEAR_GROUP : n == 3 ? 4 : n;
    int64_t from_token = unit, from_unit = held * unit;
    if (rows == general) from_token = lsa_linear_padded(w->cols) * 4, from_unit = unit;
    for (int64_t t = 0; t < n; t++)
        prepare((uint8_t *)workspace + t * from_token, call->x + t * call->x_stride, w->cols,
                layout, call->compute == LSA_COMPUTE_BF16, from_unit);

    lsa_parallel(lsa_threads_for(call->rows * w->cols / NUMBERS_PER_NS * call->tokens),
                 (call->rows + 3) / 4, multiply_quads, &(shared_rows){call, rows, workspace});
}
