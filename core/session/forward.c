/* The forward pass: DeepSeek-V4 as its report gives it, layer by layer, over the rows of all
 * segments. */
#include "core/session/forward.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "kernels/convert.h"
#include "kernels/hyper_connection.h"
#include "kernels/moe.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"

/* y [n, rows] = x [n, w->cols] W^T, for rows row_from .. of the weight. */
static int linear_rows(lsa_pass *p, float *y, const float *x, const lsa_weight *w, int64_t n,
                       int64_t row_from, int64_t rows, int64_t x_stride, int64_t y_stride)
{
    int64_t bytes = lsa_linear_workspace(w, n, rows, p->compute);
    void *workspace = lsa_activations_workspace(p->w, bytes);
    if (bytes && !workspace) return LSA_ENOMEM;
    return lsa_linear_cpu(y, x, w, n, row_from, rows, x_stride, y_stride, p->compute, workspace,
                          NULL);
}

static int linear(lsa_pass *p, float *y, const float *x, const lsa_weight *w, int64_t n)
{
    return linear_rows(p, y, x, w, n, 0, w->rows, w->cols, w->rows);
}

int lsa_traced(const lsa_pass *p, int64_t layer, const char *name, const float *data, int64_t rows,
               int64_t cols)
{
    return p->trace ? lsa_trace_rows(p->trace, layer, name, data, rows, cols) : LSA_OK;
}

/* ---- segments ---- */

/* What a segment's call returned; its message is this thread's, and is kept for whoever asks. */
static void note(lsa_segment *g, int rc)
{
    if (!rc) return;
    g->code = rc;
    snprintf(g->message, sizeof g->message, "%s", lsa_error());
}

/* One nanosecond's worth a unit: what a segment does in a layer, as lsa_threads_for wants it. */
static int64_t segment_work(const lsa_pass *p)
{
    const lsa_config *c = p->c;
    return 4000 + (c->window + c->index_topk) * c->heads * c->head_dim / 24;
}

static void attend_one(lsa_pass *p, lsa_segment *g, int64_t layer, const float *x)
{
    int64_t wide = p->c->heads * p->c->head_dim;
    if (!g->code) note(g, lsa_segment_attend(p, g, layer, x));
    if (g->code) memset(p->w->attended + g->row * wide, 0, (size_t)(g->n * wide) * sizeof(float));
}

/* One after the other, each with all threads, or side by side. */
static void attend_segments(lsa_pass *p, int64_t layer, const float *x)
{
    int threads = p->count > 1 ? lsa_threads_for(p->count * segment_work(p)) : 1;
    if (threads > p->w->threads) threads = p->w->threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
    for (int64_t i = 0; i < p->count; i++) attend_one(p, &p->segments[i], layer, x);
}

static int64_t alive(const lsa_pass *p)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->count; i++) n += !p->segments[i].code;
    return n;
}

/* ---- attention ---- */

static int project_compressor(lsa_pass *p, float *kv, float *gate, const lsa_compressor_weights *cw,
                              const float *x)
{
    LSA_TRY(linear(p, kv, x, &cw->kv, p->n));
    return linear(p, gate, x, &cw->gate, p->n);
}

/* The Lightning Indexer's queries and head weights, all factors in. */
static int project_index(lsa_pass *p, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int64_t heads = c->index_heads, dim = c->index_dim;
    LSA_TRY(project_compressor(p, w->index_kv, w->index_gate, &weights->index_keys, x));
    LSA_TRY(linear(p, w->index_q, w->q_low, &weights->index_q_b, p->n));
    LSA_TRY(lsa_rope_cpu(w->index_q, w->compress_table, p->n, heads, dim, c->rope_dim, 0, NULL));
    LSA_TRY(lsa_traced(p, layer, "index_query", w->index_q, p->n, heads * dim));
    LSA_TRY(linear(p, w->index_w, x, &weights->index_weights, p->n));
    float scale = 1.0f / sqrtf((float)dim) / sqrtf((float)heads);
    for (int64_t i = 0; i < p->n * heads; i++) w->index_w[i] *= scale;
    return LSA_OK;
}

