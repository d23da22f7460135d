/* Owns sessions: their life, forks, residents, and the questions that a policy asks. */
#include "core/session/session.h"

#include <string.h>

#include "core/base/clock.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/session/activations.h"
#include "core/session/forward.h"
#include "core/session/session_state.h"
#include "kernels/index_score.h"
#include "kernels/kv_record.h"

enum { BORN_ROOM = 64 };

/* ---- life ---- */

static int compressor_rows(lsa_row_history *kv, lsa_row_history *gate, int64_t width, int64_t rate,
                           int64_t piece)
{
    int rc = lsa_row_history_new(kv, width, 2 * rate, piece);
    return rc ? rc : lsa_row_history_new(gate, width, 2 * rate, piece);
}

/* Where a step under way leaves what becomes the last one's. */
static int next_init(lsa_layer_state *l, const lsa_config *c)
{
    l->next_hidden = lsa_alloc(c->hidden * (int64_t)sizeof(float));
    l->next_places = lsa_alloc(c->index_topk * (int64_t)sizeof(int32_t));
    l->next_mass = lsa_alloc(c->index_topk * (int64_t)sizeof(float));
    return l->next_hidden && l->next_places && l->next_mass ? LSA_OK : LSA_ENOMEM;
}

static int layer_init(lsa_session *s, int64_t layer, int64_t csa)
{
    const lsa_config *c = &s->model->config;
    lsa_layer_state *l = &s->layers[layer];
    int64_t piece = lsa_activations_piece(s->scratch),
            record = lsa_kv_record_bytes(s->kv_format, c->head_dim, c->rope_dim);
    l->csa = -1;
    int rc = lsa_row_history_new(&l->window, c->head_dim, c->window, piece);
    if (!rc && c->layer_type[layer] == LSA_LAYER_HCA) {
        rc = compressor_rows(&l->kv, &l->gate, c->head_dim, c->hca_rate, piece);
        lsa_cow_blocks_init(&l->entries, record, LSA_ENTRY_SHIFT);
    }
    if (!rc && c->layer_type[layer] == LSA_LAYER_CSA) {
        l->csa = csa;
        rc = compressor_rows(&l->kv, &l->gate, 2 * c->head_dim, c->csa_rate, piece);
        if (!rc)
            rc =
                compressor_rows(&l->index_kv, &l->index_gate, 2 * c->index_dim, c->csa_rate, piece);
        if (!rc)
            rc = lsa_row_history_new(&l->queries, c->index_heads * c->index_dim, LSA_RECENT, piece);
        if (!rc) rc = lsa_row_history_new(&l->query_weights, c->index_heads, LSA_RECENT, piece);
        l->hidden = lsa_alloc_zero(c->hidden * (int64_t)sizeof(float));
        l->last_ids = lsa_alloc_zero(c->index_topk * (int64_t)sizeof(int32_t));
        l->last_mass = lsa_alloc_zero(c->index_topk * (int64_t)sizeof(float));
        if (!rc && (!l->hidden || !l->last_ids || !l->last_mass)) rc = LSA_ENOMEM;
        if (!rc) rc = next_init(l, c);
    }
    return rc;
}

/* A session without content; layers zeroed. */
static int session_alloc(lsa_session **out, const lsa_model *model, lsa_activations *scratch)
{
    lsa_session *s = lsa_alloc_zero(sizeof *s);
    if (!s) return LSA_ENOMEM;
    s->model = model;
    s->scratch = scratch;
    lsa_activations_retain(scratch);
    s->observed_by_chunk = 1;
    int64_t vocab = model->config.vocab;
    lsa_cow_blocks_init(&s->token_ids,
                        vocab <= 1 << 8    ? 1
                        : vocab <= 1 << 16 ? 2
                                           : 4,
                        LSA_TOKEN_SHIFT);
    s->layers = lsa_alloc_zero(model->config.layers * (int64_t)sizeof *s->layers);
    s->layer_count = s->layers ? model->config.layers : 0;
    s->logits = lsa_alloc_zero(model->config.vocab * (int64_t)sizeof(float));
    *out = s;
    return s->layers && s->logits ? LSA_OK : LSA_ENOMEM;
}

