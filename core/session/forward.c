/* The forward pass: DeepSeek-V4 as its report gives it, layer by layer, over the rows of all segments. One list of contract
 * calls through the kernel table: between them nothing reads what they compute, takes memory or branches on data; but for
 * chunks that a CPU fetches on demand, which Level 2's picks name. */
#include "core/session/forward.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"
#include "core/base/try.h"

enum { LEAST_CANDIDATES = 4096 };

/* ---- stages ---- */

/* What stands between two attentions is gathered here, and called as one chain (kernels/chain.h). */
static int call_stages(lsa_pass *p)
{
    int64_t n = p->staged;
    p->staged = 0;
    return n ? p->k->chain(p->stages, n, p->staged_rows, p->w->workspace, p->stream) : LSA_OK;
}

/* The next one, on `rows` rows; the caller fills it in. */
static int next_stage(lsa_pass *p, int32_t kind, int64_t rows, lsa_stage **stage)
{
    if (p->staged == LSA_CHAIN_MOST || (p->staged && p->staged_rows != rows))
        LSA_TRY(call_stages(p));
    *stage = &p->stages[p->staged++];
    (*stage)->kind = kind;
    p->staged_rows = rows;
    return LSA_OK;
}

static int linears(lsa_pass *p, const lsa_product *products, int64_t count, int64_t rows,
                   const float *norm)
{
    lsa_stage *stage;
    LSA_TRY(next_stage(p, LSA_STAGE_LINEARS, rows, &stage));
    memcpy(stage->linears.products, products, (size_t)count * sizeof *products);
    stage->linears.count = count;
    stage->linears.norm = norm;
    stage->linears.norm_eps = p->c->norm_eps;
    stage->linears.compute = p->compute;
    return LSA_OK;
}

static int linear(lsa_pass *p, float *y, float *x, const lsa_weight *w)
{
    lsa_product product = lsa_product_of(y, x, w);
    return linears(p, &product, 1, p->n, NULL);
}

/* Waits for what was called so far: what the host reads is there then. */
static int finish(const lsa_pass *p)
{
    return p->k->device == LSA_CPU ? LSA_OK : lsa_device_synchronize();
}

