/* Owns decoding: what token is next, the steps of many sessions at once, and when each is over. */
#include "core/session/run.h"

#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/session/forward.h"

enum {
    AHEAD = 64 /* steps that memory is had for at once where no cycle says how many there will be */
};

/* ---- what ends a generation ---- */

static int ends_with(const lsa_stop *stop, const uint8_t *text, int64_t bytes, int64_t fresh)
{
    for (int64_t end = stop->tail_bytes - fresh + 1; end <= stop->tail_bytes; end++)
        if (end >= bytes && memcmp(stop->tail + end - bytes, text, (size_t)bytes) == 0) return 1;
    return 0;
}

/* A token's bytes join those before it; what no text can begin in any more is forgotten. */
static int64_t append_bytes(lsa_stop *stop, int32_t token)
{
    int64_t from = token ? stop->token_ends[token - 1] : 0, fresh = stop->token_ends[token] - from;
    int64_t keep = stop->tail_room - fresh;
    if (stop->tail_bytes > keep) {
        memmove(stop->tail, stop->tail + stop->tail_bytes - keep, (size_t)keep);
        stop->tail_bytes = keep;
    }
    memcpy(stop->tail + stop->tail_bytes, stop->token_bytes + from, (size_t)fresh);
    stop->tail_bytes += fresh;
    return fresh;
}

static int stops(lsa_stop *stop, int32_t token)
{
    if (!stop) return 0;
    for (int64_t i = 0; i < stop->id_count; i++)
        if (stop->ids[i] == token) return 1;
    if (!stop->text_count) return 0;
    int64_t fresh = append_bytes(stop, token);
    for (int64_t i = 0; i < stop->text_count; i++) {
        int64_t from = i ? stop->text_ends[i - 1] : 0;
        if (ends_with(stop, stop->texts + from, stop->text_ends[i] - from, fresh)) return 1;
    }
    return 0;
}

/* ---- before the steps ---- */

static int check(const lsa_run *runs, int64_t n)
{
    const lsa_session *first = runs[0].session;
    if (n > first->activations->piece)
        return lsa_fail(LSA_EARG, "run: %lld sessions, the activations have room for %lld",
                        (long long)n, (long long)first->activations->piece);
    for (int64_t i = 1; i < n; i++) {
        const lsa_session *s = runs[i].session;
        if (s->model != first->model || s->activations != first->activations ||
            s->compute != first->compute || s->scoring != first->scoring)
            return lsa_fail(LSA_EARG,
                            "run: sessions 0 and %lld are of different models, activations, "
                            "computes or scorings",
                            (long long)i);
        for (int64_t j = 0; j < i; j++)
            if (runs[j].session == s)
                return lsa_fail(LSA_EARG, "run: %lld and %lld are the same session", (long long)j,
                                (long long)i);
    }
    return LSA_OK;
}

static void fail(lsa_run *r, int rc, const char *message)
{
    r->ended = LSA_RUN_FAILED;
    r->code = rc;
    snprintf(r->message, sizeof r->message, "%s", message);
}

/* Everything that a session's steps need. */
static int prepare(lsa_session *s, int64_t steps)
{
    if (!s->tiered) {
        if (s->pool && !s->demand) LSA_TRY(lsa_pool_load(s->pool));
        LSA_TRY(lsa_session_observe_by_chunk(s));
    }
    if (s->progress.tokens + steps <= s->reserved) return LSA_OK;
    return lsa_session_reserve_steps(s, s->tiered || steps > AHEAD ? steps : AHEAD);
}

static int open_run(lsa_run *r)
{
    const lsa_config *c = &r->session->model->config;
    int64_t left = c->max_positions - r->session->progress.tokens;
    r->count = 0;
    r->ended = LSA_RUN_STEPS;
    r->code = LSA_OK;
    r->message[0] = 0;
    if (r->given_count > left)
        return lsa_fail(LSA_EARG,
                        "session: %lld tokens after %lld; the model's max_position_embeddings is "
                        "%lld",
                        (long long)r->given_count, (long long)r->session->progress.tokens,
                        (long long)c->max_positions);
    for (int64_t i = 0; i < r->given_count; i++)
        if (r->given[i] < 0 || r->given[i] >= c->vocab)
            return lsa_fail(LSA_EARG, "session: token %lld is %d; the vocabulary has %lld",
                            (long long)i, r->given[i], (long long)c->vocab);
    if (r->steps > r->given_count && !r->session->progress.tokens)
        return lsa_fail(LSA_ESTATE, "session: nothing was run, so there is nothing to draw from");
    return prepare(r->session, r->steps < left ? r->steps : left);
}

