/* The questions that policies and scripts ask of a session; nothing here changes it. */
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "core/session/state.h"
#include "kernels/ensemble.h"
#include "kernels/index_score.h"
#include "kernels/kv_record.h"
#include "kernels/table.h"

enum {
    AT_A_TIME = 256,         /* records decoded */
    KEYS_FROM_DISK = 4 << 20 /* bytes of keys read from the file before they are scored */
};

const lsa_model *lsa_session_model(const lsa_session *s) { return s->model; }
lsa_pool *lsa_session_pool(lsa_session *s) { return s->pool; }
int64_t lsa_session_tokens(const lsa_session *s) { return s->progress.tokens; }
const float *lsa_session_logits(const lsa_session *s) { return s->logits; }

int64_t lsa_session_chunks(const lsa_session *s)
{
    return s->pool ? s->progress.tokens / s->model->config.csa_rate : 0;
}

void lsa_session_token_ids(const lsa_session *s, int64_t from, int64_t n, int32_t *ids)
{
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *id = lsa_cow_blocks_at(&s->token_ids, from + i);
        ids[i] = 0;
        memcpy(&ids[i], id, (size_t)s->token_ids.item); /* little-endian */
    }
}

/* What a layer keeps, or NULL with a message where the model has no such CSA layer. */
static const lsa_layer_store *store_of(const lsa_session *s, int64_t csa)
{
    int64_t layer = lsa_csa_layer(s, csa);
    return layer < 0 ? NULL : &s->layers[layer];
}

static const float *ring_at(const lsa_ring *ring, int64_t position)
{
    return ring->data + position % ring->room * ring->width;
}

/* Rows of the last n tokens, oldest first. */
static int last_rows(const lsa_session *s, const lsa_ring *ring, int64_t n, float *out)
{
    int64_t row = ring->width * (int64_t)sizeof *out;
    for (int64_t i = 0, run; i < n; i += run) {
        int64_t at = (s->progress.tokens - n + i) % ring->room;
        run = n - i < ring->room - at ? n - i : ring->room - at;
        LSA_TRY(lsa_copy_in(s->memory_kind, out + i * ring->width, ring->data + at * ring->width,
                            run * row));
    }
    return LSA_OK;
}

static int check_chunks(const lsa_session *s, int64_t from, int64_t n)
{
    if (from >= 0 && n >= 0 && from + n <= lsa_session_chunks(s)) return LSA_OK;
    return lsa_fail(LSA_EARG, "session: chunks %lld to %lld; there are %lld", (long long)from,
                    (long long)(from + n - 1), (long long)lsa_session_chunks(s));
}

static int check_recent(const lsa_session *s, const char *what, int64_t w)
{
    if (w >= 1 && w <= lsa_session_recent(s)) return LSA_OK;
    return lsa_fail(LSA_EARG, "session: %s of the last %lld tokens; 1 to %lld are kept", what,
                    (long long)w, (long long)lsa_session_recent(s));
}

int lsa_session_hidden(const lsa_session *s, int64_t csa, int64_t w, float *hidden)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    if (!s->progress.tokens)
        return lsa_fail(LSA_ESTATE, "session: no token has been run, so there is no hidden state");
    LSA_TRY(check_recent(s, "hidden states", w));
    return last_rows(s, &l->hidden, w, hidden);
}

int lsa_session_keys(const lsa_session *s, int64_t csa, int64_t from, int64_t n, void *keys)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    int rc = check_chunks(s, from, n);
    return rc ? rc : lsa_pool_read_keys(s->pool, csa, from, n, keys);
}

int lsa_session_entries(const lsa_session *s, int64_t csa, int64_t from, int64_t n, float *entries)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    int rc = check_chunks(s, from, n);
    const lsa_config *c = &s->model->config;
    int64_t bytes = lsa_kv_record_bytes(s->kv_format, c->head_dim, c->rope_dim);
    uint8_t *records = lsa_alloc(AT_A_TIME * bytes);
    int32_t chunks[AT_A_TIME];
    if (!rc && !records) rc = LSA_ENOMEM;
    for (int64_t at = 0; !rc && at < n; at += AT_A_TIME) {
        int64_t m = n - at < AT_A_TIME ? n - at : AT_A_TIME;
        for (int64_t i = 0; i < m; i++) chunks[i] = (int32_t)(from + at + i);
        rc = lsa_pool_read(s->pool, csa, chunks, m, records);
        if (!rc)
            rc = lsa_kernels_cpu.kv_decode(entries + at * c->head_dim, records, m, c->head_dim,
                                           c->rope_dim, bytes, s->kv_format, NULL);
    }
    lsa_free(records);
    return rc;
}

