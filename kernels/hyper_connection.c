/* Hyper-connections on the CPU: the small algebra on sixteen tokens at once, one a lane. */
#include "kernels/hyper_connection.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd_kept.h"
#include "core/base/try.h"
#include "kernels/rmsnorm.h"
#include "kernels/vector_math.h"

enum { MOST_STREAMS = LSA_HC_MOST_STREAMS, LANES = 16 };

/* What one group of tokens shares: sizes and parameters. */
typedef struct connection {
    const float *base, *scale;
    int64_t hc, dim, width, iters; /* width: mix values a token */
    float norm_eps, hc_eps;
} connection;

static inline LSA_BODY float mean_square(int wide, const float *x, int64_t n)
{
    f32x16_kept sum[4];
    f32x16 part[4];
    for (int j = 0; j < 4; j++) f32x16_keep(wide, sum + j, f32x16_set(0));
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++) {
            f32x16 v = f32x16_load(x + i + 16 * j);
            f32x16_keep_sum(wide, sum + j, v * v);
        }
    for (; i < n; i += 16) {
        f32x16 v = f32x16_load_n(x + i, n - i < 16 ? n - i : 16);
        f32x16_keep_sum(wide, sum, v * v);
    }
    for (int j = 0; j < 4; j++) part[j] = f32x16_kept_value(wide, sum + j);
    return f32x16_sum((part[0] + part[1]) + (part[2] + part[3])) / (float)n;
}

/* norm[t] = rsqrt(mean(streams[t]^2) + eps) for `tokens` <= 16 tokens. */
static inline LSA_BODY f32x16 norms(int wide, const connection *k, const float *streams,
                                    int64_t tokens)
{
    float norm[LANES] = {0};
    int64_t row = k->hc * k->dim;
    for (int64_t t = 0; t < tokens; t++)
        norm[t] = 1.0f / sqrtf(mean_square(wide, streams + t * row, row) + k->norm_eps);
    return f32x16_load(norm);
}

/* mix value i of every token, normalised. */
static inline LSA_BODY f32x16 column(const connection *k, const float *mix, int64_t tokens,
                                     int64_t i, f32x16 norm)
{
    float v[LANES] = {0};
    for (int64_t t = 0; t < tokens; t++) v[t] = mix[t * k->width + i];
    return f32x16_load(v) * norm;
}

static inline LSA_BODY void spread(float *out, int64_t stride, f32x16 v, int64_t tokens)
{
    float lane[LANES];
    f32x16_store(lane, v);
    for (int64_t t = 0; t < tokens; t++) out[t * stride] = lane[t];
}

/* out[i] = sum_k weight[k] streams[k][i] */
static inline LSA_BODY void collapse(int wide, float *out, const float *streams,
                                     const float *weight, int64_t hc, int64_t dim)
{
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        f32x16_kept sum;
        f32x16_keep(wide, &sum, f32x16_load(streams + i) * weight[0]);
        for (int64_t j = 1; j < hc; j++)
            f32x16_keep_sum(wide, &sum, f32x16_load(streams + j * dim + i) * weight[j]);
        f32x16_store(out + i, f32x16_kept_value(wide, &sum));
    }
    for (; i < dim; i++) {
        float sum = streams[i] * weight[0];
        for (int64_t j = 1; j < hc; j++) sum += streams[j * dim + i] * weight[j];
        out[i] = sum;
    }
}

static inline LSA_BODY void normalise_columns(int wide, f32x16 *m, int64_t hc, float eps)
{
    for (int64_t j = 0; j < hc; j++) {
        f32x16_kept kept;
        f32x16_keep(wide, &kept, m[j]);
        for (int64_t i = 1; i < hc; i++) f32x16_keep_sum(wide, &kept, m[i * hc + j]);
        f32x16 sum = f32x16_kept_value(wide, &kept) + eps;
        for (int64_t i = 0; i < hc; i++) m[i * hc + j] /= sum;
    }
}

