/* The forward pass: DeepSeek-V4 as its report gives it, layer by layer, over the rows of all segments. One list of contract
 * calls through the kernel table: between them nothing reads what they compute, takes memory or branches on data; but for
 * chunks fetched on demand, which Level 2's picks name. */
#include "core/session/forward.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"
#include "core/base/try.h"

/* y [n, rows] = x [n, w->cols] W^T, for rows row_from .. of the weight. */
static int linear_rows(lsa_pass *p, float *y, const float *x, const lsa_weight *w, int64_t n,
                       int64_t row_from, int64_t rows, int64_t x_stride, int64_t y_stride)
{
    return p->k->linear(y, x, w, n, row_from, rows, x_stride, y_stride, p->compute, p->w->workspace,
                        p->stream);
}

static int linear(lsa_pass *p, float *y, const float *x, const lsa_weight *w, int64_t n)
{
    return linear_rows(p, y, x, w, n, 0, w->rows, w->cols, w->rows);
}

static int rmsnorm(lsa_pass *p, float *x, const float *weight, int64_t rows, int64_t dim)
{
    return p->k->rmsnorm(x, x, weight, rows, dim, p->c->norm_eps, p->stream);
}

static int rope(lsa_pass *p, float *x, const float *table, int64_t heads, int64_t dim,
                int32_t inverse)
{
    return p->k->rope(x, table, p->n, heads, dim, p->c->rope_dim, inverse, p->stream);
}

/* Waits for what was called so far: what the host reads is there then. */
static int finish(const lsa_pass *p)
{
    return p->k->device == LSA_CPU ? LSA_OK : lsa_device_synchronize();
}

static int traced(const lsa_pass *p, int64_t layer, const char *name, const float *data,
                  int64_t rows, int64_t cols)
{
    if (!p->trace) return LSA_OK;
    LSA_TRY(finish(p));
    return lsa_trace_rows(p->trace, layer, name, data, rows, cols);
}

/* Rows that a pass of one segment completes windows with: for traces. */
static int64_t fresh(const lsa_pass *p, int64_t rate)
{
    return p->segments[0].end / rate - p->segments[0].from / rate;
}

/* ---- segments ---- */

/* What a segment's call returned; its message is this thread's, and is kept for whoever asks. */
static void note(lsa_segment *g, int rc)
{
    if (!rc) return;
    g->code = rc;
    snprintf(g->message, sizeof g->message, "%s", lsa_error());
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
    LSA_TRY(rope(p, w->index_q, w->compress_table, heads, dim, 0));
    LSA_TRY(traced(p, layer, "index_query", w->index_q, p->n, heads * dim));
    LSA_TRY(linear(p, w->index_w, x, &weights->index_weights, p->n));
    float scale = 1.0f / sqrtf((float)dim) / sqrtf((float)heads);
    LSA_TRY(p->k->scale(w->index_w, scale, p->n * heads, p->stream));
    if (p->kv_format != LSA_KV_FP8) return LSA_OK; /* keys are not rotated */
    return p->k->hadamard(w->index_q, p->n * heads, dim, p->stream);
}

/* Queries, window keys and what compressors and indexer take, of all rows. */
static int project(lsa_pass *p, int64_t layer, const float *x, const float *table)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int64_t n = p->n, type = c->layer_type[layer];
    LSA_TRY(linear(p, w->q_low, x, &weights->q_a, n));
    LSA_TRY(rmsnorm(p, w->q_low, weights->q_a_norm, n, c->q_rank));
    LSA_TRY(linear(p, w->q, w->q_low, &weights->q_b, n));
    LSA_TRY(rmsnorm(p, w->q, NULL, n * c->heads, c->head_dim));
    LSA_TRY(rope(p, w->q, table, c->heads, c->head_dim, 0));
    LSA_TRY(linear(p, w->window_kv, x, &weights->kv, n));
    LSA_TRY(rmsnorm(p, w->window_kv, weights->kv_norm, n, c->head_dim));
    LSA_TRY(rope(p, w->window_kv, table, 1, c->head_dim, 0));
    if (type != LSA_LAYER_SLIDING)
        LSA_TRY(project_compressor(p, w->kv, w->kv_gate, &weights->compressor, x));
    return type == LSA_LAYER_CSA ? project_index(p, layer, x) : LSA_OK;
}

static int keep_rows(lsa_pass *p, int64_t layer, int32_t what, const float *rows, int64_t width)
{
    return p->k->keep_rows(p->rows.spans, p->count, layer, what, rows, width, p->stream);
}

