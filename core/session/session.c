/* Owns sessions: their life, forks, residents, and the questions that a policy asks. */
#include "core/session/session.h"

#include <string.h>

#include "core/base/clock.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/session/forward.h"
#include "kernels/index_score.h"
#include "kernels/kv_record.h"

enum { BORN_ROOM = 64 };

/* ---- life ---- */

static int64_t born_slots_room(const lsa_session *s)
{
    int64_t rows = lsa_activations_piece(s->activations);
    return (rows > LSA_STEPS_AHEAD ? rows : LSA_STEPS_AHEAD) / s->model->config.csa_rate + 1;
}

/* A session without content and arenas. */
static int session_alloc(lsa_session **out, const lsa_model *model, lsa_activations *activations)
{
    int32_t kind = model->memory_kind;
    lsa_session *s = lsa_alloc_zero(sizeof *s);
    if (!s) return LSA_ENOMEM;
    s->memory_kind = kind;
    int64_t vocab = model->config.vocab, layers = model->config.layers;
    s->model = model;
    s->activations = activations;
    lsa_activations_retain(activations);
    s->observed_by_chunk = 1;
    lsa_cow_blocks_init(&s->token_ids,
                        vocab <= 1 << 8    ? 1
                        : vocab <= 1 << 16 ? 2
                                           : 4,
                        LSA_TOKEN_SHIFT);
    int64_t stores = layers * (int64_t)sizeof *s->layers;
    s->layers = lsa_alloc_zero(stores);
    s->logits = lsa_alloc_zero(vocab * (int64_t)sizeof *s->logits);
    int there = 1;
    if (kind != LSA_MEMORY_HOST) {
        s->layers_there = lsa_alloc_in(kind, stores);
        s->layers_sent = lsa_alloc_zero(stores);
        there = s->layers_there && s->layers_sent;
    }
    s->entries = lsa_alloc_zero(layers * (int64_t)sizeof *s->entries);
    s->layer_count = s->entries ? layers : 0;
    int64_t born = born_slots_room(s) * (int64_t)sizeof *s->born_slots;
    s->born_slots = lsa_alloc_zero(born);
    s->born_slots_there = kind == LSA_MEMORY_HOST ? s->born_slots : lsa_alloc_in(kind, born);
    *out = s;
    return s->layers && s->logits && there && s->entries && s->born_slots && s->born_slots_there
               ? LSA_OK
               : LSA_ENOMEM;
}

int lsa_session_new(lsa_session **out, const lsa_model *model, lsa_activations *activations,
                    int32_t kv_format, int32_t compute, int64_t unit)
{
    const lsa_config *c = &model->config;
    int64_t record = lsa_kv_record_bytes(kv_format, c->head_dim, c->rope_dim);
    if (!record) return lsa_fail(LSA_EARG, "session: kv format %d is unknown", kv_format);
    if (kv_format == LSA_KV_FP8 && c->csa_layers && (c->index_dim & (c->index_dim - 1)))
        return lsa_fail(
            LSA_ESHAPE,
            "session: kv = \"fp8\" rotates index keys, whose dimension %lld is no power of two",
            (long long)c->index_dim);
    lsa_session *s = NULL;
    int rc = session_alloc(&s, model, activations);
    if (!s) return rc;
    s->kv_format = kv_format;
    s->compute = compute;
    s->scoring = compute;
    for (int64_t i = 0; !rc && i < c->layers; i++)
        lsa_cow_blocks_init_in(&s->entries[i], record, LSA_ENTRY_SHIFT, s->memory_kind);
    if (!rc && c->csa_layers) rc = lsa_pool_new(&s->pool, c->csa_layers, record, unit);
    if (!rc && s->pool)
        rc = lsa_pool_add_keys(s->pool, lsa_index_key_bytes(kv_format, c->index_dim));
    if (!rc && s->pool && s->memory_kind != LSA_MEMORY_HOST) rc = lsa_pool_set_gpu(s->pool);
    lsa_state_room room = {.piece = lsa_activations_piece(activations)};
    if (!rc) rc = lsa_state_resize(s, &room);
    if (rc) {
        lsa_session_free(s);
        return rc;
    }
    *out = s;
    return LSA_OK;
}