static inline LSA_BODY void normalise_rows(int wide, f32x16 *m, int64_t hc, float eps)
{
    for (int64_t i = 0; i < hc; i++) {
        f32x16_kept kept;
        f32x16_keep(wide, &kept, m[i * hc]);
        for (int64_t j = 1; j < hc; j++) f32x16_keep_sum(wide, &kept, m[i * hc + j]);
        f32x16 sum = f32x16_kept_value(wide, &kept) + eps;
        for (int64_t j = 0; j < hc; j++) m[i * hc + j] /= sum;
    }
}

static inline LSA_BODY void softmax_rows(int wide, f32x16 *m, int64_t hc, float eps)
{
    for (int64_t i = 0; i < hc; i++, m += hc) {
        f32x16_kept kept;
        f32x16_keep(wide, &kept, m[0]);
        for (int64_t j = 1; j < hc; j++) {
            f32x16 max = f32x16_kept_value(wide, &kept);
            f32x16_keep(wide, &kept, f32x16_select(f32x16_below(max, m[j]), m[j], max));
        }
        f32x16 max = f32x16_kept_value(wide, &kept);
        f32x16_keep(wide, &kept, f32x16_set(0));
        for (int64_t j = 0; j < hc; j++)
            f32x16_keep_sum(wide, &kept, m[j] = f32x16_exp(m[j] - max));
        f32x16 sum = f32x16_kept_value(wide, &kept);
        for (int64_t j = 0; j < hc; j++) m[j] = m[j] / sum + eps;
    }
}

static inline LSA_BODY void open_group_body(int wide, float *x, float *post, float *comb,
                                            const float *streams, const float *mix,
                                            const connection *k, int64_t tokens)
{
    int64_t hc = k->hc;
    float pre[LANES * MOST_STREAMS];
    f32x16 m[MOST_STREAMS * MOST_STREAMS], norm = norms(wide, k, streams, tokens);
    for (int64_t i = 0; i < hc; i++) {
        f32x16 a = column(k, mix, tokens, i, norm) * k->scale[0] + k->base[i];
        f32x16 b = column(k, mix, tokens, hc + i, norm) * k->scale[1] + k->base[hc + i];
        spread(pre + i, hc, f32x16_sigmoid(a) + k->hc_eps, tokens);
        spread(post + i, hc, f32x16_sigmoid(b) * 2.0f, tokens);
    }
    for (int64_t i = 0; i < hc * hc; i++)
        m[i] = column(k, mix, tokens, 2 * hc + i, norm) * k->scale[2] + k->base[2 * hc + i];
    softmax_rows(wide, m, hc, k->hc_eps);
    normalise_columns(wide, m, hc, k->hc_eps);
    for (int64_t round = 1; round < k->iters; round++) {
        normalise_rows(wide, m, hc, k->hc_eps);
        normalise_columns(wide, m, hc, k->hc_eps);
    }
    for (int64_t i = 0; i < hc * hc; i++) spread(comb + i, hc * hc, m[i], tokens);
    for (int64_t t = 0; t < tokens; t++)
        collapse(wide, x + t * k->dim, streams + t * hc * k->dim, pre + t * hc, hc, k->dim);
}

LSA_PATHS_WIDE(open_group,
               (float *x, float *post, float *comb, const float *streams, const float *mix,
                const connection *k, int64_t tokens),
               (x, post, comb, streams, mix, k, tokens))

static inline LSA_BODY void head_group_body(int wide, float *x, const float *streams,
                                            const float *mix, const connection *k, int64_t tokens)
{
    float pre[LANES * MOST_STREAMS];
    f32x16 norm = norms(wide, k, streams, tokens);
    for (int64_t i = 0; i < k->hc; i++) {
        f32x16 a = column(k, mix, tokens, i, norm) * k->scale[0] + k->base[i];
        spread(pre + i, k->hc, f32x16_sigmoid(a) + k->hc_eps, tokens);
    }
    for (int64_t t = 0; t < tokens; t++)
        collapse(wide, x + t * k->dim, streams + t * k->hc * k->dim, pre + t * k->hc, k->hc,
                 k->dim);
}