/* Entries of the windows that are complete now, or their index keys. */
static int extend(lsa_pass *p, int64_t layer, int32_t what)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int csa = c->layer_type[layer] == LSA_LAYER_CSA, keys = what == LSA_EXTEND_KEYS;
    const lsa_compressor_weights *cw = keys ? &weights->index_keys : &weights->compressor;
    lsa_extension x = {.what = what,
                       .format = p->kv_format,
                       .rate = csa ? c->csa_rate : c->hca_rate,
                       .dim = keys ? c->index_dim : c->head_dim,
                       .overlap = csa,
                       .bias = cw->bias,
                       .norm = cw->norm,
                       .inv_freq = p->model->compress_freq,
                       .rope_dim = c->rope_dim,
                       .norm_eps = c->norm_eps,
                       .kv = keys ? w->index_kv : w->kv,
                       .gate = keys ? w->index_gate : w->kv_gate};
    LSA_TRY(p->k->extend(w->entries, p->rows.spans, p->count, layer, &x, w->workspace, p->stream));
    if (!p->trace) return LSA_OK;
    return traced(p, layer, keys ? "index_keys" : "entries", w->entries, fresh(p, x.rate), x.dim);
}

/* A row's picks end it: what is not there, -1 and -inf, comes first. ids or values is NULL. */
static int traced_picks(const lsa_pass *p, int64_t layer, const char *name, const int32_t *ids,
                        const float *values)
{
    if (!lsa_trace_wants(p->trace, layer, name)) return LSA_OK;
    LSA_TRY(finish(p));
    int64_t k = p->c->index_topk;
    float *rows = lsa_alloc(p->n * k * (int64_t)sizeof *rows);
    if (!rows) return LSA_ENOMEM;
    for (int64_t t = 0; t < p->n; t++)
        for (int64_t j = 0, none = k - p->w->counts[t]; j < k; j++)
            rows[t * k + j] = ids ? (j < none ? -1.0f : (float)ids[t * k + j - none])
                                  : (j < none ? -INFINITY : values[t * k + j - none]);
    int rc = lsa_trace_rows(p->trace, layer, name, rows, p->n, k);
    lsa_free(rows);
    return rc;
}

/* Index scores of the segment's tokens against all chunks. */
static int traced_scores(const lsa_pass *p, int64_t layer)
{
    if (!lsa_trace_wants(p->trace, layer, "index_scores")) return LSA_OK;
    LSA_TRY(finish(p));
    const lsa_segment *g = &p->segments[0];
    int64_t chunks = g->end / p->c->csa_rate;
    float *scores = lsa_alloc(g->n * chunks * (int64_t)sizeof *scores);
    if (!scores) return LSA_ENOMEM;
    int rc = lsa_session_scores_of(g->s, lsa_csa_ordinal(p->c, layer), p->w->index_q, p->w->index_w,
                                   g->n, p->c->index_heads, chunks, scores);
    if (!rc) rc = lsa_trace_rows(p->trace, layer, "index_scores", scores, g->n, chunks);
    lsa_free(scores);
    return rc;
}

/* Level 2's picks, as places. */
static int pick(lsa_pass *p, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    lsa_picking picking = {w->index_q,  w->index_w, c->index_heads, c->index_dim, c->index_topk,
                           c->csa_rate, p->n,       w->chunks,      p->kv_format, p->scoring};
    /* Attention fills the masses later. */
    float *logits = lsa_trace_wants(p->trace, layer, "index_topk_logits") ? w->mass : NULL;
    LSA_TRY(traced_scores(p, layer));
    LSA_TRY(p->k->pick(w->places, logits, w->counts, p->rows.spans, p->count, layer, &picking,
                       w->workspace, p->stream));
    LSA_TRY(traced_picks(p, layer, "index_topk", w->places, NULL));
    return traced_picks(p, layer, "index_topk_logits", NULL, logits);
}

/* On demand: picks that have no cell are fetched. A session whose fetch fails takes no step; nothing waits for its numbers. */
static int fetch(lsa_pass *p)
{
    int64_t k = p->c->index_topk, n = 0;
    for (int64_t i = 0; i < p->count; i++)
        n += p->w->spans[i].in_cells && !p->segments[i].among_residents;
    if (n) LSA_TRY(finish(p));
    for (int64_t i = 0; i < p->count; i++) {
        lsa_segment *g = &p->segments[i];
        if (!p->w->spans[i].in_cells || g->among_residents) continue;
        if (!g->code) note(g, lsa_segment_fetch(g, p->w->ids + g->row * k, p->w->counts[g->row]));
        if (g->code) p->w->counts[g->row] = 0;
    }
    return LSA_OK;
}