int lsa_session_new(lsa_session **out, const lsa_model *model, lsa_activations *scratch,
                    int32_t kv_format, int32_t compute, int64_t unit)
{
    const lsa_config *c = &model->config;
    if (!lsa_kv_record_bytes(kv_format, c->head_dim, c->rope_dim))
        return lsa_fail(LSA_EARG, "session: kv format %d is unknown", kv_format);
    if (kv_format == LSA_KV_FP8 && c->csa_layers && (c->index_dim & (c->index_dim - 1)))
        return lsa_fail(
            LSA_ESHAPE,
            "session: kv = \"fp8\" rotates index keys, whose dimension %lld is no power of two",
            (long long)c->index_dim);
    lsa_session *s = NULL;
    int rc = session_alloc(&s, model, scratch);
    if (!s) return rc;
    s->kv_format = kv_format;
    s->compute = compute;
    if (!rc && c->csa_layers)
        rc = lsa_pool_new(&s->pool, c->csa_layers,
                          lsa_kv_record_bytes(kv_format, c->head_dim, c->rope_dim), unit);
    if (!rc && s->pool)
        rc = lsa_pool_add_keys(s->pool, lsa_index_key_bytes(kv_format, c->index_dim));
    int64_t csa = 0;
    for (int64_t i = 0; !rc && i < c->layers; i++) {
        rc = layer_init(s, i, csa);
        csa += c->layer_type[i] == LSA_LAYER_CSA;
    }
    if (rc) {
        lsa_session_free(s);
        return rc;
    }
    *out = s;
    return LSA_OK;
}

static void layer_free(lsa_layer_state *l)
{
    lsa_row_history *rows[] = {&l->window,     &l->kv,      &l->gate,         &l->index_kv,
                               &l->index_gate, &l->queries, &l->query_weights};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) lsa_row_history_free(rows[i]);
    lsa_cow_blocks_free(&l->entries);
    lsa_free(l->hidden);
    lsa_free(l->next_hidden);
    lsa_free(l->next_places);
    lsa_free(l->next_mass);
    lsa_free(l->last_ids);
    lsa_free(l->last_mass);
    lsa_free(l->resident_keys);
    lsa_free(l->used);
    lsa_free(l->mass);
}

void lsa_session_free(lsa_session *s)
{
    if (!s) return;
    for (int64_t i = 0; i < s->layer_count; i++) layer_free(&s->layers[i]);
    lsa_free(s->layers);
    lsa_cow_blocks_free(&s->token_ids);
    lsa_on_demand_free(s->demand);
    lsa_pool_free(s->pool);
    lsa_free(s->logits);
    lsa_free(s->residents);
    lsa_activations_release(s->scratch);
    lsa_free(s);
}

static int copy_block(void *out, const void *block, int64_t bytes)
{
    void *copy = NULL;
    if (block) {
        if (!(copy = lsa_alloc(bytes))) return LSA_ENOMEM;
        memcpy(copy, block, (size_t)bytes);
    }
    memcpy(out, &copy, sizeof copy);
    return LSA_OK;
}

static int layer_fork(lsa_session *to, const lsa_session *from, int64_t layer)
{
    lsa_layer_state *out = &to->layers[layer];
    const lsa_layer_state *l = &from->layers[layer];
    const lsa_config *c = &from->model->config;
    out->csa = l->csa;
    lsa_row_history *rows[] = {&out->window,     &out->kv,      &out->gate,         &out->index_kv,
                               &out->index_gate, &out->queries, &out->query_weights};
    const lsa_row_history *old[] = {&l->window,     &l->kv,      &l->gate,         &l->index_kv,
                                    &l->index_gate, &l->queries, &l->query_weights};
    int rc = LSA_OK;
    for (size_t i = 0; !rc && i < sizeof rows / sizeof *rows; i++)
        rc = lsa_row_history_copy(rows[i], old[i]);
    if (!rc) rc = lsa_cow_blocks_fork(&out->entries, &l->entries);
    if (!rc) rc = copy_block(&out->hidden, l->hidden, c->hidden * (int64_t)sizeof(float));
    out->last_count = l->last_count;
    if (!rc) rc = copy_block(&out->last_ids, l->last_ids, c->index_topk * (int64_t)sizeof(int32_t));
    if (!rc) rc = copy_block(&out->last_mass, l->last_mass, c->index_topk * (int64_t)sizeof(float));
    if (!rc)
        rc = copy_block(&out->resident_keys, l->resident_keys,
                        from->resident_room * lsa_pool_key_bytes(from->pool));
    if (!rc) rc = copy_block(&out->used, l->used, from->observed_room * (int64_t)sizeof *l->used);
    if (!rc) rc = copy_block(&out->mass, l->mass, from->observed_room * (int64_t)sizeof *l->mass);
    if (!rc && l->csa >= 0) rc = next_init(out, c);
    return rc;
}