static int traced(lsa_pass *p, int64_t layer, const char *name, const float *data, int64_t rows,
                  int64_t cols)
{
    if (!p->trace) return LSA_OK;
    LSA_TRY(call_stages(p));
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

/* Queries, window keys and what compressors and indexer take, of all rows. */
static int project(lsa_pass *p, int64_t layer, float *x)
{
    lsa_activations *w = p->w;
    const lsa_layer *l = &p->model->layers[layer];
    int32_t type = p->c->layer_type[layer];
    lsa_product of_x[] = {lsa_product_of(w->q_low, x, &l->q_a),
                          lsa_product_of(w->window_kv, x, &l->kv),
                          lsa_product_of(w->kv, x, &l->compressor.kv),
                          lsa_product_of(w->kv_gate, x, &l->compressor.gate),
                          lsa_product_of(w->index_kv, x, &l->index_keys.kv),
                          lsa_product_of(w->index_gate, x, &l->index_keys.gate),
                          lsa_product_of(w->index_w, x, &l->index_weights)};
    lsa_product of_q_low[] = {lsa_product_of(w->q, w->q_low, &l->q_b),
                              lsa_product_of(w->index_q, w->q_low, &l->index_q_b)};
    int csa = type == LSA_LAYER_CSA;
    LSA_TRY(linears(p, of_x, type == LSA_LAYER_SLIDING ? 2 : csa ? 7 : 4, p->n, NULL));
    return linears(p, of_q_low, csa ? 2 : 1, p->n, l->q_a_norm);
}

static lsa_extension extension_of(const lsa_pass *p, int64_t layer, int32_t what)
{
    const lsa_config *c = p->c;
    const lsa_activations *w = p->w;
    const lsa_layer *l = &p->model->layers[layer];
    int csa = c->layer_type[layer] == LSA_LAYER_CSA, keys = what == LSA_EXTEND_KEYS;
    const lsa_compressor_weights *cw = keys ? &l->index_keys : &l->compressor;
    return (lsa_extension){.what = what,
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
}

static int settle_staged(lsa_pass *p, int64_t layer, const lsa_settling *s)
{
    lsa_stage *stage;
    LSA_TRY(next_stage(p, LSA_STAGE_SETTLE, p->n, &stage));
    stage->settle.spans = p->rows.spans;
    stage->settle.count = p->count;
    stage->settle.layer = layer;
    stage->settle.of = *s;
    if (s->records) stage->settle.records = *s->records;
    if (s->keys) stage->settle.keys = *s->keys;
    return LSA_OK;
}

/* The same with what a trace wants to see. */
static int settle_traced(lsa_pass *p, int64_t layer, lsa_settling *s)
{
    const lsa_config *c = p->c;
    const lsa_activations *w = p->w;
    int64_t width = c->index_heads * c->index_dim;
    int32_t kind = p->model->memory_kind;
    if (s->index_q && !(s->index_seen = lsa_alloc_in(kind, p->n * width * (int64_t)sizeof(float))))
        return LSA_ENOMEM;
    int rc = settle_staged(p, layer, s);
    if (!rc) rc = call_stages(p);
    if (!rc && s->index_q) rc = traced(p, layer, "index_query", s->index_seen, p->n, width);
    if (!rc && s->records)
        rc = traced(p, layer, "entries", w->entries, fresh(p, s->records->rate), c->head_dim);
    if (!rc && s->keys)
        rc = traced(p, layer, "index_keys", w->key_entries, fresh(p, s->keys->rate), c->index_dim);
    lsa_free_in(kind, s->index_seen);
    return rc;
}

/* What attention and indexer need of the projections, and what of them is kept. */
static int settle(lsa_pass *p, int64_t layer, const float *x, const float *table)
{
    const lsa_config *c = p->c;
    const lsa_activations *w = p->w;
    int32_t type = c->layer_type[layer];
    lsa_extension records = extension_of(p, layer, LSA_EXTEND_RECORDS),
                  keys = extension_of(p, layer, LSA_EXTEND_KEYS);
    int csa = type == LSA_LAYER_CSA;
    lsa_settling s = {.q = w->q,
                      .window = w->window_kv,
                      .window_norm = p->model->layers[layer].kv_norm,
                      .table = table,
                      .heads = c->heads,
                      .dim = c->head_dim,
                      .rope_dim = c->rope_dim,
                      .norm_eps = c->norm_eps,
                      .records = type == LSA_LAYER_SLIDING ? NULL : &records,
                      .keys = csa ? &keys : NULL,
                      .entries = w->entries,
                      .key_entries = w->key_entries};
    if (csa) {
        s.index_q = w->index_q;
        s.index_w = w->index_w;
        s.index_table = w->compress_table;
        s.index_heads = c->index_heads;
        s.index_dim = c->index_dim;
        s.index_scale = 1.0f / sqrtf((float)c->index_dim) / sqrtf((float)c->index_heads);
        s.transformed = p->kv_format == LSA_KV_FP8; /* as the keys are */
        s.hidden = x;
        s.hidden_width = c->hidden;
    }
    return p->trace ? settle_traced(p, layer, &s) : settle_staged(p, layer, &s);
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
                           c->csa_rate, p->n,       p->candidates,  p->kv_format, p->scoring};
    /* Attention fills the masses later. */
    float *logits = lsa_trace_wants(p->trace, layer, "index_topk_logits") ? w->mass : NULL;
    LSA_TRY(traced_scores(p, layer));
    LSA_TRY(p->k->pick(w->places, logits, w->counts, p->rows.spans, p->count, layer, &picking,
                       w->workspace, p->stream));
    LSA_TRY(traced_picks(p, layer, "index_topk", w->places, NULL));
    return traced_picks(p, layer, "index_topk_logits", NULL, logits);
}

/* On demand: picks that have no cell are fetched: by the GPU, or here. A session whose fetch fails takes no step; nothing waits for
 * its numbers. */
static int fetch(lsa_pass *p, int64_t layer)
{
    int64_t k = p->c->index_topk;
    if (!p->on_demand) return LSA_OK;
    if (p->k->device != LSA_CPU)
        return p->k->demand(p->w->ids, p->w->counts, p->rows.spans, p->count, layer, k, p->stream);
    for (int64_t i = 0; i < p->count; i++) {
        lsa_segment *g = &p->segments[i];
        if (!p->w->spans[i].in_cells || g->among_residents) continue;
        if (!g->code) note(g, lsa_segment_fetch(g, p->w->ids + g->row * k, p->w->counts[g->row]));
        if (g->code) p->w->counts[g->row] = 0;
    }
    return LSA_OK;
}

static int attend(lsa_pass *p, int64_t layer, int32_t source, const float *table)
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
                       .compute = p->compute,
                       .table = table};
    return p->k->attend(w->attended, w->mass, p->rows.spans, p->count, layer, &a, w->workspace,
                        p->stream);
}