static int attend(lsa_pass *p, int64_t layer, int32_t source)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    lsa_attending a = {.source = source,
                       .q = w->q,
                       .sinks = p->model->layers[layer].sinks,
                       .ids = w->ids,
                       .counts = w->counts,
                       .heads = c->heads,
                       .dim = c->head_dim,
                       .rope_dim = c->rope_dim,
                       .window_size = c->window,
                       .k = c->index_topk,
                       .rate = c->hca_rate,
                       .rows = p->n,
                       .most = w->records,
                       .scale = 1.0f / sqrtf((float)c->head_dim),
                       .compute = p->compute};
    return p->k->attend(w->attended, w->mass, p->rows.spans, p->count, layer, &a, w->workspace,
                        p->stream);
}

static int attend_csa(lsa_pass *p, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    LSA_TRY(extend(p, layer, LSA_EXTEND_RECORDS));
    LSA_TRY(extend(p, layer, LSA_EXTEND_KEYS));
    LSA_TRY(keep_rows(p, layer, LSA_KEEP_QUERIES, w->index_q, c->index_heads * c->index_dim));
    LSA_TRY(keep_rows(p, layer, LSA_KEEP_QUERY_WEIGHTS, w->index_w, c->index_heads));
    LSA_TRY(keep_rows(p, layer, LSA_KEEP_HIDDEN, x, c->hidden));
    LSA_TRY(pick(p, layer));
    LSA_TRY(p->k->locate(w->ids, w->places, w->counts, p->rows.spans, p->count, c->index_topk,
                         p->stream));
    LSA_TRY(fetch(p));
    LSA_TRY(attend(p, layer, LSA_ATTEND_PICKED));
    LSA_TRY(traced_picks(p, layer, "index_topk_mass", NULL, w->mass));
    return p->k->remember(p->rows.spans, p->count, layer, w->places, w->mass, w->counts,
                          c->index_topk, p->stream);
}

/* y [n, hidden]: the attention block on x [n, hidden], the normed input. */
static int attention_block(lsa_pass *p, int64_t layer, const float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    int64_t n = p->n, wide = c->heads * c->head_dim, groups = c->o_groups;
    int32_t type = c->layer_type[layer];
    const float *table = type == LSA_LAYER_SLIDING ? w->main_table : w->compress_table;
    LSA_TRY(project(p, layer, x, table));
    LSA_TRY(keep_rows(p, layer, LSA_KEEP_WINDOW, w->window_kv, c->head_dim));
    if (type == LSA_LAYER_SLIDING) LSA_TRY(attend(p, layer, LSA_ATTEND_WINDOW));
    if (type == LSA_LAYER_CSA) LSA_TRY(attend_csa(p, layer, x));
    if (type == LSA_LAYER_HCA) {
        LSA_TRY(extend(p, layer, LSA_EXTEND_RECORDS));
        LSA_TRY(attend(p, layer, LSA_ATTEND_ENTRIES));
    }
    LSA_TRY(rope(p, w->attended, table, c->heads, c->head_dim, 1));
    for (int64_t g = 0; g < groups; g++)
        LSA_TRY(linear_rows(p, w->o_low + g * c->o_rank, w->attended + g * (wide / groups),
                            &weights->o_a, n, g * c->o_rank, c->o_rank, wide, groups * c->o_rank));
    return linear(p, y, w->o_low, &weights->o_b, n);
}

/* ---- experts ---- */

/* y [n, hidden]: the shared expert plus the routed ones. */
static int moe_block(lsa_pass *p, int64_t layer, const float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    LSA_TRY(linear(p, w->router, x, &weights->router, p->n));
    LSA_TRY(p->k->moe_route(w->expert_ids, w->expert_weights, w->router, weights->router_bias,
                            weights->token_experts, p->rows.tokens, p->n, c->experts,
                            c->experts_per_token, c->scoring, c->routed_scaling, p->stream));
    return p->k->experts(y, x, w->expert_ids, w->expert_weights, weights->experts,
                         c->shared_experts ? &weights->shared : NULL, p->n, c->hidden, c->experts,
                         c->experts_per_token, c->swiglu_limit, p->compute, w->workspace,
                         p->stream);
}

/* Opens a hyper-connection block: x [n, hidden], normed. */
static int open_block(lsa_pass *p, const lsa_hc_weights *hc, const float *norm)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    LSA_TRY(linear(p, w->mix, w->streams, &hc->fn, p->n));
    LSA_TRY(p->k->hc_open(w->x, w->post, w->comb, w->streams, w->mix, hc->base, hc->scale, p->n,
                          c->hc_mult, c->hidden, c->hc_iters, c->norm_eps, c->hc_eps, p->stream));
    return rmsnorm(p, w->x, norm, p->n, c->hidden);
}

