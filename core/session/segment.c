/* A segment's own part of the forward pass: row histories, new chunks and entries, Level 2,
 * attention. Segments of other sessions may be at the same point in other threads: only rows of
 * the segment are touched in the scratch. */
#include <math.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/session/forward.h"
#include "kernels/attention.h"
#include "kernels/compress.h"
#include "kernels/hadamard.h"
#include "kernels/index_score.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"

/* ---- rows and entries ---- */

/* Appends the segment's rows of `from` to a history that keeps `keep` rows before them. */
static int append_rows(const lsa_segment *g, lsa_row_history *rows, int64_t keep, const float *from)
{
    LSA_TRY(lsa_row_history_make_room(rows, g->from - keep, g->from, g->end));
    memcpy(lsa_row_history_at(rows, g->from), from + g->row * rows->width,
           (size_t)(g->n * rows->width) * sizeof *from);
    return LSA_OK;
}

/* What a compressor keeps, and where its projections of all rows lie. */
typedef struct compressor {
    const lsa_compressor_weights *weights;
    lsa_row_history *kv, *gate;
    const float *new_kv, *new_gate;
    int64_t rate, dim;
    int overlap;
} compressor;

/* Appends the rows; `entries` [new, dim] become the windows that are complete now, normed and
 * rotated. */
static int compress(const lsa_pass *p, const lsa_segment *g, const compressor *c, float *entries)
{
    int64_t first = g->from / c->rate, fresh = g->end / c->rate - first,
            keep = g->from % c->rate + c->rate;
    LSA_TRY(append_rows(g, c->kv, keep, c->new_kv));
    LSA_TRY(append_rows(g, c->gate, keep, c->new_gate));
    if (!fresh) return LSA_OK;
    const float *previous_kv = NULL, *previous_gate = NULL;
    if (c->overlap && first) {
        previous_kv = lsa_row_history_at(c->kv, (first - 1) * c->rate);
        previous_gate = lsa_row_history_at(c->gate, (first - 1) * c->rate);
    }
    LSA_TRY(lsa_compress_cpu(entries, lsa_row_history_at(c->kv, first * c->rate),
                             lsa_row_history_at(c->gate, first * c->rate), previous_kv,
                             previous_gate, c->weights->bias, fresh, c->rate, c->dim, c->overlap,
                             NULL));
    LSA_TRY(
        lsa_rmsnorm_cpu(entries, entries, c->weights->norm, fresh, c->dim, p->c->norm_eps, NULL));
    int64_t rope = p->c->rope_dim;
    float *table = p->w->entry_table + g->row * rope;
    int32_t *positions = p->w->entry_positions + g->row;
    for (int64_t i = 0; i < fresh; i++) positions[i] = (int32_t)((first + i) * c->rate);
    LSA_TRY(lsa_rope_table_cpu(table, p->model->compress_freq, positions, fresh, rope / 2, NULL));
    return lsa_rope_cpu(entries, table, fresh, 1, c->dim, rope, 0, NULL);
}

/* The segment's share of the scratch for new entries: at most one for each of its rows. */
static float *entries_of(const lsa_pass *p, const lsa_segment *g)
{
    return p->w->entries + g->row * p->w->entry_dim;
}
static uint8_t *records_of(const lsa_pass *p, const lsa_segment *g)
{
    return p->w->records + g->row * p->w->record;
}

/* HCA: new entries join the layer's blocks. */
static int grow_hca(const lsa_pass *p, const lsa_segment *g, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_layer_state *l = &g->s->layers[layer];
    int64_t first = g->from / c->hca_rate, count = g->end / c->hca_rate;
    float *entries = entries_of(p, g);
    compressor own = {&p->model->layers[layer].compressor,
                      &l->kv,
                      &l->gate,
                      p->w->kv,
                      p->w->kv_gate,
                      c->hca_rate,
                      c->head_dim,
                      0};
    LSA_TRY(compress(p, g, &own, entries));
    LSA_TRY(lsa_traced(p, layer, "entries", entries, count - first, c->head_dim));
    LSA_TRY(lsa_cow_blocks_resize(&l->entries, first)); /* what a failed step left */
    LSA_TRY(lsa_cow_blocks_resize(&l->entries, count));
    for (int64_t i = first; i < count; i++) {
        uint8_t *record = lsa_cow_blocks_write(&l->entries, i);
        if (!record) return LSA_ENOMEM;
        LSA_TRY(lsa_kv_encode_cpu(record, entries + (i - first) * c->head_dim, 1, c->head_dim,
                                  c->rope_dim, l->entries.item, g->s->kv_format, NULL));
    }
    return LSA_OK;
}