LSA_PATHS_WIDE(head_group,
               (float *x, const float *streams, const float *mix, const connection *k,
                int64_t tokens),
               (x, streams, mix, k, tokens))

static inline LSA_BODY void close_token(float *streams, const float *y, const float *post,
                                        const float *comb, int64_t hc, int64_t dim)
{
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16) {
        f32x16 old[MOST_STREAMS], v = f32x16_load(y + i);
        for (int64_t j = 0; j < hc; j++) old[j] = f32x16_load(streams + j * dim + i);
        for (int64_t k = 0; k < hc; k++) {
            f32x16 sum = v * post[k];
            for (int64_t j = 0; j < hc; j++) sum += old[j] * comb[j * hc + k];
            f32x16_store(streams + k * dim + i, sum);
        }
    }
    for (; i < dim; i++) {
        float old[MOST_STREAMS];
        for (int64_t j = 0; j < hc; j++) old[j] = streams[j * dim + i];
        for (int64_t k = 0; k < hc; k++) {
            float sum = y[i] * post[k];
            for (int64_t j = 0; j < hc; j++) sum += old[j] * comb[j * hc + k];
            streams[k * dim + i] = sum;
        }
    }
}

/* The usual numbers of streams have their own loops. */
static inline LSA_BODY void close_tokens_body(float *streams, const float *y, const float *post,
                                              const float *comb, int64_t tokens, int64_t hc,
                                              int64_t dim)
{
    for (int64_t t = 0; t < tokens; t++) {
        if (hc == 4)
            close_token(streams, y, post, comb, 4, dim);
        else if (hc == 2)
            close_token(streams, y, post, comb, 2, dim);
        else
            close_token(streams, y, post, comb, hc, dim);
        streams += hc * dim, y += dim, post += hc, comb += hc * hc;
    }
}

LSA_PATHS(close_tokens,
          (float *streams, const float *y, const float *post, const float *comb, int64_t tokens,
           int64_t hc, int64_t dim),
          (streams, y, post, comb, tokens, hc, dim))

int lsa_hc_check(const char *op, int64_t tokens, int64_t hc, int64_t dim)
{
    if (tokens >= 0 && hc >= 1 && hc <= MOST_STREAMS && dim >= 1) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "%s: [%lld, %lld, %lld] streams, at most %d a token", op,
                    (long long)tokens, (long long)hc, (long long)dim, MOST_STREAMS);
}

static int64_t tokens_of(int64_t t, int64_t to) { return to - t < LANES ? to - t : LANES; }

static void open_tokens(float *x, float *post, float *comb, const float *streams, const float *mix,
                        const connection *k, int64_t from, int64_t to)
{
    int64_t hc = k->hc;
    for (int64_t t = from; t < to; t += LANES)
        open_group(x + t * k->dim, post + t * hc, comb + t * hc * hc, streams + t * hc * k->dim,
                   mix + t * k->width, k, tokens_of(t, to));
}

static void head_tokens(float *x, const float *streams, const float *mix, const connection *k,
                        int64_t from, int64_t to)
{
    for (int64_t t = from; t < to; t += LANES)
        head_group(x + t * k->dim, streams + t * k->hc * k->dim, mix + t * k->width, k,
                   tokens_of(t, to));
}

/* A call's tokens by groups. */
typedef struct shared {
    float *x, *post, *comb;
    const float *streams, *mix;
    const connection *k;
    int64_t tokens;
} shared;

static int64_t groups_of(int64_t tokens) { return (tokens + LANES - 1) / LANES; }

static int64_t first_of(const shared *s, int64_t group)
{
    return group * LANES < s->tokens ? group * LANES : s->tokens;
}

static void open_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const shared *s = context;
    open_tokens(s->x, s->post, s->comb, s->streams, s->mix, s->k, first_of(s, from),
                first_of(s, to));
}

static void head_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const shared *s = context;
    head_tokens(s->x, s->streams, s->mix, s->k, first_of(s, from), first_of(s, to));
}