static int close_block(lsa_pass *p)
{
    return p->k->hc_close(p->w->streams, p->w->y, p->w->post, p->w->comb, p->n, p->c->hc_mult,
                          p->c->hidden, p->stream);
}

static int run_layer(lsa_pass *p, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    LSA_TRY(open_block(p, &weights->attn_hc, weights->attn_norm));
    LSA_TRY(traced(p, layer, "attn_input", w->x, p->n, c->hidden));
    LSA_TRY(attention_block(p, layer, w->x, w->y));
    LSA_TRY(traced(p, layer, "attn_output", w->y, p->n, c->hidden));
    LSA_TRY(close_block(p));
    LSA_TRY(open_block(p, &weights->ffn_hc, weights->ffn_norm));
    LSA_TRY(moe_block(p, layer, w->x, w->y));
    LSA_TRY(traced(p, layer, "moe_output", w->y, p->n, c->hidden));
    LSA_TRY(close_block(p));
    return traced(p, layer, "streams", w->streams, p->n, c->hc_mult * c->hidden);
}

/* ---- the pass ---- */

/* Logits of the last `rows` rows. */
static int head(lsa_pass *p, int64_t rows, float *logits)
{
    const lsa_config *c = p->c;
    const lsa_model *m = p->model;
    lsa_activations *w = p->w;
    const float *streams = w->streams + (p->n - rows) * c->hc_mult * c->hidden;
    LSA_TRY(linear(p, w->mix, streams, &m->hc_head.fn, rows));
    LSA_TRY(p->k->hc_head(w->x, streams, w->mix, m->hc_head.base, m->hc_head.scale, rows,
                          c->hc_mult, c->hidden, c->norm_eps, c->hc_eps, p->stream));
    LSA_TRY(rmsnorm(p, w->x, m->norm, rows, c->hidden));
    return linear(p, logits, w->x, &m->head, rows);
}

/* Tokens and positions of all rows, or the steps that they follow from, to where kernels read them. */
static int place_rows(lsa_pass *p)
{
    lsa_activations *w = p->w;
    for (int64_t i = 0; i < p->count; i++) {
        const lsa_segment *g = &p->segments[i];
        lsa_steps *s = &w->steps[i];
        s->progress = g->s->progress;
        s->generator = g->generator;
        s->temperature = g->temperature;
        s->given = (int32_t)g->given;
        s->begun = s->ended = 0;
        s->stops = (int32_t)g->stop_count;
        for (int64_t j = 0; j < g->stop_count; j++) s->stop_ids[j] = g->stop_ids[j];
        for (int64_t j = 0; j < g->given; j++) s->tokens[j] = g->tokens[j];
        if (p->decoding) continue;
        memcpy(w->tokens + g->row, g->tokens, (size_t)g->n * sizeof *g->tokens);
        for (int64_t t = 0; t < g->n; t++) w->positions[g->row + t] = (int32_t)(g->from + t);
    }
    return lsa_activations_upload(w, p->count, p->n, &p->rows);
}

/* Rope tables of all rows, and every stream as the token's embedding. */
static int embed(lsa_pass *p)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    int64_t half = c->rope_dim / 2;
    LSA_TRY(p->k->rope_table(w->main_table, p->model->main_freq, p->rows.positions, p->n, half,
                             p->stream));
    LSA_TRY(p->k->rope_table(w->compress_table, p->model->compress_freq, p->rows.positions, p->n,
                             half, p->stream));
    return p->k->embed(w->streams, p->rows.tokens, &p->model->embed, p->n, c->hc_mult, c->hidden,
                       p->stream);
}

/* Counts what the segments that made it picked. */
static int observe(lsa_pass *p)
{
    int all = alive(p) == p->count;
    for (int64_t layer = 0; layer < p->c->layers; layer++) {
        if (p->c->layer_type[layer] != LSA_LAYER_CSA) continue;
        if (all) LSA_TRY(p->k->observe(p->rows.spans, p->count, layer, p->stream));
        for (int64_t i = 0; !all && i < p->count; i++)
            if (!p->segments[i].code)
                LSA_TRY(p->k->observe(&p->rows.spans[i], 1, layer, p->stream));
    }
    return LSA_OK;
}

/* The next token of every session. */
static int advance(lsa_pass *p)
{
    const lsa_activations *w = p->w;
    int64_t vocab = p->c->vocab;
    return p->k->advance(p->rows.spans, p->rows.steps, p->rows.tokens, p->rows.positions, w->logits,
                         w->logits + w->logit_rows * vocab, p->count, vocab, p->stream);
}