/* New chunks' records go to the pool, and to their cells, when they have any. */
static int grow_records(const lsa_pass *p, const lsa_segment *g, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_session *s = g->s;
    lsa_layer_state *l = &s->layers[layer];
    int64_t first = g->from / c->csa_rate, count = g->end / c->csa_rate,
            record = lsa_pool_record_bytes(s->pool);
    float *entries = entries_of(p, g);
    uint8_t *records = records_of(p, g);
    compressor own = {&p->model->layers[layer].compressor,
                      &l->kv,
                      &l->gate,
                      p->w->kv,
                      p->w->kv_gate,
                      c->csa_rate,
                      c->head_dim,
                      1};
    LSA_TRY(compress(p, g, &own, entries));
    LSA_TRY(lsa_traced(p, layer, "entries", entries, count - first, c->head_dim));
    LSA_TRY(lsa_kv_encode_cpu(records, entries, count - first, c->head_dim, c->rope_dim, record,
                              s->kv_format, NULL));
    for (int64_t i = first; i < count; i++)
        LSA_TRY(lsa_pool_publish(s->pool, l->csa, i, records + (i - first) * record));
    return LSA_OK;
}

/* So do their index keys. */
static int grow_keys(const lsa_pass *p, const lsa_segment *g, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_session *s = g->s;
    lsa_layer_state *l = &s->layers[layer];
    int64_t first = g->from / c->csa_rate, count = g->end / c->csa_rate;
    float *entries = entries_of(p, g);
    uint8_t *keys = records_of(p, g);
    compressor own = {&p->model->layers[layer].index_keys,
                      &l->index_kv,
                      &l->index_gate,
                      p->w->index_kv,
                      p->w->index_gate,
                      c->csa_rate,
                      c->index_dim,
                      1};
    LSA_TRY(compress(p, g, &own, entries));
    LSA_TRY(lsa_traced(p, layer, "index_keys", entries, count - first, c->index_dim));
    int64_t key = lsa_pool_key_bytes(s->pool);
    LSA_TRY(
        lsa_index_encode_cpu(keys, entries, count - first, c->index_dim, key, s->kv_format, NULL));
    LSA_TRY(lsa_pool_publish_keys(s->pool, l->csa, first, count - first, keys));
    if (g->among_residents && count > first) /* a chunk born in decode is the newest resident */
        memcpy(l->resident_keys + (s->resident_count - 1) * key, keys, (size_t)key);
    return LSA_OK;
}

/* ---- Level 2 and attention ---- */

/* A row's picks end it: what is not there, -1 and -inf, comes first. ids or values is NULL. */
static int traced_picks(const lsa_pass *p, int64_t layer, const char *name, const int32_t *ids,
                        const float *values)
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

/* Index scores of the segment's tokens against all chunks. */
static int traced_scores(const lsa_pass *p, const lsa_segment *g, int64_t layer, const float *q,
                         const float *w)
{
    if (!lsa_trace_wants(p->trace, layer, "index_scores")) return LSA_OK;
    int64_t chunks = g->end / p->c->csa_rate;
    float *scores = lsa_alloc(g->n * chunks * (int64_t)sizeof *scores);
    if (!scores) return LSA_ENOMEM;
    int rc = lsa_session_scores_of(g->s, g->s->layers[layer].csa, q, w, g->n, p->c->index_heads,
                                   chunks, scores);
    if (!rc) rc = lsa_trace_rows(p->trace, layer, "index_scores", scores, g->n, chunks);
    lsa_free(scores);
    return rc;
}

/* Remembers index queries and head weights for policies; then Level 2's picks as candidate
 * places [n, k] with counts [n]. */
static int pick(const lsa_pass *p, const lsa_segment *g, int64_t layer)
{
    const lsa_config *c = p->c;
    lsa_activations *w = p->w;
    lsa_session *s = g->s;
    lsa_layer_state *l = &s->layers[layer];
    float *q = w->index_q + g->row * c->index_heads * c->index_dim,
          *weights = w->index_w + g->row * c->index_heads;
    int32_t *places = w->places + g->row * c->index_topk, *counts = w->counts + g->row;
    if (s->kv_format == LSA_KV_FP8)
        LSA_TRY(lsa_hadamard_cpu(q, g->n * c->index_heads, c->index_dim, NULL));
    LSA_TRY(append_rows(g, &l->queries, LSA_RECENT, w->index_q));
    LSA_TRY(append_rows(g, &l->query_weights, LSA_RECENT, w->index_w));
    LSA_TRY(traced_scores(p, g, layer, q, weights));
    /* Attention fills the masses later. */
    float *logits = lsa_trace_wants(p->trace, layer, "index_topk_logits")
                        ? w->mass + g->row * c->index_topk
                        : NULL;
    LSA_TRY(lsa_level2(s, w, layer, q, weights, g->n, g->from, g->among_residents, places, logits,
                       counts));
    LSA_TRY(traced_picks(p, layer, "index_topk", places, NULL));
    return traced_picks(p, layer, "index_topk_logits", NULL, logits);
}