int lsa_session_fork(lsa_session **out, const lsa_session *s)
{
    lsa_session *t = NULL;
    int rc = session_alloc(&t, s->model, s->scratch);
    if (!t) return rc;
    t->kv_format = s->kv_format;
    t->compute = s->compute;
    t->tiered = s->tiered;
    t->tokens = s->tokens;
    t->resident_count = s->resident_count;
    t->resident_room = s->resident_room;
    t->observed_room = s->observed_room;
    t->observed_by_chunk = s->observed_by_chunk;
    if (!rc) memcpy(t->logits, s->logits, (size_t)s->model->config.vocab * sizeof(float));
    if (!rc) rc = lsa_cow_blocks_fork(&t->token_ids, &s->token_ids);
    if (!rc && s->pool) rc = lsa_pool_fork(&t->pool, s->pool);
    if (!rc && s->demand) rc = lsa_on_demand_fork(&t->demand, s->demand);
    if (!rc)
        rc = copy_block(&t->residents, s->residents,
                        s->resident_room * (int64_t)sizeof *s->residents);
    for (int64_t i = 0; !rc && i < s->model->config.layers; i++) rc = layer_fork(t, s, i);
    if (rc) {
        lsa_session_free(t);
        return rc;
    }
    *out = t;
    return LSA_OK;
}

/* ---- running ---- */

static int check_tokens(const lsa_session *s, const int32_t *tokens, int64_t n)
{
    const lsa_config *c = &s->model->config;
    if (n < 1)
        return lsa_fail(LSA_EARG, "session: a prompt of %lld tokens; at least 1 is needed",
                        (long long)n);
    if (s->tokens + n > c->max_positions)
        return lsa_fail(
            LSA_EARG,
            "session: %lld tokens after %lld; the model's max_position_embeddings is %lld",
            (long long)n, (long long)s->tokens, (long long)c->max_positions);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= c->vocab)
            return lsa_fail(LSA_EARG, "session: token %lld is %d; the vocabulary has %lld",
                            (long long)i, tokens[i], (long long)c->vocab);
    return LSA_OK;
}

/* Prefill looks at all chunks, so what is observed from here on is counted by chunk. */
static int observe_by_chunk(lsa_session *s)
{
    if (s->observed_by_chunk) return LSA_OK;
    int rc = lsa_session_observed_room(s, lsa_session_chunks(s));
    if (rc) return rc;
    for (int64_t i = 0; i < s->model->config.layers; i++) {
        lsa_layer_state *l = &s->layers[i];
        if (l->csa < 0) continue;
        memset(l->used, 0, (size_t)s->observed_room * sizeof *l->used);
        memset(l->mass, 0, (size_t)s->observed_room * sizeof *l->mass);
    }
    s->observed_by_chunk = 1;
    return LSA_OK;
}

/* Runs n tokens and commits them: a pass of one segment. Logits of the last `rows` go to `logits`. */
static int run_piece(lsa_session *s, const int32_t *tokens, int64_t n, int64_t rows, float *logits,
                     int decoding, lsa_trace *trace, int64_t *attention_bytes)
{
    lsa_segment segment = {.s = s, .tokens = tokens, .n = n};
    lsa_pass pass = {.model = s->model,
                     .c = &s->model->config,
                     .w = s->scratch,
                     .compute = s->compute,
                     .decoding = decoding,
                     .segments = &segment,
                     .count = 1,
                     .trace = trace};
    int rc = lsa_forward(&pass, rows, logits);
    if (attention_bytes) *attention_bytes = segment.attention_bytes;
    return rc ? rc : segment.code;
}