static int open_runs(lsa_run *runs, int64_t n)
{
    int64_t end = 0;
    LSA_TRY(check(runs, n));
    const lsa_config *c = &runs[0].session->model->config;
    for (int64_t i = 0; i < n; i++) {
        int rc = open_run(&runs[i]);
        if (rc) fail(&runs[i], rc, lsa_error());
        if (runs[i].session->reserved > end) end = runs[i].session->reserved;
    }
    return lsa_activations_reserve(runs[0].session->activations, n, end / c->hca_rate,
                                   c->csa_layers ? end / c->csa_rate : 0, n);
}

/* ---- steps ---- */

int lsa_session_draw(const lsa_session *s, double temperature, uint64_t *generator, int32_t *token)
{
    LSA_TRY(lsa_kernels_cpu.sample(token, s->logits, generator, &temperature, 1,
                                   s->model->config.vocab, NULL));
    if (*token >= 0) return LSA_OK;
    return lsa_fail(LSA_ESTATE, "session: the logits at position %lld have no finite largest",
                    (long long)s->progress.tokens - 1);
}

/* The token that is next, at out[count]; 0 where the run is over. */
static int next_token(lsa_run *r, uint64_t *generator)
{
    lsa_session *s = r->session;
    if (r->ended != LSA_RUN_STEPS || r->count >= r->steps) return 0;
    int32_t *token = &r->out[r->count];
    if (r->generator) *generator = *r->generator;
    int rc = s->demand ? lsa_session_check_demand(s, s->progress.tokens + 1) : LSA_OK;
    if (rc) {
        fail(r, rc, lsa_error());
        return 0;
    }
    if (r->count < r->given_count) {
        *token = r->given[r->count];
        return 1;
    }
    rc = lsa_session_draw(s, r->temperature, generator, token);
    if (rc) {
        fail(r, rc, lsa_error());
        return 0;
    }
    int full = s->progress.tokens >= s->model->config.max_positions;
    if (!full && !stops(r->stop, *token)) return 1;
    r->ended = full ? LSA_RUN_CONTEXT : LSA_RUN_STOPPED;
    *r->generator = *generator;
    r->count++;
    return 0;
}

/* Bytes of records that attention read in the step after which there were so many tokens and candidates; of the last step
 * on a CPU. */
static int64_t attention_bytes(const lsa_session *s, int64_t tokens, int64_t candidates)
{
    const lsa_config *c = &s->model->config;
    int64_t records = c->hca_layers * (tokens / c->hca_rate);
    if (s->memory_kind != LSA_MEMORY_HOST) /* without looking at the GPU's memory */
        records += c->csa_layers * (candidates < c->index_topk ? candidates : c->index_topk);
    else
        for (int64_t i = 0; i < c->layers; i++)
            if (c->layer_type[i] == LSA_LAYER_CSA)
                records += *s->layers[i].picked_count[s->progress.passes & 1];
    return records * lsa_kv_record_bytes(s->kv_format, c->head_dim, c->rope_dim);
}

/* The step of a run that ended `before` the session's last token. */
static void count_step(lsa_session *s, int64_t step, int64_t before, int64_t ns)
{
    int64_t tokens = s->progress.tokens - before, now = lsa_session_chunks(s);
    int64_t chunks = s->pool ? tokens / s->model->config.csa_rate : 0;
    int64_t scored = s->tiered ? s->resident_count - (now - chunks) : chunks;
    int64_t residents = s->demand ? s->demand->held[step] : scored;
    lsa_session_counters *c = &s->counters;
    c->steps++;
    c->decode_ns += ns;
    c->resident_share += chunks ? (double)residents / (double)chunks : 1.0;
    c->resident_sum += residents;
    c->chunk_sum += chunks;
    c->scored += scored * s->model->config.csa_layers;
    c->attention_bytes += attention_bytes(s, tokens, scored);
}