static int attend_csa(lsa_pass *p, int64_t layer, const float *table)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    LSA_TRY(pick(p, layer));
    LSA_TRY(p->k->locate(w->ids, w->places, w->counts, p->rows.spans, p->count, c->index_topk,
                         p->stream));
    LSA_TRY(fetch(p, layer));
    LSA_TRY(attend(p, layer, LSA_ATTEND_PICKED, table));
    LSA_TRY(traced_picks(p, layer, "index_topk_mass", NULL, w->mass));
    return p->k->remember(p->rows.spans, p->count, layer, w->places, w->mass, w->counts,
                          c->index_topk, p->stream);
}

/* The groups' projections of what was attended to. */
static int project_groups(lsa_pass *p, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    int64_t wide = c->heads * c->head_dim, groups = c->o_groups;
    lsa_product products[LSA_LINEARS_MOST];
    for (int64_t from = 0; from < groups; from += LSA_LINEARS_MOST) {
        int64_t n = groups - from < LSA_LINEARS_MOST ? groups - from : (int64_t)LSA_LINEARS_MOST;
        for (int64_t i = 0; i < n; i++) {
            int64_t g = from + i;
            products[i] = (lsa_product){w->o_low + g * c->o_rank,
                                        w->attended + g * (wide / groups),
                                        &p->model->layers[layer].o_a,
                                        g * c->o_rank,
                                        c->o_rank,
                                        wide,
                                        groups * c->o_rank};
        }
        LSA_TRY(linears(p, products, n, p->n, NULL));
    }
    return LSA_OK;
}

/* y [n, hidden]: the attention block on x [n, hidden], the normed input. */
static int attention_block(lsa_pass *p, int64_t layer, float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    int32_t type = c->layer_type[layer];
    const float *table = type == LSA_LAYER_SLIDING ? w->main_table : w->compress_table;
    LSA_TRY(project(p, layer, x));
    LSA_TRY(settle(p, layer, x, table));
    LSA_TRY(call_stages(p));
    if (type == LSA_LAYER_SLIDING) LSA_TRY(attend(p, layer, LSA_ATTEND_WINDOW, table));
    if (type == LSA_LAYER_CSA) LSA_TRY(attend_csa(p, layer, table));
    if (type == LSA_LAYER_HCA) LSA_TRY(attend(p, layer, LSA_ATTEND_ENTRIES, table));
    LSA_TRY(project_groups(p, layer));
    return linear(p, y, w->o_low, &p->model->layers[layer].o_b);
}

/* ---- experts ---- */