int64_t lsa_session_recent(const lsa_session *s)
{
    return s->progress.tokens < LSA_RECENT ? s->progress.tokens : LSA_RECENT;
}

int lsa_session_queries(const lsa_session *s, int64_t csa, int64_t w, float *queries,
                        float *weights)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    LSA_TRY(check_recent(s, "queries", w));
    LSA_TRY(last_rows(s, &l->queries, w, queries));
    return last_rows(s, &l->query_weights, w, weights);
}

/* The same where keys lie on a GPU: queries go there, scores come back. */
static int scores_on_gpu(const lsa_session *s, int64_t csa, const float *q, const float *w,
                         int64_t rows, int64_t heads, int64_t chunks, float *scores)
{
    const lsa_config *c = &s->model->config;
    const lsa_kernels *k = s->model->kernels;
    int64_t key = lsa_pool_key_bytes(s->pool), f = sizeof(float), n;
    int64_t bytes = k->index_score_workspace(rows, LSA_POOL_KEY_RUN, heads, c->index_dim,
                                             s->kv_format, s->scoring);
    int64_t queries = (rows * heads * c->index_dim * f + 255) / 256 * 256,
            weights = (rows * heads * f + 255) / 256 * 256;
    uint8_t *block =
        lsa_alloc_in(s->memory_kind, queries + weights + bytes + 256 + rows * chunks * f);
    if (!block) return LSA_ENOMEM;
    uint8_t *workspace = block + queries + weights;
    float *out = (float *)(workspace + (bytes + 255) / 256 * 256);
    memcpy(block, q, (size_t)(rows * heads * c->index_dim * f));
    memcpy(block + queries, w, (size_t)(rows * heads * f));
    int rc = LSA_OK;
    for (int64_t from = 0; !rc && from < chunks; from += n) {
        n = chunks - from < LSA_POOL_KEY_RUN ? chunks - from : LSA_POOL_KEY_RUN;
        rc = k->index_score(out + from, (float *)block, (float *)(block + queries),
                            lsa_pool_keys(s->pool, csa, from), rows, n, heads, c->index_dim, key,
                            chunks, s->kv_format, s->scoring, workspace, NULL);
    }
    if (!rc) rc = lsa_device_synchronize();
    if (!rc) memcpy(scores, out, (size_t)(rows * chunks * f));
    lsa_free_in(s->memory_kind, block);
    return rc;
}

/* Scores of all keys of some layers, run by run of the keys: each with its own queries, and where there are several, joined. */
typedef struct scoring {
    const lsa_session *s;
    const lsa_index_queries *layers;
    int64_t count, rows, chunks;
    int32_t how;
    float *out; /* [rows, chunks] */
    uint8_t *memory;
    int64_t workspace,
        share; /* bytes of a thread's memory: index_score's workspace, then logits of a run [count, run] */
    lsa_failure failure;
} scoring;

static int score_run(const scoring *c, int64_t run, uint8_t *memory)
{
    const lsa_session *s = c->s;
    int64_t from = run * LSA_POOL_KEY_RUN, left = c->chunks - from;
    int64_t n = left < LSA_POOL_KEY_RUN ? left : LSA_POOL_KEY_RUN;
    float *logits = (float *)(void *)(memory + c->workspace);
    for (int64_t i = 0; i < c->count; i++) {
        const lsa_index_queries *l = &c->layers[i];
        LSA_TRY(lsa_kernels_cpu.index_score(
            c->how >= 0 ? logits + i * n : c->out + from, l->q, l->w,
            lsa_pool_keys(s->pool, l->csa, from), c->rows, n, l->heads, s->model->config.index_dim,
            lsa_pool_key_bytes(s->pool), c->chunks, s->kv_format, s->scoring, memory, NULL));
    }
    if (c->how < 0) return LSA_OK;
    return lsa_kernels_cpu.ensemble(c->out + from, logits, c->count, n, c->how, NULL);
}

