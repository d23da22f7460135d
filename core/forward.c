/* The forward pass over one piece of tokens: DeepSeek-V4 as its report gives it, layer by layer. */
#include <math.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/scratch.h"
#include "core/session_state.h"
#include "kernels/attention.h"
#include "kernels/compress.h"
#include "kernels/convert.h"
#include "kernels/hadamard.h"
#include "kernels/hyper_connection.h"
#include "kernels/index_score.h"
#include "kernels/moe.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"

/* One piece under way. */
typedef struct piece {
    lsa_session *s;
    lsa_scratch *w;
    const lsa_config *c;
    const int32_t *tokens;
    int64_t n;                         /* tokens in the piece */
    int64_t from, end;                 /* positions from .. end-1 */
    int decoding;
    int among_residents;               /* Level 2 chooses among residents */
    lsa_trace *trace;
} piece;

#define TRY(call)                \
    do {                         \
        int rc_ = (call);        \
        if (rc_) return rc_;     \
    } while (0)

/* y [n, rows] = x [n, w->cols] W^T, for rows row_from .. of the weight. */
static int linear_rows(piece *p, float *y, const float *x, const lsa_weight *w, int64_t n, int64_t row_from,
                       int64_t rows, int64_t x_stride, int64_t y_stride)
{
    int64_t bytes = lsa_linear_workspace(w, n, rows, p->s->compute);
    void *workspace = lsa_scratch_workspace(p->w, bytes);
    if (bytes && !workspace) return LSA_ENOMEM;
    return lsa_linear_cpu(y, x, w, n, row_from, rows, x_stride, y_stride, p->s->compute, workspace, NULL);
}

static int linear(piece *p, float *y, const float *x, const lsa_weight *w, int64_t n)
{
    return linear_rows(p, y, x, w, n, 0, w->rows, w->cols, w->rows);
}

static int traced(piece *p, int64_t layer, const char *name, const float *data, int64_t rows, int64_t cols)
{
    return p->trace ? lsa_trace_rows(p->trace, layer, name, data, rows, cols) : LSA_OK;
}