static int32_t chunk_at(const lsa_segment *g, int32_t place)
{
    return g->among_residents ? g->s->residents[place] : place;
}

/* Counts picks and the mass they got, by chunk or by place among the residents
 * (session_state.h). */
static void observe(const lsa_segment *g, lsa_layer_state *l, const int32_t *places,
                    const float *mass, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        int32_t at = g->s->observed_by_chunk ? chunk_at(g, places[j]) : places[j];
        l->used[at]++;
        l->mass[at] += mass[j];
    }
}

/* The last token's picks wait for the commit, and with them what a decode step observes. */
static void remember(const lsa_pass *p, const lsa_segment *g, lsa_layer_state *l)
{
    int64_t k = p->c->index_topk, last = g->row + g->n - 1;
    const lsa_activations *w = p->w;
    for (int64_t t = g->row; t < last; t++)
        observe(g, l, w->places + t * k, w->mass + t * k, w->counts[t]);
    l->next_count = w->counts[last];
    memcpy(l->next_places, w->places + last * k, (size_t)l->next_count * sizeof *l->next_places);
    memcpy(l->next_mass, w->mass + last * k, (size_t)l->next_count * sizeof *l->next_mass);
}

/* The records that the segment's queries attend to: ids in w->ids, counts in w->counts. */
static int picked_records(const lsa_pass *p, lsa_segment *g, const lsa_layer_state *l,
                          lsa_records *records)
{
    lsa_session *s = g->s;
    int64_t k = p->c->index_topk, count = p->w->counts[g->row];
    int32_t *ids = p->w->ids + g->row * k, *places = p->w->places + g->row * k;
    int on_demand = p->decoding && s->demand;
    if (!g->among_residents) memcpy(ids, places, (size_t)(g->n * k) * sizeof *ids);
    if (!g->among_residents && !on_demand) {
        *records = lsa_pool_cold_records(s->pool, l->csa, s->kv_format);
        return LSA_OK;
    }
    if (on_demand)
        LSA_TRY(lsa_on_demand_use(s->demand, s->pool, ids, count, &g->hits));
    else
        for (int64_t j = 0; j < count; j++) ids[j] = s->residents[places[j]];
    lsa_pool_slots(s->pool, ids, count, ids);
    *records = lsa_pool_hot_records(s->pool, l->csa, s->kv_format);
    return LSA_OK;
}

/* Attention over the window and `records` (NULL: none), ids [n, most]. */
static int attend(const lsa_pass *p, const lsa_segment *g, int64_t layer,
                  const lsa_records *records, int64_t most, int with_ids)
{
    const lsa_config *c = p->c;
    const lsa_activations *w = p->w;
    const lsa_layer_state *l = &g->s->layers[layer];
    int64_t bytes = lsa_attention_workspace(g->n, c->heads, c->head_dim, c->window, most);
    int64_t at = g->row * c->heads * c->head_dim, picks = g->row * c->index_topk;
    void *workspace = lsa_activations_workspace(p->w, bytes);
    if (bytes && !workspace) return LSA_ENOMEM;
    return lsa_attention_cpu(
        w->attended + at, with_ids ? w->mass + picks : NULL, w->q + at, l->window.data,
        p->model->layers[layer].sinks, records, with_ids ? w->ids + picks : NULL,
        w->counts + g->row, g->n, c->heads, c->head_dim, c->rope_dim, g->from - l->window.first,
        c->window, with_ids ? c->index_topk : 0, 1.0f / sqrtf((float)c->head_dim), workspace, NULL);
}

static int attend_csa(lsa_pass *p, lsa_segment *g, int64_t layer)
{
    lsa_layer_state *l = &g->s->layers[layer];
    LSA_TRY(grow_records(p, g, layer));
    LSA_TRY(grow_keys(p, g, layer));
    LSA_TRY(pick(p, g, layer));
    lsa_records records;
    LSA_TRY(picked_records(p, g, l, &records));
    LSA_TRY(attend(p, g, layer, &records, p->c->index_topk, 1));
    remember(p, g, l);
    return LSA_OK;
}