void lsa_session_free(lsa_session *s)
{
    if (!s) return;
    for (int64_t i = 0; i < s->layer_count; i++) lsa_cow_blocks_free(&s->entries[i]);
    lsa_free(s->entries);
    lsa_free(s->layers);
    lsa_free(s->layers_sent);
    lsa_free(s->logits);
    lsa_free_in(s->memory_kind, s->layers_there);
    if (s->born_slots_there != s->born_slots) lsa_free_in(s->memory_kind, s->born_slots_there);
    lsa_free(s->born_slots);
    lsa_state_free(s);
    lsa_cow_blocks_free(&s->token_ids);
    lsa_on_demand_free(s->demand);
    lsa_pool_free(s->pool);
    lsa_activations_release(s->activations);
    lsa_free(s);
}

int lsa_session_fork(lsa_session **out, lsa_session *s)
{
    lsa_session *t = NULL;
    int rc = session_alloc(&t, s->model, s->activations);
    if (!t) return rc;
    t->kv_format = s->kv_format;
    t->compute = s->compute;
    t->scoring = s->scoring;
    t->tiered = s->tiered;
    t->progress = s->progress;
    t->resident_count = s->resident_count;
    t->observed_by_chunk = s->observed_by_chunk;
    if (!rc) rc = lsa_cow_blocks_fork(&t->token_ids, &s->token_ids);
    if (!rc && s->pool) rc = lsa_pool_fork(&t->pool, s->pool);
    if (!rc && s->demand) rc = lsa_on_demand_settle(s->demand, s->pool);
    if (!rc && s->demand) rc = lsa_on_demand_fork(&t->demand, s->demand, s->pool, t->pool);
    for (int64_t i = 0; !rc && i < t->layer_count; i++)
        rc = lsa_cow_blocks_fork(&t->entries[i], &s->entries[i]);
    if (!rc) rc = lsa_state_copy(t, s);
    if (!rc) memcpy(t->logits, s->logits, (size_t)s->model->config.vocab * sizeof *t->logits);
    if (rc) {
        lsa_session_free(t);
        return rc;
    }
    lsa_state_bind_blocks(t);
    s->reserved = 0; /* the last blocks are both sessions' now: who writes first takes a copy */
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
    if (s->progress.tokens + n > c->max_positions)
        return lsa_fail(
            LSA_EARG,
            "session: %lld tokens after %lld; the model's max_position_embeddings is %lld",
            (long long)n, (long long)s->progress.tokens, (long long)c->max_positions);
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= c->vocab)
            return lsa_fail(LSA_EARG, "session: token %lld is %d; the vocabulary has %lld",
                            (long long)i, tokens[i], (long long)c->vocab);
    return LSA_OK;
}

int lsa_session_observe_by_chunk(lsa_session *s)
{
    if (s->observed_by_chunk) return LSA_OK;
    lsa_state_room room = s->room;
    int64_t chunks = lsa_session_chunks(s);
    if (room.observed < chunks) room.observed = chunks;
    if (room.observed > s->room.observed) LSA_TRY(lsa_state_resize(s, &room));
    LSA_TRY(lsa_session_forget_observed(s));
    s->observed_by_chunk = 1;
    s->reserved = 0;
    return LSA_OK;
}