int lsa_session_prefill(lsa_session *s, const int32_t *tokens, int64_t n, int32_t all,
                        float *logits, lsa_trace *trace, int64_t *done)
{
    int64_t finished = 0, piece = lsa_activations_piece(s->scratch), vocab = s->model->config.vocab;
    if (done) *done = 0;
    int rc = check_tokens(s, tokens, n);
    if (!rc && s->pool) rc = lsa_pool_load(s->pool);
    if (!rc) rc = observe_by_chunk(s);
    if (rc) return rc;
    int64_t start = lsa_clock_ns();
    while (!rc && finished < n) {
        int64_t m = n - finished < piece ? n - finished : piece;
        int last = finished + m == n;
        float *to = all ? logits + finished * vocab : s->logits;
        rc = run_piece(s, tokens + finished, m, all ? m : last, to, 0, trace, NULL);
        if (!rc) finished += m;
        if (done) *done = finished;
    }
    s->counters.prefill_ns += lsa_clock_ns() - start;
    s->counters.prefilled += finished;
    if (rc == LSA_EINTR)
        return lsa_fail(rc, "interrupted: the session took %lld of %lld tokens",
                        (long long)finished, (long long)n);
    if (rc) return rc;
    if (all)
        memcpy(s->logits, logits + (n - 1) * vocab, (size_t)vocab * sizeof *logits);
    else if (logits)
        memcpy(logits, s->logits, (size_t)vocab * sizeof *logits);
    return LSA_OK;
}

void lsa_session_count_step(lsa_session *s, int64_t attention_bytes, int64_t ns)
{
    int64_t chunks = lsa_session_chunks(s), scored = s->tiered ? s->resident_count : chunks;
    int64_t residents = s->demand ? lsa_pool_held_cells(s->pool) : scored;
    lsa_session_counters *c = &s->counters;
    c->steps++;
    c->decode_ns += ns;
    c->resident_share += chunks ? (double)residents / (double)chunks : 1.0;
    c->resident_sum += residents;
    c->chunk_sum += chunks;
    c->scored += scored * s->model->config.csa_layers;
    c->attention_bytes += attention_bytes;
}

int64_t lsa_session_demand_cells(const lsa_session *s, int64_t chunks)
{
    int64_t most = s->model->config.index_topk * s->model->config.csa_layers;
    return chunks < most ? chunks : most;
}

static int check_demand(const lsa_session *s)
{
    int64_t need = lsa_session_demand_cells(s, (s->tokens + 1) / s->model->config.csa_rate),
            cells = lsa_pool_cells(s->pool);
    if (cells >= need) return LSA_OK;
    return lsa_fail(LSA_ESTATE,
                    "on demand: the hot pool has %lld cells, a step can pick %lld chunks",
                    (long long)cells, (long long)need);
}

int lsa_session_check_step(lsa_session *s, int32_t token)
{
    int rc = check_tokens(s, &token, 1);
    if (rc || s->tiered) return rc;
    if (s->demand)
        rc = check_demand(s);
    else if (s->pool)
        rc = lsa_pool_load(s->pool);
    return rc ? rc : observe_by_chunk(s);
}

int lsa_session_decode(lsa_session *s, int32_t token, float *logits)
{
    int64_t start = lsa_clock_ns(), attention_bytes = 0;
    int rc = lsa_session_check_step(s, token);
    if (!rc) rc = run_piece(s, &token, 1, 1, s->logits, 1, NULL, &attention_bytes);
    if (rc) return rc;
    lsa_session_count_step(s, attention_bytes, lsa_clock_ns() - start);
    if (logits) memcpy(logits, s->logits, (size_t)s->model->config.vocab * sizeof *logits);
    return LSA_OK;
}

/* ---- residents ---- */