/* The logits of all rows of a pass, and behind them those kept of rows that ended, where the host reads them. */
static int fetch_logits(const lsa_pass *p, const float **logits)
{
    const lsa_activations *w = p->w;
    int64_t row = p->c->vocab * (int64_t)sizeof **logits;
    *logits = w->host_logits ? w->host_logits : w->logits;
    if (!w->host_logits || !p->count) return LSA_OK;
    LSA_TRY(lsa_device_copy_back(w->host_logits, w->logits, p->count * row));
    for (int64_t i = 0; i < p->count; i++) {
        int64_t kept = (w->logit_rows + p->segments[i].row) * p->c->vocab;
        if (p->segments[i].ended)
            LSA_TRY(lsa_device_copy_back(w->host_logits + kept, w->logits + kept, row));
    }
    return LSA_OK;
}

/* What a session's steps came to, in its run. */
static void close_step(lsa_run *r, const lsa_pass *p, const lsa_segment *g, const float *logits,
                       int64_t ns)
{
    const lsa_steps *steps = &p->w->steps[g->row];
    lsa_session *s = g->s;
    int64_t tokens = g->taken + (g->ended == LSA_STEPS_STOPPED), vocab = p->c->vocab;
    int64_t row = g->row + (g->ended ? p->w->logit_rows : 0);
    memcpy(s->logits, logits + row * vocab, (size_t)vocab * sizeof *logits);
    for (int64_t i = g->given; i < tokens; i++) r->out[r->count + i] = steps->tokens[i];
    for (int64_t i = 0; i < g->taken; i++) count_step(s, i, g->taken - 1 - i, ns / g->taken);
    if (r->count + tokens > r->given_count) *r->generator = g->generator;
    r->count += tokens;
    if (g->ended == LSA_STEPS_STOPPED) r->ended = LSA_RUN_STOPPED;
    int rc = r->log ? lsa_session_log(s, r->log) : LSA_OK;
    if (rc) fail(r, rc, lsa_error());
}

static int take_step(lsa_run *runs, lsa_pass *p)
{
    int64_t all = p->count, start = lsa_clock_ns();
    const float *logits;
    LSA_TRY(lsa_forward(p, -1, p->w->logits));
    int64_t ns = lsa_clock_ns() - start;
    LSA_TRY(fetch_logits(p, &logits));
    for (int64_t i = 0; i < all; i++) {
        const lsa_segment *g = &p->segments[i];
        if (g->code)
            fail(&runs[g->of], g->code, g->message);
        else
            close_step(&runs[g->of], p, g, logits, ns);
    }
    return LSA_OK;
}

/* On demand: whether a step that ends at so many tokens finds cells for all that it can pick. */
static int has_cells_for(const lsa_session *s, int64_t tokens)
{
    int64_t chunks = tokens / s->model->config.csa_rate;
    return lsa_session_demand_cells(s, chunks) <= lsa_on_demand_most(s->demand, s->pool);
}

/* Steps of a run that can follow one another without a word from the host: on a GPU, where nothing in between is the host's to
 * look at. */
static int64_t steps_ahead(const lsa_run *r)
{
    const lsa_session *s = r->session;
    int64_t left = s->model->config.max_positions - s->progress.tokens, n = r->steps - r->count;
    if (s->memory_kind == LSA_MEMORY_HOST || r->log) return 1;
    if (r->stop && (r->stop->text_count || r->stop->id_count > LSA_STEP_STOPS)) return 1;
    if (s->reserved - s->progress.tokens < left) left = s->reserved - s->progress.tokens;
    if (n > left) n = left;
    if (n > LSA_STEPS_AHEAD) n = LSA_STEPS_AHEAD;
    while (s->demand && n > 1 && !has_cells_for(s, s->progress.tokens + n)) n--;
    return n < 1 ? 1 : n;
}