/* Runs n tokens and commits them: a pass of one segment. Logits of the last `rows` go to `logits`, NULL: to the session's. */
static int run_piece(lsa_session *s, const int32_t *tokens, int64_t n, int64_t rows, float *logits,
                     lsa_trace *trace)
{
    lsa_activations *w = s->activations;
    lsa_pass pass = {.model = s->model,
                     .c = &s->model->config,
                     .w = w,
                     .compute = s->compute,
                     .scoring = s->scoring,
                     .segments = w->segments,
                     .count = 1,
                     .trace = trace};
    LSA_TRY(lsa_session_reserve_rows(s, n));
    *w->segments = (lsa_segment){.s = s, .tokens = tokens, .n = n};
    int64_t vocab = s->model->config.vocab;
    float *to = logits ? logits : s->logits;
    if (s->memory_kind == LSA_MEMORY_HOST) {
        LSA_TRY(lsa_forward(&pass, rows, to));
    } else { /* the GPU writes to its own memory */
        LSA_TRY(lsa_activations_reserve(w, n, 0, 0, rows));
        LSA_TRY(lsa_forward(&pass, rows, w->logits));
        if (rows) LSA_TRY(lsa_device_copy_back(to, w->logits, rows * vocab * (int64_t)sizeof *to));
    }
    return w->segments->code ? lsa_fail(w->segments->code, "%s", w->segments->message) : LSA_OK;
}