/* The list. */
static int call_all(lsa_pass *p, int64_t rows, float *logits)
{
    if (p->decoding) LSA_TRY(advance(p));
    LSA_TRY(embed(p));
    for (int64_t layer = 0; layer < p->c->layers; layer++) {
        if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
        LSA_TRY(run_layer(p, layer));
        if (!alive(p)) return p->segments[0].code;
    }
    if (rows) LSA_TRY(head(p, rows, logits));
    return observe(p);
}

/* A decode step on a GPU follows from the number of its rows and what a graph's addresses stand for: it is captured once, and
 * launched again as long as nothing of that changes (activations.h). */
static int launch(lsa_pass *p, int64_t rows, float *logits)
{
    lsa_graph *all = p->w->graphs, found = {p->count, p->kv_format, p->compute, p->scoring, NULL};
    int64_t n = sizeof p->w->graphs / sizeof *all, at = 0;
    while (at < n - 1 && (!all[at].graph || all[at].count != found.count ||
                          all[at].kv_format != found.kv_format ||
                          all[at].compute != found.compute || all[at].scoring != found.scoring))
        at++;
    if (all[at].graph && all[at].count == found.count && all[at].kv_format == found.kv_format &&
        all[at].compute == found.compute && all[at].scoring == found.scoring)
        found = all[at];
    else
        lsa_device_graph_free(all[at].graph);
    memmove(all + 1, all, (size_t)at * sizeof *all);
    all[0] = found;
    if (!found.graph) {
        LSA_TRY(lsa_device_capture_begin(&p->stream));
        int rc = call_all(p, rows, logits), ended = lsa_device_capture_end(&all[0].graph);
        p->stream = NULL;
        if (rc || ended) {
            lsa_device_graph_free(all[0].graph);
            all[0].graph = NULL;
            return rc ? rc : ended;
        }
        p->w->captures++;
    }
    return lsa_device_graph_launch(all[0].graph);
}

/* Whether the step reads anything in its middle. */
static int is_fixed(const lsa_pass *p)
{
    if (p->k->device == LSA_CPU || !p->decoding || p->trace) return 0;
    for (int64_t i = 0; i < p->count; i++)
        if (p->segments[i].s->demand) return 0;
    return 1;
}

static int run(lsa_pass *p, int64_t rows, float *logits)
{
    LSA_TRY(place_rows(p));
    for (int64_t i = 0; i < p->steps; i++) {
        int rc = is_fixed(p) ? launch(p, rows, logits) : call_all(p, rows, logits);
        if (rc && !i) return rc;
        if (rc)
            break; /* steps before it have begun, and count; the next call says what is wrong, if it is no accident */
    }
    LSA_TRY(finish(p));
    return p->decoding ? lsa_activations_download(p->w, p->count, &p->rows) : LSA_OK;
}

/* What a segment's steps came to. */
static void close_steps(const lsa_pass *p, int64_t i)
{
    lsa_segment *g = &p->segments[i];
    const lsa_steps *s = &p->w->steps[i];
    g->taken = p->decoding ? s->begun : g->n;
    g->ended = s->ended;
    g->generator = s->generator;
}

/* Segments that cannot begin go to the end; what is left runs. */
static void begin(lsa_pass *p)
{
    p->n = 0;
    for (int64_t i = 0; i < p->count;) {
        lsa_segment *g = &p->segments[i];
        g->row = p->n;
        g->from = g->s->progress.tokens;
        g->end = g->from + (p->decoding ? p->steps : g->n);
        g->among_residents = p->decoding && g->s->tiered;
        note(g, lsa_segment_begin(g, p->decoding, &p->w->spans[i]));
        if (!g->code) {
            p->n += g->n;
            i++;
            continue;
        }
        lsa_segment failed = *g;
        lsa_segment_undo(g);
        memmove(g, g + 1, (size_t)(--p->count - i) * sizeof *g);
        p->segments[p->count] = failed;
    }
}

int lsa_forward(lsa_pass *p, int64_t rows, float *logits)
{
    p->k = p->model->kernels;
    if (!p->decoding) p->steps = 1;
    p->kv_format = p->segments[0].s->kv_format;
    begin(p);
    if (!p->count) return LSA_OK;
    int rc = run(p, rows < 0 ? p->n : rows, logits);
    for (int64_t i = 0; i < p->count; i++) {
        lsa_segment *g = &p->segments[i];
        if (rc || g->code)
            lsa_segment_undo(g);
        else {
            close_steps(p, i);
            lsa_segment_commit(g, p->decoding ? &p->w->steps[i] : NULL);
        }
    }
    return alive(p) ? rc : LSA_OK;
}