typedef struct closing {
    float *streams;
    const float *y, *post, *comb;
    int64_t hc, dim;
} closing;

static void close_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const closing *c = context;
    int64_t hc = c->hc, dim = c->dim;
    close_tokens(c->streams + from * hc * dim, c->y + from * dim, c->post + from * hc,
                 c->comb + from * hc * hc, to - from, hc, dim);
}

int lsa_hc_open_cpu(float *x, float *post, float *comb, const float *streams, const float *mix,
                    const float *base, const float *scale, int64_t tokens, int64_t hc, int64_t dim,
                    int64_t iters, float norm_eps, float hc_eps, void *stream)
{
    (void)stream;
    int rc = lsa_hc_check("hc_open", tokens, hc, dim);
    if (rc) return rc;
    connection k = {base, scale, hc, dim, (2 + hc) * hc, iters, norm_eps, hc_eps};
    lsa_parallel(lsa_threads_for(tokens * hc * (dim + 16 * iters) / 8), groups_of(tokens),
                 open_part, &(shared){x, post, comb, streams, mix, &k, tokens});
    return LSA_OK;
}

int lsa_hc_close_cpu(float *streams, const float *y, const float *post, const float *comb,
                     int64_t tokens, int64_t hc, int64_t dim, void *stream)
{
    (void)stream;
    int rc = lsa_hc_check("hc_close", tokens, hc, dim);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(tokens * hc * dim / 4), tokens, close_part,
                 &(closing){streams, y, post, comb, hc, dim});
    return LSA_OK;
}

int lsa_hc_head_cpu(float *x, const float *streams, const float *mix, const float *base,
                    const float *scale, int64_t tokens, int64_t hc, int64_t dim, float norm_eps,
                    float hc_eps, void *stream)
{
    (void)stream;
    int rc = lsa_hc_check("hc_head", tokens, hc, dim);
    if (rc) return rc;
    connection k = {base, scale, hc, dim, hc, 0, norm_eps, hc_eps};
    lsa_parallel(lsa_threads_for(tokens * hc * dim / 8), groups_of(tokens), head_part,
                 &(shared){x, NULL, NULL, streams, mix, &k, tokens});
    return LSA_OK;
}

int lsa_hc_turn_check(const lsa_hc_turning *turning, int64_t tokens)
{
    const lsa_hc_turning *u = turning;
    int64_t rows = u->head ? u->hc : (2 + u->hc) * u->hc;
    LSA_TRY(lsa_hc_check("hc_turn", tokens, u->hc, u->dim));
    if (u->fn->rows == rows && u->fn->cols == u->hc * u->dim) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "hc_turn: a projection [%lld, %lld], [%lld, %lld] is wanted",
                    (long long)u->fn->rows, (long long)u->fn->cols, (long long)rows,
                    (long long)(u->hc * u->dim));
}

int lsa_hc_turn_cpu(const lsa_hc_turning *turning, int64_t tokens, void *workspace, void *stream)
{
    const lsa_hc_turning *u = turning;
    LSA_TRY(lsa_hc_turn_check(u, tokens));
    if (tokens == 0) return LSA_OK;
    if (u->y)
        LSA_TRY(
            lsa_hc_close_cpu(u->streams, u->y, u->post, u->comb, tokens, u->hc, u->dim, stream));
    LSA_TRY(lsa_linear_cpu(u->mix, u->streams, u->fn, tokens, 0, u->fn->rows, u->fn->cols,
                           u->fn->rows, u->compute, workspace, stream));
    LSA_TRY(u->head
                ? lsa_hc_head_cpu(u->x, u->streams, u->mix, u->base, u->scale, tokens, u->hc,
                                  u->dim, u->norm_eps, u->hc_eps, stream)
                : lsa_hc_open_cpu(u->x, u->post, u->comb, u->streams, u->mix, u->base, u->scale,
                                  tokens, u->hc, u->dim, u->iters, u->norm_eps, u->hc_eps, stream));
    return lsa_rmsnorm_cpu(u->x, u->x, u->norm, tokens, u->dim, u->norm_eps, stream);
}