int lsa_session_prefill(lsa_session *s, const int32_t *tokens, int64_t n, int32_t all,
                        float *logits, lsa_trace *trace, int64_t *done)
{
    int64_t finished = 0, piece = lsa_activations_piece(s->activations),
            vocab = s->model->config.vocab;
    if (done) *done = 0;
    int rc = check_tokens(s, tokens, n);
    if (!rc && s->pool) rc = lsa_pool_load(s->pool);
    if (!rc) rc = lsa_session_observe_by_chunk(s);
    if (rc) return rc;
    int64_t start = lsa_clock_ns();
    while (!rc && finished < n) {
        int64_t m = n - finished < piece ? n - finished : piece;
        int last = finished + m == n;
        float *to = all ? logits + finished * vocab : NULL;
        rc = run_piece(s, tokens + finished, m, all ? m : last, to, trace);
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

int64_t lsa_session_demand_cells(const lsa_session *s, int64_t chunks)
{
    int64_t most = s->model->config.index_topk * s->model->config.csa_layers;
    return chunks < most ? chunks : most;
}

int lsa_session_check_demand(const lsa_session *s, int64_t tokens)
{
    int64_t need = lsa_session_demand_cells(s, tokens / s->model->config.csa_rate),
            cells = lsa_on_demand_most(s->demand, s->pool);
    if (cells >= need) return LSA_OK;
    return lsa_fail(LSA_ESTATE,
                    "on demand: the hot pool has %lld cells, a step can pick %lld chunks",
                    (long long)cells, (long long)need);
}

int lsa_session_prefetch(lsa_session *s, const int32_t *chunks, int64_t n, int64_t *hits)
{
    if (!s->demand) return lsa_fail(LSA_ESTATE, "prefetch: the session fetches nothing on demand");
    int64_t all = lsa_session_chunks(s), cells = lsa_on_demand_most(s->demand, s->pool),
            picks = lsa_session_demand_cells(s, all);
    for (int64_t i = 0; i < n; i++)
        if (chunks[i] < 0 || chunks[i] >= all || (i && chunks[i] <= chunks[i - 1]))
            return lsa_fail(LSA_EARG,
                            "prefetch: place %lld is chunk %d; ascending ids below %lld are needed",
                            (long long)i, chunks[i], (long long)all);
    if (n + picks > cells)
        return lsa_fail(
            LSA_ESTATE,
            "prefetch: %lld chunks, and a step can pick %lld; the hot pool has %lld cells",
            (long long)n, (long long)picks, (long long)cells);
    LSA_TRY(lsa_on_demand_use(s->demand, s->pool, chunks, n, hits));
    return lsa_session_forget_observed(s);
}

/* ---- residents ---- */

static int need_chunks(const lsa_session *s)
{
    return s->pool ? LSA_OK
                   : lsa_fail(LSA_ESTATE,
                              "session: the model has no CSA layers, so no chunks to choose among");
}

int lsa_session_set_scoring(lsa_session *s, int32_t scoring)
{
    if (scoring < LSA_SCORE_F32 || scoring > LSA_SCORE_FP8)
        return lsa_fail(LSA_EARG, "session: scoring %d is unknown", scoring);
    s->scoring = scoring;
    return LSA_OK;
}

int lsa_session_set_tiered(lsa_session *s, int32_t tiered)
{
    int rc = tiered ? need_chunks(s) : LSA_OK;
    if (rc) return rc;
    if (!tiered != !s->tiered) s->resident_count = 0;
    s->reserved = 0;
    if (tiered) {
        lsa_on_demand_free(s->demand);
        s->demand = NULL;
    }
    s->tiered = tiered != 0;
    return LSA_OK;
}

int lsa_session_set_on_demand(lsa_session *s, int32_t on)
{
    s->reserved = 0;
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

int lsa_session_share_demand(lsa_session *s, int64_t cells)
{
    if (!s->demand || cells < 1)
        return lsa_fail(LSA_ESTATE, "session: a share of %lld cells, %s", (long long)cells,
                        s->demand ? "at least one is wanted" : "and it fetches nothing on demand");
    s->demand->share = cells;
    s->reserved = 0;
    return LSA_OK;
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

int lsa_session_reside(lsa_session *s, int64_t n, int64_t observed)
{
    const lsa_layer_store *layers;
    if (!s->pool) return LSA_OK;
    lsa_pool_slots(s->pool, s->residents, n, s->slots);
    LSA_TRY(lsa_state_send_residents(s, 0, n));
    lsa_state_bind_blocks(s);
    LSA_TRY(lsa_state_layers(s, &layers));
    return s->model->kernels->reside(layers, s->layer_count, s->residents_there,
                                     lsa_state_slots_there(s), n, observed,
                                     lsa_pool_key_bytes(s->pool), NULL);
}

int lsa_session_forget_observed(lsa_session *s)
{
    return lsa_session_reside(s, 0, s->room.observed);
}

/* The first n residents, which are in the list, are the set. */
static int take_over(lsa_session *s, int64_t n)
{
    int rc = lsa_session_reside(s, n, s->room.observed);
    s->resident_count = rc ? 0 : n; /* where a GPU refused, what it has is no set */
    s->observed_by_chunk = 0;
    s->reserved = 0;
    return rc;
}

int lsa_session_set_residents(lsa_session *s, const int32_t *chunks, int64_t n)
{
    int rc = need_chunks(s);
    if (!rc) rc = check_residents(s, chunks, n);
    lsa_state_room room = s->room;
    if (n > room.residents) room.residents = n + n / 4 + BORN_ROOM;
    if (room.observed < room.residents) room.observed = room.residents;
    int grows = room.residents > s->room.residents || room.observed > s->room.observed;
    if (!rc && grows) rc = lsa_state_resize(s, &room);
    if (rc) return rc;
    if (n) memcpy(s->residents, chunks, (size_t)n * sizeof *chunks);
    return take_over(s, n);
}

int lsa_session_drop_absent(lsa_session *s)
{
    int64_t kept = 0, before = s->resident_count, unit = s->pool ? lsa_pool_unit(s->pool) : 1;
    for (int64_t i = 0; i < before; i++)
        if (lsa_pool_has(s->pool, s->residents[i] / unit)) s->residents[kept++] = s->residents[i];
    return kept < before ? take_over(s, kept) : LSA_OK;
}

int64_t lsa_session_residents(const lsa_session *s, int32_t *chunks)
{
    if (chunks && s->resident_count)
        memcpy(chunks, s->residents, (size_t)s->resident_count * sizeof *chunks);
    return s->resident_count;
}
