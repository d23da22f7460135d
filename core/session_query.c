/* The questions that policies and scripts ask of a session; nothing here changes it. */
#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/scratch.h"
#include "core/session.h"
#include "core/session_state.h"
#include "kernels/index_score.h"
#include "kernels/kv_record.h"

const lsa_model *lsa_session_model(const lsa_session *s) { return s->model; }
lsa_pool *lsa_session_pool(lsa_session *s) { return s->pool; }
int64_t lsa_session_tokens(const lsa_session *s) { return s->tokens; }
const float *lsa_session_logits(const lsa_session *s) { return s->logits; }

int64_t lsa_session_chunks(const lsa_session *s)
{
    return s->pool ? s->tokens / s->model->config.csa_rate : 0;
}

void lsa_session_token_ids(const lsa_session *s, int64_t from, int64_t n, int32_t *ids)
{
    lsa_blocks_pack(&s->token_ids, from, n, sizeof *ids, ids);
}

/* The layer of a CSA ordinal, or NULL with a message. */
static const lsa_layer_state *layer_of(const lsa_session *s, int64_t csa)
{
    for (int64_t i = 0; i < s->model->config.layers; i++)
        if (s->layers[i].csa == csa && csa >= 0) return &s->layers[i];
    lsa_fail(LSA_EARG, "session: CSA layer %lld; the model has %lld", (long long)csa,
             (long long)s->model->config.csa_layers);
    return NULL;
}

static int check_chunks(const lsa_session *s, int64_t from, int64_t n)
{
    if (from >= 0 && n >= 0 && from + n <= lsa_session_chunks(s)) return LSA_OK;
    return lsa_fail(LSA_EARG, "session: chunks %lld to %lld; there are %lld", (long long)from,
                    (long long)(from + n - 1), (long long)lsa_session_chunks(s));
}

int lsa_session_hidden(const lsa_session *s, int64_t csa, float *hidden)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    if (!s->tokens) return lsa_fail(LSA_ESTATE, "session: no token has been run, so there is no hidden state");
    memcpy(hidden, l->hidden, (size_t)s->model->config.hidden * sizeof *hidden);
    return LSA_OK;
}

int lsa_session_keys(const lsa_session *s, int64_t csa, int64_t from, int64_t n, void *keys)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    int rc = check_chunks(s, from, n);
    if (!rc) lsa_blocks_pack(&l->keys, from, n, l->keys.item, keys);
    return rc;
}

int lsa_session_entries(const lsa_session *s, int64_t csa, int64_t from, int64_t n, float *entries)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    int rc = check_chunks(s, from, n);
    const lsa_config *c = &s->model->config;
    int64_t bytes = lsa_kv_record_bytes(s->kv_format, c->head_dim, c->rope_dim);
    uint8_t *record = lsa_alloc(bytes);
    if (!rc && !record) rc = LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++) {
        int32_t chunk = (int32_t)(from + i);
        rc = lsa_pool_read(s->pool, csa, &chunk, 1, record);
        if (!rc)
            rc = lsa_kv_decode_cpu(entries + i * c->head_dim, record, 1, c->head_dim, c->rope_dim, bytes, s->kv_format,
                                   NULL);
    }
    lsa_free(record);
    return rc;
}

int64_t lsa_session_recent(const lsa_session *s) { return s->tokens < LSA_RECENT ? s->tokens : LSA_RECENT; }

int lsa_session_queries(const lsa_session *s, int64_t csa, int64_t w, float *queries, float *weights)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    if (w < 1 || w > lsa_session_recent(s))
        return lsa_fail(LSA_EARG, "session: queries of the last %lld tokens; 1 to %lld are kept", (long long)w,
                        (long long)lsa_session_recent(s));
    memcpy(queries, lsa_rows_at(&l->queries, s->tokens - w), (size_t)(w * l->queries.width) * sizeof *queries);
    memcpy(weights, lsa_rows_at(&l->query_weights, s->tokens - w),
           (size_t)(w * l->query_weights.width) * sizeof *weights);
    return LSA_OK;
}