/* y [n, hidden]: the shared expert plus the routed ones. */
static int moe_block(lsa_pass *p, int64_t layer, float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *weights = &p->model->layers[layer];
    lsa_stage *stage;
    LSA_TRY(linear(p, w->router, x, &weights->router));
    LSA_TRY(next_stage(p, LSA_STAGE_ROUTE, p->n, &stage));
    stage->route = (lsa_routing){.ids = w->expert_ids,
                                 .weights = w->expert_weights,
                                 .logits = w->router,
                                 .bias = weights->router_bias,
                                 .token_experts = weights->token_experts,
                                 .tokens = p->rows.tokens,
                                 .experts = c->experts,
                                 .k = c->experts_per_token,
                                 .scoring = c->scoring,
                                 .scaling = c->routed_scaling};
    LSA_TRY(next_stage(p, LSA_STAGE_EXPERTS, p->n, &stage));
    stage->experts = (lsa_mixing){.y = y,
                                  .x = x,
                                  .ids = w->expert_ids,
                                  .weights = w->expert_weights,
                                  .experts = weights->experts,
                                  .shared = c->shared_experts ? &weights->shared : NULL,
                                  .hidden = c->hidden,
                                  .count = c->experts,
                                  .k = c->experts_per_token,
                                  .limit = c->swiglu_limit,
                                  .compute = p->compute};
    return LSA_OK;
}

/* Closes the block whose output is y, if there is one, and opens the next: x [rows, hidden], normed, of the last `rows` rows. */
static int turn(lsa_pass *p, const float *y, const lsa_hc_weights *hc, const float *norm,
                int64_t rows, int32_t head)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    int64_t skipped = p->n - rows;
    lsa_stage *stage;
    LSA_TRY(next_stage(p, LSA_STAGE_TURN, rows, &stage));
    stage->turn = (lsa_hc_turning){.x = w->x,
                                   .streams = w->streams + skipped * c->hc_mult * c->hidden,
                                   .y = y ? y + skipped * c->hidden : NULL,
                                   .post = w->post + skipped * c->hc_mult,
                                   .comb = w->comb + skipped * c->hc_mult * c->hc_mult,
                                   .mix = w->mix,
                                   .fn = &hc->fn,
                                   .base = hc->base,
                                   .scale = hc->scale,
                                   .norm = norm,
                                   .hc = c->hc_mult,
                                   .dim = c->hidden,
                                   .iters = c->hc_iters,
                                   .norm_eps = c->norm_eps,
                                   .hc_eps = c->hc_eps,
                                   .compute = p->compute,
                                   .head = head};
    return LSA_OK;
}

static int traced_streams(lsa_pass *p, int64_t layer)
{
    return traced(p, layer, "streams", p->w->streams, p->n, p->c->hc_mult * p->c->hidden);
}

/* A layer's two blocks; the second is closed by what comes next. */
static int run_layer(lsa_pass *p, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    const lsa_layer *l = &p->model->layers[layer];
    LSA_TRY(turn(p, layer ? w->y : NULL, &l->attn_hc, l->attn_norm, p->n, 0));
    if (layer) LSA_TRY(traced_streams(p, layer - 1));
    LSA_TRY(traced(p, layer, "attn_input", w->x, p->n, c->hidden));
    LSA_TRY(attention_block(p, layer, w->x, w->y));
    LSA_TRY(traced(p, layer, "attn_output", w->y, p->n, c->hidden));
    LSA_TRY(turn(p, w->y, &l->ffn_hc, l->ffn_norm, p->n, 0));
    LSA_TRY(moe_block(p, layer, w->x, w->y));
    return traced(p, layer, "moe_output", w->y, p->n, c->hidden);
}

/* ---- the pass ---- */