static int attend_hca(lsa_pass *p, lsa_segment *g, int64_t layer)
{
    LSA_TRY(grow_hca(p, g, layer));
    const lsa_cow_blocks *entries = &g->s->layers[layer].entries;
    lsa_records records = {(const uint8_t *const *)entries->data, entries->item, 0, entries->shift,
                           g->s->kv_format};
    int64_t rate = p->c->hca_rate;
    for (int64_t t = 0; t < g->n; t++)
        p->w->counts[g->row + t] = (int32_t)((g->from + t + 1) / rate);
    return attend(p, g, layer, &records, g->end / rate, 0);
}

int lsa_segment_attend(lsa_pass *p, lsa_segment *g, int64_t layer, const float *x)
{
    const lsa_config *c = p->c;
    lsa_layer_state *l = &g->s->layers[layer];
    int32_t type = c->layer_type[layer];
    LSA_TRY(append_rows(g, &l->window, c->window - 1, p->w->window_kv));
    if (type == LSA_LAYER_SLIDING) return attend(p, g, layer, NULL, 0, 0);
    if (type == LSA_LAYER_CSA) {
        LSA_TRY(attend_csa(p, g, layer));
        memcpy(l->next_hidden, x + (g->row + g->n - 1) * c->hidden, (size_t)c->hidden * sizeof *x);
    } else {
        LSA_TRY(attend_hca(p, g, layer));
    }
    g->attention_bytes +=
        p->w->counts[g->row] * lsa_kv_record_bytes(g->s->kv_format, c->head_dim, c->rope_dim);
    return LSA_OK;
}

/* ---- beginning and end ---- */

/* Chunks of the segment get their place: in the pool, and in decode among the residents. */
static int make_chunks(const lsa_segment *g)
{
    lsa_session *s = g->s;
    if (!s->pool) return LSA_OK;
    int64_t rate = s->model->config.csa_rate, before = g->from / rate, after = g->end / rate;
    LSA_TRY(lsa_pool_resize(s->pool, after));
    int64_t born = g->among_residents ? after - before : 0;
    LSA_TRY(lsa_session_observed_room(s, s->observed_by_chunk ? after : s->resident_count + born));
    if (!born) return LSA_OK;
    LSA_TRY(lsa_session_resident_room(s, s->resident_count + born));
    LSA_TRY(lsa_pool_adopt(s->pool, before));
    s->residents[s->resident_count++] = (int32_t)before;
    return LSA_OK;
}

int lsa_segment_begin(lsa_segment *g)
{
    lsa_session *s = g->s;
    LSA_TRY(lsa_cow_blocks_resize(&s->token_ids, g->from)); /* what a failed step left */
    LSA_TRY(lsa_cow_blocks_resize(&s->token_ids, g->end));
    for (int64_t i = 0; i < g->n; i++) {
        uint8_t *id = lsa_cow_blocks_write(&s->token_ids, g->from + i);
        if (!id) return LSA_ENOMEM;
        memcpy(id, &g->tokens[i], (size_t)s->token_ids.item); /* little-endian */
    }
    return make_chunks(g);
}

void lsa_segment_undo(lsa_segment *g)
{
    lsa_session *s = g->s;
    if (!s->pool) return;
    int64_t chunks = lsa_session_chunks(s);
    lsa_pool_resize(s->pool, chunks);
    while (s->resident_count && s->residents[s->resident_count - 1] >= chunks) s->resident_count--;
}

static void commit_layer(const lsa_segment *g, lsa_layer_state *l)
{
    observe(g, l, l->next_places, l->next_mass, l->next_count);
    for (int64_t j = 0; j < l->next_count; j++) l->last_ids[j] = chunk_at(g, l->next_places[j]);
    memcpy(l->last_mass, l->next_mass, (size_t)l->next_count * sizeof *l->last_mass);
    l->last_count = l->next_count;
    float *hidden = l->hidden;
    l->hidden = l->next_hidden;
    l->next_hidden = hidden;
}

void lsa_segment_commit(lsa_segment *g)
{
    lsa_session *s = g->s;
    for (int64_t i = 0; i < s->model->config.layers; i++)
        if (s->layers[i].csa >= 0) commit_layer(g, &s->layers[i]);
    s->tokens = g->end;
    s->counters.hits += g->hits;
}