/* The sessions of one record format whose run goes on, as segments of a pass. */
static void open_segments(lsa_run *runs, int64_t n, int32_t format, lsa_pass *p)
{
    lsa_activations *w = p->w;
    p->count = 0;
    p->steps = LSA_STEPS_AHEAD;
    for (int64_t i = 0; i < n; i++) {
        lsa_run *r = &runs[i];
        if (r->session->kv_format != format || !next_token(r, &w->generators[i])) continue;
        int64_t steps = steps_ahead(r);
        if (steps < p->steps) p->steps = steps;
        w->segments[p->count++] = (lsa_segment){.s = r->session,
                                                .tokens = &r->out[r->count],
                                                .n = 1,
                                                .of = i,
                                                .temperature = r->temperature,
                                                .generator = w->generators[i]};
    }
    for (int64_t i = 0; i < p->count; i++) {
        lsa_segment *g = &w->segments[i];
        lsa_run *r = &runs[g->of];
        g->given = r->given_count - r->count;
        if (g->given < 1) g->given = 1; /* was drawn here */
        if (g->given > p->steps) g->given = p->steps;
        if (r->stop && p->steps > 1) g->stop_ids = r->stop->ids, g->stop_count = r->stop->id_count;
        for (int64_t j = 1; j < g->given; j++) r->out[r->count + j] = r->given[r->count + j];
    }
}

int lsa_session_run(lsa_run *runs, int64_t n)
{
    if (n < 1) return LSA_OK;
    LSA_TRY(open_runs(runs, n));
    lsa_session *first = runs[0].session;
    lsa_activations *w = first->activations;
    for (int more = 1; more;) {
        more = 0;
        for (int32_t format = LSA_KV_F32; format <= LSA_KV_FP8; format++) {
            lsa_pass pass = {.model = first->model,
                             .c = &first->model->config,
                             .w = w,
                             .compute = first->compute,
                             .scoring = first->scoring,
                             .decoding = 1,
                             .segments = w->segments};
            open_segments(runs, n, format, &pass);
            if (!pass.count) continue;
            LSA_TRY(take_step(runs, &pass));
            more = 1;
        }
    }
    return LSA_OK;
}

/* ---- recordings ---- */

static void copy_ids(int32_t *to, const int32_t *from, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < k; i++) to[i] = i < n ? from[i] : -1;
}

/* The Memory Indexer's queries at the last token. */
static int log_memory(const lsa_session *s, lsa_step_log *log)
{
    const lsa_config *c = &s->model->config;
    int32_t position = (int32_t)s->progress.tokens - 1;
    for (int64_t i = 0; i < log->targets; i++) {
        const lsa_indexer_layer *l = log->indexer[i];
        const float *hidden = log->hidden[log->target[i]] + log->rows * c->hidden;
        LSA_TRY(lsa_indexer_queries(log->memory_queries[i] + log->rows * l->heads * l->dim,
                                    log->memory_weights[i] + log->rows * l->heads, l, hidden,
                                    &position, 1, c->hidden, s->model->compress_freq, c->rope_dim,
                                    c->norm_eps, s->kv_format == LSA_KV_FP8, LSA_COMPUTE_F32));
    }
    return LSA_OK;
}

int lsa_session_log(const lsa_session *s, lsa_step_log *log)
{
    const lsa_config *c = &s->model->config;
    int64_t row = log->rows, k = c->index_topk, width = c->index_heads * c->index_dim;
    if (row >= log->room)
        return lsa_fail(LSA_ESTATE, "log: it has room for %lld rows", (long long)log->room);
    double entropy;
    lsa_kernels_cpu.entropy(&entropy, s->logits, 1, c->vocab, NULL);
    log->positions[row] = s->progress.tokens - 1;
    log->entropy[row] = (float)entropy;
    for (int64_t csa = 0; csa < c->csa_layers; csa++) {
        int32_t *ids = s->activations->places;
        float *mass = log->mass[csa] + row * k;
        LSA_TRY(lsa_session_hidden(s, csa, 1, log->hidden[csa] + row * c->hidden));
        LSA_TRY(lsa_session_queries(s, csa, 1, log->queries[csa] + row * width,
                                    log->weights[csa] + row * c->index_heads));
        int64_t n = lsa_session_native_topk(s, csa, ids);
        if (n < 0) return (int)n;
        copy_ids(log->native[csa] + row * k, ids, n, k);
        memset(mass, 0, (size_t)k * sizeof *mass);
        n = lsa_session_picks(s, csa, ids, mass);
        copy_ids(log->picked[csa] + row * k, ids, n, k);
    }
    LSA_TRY(log_memory(s, log));
    log->rows++;
    return LSA_OK;
}