static void score_runs(void *context, int64_t from, int64_t to, int thread)
{
    scoring *c = context;
    for (int64_t run = from; run < to; run++)
        lsa_failure_note(&c->failure, score_run(c, run, c->memory + thread * c->share));
}

/* All layers' keys are in this memory. how: -1 for one layer's logits. */
static int score_in_memory(const lsa_session *s, const lsa_index_queries *layers, int64_t count,
                           int64_t rows, int64_t chunks, int32_t how, float *out)
{
    int64_t dim = s->model->config.index_dim, work = 0, bytes = 0;
    scoring c = {s, layers, count, rows, chunks, how, out, NULL, 0, 0, {0}};
    for (int64_t i = 0; i < count; i++) {
        bytes = lsa_index_score_workspace(rows, LSA_POOL_KEY_RUN, layers[i].heads, dim,
                                          s->kv_format, s->scoring);
        if (bytes > c.workspace) c.workspace = bytes;
        work += rows * chunks * layers[i].heads * dim / 64;
    }
    int threads = lsa_threads_for(work);
    c.workspace = (c.workspace + 63) / 64 * 64;
    c.share = c.workspace + (how < 0 ? 0 : count * LSA_POOL_KEY_RUN * (int64_t)sizeof(float));
    c.memory = lsa_alloc(threads * c.share + 64);
    if (!c.memory) return LSA_ENOMEM;
    lsa_parallel(threads, (chunks + LSA_POOL_KEY_RUN - 1) / LSA_POOL_KEY_RUN, score_runs, &c);
    lsa_free(c.memory);
    return lsa_failure_raise(&c.failure);
}

/* The same where keys are read from the cold tier's file. */
static int score_from_disk(const lsa_session *s, const lsa_index_queries *l, int64_t rows,
                           int64_t chunks, float *scores)
{
    const lsa_config *c = &s->model->config;
    int64_t key = lsa_pool_key_bytes(s->pool), run = KEYS_FROM_DISK / key;
    int64_t bytes =
        lsa_index_score_workspace(rows, run, l->heads, c->index_dim, s->kv_format, s->scoring);
    void *workspace = lsa_alloc(bytes + 64);
    uint8_t *keys = lsa_alloc(run * key);
    int rc = workspace && keys ? LSA_OK : LSA_ENOMEM;
    for (int64_t from = 0; !rc && from < chunks; from += run) {
        int64_t n = chunks - from < run ? chunks - from : run;
        rc = lsa_pool_read_keys(s->pool, l->csa, from, n, keys);
        if (!rc)
            rc = lsa_kernels_cpu.index_score(scores + from, l->q, l->w, keys, rows, n, l->heads,
                                             c->index_dim, key, chunks, s->kv_format, s->scoring,
                                             workspace, NULL);
    }
    lsa_free(keys);
    lsa_free(workspace);
    return rc;
}

int lsa_session_scores_of(const lsa_session *s, int64_t csa, const float *q, const float *w,
                          int64_t rows, int64_t heads, int64_t chunks, float *scores)
{
    if (s->memory_kind != LSA_MEMORY_HOST)
        return scores_on_gpu(s, csa, q, w, rows, heads, chunks, scores);
    lsa_index_queries l = {csa, heads, q, w};
    if (!lsa_pool_has_keys(s->pool, csa)) return score_from_disk(s, &l, rows, chunks, scores);
    return score_in_memory(s, &l, 1, rows, chunks, -1, scores);
}