/* Queries, window keys and what compressors and indexer take, of all rows. */
static int project(lsa_pass *p, int64_t layer, const float *x, const float *table)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int64_t n = p->n, type = c->layer_type[layer];
    LSA_TRY(linear(p, w->q_low, x, &weights->q_a, n));
    LSA_TRY(
        lsa_rmsnorm_cpu(w->q_low, w->q_low, weights->q_a_norm, n, c->q_rank, c->norm_eps, NULL));
    LSA_TRY(linear(p, w->q, w->q_low, &weights->q_b, n));
    LSA_TRY(lsa_rmsnorm_cpu(w->q, w->q, NULL, n * c->heads, c->head_dim, c->norm_eps, NULL));
    LSA_TRY(lsa_rope_cpu(w->q, table, n, c->heads, c->head_dim, c->rope_dim, 0, NULL));
    LSA_TRY(linear(p, w->window_kv, x, &weights->kv, n));
    LSA_TRY(lsa_rmsnorm_cpu(w->window_kv, w->window_kv, weights->kv_norm, n, c->head_dim,
                            c->norm_eps, NULL));
    LSA_TRY(lsa_rope_cpu(w->window_kv, table, n, 1, c->head_dim, c->rope_dim, 0, NULL));
    if (type != LSA_LAYER_SLIDING)
        LSA_TRY(project_compressor(p, w->kv, w->kv_gate, &weights->compressor, x));
    return type == LSA_LAYER_CSA ? project_index(p, layer, x) : LSA_OK;
}

/* y [n, hidden]: the attention block on x [n, hidden], the normed input. */
static int attention_block(lsa_pass *p, int64_t layer, const float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int64_t n = p->n, wide = c->heads * c->head_dim, groups = c->o_groups;
    const float *table =
        c->layer_type[layer] == LSA_LAYER_SLIDING ? w->main_table : w->compress_table;
    LSA_TRY(project(p, layer, x, table));
    attend_segments(p, layer, x);
    if (!alive(p)) return p->segments[0].code;
    LSA_TRY(lsa_rope_cpu(w->attended, table, n, c->heads, c->head_dim, c->rope_dim, 1, NULL));
    for (int64_t g = 0; g < groups; g++)
        LSA_TRY(linear_rows(p, w->o_low + g * c->o_rank, w->attended + g * (wide / groups),
                            &weights->o_a, n, g * c->o_rank, c->o_rank, wide, groups * c->o_rank));
    return linear(p, y, w->o_low, &weights->o_b, n);
}

/* ---- experts ---- */

/* out [n, hidden] = down(silu(gate x) up x) */
static int expert(lsa_pass *p, const lsa_expert_weights *e, const float *x, int64_t n, float *out)
{
    lsa_activations *w = p->w;
    LSA_TRY(linear(p, w->gate, x, &e->gate, n));
    LSA_TRY(linear(p, w->up, x, &e->up, n));
    LSA_TRY(lsa_swiglu_cpu(w->gate, w->gate, w->up, n * e->gate.rows, p->c->swiglu_limit, NULL));
    return linear(p, out, w->gate, &e->down, n);
}

/* y [n, hidden]: the shared expert plus the routed ones, in the order of their number. */
static int moe_block(lsa_pass *p, int64_t layer, const float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int64_t n = p->n, k = c->experts_per_token, d = c->hidden;
    LSA_TRY(linear(p, w->router, x, &weights->router, n));
    LSA_TRY(lsa_moe_route_cpu(w->expert_ids, w->expert_weights, w->router, weights->router_bias,
                              weights->token_experts, w->tokens, n, c->experts, k, c->scoring,
                              c->routed_scaling, NULL));
    if (c->shared_experts)
        LSA_TRY(expert(p, &weights->shared, x, n, y));
    else
        memset(y, 0, (size_t)(n * d) * sizeof *y);
    for (int64_t e = 0; e < c->experts; e++) {
        int64_t members = 0;
        for (int64_t i = 0; i < n * k; i++)
            if (w->expert_ids[i] == e)
                w->members[members++] = (int32_t)i; /* an expert takes a token once */
        if (!members) continue;
        for (int64_t i = 0; i < members; i++)
            memcpy(w->gathered + i * d, x + w->members[i] / k * d, (size_t)d * sizeof *x);
        LSA_TRY(expert(p, &weights->experts[e], w->gathered, members, w->down));
        for (int64_t i = 0; i < members; i++) {
            float share = w->expert_weights[w->members[i]], *to = y + w->members[i] / k * d;
            for (int64_t j = 0; j < d; j++) to[j] += share * w->down[i * d + j];
        }
    }
    return LSA_OK;
}

/* Opens a hyper-connection block: x [n, hidden], normed. */
static int open_block(lsa_pass *p, const lsa_hc_weights *hc, const float *norm)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    LSA_TRY(linear(p, w->mix, w->streams, &hc->fn, p->n));
    LSA_TRY(lsa_hc_open_cpu(w->x, w->post, w->comb, w->streams, w->mix, hc->base, hc->scale, p->n,
                            c->hc_mult, c->hidden, c->hc_iters, c->norm_eps, c->hc_eps, NULL));
    return lsa_rmsnorm_cpu(w->x, w->x, norm, p->n, c->hidden, c->norm_eps, NULL);
}