/* Logits of the last `rows` rows; a trace sees the last layer's streams of all. */
static int head(lsa_pass *p, int64_t rows, float *logits)
{
    const lsa_model *m = p->model;
    int64_t turned = p->trace ? p->n : rows;
    lsa_product product =
        lsa_product_of(logits, p->w->x + (turned - rows) * p->c->hidden, &m->head);
    if (turned) LSA_TRY(turn(p, p->w->y, &m->hc_head, m->norm, turned, 1));
    LSA_TRY(traced_streams(p, p->c->layers - 1));
    if (rows) LSA_TRY(linears(p, &product, 1, rows, NULL));
    return call_stages(p);
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
    int64_t layers = p->c->layers;
    if (alive(p) == p->count) return p->k->observe(p->rows.spans, p->count, layers, p->stream);
    for (int64_t i = 0; i < p->count; i++)
        if (!p->segments[i].code) LSA_TRY(p->k->observe(&p->rows.spans[i], 1, layers, p->stream));
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
    LSA_TRY(head(p, rows, logits));
    return observe(p);
}

/* Whether a graph that was captured is of such steps. */
static int is_alike(const lsa_graph *a, const lsa_graph *b)
{
    return a->graph && a->count == b->count && a->candidates == b->candidates &&
           a->kv_format == b->kv_format && a->compute == b->compute && a->scoring == b->scoring &&
           a->on_demand == b->on_demand;
}

/* A decode step on a GPU follows from the number of its rows and what a graph's addresses stand for: it is captured once, and
 * launched again as long as nothing of that changes (activations.h). */
static int launch(lsa_pass *p, int64_t rows, float *logits)
{
    lsa_graph *all = p->w->graphs, found = {p->count,   p->candidates, p->kv_format, p->compute,
                                            p->scoring, p->on_demand,  NULL};
    int64_t n = sizeof p->w->graphs / sizeof *all, at = 0;
    while (at < n - 1 && !is_alike(&all[at], &found)) at++;
    if (is_alike(&all[at], &found))
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
    return p->k->device != LSA_CPU && p->decoding && !p->trace;
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

/* What Level 2 chooses from at the end of the segment. */
static int64_t candidates_of(const lsa_pass *p, const lsa_segment *g, const lsa_span *s)
{
    int64_t chunks = p->c->csa_layers ? g->end / p->c->csa_rate : 0;
    return s->among_residents ? s->residents + chunks - s->chunks : chunks;
}

/* Segments that cannot begin go to the end; what is left runs. */
static void begin(lsa_pass *p)
{
    int64_t most = 0;
    p->n = 0;
    p->on_demand = 0;
    for (int64_t i = 0; i < p->count;) {
        lsa_segment *g = &p->segments[i];
        g->row = p->n;
        g->from = g->s->progress.tokens;
        g->end = g->from + (p->decoding ? p->steps : g->n);
        g->among_residents = p->decoding && g->s->tiered;
        note(g, lsa_segment_begin(g, p->decoding, &p->w->spans[i]));
        if (!g->code) {
            p->n += g->n;
            p->on_demand |= p->decoding && g->s->demand;
            int64_t candidates = candidates_of(p, g, &p->w->spans[i++]);
            if (candidates > most) most = candidates;
            continue;
        }
        lsa_segment failed = *g;
        lsa_segment_undo(g);
        memmove(g, g + 1, (size_t)(--p->count - i) * sizeof *g);
        p->segments[p->count] = failed;
    }
    for (p->candidates = LEAST_CANDIDATES; p->candidates < most;) p->candidates *= 2;
    if (p->candidates > p->w->chunks) p->candidates = p->w->chunks;
}

int lsa_forward(lsa_pass *p, int64_t rows, float *logits)
{
    p->k = p->model->kernels;
    p->staged = 0;
    if (!p->decoding) p->steps = 1;
    p->kv_format = p->segments[0].s->kv_format;
    begin(p);
    if (!p->count) return LSA_OK;
    int rc = run(p, rows < 0 ? p->n : rows, logits);
    if (rc) (void)finish(p); /* what is undone does not go on */
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