/* Layer by layer, where keys are elsewhere. */
static int ensemble_of_layers(const lsa_session *s, const lsa_index_queries *layers, int64_t count,
                              int32_t how, float *scores)
{
    int64_t chunks = lsa_session_chunks(s);
    float *logits = lsa_alloc(count * chunks * (int64_t)sizeof *logits);
    int rc = logits ? LSA_OK : LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < count; i++)
        rc = lsa_session_scores_of(s, layers[i].csa, layers[i].q, layers[i].w, 1, layers[i].heads,
                                   chunks, logits + i * chunks);
    if (!rc) rc = lsa_kernels_cpu.ensemble(scores, logits, count, chunks, how, NULL);
    lsa_free(logits);
    return rc;
}

static int check_layers(const lsa_session *s, const lsa_index_queries *layers, int64_t count,
                        int32_t how)
{
    LSA_TRY(lsa_ensemble_check(count, how));
    for (int64_t i = 0; i < count; i++)
        if (!store_of(s, layers[i].csa)) return LSA_EARG;
    return LSA_OK;
}

int lsa_session_ensemble(const lsa_session *s, const lsa_index_queries *layers, int64_t count,
                         int32_t how, float *scores)
{
    LSA_TRY(check_layers(s, layers, count, how));
    int here = s->memory_kind == LSA_MEMORY_HOST;
    for (int64_t i = 0; here && i < count; i++) here = lsa_pool_has_keys(s->pool, layers[i].csa);
    if (!here) return ensemble_of_layers(s, layers, count, how, scores);
    return score_in_memory(s, layers, count, 1, lsa_session_chunks(s), how, scores);
}

int lsa_session_index_scores(const lsa_session *s, int64_t csa, const float *q, const float *w,
                             int64_t rows, int64_t heads, float *scores)
{
    if (!store_of(s, csa)) return LSA_EARG;
    return lsa_session_scores_of(s, csa, q, w, rows, heads, lsa_session_chunks(s), scores);
}

int lsa_session_observed(const lsa_session *s, int64_t csa, int32_t *used, float *mass)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    int64_t chunks = lsa_session_chunks(s);
    memset(used, 0, (size_t)chunks * sizeof *used);
    memset(mass, 0, (size_t)chunks * sizeof *mass);
    int64_t n = s->observed_by_chunk ? chunks : s->resident_count, bytes;
    if (n > s->room.observed) n = s->room.observed;
    bytes = n * (int64_t)sizeof *used;
    LSA_TRY(lsa_copy_in(s->memory_kind, used, l->used, bytes));
    LSA_TRY(lsa_copy_in(s->memory_kind, mass, l->mass, bytes));
    if (s->observed_by_chunk) return LSA_OK;
    for (int64_t i = n - 1; i >= 0; i--) { /* places ascend with chunks, and are not above them */
        int64_t chunk = s->residents[i];
        int32_t count = used[i];
        float share = mass[i];
        used[i] = 0, mass[i] = 0;
        used[chunk] = count, mass[chunk] = share;
    }
    return LSA_OK;
}

static int is_resident(const lsa_session *s, int32_t chunk)
{
    int64_t low = 0, high = s->resident_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (s->residents[middle] < chunk)
            low = middle + 1;
        else
            high = middle;
    }
    return low < s->resident_count && s->residents[low] == chunk;
}

int64_t lsa_session_picks(const lsa_session *s, int64_t csa, int32_t *ids, float *mass)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    int64_t last = s->progress.passes & 1;
    int32_t n;
    LSA_TRY(lsa_copy_in(s->memory_kind, &n, l->picked_count[last], sizeof n));
    LSA_TRY(lsa_copy_in(s->memory_kind, ids, l->picked[last], n * (int64_t)sizeof *ids));
    LSA_TRY(lsa_copy_in(s->memory_kind, mass, l->picked_mass[last], n * (int64_t)sizeof *mass));
    return n;
}