static int close_block(lsa_pass *p)
{
    return lsa_hc_close_cpu(p->w->streams, p->w->y, p->w->post, p->w->comb, p->n, p->c->hc_mult,
                            p->c->hidden, NULL);
}

static int run_layer(lsa_pass *p, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    LSA_TRY(open_block(p, &weights->attn_hc, weights->attn_norm));
    LSA_TRY(lsa_traced(p, layer, "attn_input", w->x, p->n, c->hidden));
    LSA_TRY(attention_block(p, layer, w->x, w->y));
    LSA_TRY(lsa_traced(p, layer, "attn_output", w->y, p->n, c->hidden));
    LSA_TRY(close_block(p));
    LSA_TRY(open_block(p, &weights->ffn_hc, weights->ffn_norm));
    LSA_TRY(moe_block(p, layer, w->x, w->y));
    LSA_TRY(lsa_traced(p, layer, "moe_output", w->y, p->n, c->hidden));
    LSA_TRY(close_block(p));
    return lsa_traced(p, layer, "streams", w->streams, p->n, c->hc_mult * c->hidden);
}

/* ---- the pass ---- */

/* Every stream starts as the token's embedding. */
static int embed(lsa_pass *p)
{
    const lsa_config *c = p->c;
    const lsa_weight *table = &p->model->embed;
    int64_t d = c->hidden, row = d * lsa_dtype_size(table->dtype);
    for (int64_t t = 0; t < p->n; t++) {
        float *first = p->w->streams + t * c->hc_mult * d;
        LSA_TRY(lsa_convert_cpu(first, (const char *)table->data + p->w->tokens[t] * row, d,
                                LSA_F32, table->dtype, NULL));
        for (int64_t k = 1; k < c->hc_mult; k++)
            memcpy(first + k * d, first, (size_t)d * sizeof *first);
    }
    return LSA_OK;
}

/* Logits of the last `rows` rows. */
static int head(lsa_pass *p, int64_t rows, float *logits)
{
    const lsa_config *c = p->c;
    const lsa_model *m = p->model;
    lsa_activations *w = p->w;
    const float *streams = w->streams + (p->n - rows) * c->hc_mult * c->hidden;
    LSA_TRY(linear(p, w->mix, streams, &m->hc_head.fn, rows));
    LSA_TRY(lsa_hc_head_cpu(w->x, streams, w->mix, m->hc_head.base, m->hc_head.scale, rows,
                            c->hc_mult, c->hidden, c->norm_eps, c->hc_eps, NULL));
    LSA_TRY(lsa_rmsnorm_cpu(w->x, w->x, m->norm, rows, c->hidden, c->norm_eps, NULL));
    return linear(p, logits, w->x, &m->head, rows);
}

/* Tokens and rope tables of all rows. */
static int place_rows(lsa_pass *p)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    int64_t half = c->rope_dim / 2;
    for (int64_t i = 0; i < p->count; i++) {
        const lsa_segment *g = &p->segments[i];
        memcpy(w->tokens + g->row, g->tokens, (size_t)g->n * sizeof *g->tokens);
        for (int64_t t = 0; t < g->n; t++) w->positions[g->row + t] = (int32_t)(g->from + t);
    }
    LSA_TRY(lsa_rope_table_cpu(w->main_table, p->model->main_freq, w->positions, p->n, half, NULL));
    return lsa_rope_table_cpu(w->compress_table, p->model->compress_freq, w->positions, p->n, half,
                              NULL);
}

static int run(lsa_pass *p, int64_t rows, float *logits)
{
    LSA_TRY(place_rows(p));
    LSA_TRY(embed(p));
    for (int64_t layer = 0; layer < p->c->layers; layer++) {
        if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
        LSA_TRY(run_layer(p, layer));
    }
    return rows ? head(p, rows, logits) : LSA_OK;
}

int lsa_forward(lsa_pass *p, int64_t rows, float *logits)
{
    p->n = 0;
    for (int64_t i = 0; i < p->count; i++) {
        lsa_segment *g = &p->segments[i];
        g->row = p->n;
        p->n += g->n;
        g->from = g->s->tokens;
        g->end = g->from + g->n;
        g->among_residents = p->decoding && g->s->tiered;
        note(g, lsa_segment_begin(g));
    }
    int rc = alive(p) ? run(p, rows, logits) : LSA_OK;
    for (int64_t i = 0; i < p->count; i++) {
        lsa_segment *g = &p->segments[i];
        if (rc || g->code)
            lsa_segment_undo(g);
        else
            lsa_segment_commit(g);
    }
    return alive(p) ? rc : LSA_OK;
}