static int grow(void *pointer, int64_t old, int64_t room, int64_t size)
{
    void *block, *larger;
    memcpy(&block, pointer, sizeof block);
    if (!(larger = lsa_realloc(block, room * size))) return LSA_ENOMEM;
    memset((char *)larger + old * size, 0, (size_t)((room - old) * size));
    memcpy(pointer, &larger, sizeof larger);
    return LSA_OK;
}

int lsa_session_resident_room(lsa_session *s, int64_t n)
{
    if (n <= s->resident_room) return LSA_OK;
    int64_t room = n + BORN_ROOM, old = s->resident_room;
    int rc = grow(&s->residents, old, room, sizeof *s->residents);
    for (int64_t i = 0; !rc && i < s->model->config.layers; i++)
        if (s->layers[i].csa >= 0)
            rc = grow(&s->layers[i].resident_keys, old, room, lsa_pool_key_bytes(s->pool));
    if (!rc) s->resident_room = room;
    return rc;
}

int lsa_session_observed_room(lsa_session *s, int64_t n)
{
    if (n <= s->observed_room) return LSA_OK;
    int64_t room = n > 2 * s->observed_room ? n + BORN_ROOM : 2 * s->observed_room,
            old = s->observed_room;
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < s->model->config.layers; i++) {
        lsa_layer_state *l = &s->layers[i];
        if (l->csa < 0) continue;
        rc = grow(&l->used, old, room, sizeof *l->used);
        if (!rc) rc = grow(&l->mass, old, room, sizeof *l->mass);
    }
    if (!rc) s->observed_room = room;
    return rc;
}

static int need_chunks(const lsa_session *s)
{
    return s->pool ? LSA_OK
                   : lsa_fail(LSA_ESTATE,
                              "session: the model has no CSA layers, so no chunks to choose among");
}

int lsa_session_set_tiered(lsa_session *s, int32_t tiered)
{
    int rc = tiered ? need_chunks(s) : LSA_OK;
    if (rc) return rc;
    if (!tiered != !s->tiered) s->resident_count = 0;
    if (tiered) {
        lsa_on_demand_free(s->demand);
        s->demand = NULL;
    }
    s->tiered = tiered != 0;
    return LSA_OK;
}

int lsa_session_set_on_demand(lsa_session *s, int32_t on)
{
    if (!on) {
        lsa_on_demand_free(s->demand);
        s->demand = NULL;
        return LSA_OK;
    }
    int rc = need_chunks(s);
    if (!rc) rc = lsa_pool_keys_stay(s->pool);
    if (!rc && lsa_pool_unit(s->pool) != 1)
        rc = lsa_fail(LSA_ESTATE, "session: on demand, cells hold chunks; these hold pages of %lld",
                      (long long)lsa_pool_unit(s->pool));
    if (!rc && !s->demand) rc = lsa_on_demand_new(&s->demand, s->pool);
    return rc ? rc : lsa_session_set_tiered(s, 0);
}

int lsa_session_set_disk(lsa_session *s, const char *directory, const int32_t *targets, int64_t n)
{
    int rc = need_chunks(s);
    int64_t layers = s->model->config.csa_layers;
    uint8_t *kept = lsa_alloc_zero(layers);
    if (!rc && !kept) rc = LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++) {
        if (targets[i] < 0 || targets[i] >= layers)
            rc = lsa_fail(LSA_EARG, "session: CSA layer %d; the model has %lld", targets[i],
                          (long long)layers);
        else
            kept[targets[i]] = 1;
    }
    if (!rc) rc = lsa_pool_set_disk(s->pool, directory, kept);
    lsa_free(kept);
    return rc;
}

/* What set_residents builds aside before it changes anything. */
typedef struct resident_layer {
    uint8_t *keys;
    int32_t *used;
    float *mass;
} resident_layer;

static int build_layer(resident_layer *out, const lsa_pool *pool, int64_t csa,
                       const int32_t *chunks, int64_t n, int64_t room)
{
    out->keys = lsa_alloc(room * lsa_pool_key_bytes(pool));
    out->used = lsa_alloc_zero(room * (int64_t)sizeof *out->used);
    out->mass = lsa_alloc_zero(room * (int64_t)sizeof *out->mass);
    if (!out->keys || !out->used || !out->mass) return LSA_ENOMEM;
    return lsa_pool_keys_of_cells(pool, csa, chunks, n, out->keys);
}