int lsa_session_index_scores(const lsa_session *s, int64_t csa, const float *q, const float *w, int64_t rows,
                             int64_t heads, float *scores)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    const lsa_config *c = &s->model->config;
    int64_t chunks = l->keys.count, per_block = (int64_t)1 << l->keys.shift;
    int64_t bytes = lsa_index_score_workspace(rows, per_block, heads, c->index_dim, s->kv_format, s->compute);
    void *workspace = lsa_scratch_workspace(s->scratch, bytes);
    if (bytes && !workspace) return LSA_ENOMEM;
    int rc = LSA_OK;
    for (int64_t from = 0; !rc && from < chunks; from += per_block) {
        int64_t n = chunks - from < per_block ? chunks - from : per_block;
        rc = lsa_index_score_cpu(scores + from, q, w, lsa_blocks_at(&l->keys, from), rows, n, heads, c->index_dim,
                                 l->keys.item, chunks, s->kv_format, s->compute, workspace, NULL);
    }
    return rc;
}

int lsa_session_observed(const lsa_session *s, int64_t csa, int32_t *used, float *mass)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    int64_t chunks = lsa_session_chunks(s);
    memset(used, 0, (size_t)chunks * sizeof *used);
    memset(mass, 0, (size_t)chunks * sizeof *mass);
    int64_t n = s->observed_by_chunk ? chunks : s->resident_count;
    for (int64_t i = 0; i < n && i < s->observed_room; i++) {
        int64_t chunk = s->observed_by_chunk ? i : s->residents[i];
        used[chunk] = l->used[i];
        mass[chunk] = l->mass[i];
    }
    return LSA_OK;
}

static int is_resident(const lsa_session *s, int32_t chunk)
{
    int64_t low = 0, high = s->resident_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (s->residents[middle] < chunk) low = middle + 1;
        else high = middle;
    }
    return low < s->resident_count && s->residents[low] == chunk;
}

int64_t lsa_session_picks(const lsa_session *s, int64_t csa, int32_t *ids, float *mass)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    memcpy(ids, l->last_ids, (size_t)l->last_count * sizeof *ids);
    memcpy(mass, l->last_mass, (size_t)l->last_count * sizeof *mass);
    return l->last_count;
}

int64_t lsa_session_native_topk(const lsa_session *s, int64_t csa, int32_t *ids)
{
    const lsa_layer_state *l = layer_of(s, csa);
    if (!l) return LSA_EARG;
    if (!s->tokens) return 0;
    int32_t count = 0;
    int rc = lsa_level2(s, s->scratch, l - s->layers, lsa_rows_at(&l->queries, s->tokens - 1),
                        lsa_rows_at(&l->query_weights, s->tokens - 1), 1, s->tokens - 1, 0, ids, NULL, &count);
    return rc ? rc : count;
}

int lsa_session_coverage(const lsa_session *s, int64_t *covered, int64_t *total)
{
    *covered = *total = 0;
    for (int64_t csa = 0; csa < s->model->config.csa_layers; csa++) {
        int32_t *ids = s->scratch->ids;
        int64_t count = lsa_session_native_topk(s, csa, ids);
        if (count < 0) return (int)count;
        for (int64_t j = 0; j < count; j++) *covered += !s->tiered || is_resident(s, ids[j]);
        *total += count;
    }
    return LSA_OK;
}

void lsa_session_count(const lsa_session *s, lsa_session_counters *out) { *out = s->counters; }

void lsa_session_memory(const lsa_session *s, lsa_session_bytes *out)
{
    const lsa_config *c = &s->model->config;
    int64_t record = lsa_kv_record_bytes(s->kv_format, c->head_dim, c->rope_dim);
    int64_t chunks = lsa_session_chunks(s);
    memset(out, 0, sizeof *out);
    out->kv_total = chunks * record * c->csa_layers;
    out->kv_resident = s->tiered ? s->resident_count * record * c->csa_layers : out->kv_total;
    out->tokens = lsa_blocks_bytes(&s->token_ids);
    for (int64_t i = 0; i < c->layers; i++) {
        const lsa_layer_state *l = &s->layers[i];
        out->index_keys += l->keys.count * l->keys.item;
        out->hca += l->entries.count * l->entries.item;
        int64_t rows = s->tokens < c->window ? s->tokens : c->window;
        out->window += rows * l->window.width * (int64_t)sizeof(float);
    }
    if (!s->pool) return;
    out->hot_cells = lsa_pool_hot_bytes(s->pool);
    out->cold = lsa_pool_cold_bytes(s->pool);
}