/* A row's picks end it: what is not there, -1 and -inf, comes first. ids or values is NULL. */
static int traced_picks(piece *p, int64_t layer, const char *name, const int32_t *ids, const float *values)
{
    if (!lsa_trace_wants(p->trace, layer, name)) return LSA_OK;
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

/* Index scores of the piece's tokens against all chunks. */
static int traced_scores(piece *p, int64_t layer)
{
    if (!lsa_trace_wants(p->trace, layer, "index_scores")) return LSA_OK;
    int64_t chunks = p->end / p->c->csa_rate;
    float *scores = lsa_alloc(p->n * chunks * (int64_t)sizeof *scores);
    if (!scores) return LSA_ENOMEM;
    int rc = lsa_session_index_scores(p->s, p->s->layers[layer].csa, p->w->index_q, p->w->index_w, p->n,
                                      p->c->index_heads, scores);
    if (!rc) rc = lsa_trace_rows(p->trace, layer, "index_scores", scores, p->n, chunks);
    lsa_free(scores);
    return rc;
}

/* Before a layer writes: room for the piece's rows, and nothing left of a step that failed. */
static int open_rows(piece *p, lsa_rows *rows, int64_t keep)
{
    return lsa_rows_make_room(rows, p->from - keep, p->from, p->end);
}

/* Projects the piece into a compressor's row histories; `entries` [new, dim] become the windows that are complete
 * now, normed and rotated. */
static int compress(piece *p, const lsa_compressor_weights *cw, lsa_rows *kv, lsa_rows *gate, const float *x,
                    int64_t rate, int64_t dim, int overlap, float *entries)
{
    int64_t first = p->from / rate, fresh = p->end / rate - first;
    TRY(open_rows(p, kv, p->from % rate + rate));
    TRY(open_rows(p, gate, p->from % rate + rate));
    TRY(linear(p, lsa_rows_at(kv, p->from), x, &cw->kv, p->n));
    TRY(linear(p, lsa_rows_at(gate, p->from), x, &cw->gate, p->n));
    if (!fresh) return LSA_OK;
    const float *previous_kv = NULL, *previous_gate = NULL;
    if (overlap && first) {
        previous_kv = lsa_rows_at(kv, (first - 1) * rate);
        previous_gate = lsa_rows_at(gate, (first - 1) * rate);
    }
    TRY(lsa_compress_cpu(entries, lsa_rows_at(kv, first * rate), lsa_rows_at(gate, first * rate), previous_kv,
                         previous_gate, cw->bias, fresh, rate, dim, overlap, NULL));
    TRY(lsa_rmsnorm_cpu(entries, entries, cw->norm, fresh, dim, p->c->norm_eps, NULL));
    TRY(lsa_rope_table_cpu(p->w->entry_table, p->s->model->compress_freq, fresh, p->c->rope_dim / 2, first * rate,
                           rate, NULL));
    return lsa_rope_cpu(entries, p->w->entry_table, fresh, 1, dim, p->c->rope_dim, 0, NULL);
}

/* HCA: new entries join the layer's blocks. */
static int grow_hca(piece *p, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_layer_state *l = &p->s->layers[layer];
    int64_t first = p->from / c->hca_rate, count = p->end / c->hca_rate;
    TRY(compress(p, &p->s->model->layers[layer].compressor, &l->kv, &l->gate, x, c->hca_rate, c->head_dim, 0,
                 p->w->entries));
    TRY(traced(p, layer, "entries", p->w->entries, count - first, c->head_dim));
    TRY(lsa_blocks_resize(&l->entries, first)); /* what a failed step left */
    TRY(lsa_blocks_resize(&l->entries, count));
    for (int64_t i = first; i < count; i++) {
        uint8_t *record = lsa_blocks_write(&l->entries, i);
        if (!record) return LSA_ENOMEM;
        TRY(lsa_kv_encode_cpu(record, p->w->entries + (i - first) * c->head_dim, 1, c->head_dim, c->rope_dim,
                              l->entries.item, p->s->kv_format, NULL));
    }
    return LSA_OK;
}

/* CSA: new chunks' records go to the pool (and to their cells, when they have any), their keys to the layer's blocks. */
static int grow_csa(piece *p, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_session *s = p->s;
    lsa_layer_state *l = &s->layers[layer];
    const lsa_layer *weights = &s->model->layers[layer];
    int64_t first = p->from / c->csa_rate, count = p->end / c->csa_rate;
    int64_t record = lsa_pool_record_bytes(s->pool);
    TRY(compress(p, &weights->compressor, &l->kv, &l->gate, x, c->csa_rate, c->head_dim, 1, p->w->entries));
    TRY(traced(p, layer, "entries", p->w->entries, count - first, c->head_dim));
    TRY(lsa_kv_encode_cpu(p->w->records, p->w->entries, count - first, c->head_dim, c->rope_dim, record,
                          s->kv_format, NULL));
    for (int64_t i = first; i < count; i++)
        TRY(lsa_pool_publish(s->pool, l->csa, i, p->w->records + (i - first) * record));
    TRY(compress(p, &weights->index_keys, &l->index_kv, &l->index_gate, x, c->csa_rate, c->index_dim, 1,
                 p->w->entries));
    TRY(traced(p, layer, "index_keys", p->w->entries, count - first, c->index_dim));
    TRY(lsa_blocks_resize(&l->keys, first));
    TRY(lsa_blocks_resize(&l->keys, count));
    TRY(lsa_index_encode_cpu(p->w->records, p->w->entries, count - first, c->index_dim, l->keys.item, s->kv_format,
                             NULL));
    for (int64_t i = first; i < count; i++) {
        uint8_t *key = lsa_blocks_write(&l->keys, i);
        if (!key) return LSA_ENOMEM;
        memcpy(key, p->w->records + (i - first) * l->keys.item, (size_t)l->keys.item);
    }
    if (p->among_residents && count > first) /* a chunk born in decode is the newest resident */
        memcpy(l->resident_keys + (s->resident_count - 1) * l->keys.item, p->w->records, (size_t)l->keys.item);
    return LSA_OK;
}

/* The Lightning Indexer's queries and head weights, remembered for policies; then Level 2's picks as
 * candidate places [n, k] with counts [n]. */
static int pick(piece *p, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_scratch *w = p->w;
    lsa_layer_state *l = &p->s->layers[layer];
    const lsa_layer *weights = &p->s->model->layers[layer];
    int64_t heads = c->index_heads, dim = c->index_dim, width = heads * dim;
    TRY(linear(p, w->index_q, w->q_low, &weights->index_q_b, p->n));
    TRY(lsa_rope_cpu(w->index_q, w->compress_table, p->n, heads, dim, c->rope_dim, 0, NULL));
    TRY(traced(p, layer, "index_query", w->index_q, p->n, width));
    if (p->s->kv_format == LSA_KV_FP8) TRY(lsa_hadamard_cpu(w->index_q, p->n * heads, dim, NULL));
    TRY(linear(p, w->index_w, x, &weights->index_weights, p->n));
    float scale = 1.0f / sqrtf((float)dim) / sqrtf((float)heads);
    for (int64_t i = 0; i < p->n * heads; i++) w->index_w[i] *= scale;

    TRY(open_rows(p, &l->queries, LSA_RECENT));
    TRY(open_rows(p, &l->query_weights, LSA_RECENT));
    memcpy(lsa_rows_at(&l->queries, p->from), w->index_q, (size_t)(p->n * width) * sizeof(float));
    memcpy(lsa_rows_at(&l->query_weights, p->from), w->index_w, (size_t)(p->n * heads) * sizeof(float));

    TRY(traced_scores(p, layer));
    float *logits = lsa_trace_wants(p->trace, layer, "index_topk_logits") ? w->mass : NULL; /* attention fills it later */
    TRY(lsa_level2(p->s, w, layer, w->index_q, w->index_w, p->n, p->from, p->among_residents, w->places, logits,
                   w->counts));
    TRY(traced_picks(p, layer, "index_topk", w->places, NULL));
    return traced_picks(p, layer, "index_topk_logits", NULL, logits);
}

/* Counts what Level 2 picked and the mass it got, by chunk or by place among the residents (session_state.h). */
static void observe(piece *p, lsa_layer_state *l)
{
    lsa_session *s = p->s;
    int64_t k = p->c->index_topk;
    for (int64_t t = 0; t < p->n; t++)
        for (int64_t j = 0; j < p->w->counts[t]; j++) {
            int64_t place = p->w->places[t * k + j];
            int32_t chunk = p->among_residents ? s->residents[place] : (int32_t)place;
            if (s->observed_by_chunk) place = chunk;
            l->used[place]++;
            l->mass[place] += p->w->mass[t * k + j];
            l->last_ids[j] = chunk; /* the last token's stay */
            l->last_mass[j] = p->w->mass[t * k + j];
        }
    l->last_count = p->w->counts[p->n - 1];
}

/* The records that the piece's queries attend to: ids in w->ids, counts in w->counts. */
static lsa_records picked_records(piece *p, const lsa_layer_state *l)
{
    lsa_session *s = p->s;
    lsa_scratch *w = p->w;
    int64_t k = p->c->index_topk;
    if (!p->among_residents) {
        memcpy(w->ids, w->places, (size_t)(p->n * k) * sizeof *w->ids);
        return lsa_pool_cold_records(s->pool, l->csa, s->kv_format);
    }
    for (int64_t j = 0; j < w->counts[0]; j++) w->ids[j] = s->residents[w->places[j]];
    lsa_pool_slots(s->pool, w->ids, w->counts[0], w->ids);
    return lsa_pool_hot_records(s->pool, l->csa, s->kv_format);
}

static int attend(piece *p, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_scratch *w = p->w;
    lsa_layer_state *l = &p->s->layers[layer];
    int32_t type = c->layer_type[layer];
    lsa_records records;
    int64_t most = 0;
    if (type == LSA_LAYER_CSA) {
        TRY(pick(p, layer, x));
        records = picked_records(p, l);
        most = c->index_topk;
    } else if (type == LSA_LAYER_HCA) {
        for (int64_t t = 0; t < p->n; t++) w->counts[t] = (int32_t)((p->from + t + 1) / c->hca_rate);
        records = (lsa_records){(const uint8_t *const *)l->entries.data, l->entries.item, 0, l->entries.shift,
                                p->s->kv_format};
        most = p->end / c->hca_rate;
    }
    int64_t bytes = lsa_attention_workspace(p->n, c->heads, c->head_dim, c->window, most);
    void *workspace = lsa_scratch_workspace(w, bytes);
    if (bytes && !workspace) return LSA_ENOMEM;
    int csa = type == LSA_LAYER_CSA;
    TRY(lsa_attention_cpu(w->attended, csa ? w->mass : NULL, w->q, l->window.data, p->s->model->layers[layer].sinks,
                          type == LSA_LAYER_SLIDING ? NULL : &records, csa ? w->ids : NULL, w->counts, p->n, c->heads,
                          c->head_dim, c->rope_dim, p->from - l->window.first, c->window, csa ? c->index_topk : 0,
                          1.0f / sqrtf((float)c->head_dim), workspace, NULL));
    if (csa) observe(p, l);
    if (p->decoding && type != LSA_LAYER_SLIDING)
        p->s->counters.attention_bytes +=
            w->counts[0] * lsa_kv_record_bytes(p->s->kv_format, c->head_dim, c->rope_dim);
    return LSA_OK;
}

/* y [n, hidden]: the attention block on x [n, hidden], the normed input. */
static int attention_block(piece *p, int64_t layer, const float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_scratch *w = p->w;
    const lsa_layer *weights = &p->s->model->layers[layer];
    lsa_layer_state *l = &p->s->layers[layer];
    int64_t n = p->n, wide = c->heads * c->head_dim, type = c->layer_type[layer];
    const float *table = type == LSA_LAYER_SLIDING ? w->main_table : w->compress_table;
    TRY(linear(p, w->q_low, x, &weights->q_a, n));
    TRY(lsa_rmsnorm_cpu(w->q_low, w->q_low, weights->q_a_norm, n, c->q_rank, c->norm_eps, NULL));
    TRY(linear(p, w->q, w->q_low, &weights->q_b, n));
    TRY(lsa_rmsnorm_cpu(w->q, w->q, NULL, n * c->heads, c->head_dim, c->norm_eps, NULL));
    TRY(lsa_rope_cpu(w->q, table, n, c->heads, c->head_dim, c->rope_dim, 0, NULL));

    TRY(open_rows(p, &l->window, c->window - 1));
    float *kv = lsa_rows_at(&l->window, p->from);
    TRY(linear(p, kv, x, &weights->kv, n));
    TRY(lsa_rmsnorm_cpu(kv, kv, weights->kv_norm, n, c->head_dim, c->norm_eps, NULL));
    TRY(lsa_rope_cpu(kv, table, n, 1, c->head_dim, c->rope_dim, 0, NULL));

    if (type == LSA_LAYER_CSA) TRY(grow_csa(p, layer, x));
    if (type == LSA_LAYER_HCA) TRY(grow_hca(p, layer, x));
    TRY(attend(p, layer, x));
    if (type == LSA_LAYER_CSA) memcpy(l->hidden, x + (n - 1) * c->hidden, (size_t)c->hidden * sizeof *x);

    TRY(lsa_rope_cpu(w->attended, table, n, c->heads, c->head_dim, c->rope_dim, 1, NULL));
    int64_t groups = c->o_groups;
    for (int64_t g = 0; g < groups; g++)
        TRY(linear_rows(p, w->o_low + g * c->o_rank, w->attended + g * (wide / groups), &weights->o_a, n,
                        g * c->o_rank, c->o_rank, wide, groups * c->o_rank));
    return linear(p, y, w->o_low, &weights->o_b, n);
}

/* out [n, hidden] = down(silu(gate x) up x) */
static int expert(piece *p, const lsa_expert_weights *e, const float *x, int64_t n, float *out)
{
    lsa_scratch *w = p->w;
    TRY(linear(p, w->gate, x, &e->gate, n));
    TRY(linear(p, w->up, x, &e->up, n));
    TRY(lsa_swiglu_cpu(w->gate, w->gate, w->up, n * e->gate.rows, p->c->swiglu_limit, NULL));
    return linear(p, out, w->gate, &e->down, n);
}

/* y [n, hidden]: the shared expert plus the routed ones, in the order of their number. */
static int moe_block(piece *p, int64_t layer, const float *x, float *y)
{
    const lsa_config *c = p->c;
    lsa_scratch *w = p->w;
    const lsa_layer *weights = &p->s->model->layers[layer];
    int64_t n = p->n, k = c->experts_per_token, d = c->hidden;
    TRY(linear(p, w->router, x, &weights->router, n));
    if (weights->token_experts)
        for (int64_t t = 0; t < n; t++)
            memcpy(w->fixed + t * k, weights->token_experts + p->tokens[t] * k, (size_t)k * sizeof *w->fixed);
    TRY(lsa_moe_route_cpu(w->expert_ids, w->expert_weights, w->router, weights->router_bias,
                          weights->token_experts ? w->fixed : NULL, n, c->experts, k, c->scoring, c->routed_scaling,
                          NULL));
    if (c->shared_experts) TRY(expert(p, &weights->shared, x, n, y));
    else memset(y, 0, (size_t)(n * d) * sizeof *y);
    for (int64_t e = 0; e < c->experts; e++) {
        int64_t members = 0;
        for (int64_t i = 0; i < n * k; i++)
            if (w->expert_ids[i] == e) w->members[members++] = (int32_t)i; /* an expert takes a token once */
        if (!members) continue;
        for (int64_t i = 0; i < members; i++)
            memcpy(w->gathered + i * d, x + w->members[i] / k * d, (size_t)d * sizeof *x);
        TRY(expert(p, &weights->experts[e], w->gathered, members, w->down));
        for (int64_t i = 0; i < members; i++) {
            float share = w->expert_weights[w->members[i]], *to = y + w->members[i] / k * d;
            for (int64_t j = 0; j < d; j++) to[j] += share * w->down[i * d + j];
        }
    }
    return LSA_OK;
}

/* Opens a hyper-connection block: x [n, hidden], normed. */
static int open_block(piece *p, const lsa_hc_weights *hc, const float *norm)
{
    const lsa_config *c = p->c;
    lsa_scratch *w = p->w;
    TRY(linear(p, w->mix, w->streams, &hc->fn, p->n));
    TRY(lsa_hc_open_cpu(w->x, w->post, w->comb, w->streams, w->mix, hc->base, hc->scale, p->n, c->hc_mult, c->hidden,
                        c->hc_iters, c->norm_eps, c->hc_eps, NULL));
    return lsa_rmsnorm_cpu(w->x, w->x, norm, p->n, c->hidden, c->norm_eps, NULL);
}

static int close_block(piece *p)
{
    return lsa_hc_close_cpu(p->w->streams, p->w->y, p->w->post, p->w->comb, p->n, p->c->hc_mult, p->c->hidden, NULL);
}

static int run_layer(piece *p, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_scratch *w = p->w;
    const lsa_layer *weights = &p->s->model->layers[layer];
    TRY(open_block(p, &weights->attn_hc, weights->attn_norm));
    TRY(traced(p, layer, "attn_input", w->x, p->n, c->hidden));
    TRY(attention_block(p, layer, w->x, w->y));
    TRY(traced(p, layer, "attn_output", w->y, p->n, c->hidden));
    TRY(close_block(p));
    TRY(open_block(p, &weights->ffn_hc, weights->ffn_norm));
    TRY(moe_block(p, layer, w->x, w->y));
    TRY(traced(p, layer, "moe_output", w->y, p->n, c->hidden));
    TRY(close_block(p));
    return traced(p, layer, "streams", w->streams, p->n, c->hc_mult * c->hidden);
}

/* Every stream starts as the token's embedding. */
static int embed(piece *p)
{
    const lsa_config *c = p->c;
    const lsa_weight *table = &p->s->model->embed;
    int64_t d = c->hidden, row = d * lsa_dtype_size(table->dtype);
    for (int64_t t = 0; t < p->n; t++) {
        float *first = p->w->streams + t * c->hc_mult * d;
        TRY(lsa_convert_cpu(first, (const char *)table->data + p->tokens[t] * row, d, LSA_F32, table->dtype, NULL));
        for (int64_t k = 1; k < c->hc_mult; k++) memcpy(first + k * d, first, (size_t)d * sizeof *first);
    }
    return LSA_OK;
}

/* Logits of the last `rows` tokens. */
static int head(piece *p, int64_t rows, float *logits)
{
    const lsa_config *c = p->c;
    const lsa_model *m = p->s->model;
    lsa_scratch *w = p->w;
    const float *streams = w->streams + (p->n - rows) * c->hc_mult * c->hidden;
    TRY(linear(p, w->mix, streams, &m->hc_head.fn, rows));
    TRY(lsa_hc_head_cpu(w->x, streams, w->mix, m->hc_head.base, m->hc_head.scale, rows, c->hc_mult, c->hidden,
                        c->norm_eps, c->hc_eps, NULL));
    TRY(lsa_rmsnorm_cpu(w->x, w->x, m->norm, rows, c->hidden, c->norm_eps, NULL));
    return linear(p, logits, w->x, &m->head, rows);
}

/* Chunks of the piece get their place: in the pool, and in decode among the residents. */
static int make_chunks(piece *p)
{
    lsa_session *s = p->s;
    if (!s->pool) return LSA_OK;
    int64_t before = p->from / p->c->csa_rate, after = p->end / p->c->csa_rate;
    TRY(lsa_pool_resize(s->pool, before)); /* what a failed step left */
    while (s->resident_count && s->residents[s->resident_count - 1] >= before) s->resident_count--;
    TRY(lsa_pool_resize(s->pool, after));
    int64_t born = p->among_residents ? after - before : 0;
    TRY(lsa_session_observed_room(s, s->observed_by_chunk ? after : s->resident_count + born));
    if (!born) return LSA_OK;
    TRY(lsa_session_resident_room(s, s->resident_count + born));
    TRY(lsa_pool_adopt(s->pool, before));
    s->residents[s->resident_count++] = (int32_t)before;
    return LSA_OK;
}

static int run(piece *p, int64_t rows, float *logits)
{
    const lsa_config *c = p->c;
    TRY(make_chunks(p));
    TRY(embed(p));
    TRY(lsa_rope_table_cpu(p->w->main_table, p->s->model->main_freq, p->n, c->rope_dim / 2, p->from, 1, NULL));
    TRY(lsa_rope_table_cpu(p->w->compress_table, p->s->model->compress_freq, p->n, c->rope_dim / 2, p->from, 1, NULL));
    for (int64_t layer = 0; layer < c->layers; layer++) {
        if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
        TRY(run_layer(p, layer));
    }
    return rows ? head(p, rows, logits) : LSA_OK;
}

int lsa_forward_piece(lsa_session *s, const int32_t *tokens, int64_t n, int64_t rows, float *logits, int decoding,
                      lsa_trace *trace)
{
    piece p = {.s = s, .w = s->scratch, .c = &s->model->config, .tokens = tokens, .n = n, .from = s->tokens,
               .end = s->tokens + n, .decoding = decoding, .among_residents = decoding && s->tiered,
               .trace = trace};
    TRY(lsa_blocks_resize(&s->token_ids, p.from));
    TRY(lsa_blocks_resize(&s->token_ids, p.end));
    for (int64_t i = 0; i < n; i++) {
        int32_t *id = (int32_t *)(void *)lsa_blocks_write(&s->token_ids, p.from + i);
        if (!id) return LSA_ENOMEM;
        *id = tokens[i];
    }
    TRY(run(&p, rows, logits));
    s->tokens = p.end;
    return LSA_OK;
}