static int check_residents(const lsa_session *s, const int32_t *chunks, int64_t n)
{
    int64_t all = lsa_session_chunks(s), unit = lsa_pool_unit(s->pool);
    for (int64_t i = 0; i < n; i++) {
        if (chunks[i] < 0 || chunks[i] >= all || (i && chunks[i] <= chunks[i - 1]))
            return lsa_fail(
                LSA_EARG, "session: resident %lld is chunk %d; ascending ids below %lld are needed",
                (long long)i, chunks[i], (long long)all);
        if (!lsa_pool_has(s->pool, chunks[i] / unit))
            return lsa_fail(LSA_ESTATE, "session: chunk %d is to be resident, but has no cell",
                            chunks[i]);
    }
    return LSA_OK;
}

int lsa_session_set_residents(lsa_session *s, const int32_t *chunks, int64_t n)
{
    int rc = need_chunks(s);
    if (!rc) rc = check_residents(s, chunks, n);
    if (rc) return rc;
    int64_t layers = s->model->config.layers, room = n + BORN_ROOM;
    resident_layer *built = lsa_alloc_zero(layers * (int64_t)sizeof *built);
    int32_t *residents = lsa_alloc(room * (int64_t)sizeof *residents);
    if (!built || !residents) rc = LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < layers; i++)
        if (s->layers[i].csa >= 0)
            rc = build_layer(&built[i], s->pool, s->layers[i].csa, chunks, n, room);
    if (!rc) { /* all at once: a step sees one consistent set */
        if (n) memcpy(residents, chunks, (size_t)n * sizeof *chunks);
        int32_t *old = s->residents;
        s->residents = residents;
        residents = old;
        for (int64_t i = 0; i < layers; i++) {
            lsa_layer_state *l = &s->layers[i];
            if (l->csa < 0) continue;
            resident_layer previous = {l->resident_keys, l->used, l->mass};
            l->resident_keys = built[i].keys;
            l->used = built[i].used;
            l->mass = built[i].mass;
            built[i] = previous;
        }
        s->resident_count = n;
        s->resident_room = s->observed_room = room;
        s->observed_by_chunk = 0;
    }
    for (int64_t i = 0; built && i < layers; i++) {
        lsa_free(built[i].keys);
        lsa_free(built[i].used);
        lsa_free(built[i].mass);
    }
    lsa_free(built);
    lsa_free(residents);
    return rc;
}

void lsa_session_drop_absent(lsa_session *s)
{
    int64_t kept = 0, unit = s->pool ? lsa_pool_unit(s->pool) : 1,
            key = s->pool ? lsa_pool_key_bytes(s->pool) : 0;
    for (int64_t i = 0; i < s->resident_count; i++) {
        if (!lsa_pool_has(s->pool, s->residents[i] / unit)) continue;
        for (int64_t j = 0; i > kept && j < s->model->config.layers; j++) {
            lsa_layer_state *l = &s->layers[j];
            if (l->csa < 0) continue;
            memcpy(l->resident_keys + kept * key, l->resident_keys + i * key, (size_t)key);
            if (s->observed_by_chunk) continue;
            l->used[kept] = l->used[i];
            l->mass[kept] = l->mass[i];
        }
        s->residents[kept++] = s->residents[i];
    }
    for (int64_t j = 0; !s->observed_by_chunk && j < s->model->config.layers;
         j++) /* who is born next starts at zero */
        for (int64_t i = kept; s->layers[j].csa >= 0 && i < s->resident_count; i++) {
            s->layers[j].used[i] = 0;
            s->layers[j].mass[i] = 0;
        }
    s->resident_count = kept;
}

int64_t lsa_session_residents(const lsa_session *s, int32_t *chunks)
{
    if (chunks && s->resident_count)
        memcpy(chunks, s->residents, (size_t)s->resident_count * sizeof *chunks);
    return s->resident_count;
}