/* The same picks as Level 2's where the keys are to be read from the file: scores of all chunks, then the best. */
static int topk_from_disk(const lsa_session *s, int64_t csa, const float *q, const float *w,
                          int32_t *ids, int32_t *count)
{
    int64_t chunks = lsa_session_chunks(s), heads = s->model->config.index_heads;
    int32_t k = (int32_t)s->model->config.index_topk;
    float *scores = lsa_alloc(chunks * (int64_t)sizeof *scores);
    void *workspace = lsa_alloc(lsa_topk_workspace(1, k));
    int32_t *best = lsa_alloc(k * (int64_t)sizeof *best);
    int rc = scores && workspace && best ? LSA_OK : LSA_ENOMEM;
    if (!rc) rc = lsa_session_scores_of(s, csa, q, w, 1, heads, chunks, scores);
    if (!rc)
        rc = lsa_kernels_cpu.topk(best, NULL, count, scores, 1, chunks, chunks, k, workspace, NULL);
    if (!rc) memcpy(ids, best, (size_t)*count * sizeof *ids);
    lsa_free(scores);
    lsa_free(workspace);
    lsa_free(best);
    return rc;
}

static int topk_from_memory(const lsa_session *s, int64_t layer, const float *q, const float *w,
                            int32_t *ids, int32_t *count)
{
    const lsa_config *c = &s->model->config;
    lsa_activations *a = s->activations;
    lsa_picking picking = {q,
                           w,
                           c->index_heads,
                           c->index_dim,
                           c->index_topk,
                           c->csa_rate,
                           1,
                           s->progress.tokens / c->csa_rate,
                           s->kv_format,
                           s->scoring};
    LSA_TRY(lsa_activations_reserve(a, 1, 0, picking.most, 1));
    lsa_pass_rows there;
    *a->steps = (lsa_steps){.progress = {.tokens = s->progress.tokens - 1}};
    *a->spans = (lsa_span){.rows = 1};
    LSA_TRY(lsa_state_layers((lsa_session *)(uintptr_t)s,
                             &a->spans->layers)); /* what is there changes, not what it says */
    LSA_TRY(lsa_activations_upload(a, 1, 1, &there));
    LSA_TRY(s->model->kernels->pick(a->ids, NULL, a->counts, there.spans, 1, layer, &picking,
                                    a->workspace, NULL));
    if (s->memory_kind != LSA_MEMORY_HOST) LSA_TRY(lsa_device_synchronize());
    LSA_TRY(lsa_copy_in(s->memory_kind, count, a->counts, sizeof *count));
    return lsa_copy_in(s->memory_kind, ids, a->ids, *count * (int64_t)sizeof *ids);
}

int64_t lsa_session_native_topk(const lsa_session *s, int64_t csa, int32_t *ids)
{
    const lsa_layer_store *l = store_of(s, csa);
    if (!l) return LSA_EARG;
    if (!s->progress.tokens) return 0;
    int64_t last = s->progress.tokens - 1;
    int32_t count = 0;
    const float *q = ring_at(&l->queries, last), *w = ring_at(&l->query_weights, last);
    int rc = lsa_pool_has_keys(s->pool, csa) ? topk_from_memory(s, l - s->layers, q, w, ids, &count)
                                             : topk_from_disk(s, csa, q, w, ids, &count);
    return rc ? rc : count;
}

int lsa_session_coverage(const lsa_session *s, int64_t *covered, int64_t *total)
{
    *covered = *total = 0;
    for (int64_t csa = 0; csa < s->model->config.csa_layers; csa++) {
        int32_t *ids = s->activations->places;
        if (!lsa_pool_has_keys(s->pool, csa)) continue; /* too dear for a sample */
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
    if (s->demand)
        out->kv_resident = lsa_on_demand_held(s->demand, s->pool) * record * c->csa_layers;
    out->tokens = lsa_cow_blocks_bytes(&s->token_ids);
    for (int64_t i = 0; i < c->layers; i++) {
        const lsa_layer_store *l = &s->layers[i];
        if (c->layer_type[i] == LSA_LAYER_CSA)
            out->index_keys += chunks * lsa_pool_key_bytes(s->pool);
        out->hca += s->entries[i].count * s->entries[i].item;
        int64_t rows = s->progress.tokens < c->window ? s->progress.tokens : c->window;
        out->window += rows * l->window.width * (int64_t)sizeof(float);
    }
    if (!s->pool) return;
    out->hot_cells = lsa_pool_hot_bytes(s->pool);
    out->mirror = lsa_pool_mirror_bytes(s->pool);
    out->cold = lsa_pool_cold_bytes(s->pool);
    out->disk = lsa_pool_disk_bytes(s->pool);
}
