/* Owns Level 1 where keys lie on a GPU: what the Memory Indexer asks of sessions whose cycles are due is made there, all their keys
 * are gone over in one launch, and what comes back comes in one copy. */
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/session/state.h"
#include "kernels/index_score.h"
#include "kernels/lookahead.h"
#include "kernels/table.h"

enum { ALIGN = 256 };

/* Where everything lies in the scratch memory: bytes from its beginning. */
typedef struct places {
    int64_t positions, hidden, low, tables, q, w, linear, lookahead, scores, bits, end;
} places;

static int64_t take(places *p, int64_t bytes)
{
    int64_t at = p->end;
    p->end += (bytes + ALIGN - 1) / ALIGN * ALIGN;
    return at;
}

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t linear_workspace(const lsa_kernels *k, const lsa_indexer_layer *l, int64_t rows)
{
    int64_t a = k->linear_workspace(&l->a, rows, l->a.rows, LSA_COMPUTE_F32),
            b = k->linear_workspace(&l->b, rows, l->b.rows, LSA_COMPUTE_F32),
            w = k->linear_workspace(&l->w, rows, l->w.rows, LSA_COMPUTE_F32);
    return max(a, max(b, w));
}

static places places_of(const lsa_session *s, int64_t n, const lsa_look *look,
                        const lsa_lookahead *l)
{
    const lsa_config *c = &s->model->config;
    int64_t f = sizeof(float), rows = look->rows, rank = 0, work = 0;
    for (int64_t i = 0; i < look->count; i++) {
        rank = max(rank, look->layers[i].a.rows);
        work = max(work, linear_workspace(s->model->kernels, &look->layers[i], rows));
    }
    places p = {0};
    p.positions = take(&p, n * rows * f);
    p.hidden = take(&p, rows * c->hidden * f);
    p.low = take(&p, rows * rank * f);
    p.tables = take(&p, n * rows * c->rope_dim * f);
    p.q = take(&p, n * l->layers * l->heads * l->dim * f);
    p.w = take(&p, n * l->layers * l->heads * f);
    p.linear = take(&p, work);
    p.lookahead = take(&p, s->model->kernels->lookahead_workspace(l));
    p.scores = take(&p, n * ((l->most + 63) / 64) * 64 * f);
    p.bits = take(&p, n * ((l->most + 63) / 64) * (int64_t)sizeof(uint64_t));
    return p;
}

/* Positions of the tokens that are looked from, and their rope tables. */
static int turn_by(lsa_session *const *sessions, int64_t n, const lsa_look *look, uint8_t *block,
                   const places *p)
{
    const lsa_session *s = sessions[0];
    int64_t rows = look->rows, bytes = n * rows * (int64_t)sizeof(int32_t);
    int32_t *positions = lsa_alloc(bytes);
    if (!positions) return LSA_ENOMEM;
    for (int64_t i = 0; i < n * rows; i++)
        positions[i] = (int32_t)(sessions[i / rows]->progress.tokens - rows + i % rows);
    int rc = lsa_device_copy(block + p->positions, positions, bytes);
    lsa_free(positions);
    LSA_TRY(rc);
    return s->model->kernels->rope_table((float *)(block + p->tables), s->model->compress_freq,
                                         (int32_t *)(block + p->positions), n * rows,
                                         s->model->config.rope_dim / 2, NULL);
}

/* The last `rows` hidden states of a layer, in order: where they lie, or, where their ring ends in between, a copy. */
static int hidden_rows(const lsa_session *s, int64_t layer, int64_t rows, float *copy,
                       const float **out)
{
    const lsa_ring *ring = &s->layers[layer].hidden;
    int64_t first = (s->progress.tokens - rows) % ring->room, left = ring->room - first,
            bytes = ring->width * (int64_t)sizeof(float);
    *out = ring->data + first * ring->width;
    if (rows <= left) return LSA_OK;
    LSA_TRY(lsa_device_copy_start(copy, *out, left * bytes, NULL));
    *out = copy;
    return lsa_device_copy_start(copy + left * ring->width, ring->data, (rows - left) * bytes,
                                 NULL);
}

/* What one session's layers are asked; request r: q [layers, rows, heads, dim], w [layers, rows, heads], keys [layers, rows]. */
static int ask(const lsa_session *s, int64_t r, const lsa_look *look, const lsa_lookahead *l,
               uint8_t *block, const places *p, lsa_records *keys)
{
    const lsa_config *c = &s->model->config;
    int64_t rows = look->rows;
    for (int64_t i = 0; i < look->count; i++) {
        const lsa_indexer_layer *layer = &look->layers[i];
        int64_t at = r * l->layers + i * rows, ordinal = look->csa[i];
        const float *hidden;
        LSA_TRY(
            hidden_rows(s, lsa_csa_layer(s, ordinal), rows, (float *)(block + p->hidden), &hidden));
        LSA_TRY(lsa_indexer_queries_on(
            s->model->kernels, (float *)(block + p->q) + at * l->heads * l->dim,
            (float *)(block + p->w) + at * l->heads, layer, hidden,
            (float *)(block + p->tables) + r * rows * c->rope_dim, rows, c->hidden, c->rope_dim,
            c->norm_eps, s->kv_format == LSA_KV_FP8, LSA_COMPUTE_F32, (float *)(block + p->low),
            block + p->linear));
        for (int64_t j = 0; j < rows; j++)
            keys[at + j] = lsa_pool_key_records(s->pool, ordinal, s->kv_format);
    }
    return LSA_OK;
}

static int check(lsa_session *const *sessions, int64_t n, const lsa_look *look)
{
    const lsa_session *s = sessions[0];
    LSA_TRY(lsa_ensemble_check(look->count, look->how));
    for (int64_t i = 0; i < n; i++)
        if (sessions[i]->model != s->model || sessions[i]->activations != s->activations ||
            sessions[i]->kv_format != s->kv_format || sessions[i]->scoring != s->scoring ||
            look->rows < 1 || look->rows > lsa_session_recent(sessions[i]))
            return lsa_fail(LSA_EARG,
                            "look: session %lld is of another model, format or scoring than the "
                            "first, or has less than %lld tokens",
                            (long long)i, (long long)look->rows);
    for (int64_t i = 0; i < look->count; i++) {
        if (lsa_csa_layer(s, look->csa[i]) < 0) return LSA_EARG;
        LSA_TRY(lsa_indexer_check(&look->layers[i], s->model->config.hidden,
                                  s->model->config.rope_dim));
    }
    return LSA_OK;
}

/* Whether one launch does: keys are on the GPU, layers have as many heads, and there are not too many rows of them. */
static int is_one_launch(lsa_session *const *sessions, int64_t n, const lsa_look *look)
{
    int fits = sessions[0]->memory_kind != LSA_MEMORY_HOST &&
               look->count * look->rows <= LSA_LOOKAHEAD_MOST_LAYERS;
    for (int64_t i = 0; fits && i < look->count; i++) {
        fits = look->layers[i].heads == look->layers[0].heads;
        for (int64_t j = 0; fits && j < n; j++)
            fits = lsa_pool_has_keys(sessions[j]->pool, look->csa[i]);
    }
    return fits;
}

int lsa_sessions_look(lsa_session *const *sessions, int64_t n, const lsa_look *look,
                      float *const *scores, uint64_t *const *bits, int32_t *answered)
{
    *answered = 0;
    if (n < 1 || look->count < 1) return LSA_OK;
    LSA_TRY(check(sessions, n, look));
    if (!is_one_launch(sessions, n, look)) return LSA_OK;
    const lsa_session *s = sessions[0];
    lsa_lookahead l = {.count = n,
                       .layers = look->count * look->rows,
                       .heads = look->layers[0].heads,
                       .dim = s->model->config.index_dim,
                       .key_format = s->kv_format,
                       .scoring = s->scoring,
                       .ensemble = look->how,
                       .theta = look->theta};
    for (int64_t i = 0; i < n; i++) l.most = max(l.most, lsa_session_chunks(sessions[i]));
    LSA_TRY(lsa_lookahead_check(&l));
    places p = places_of(s, n, look, &l);
    uint8_t *block = lsa_activations_scratch(s->activations, p.end);
    lsa_lookahead_request *requests = lsa_alloc_zero(n * (int64_t)sizeof *requests);
    lsa_records *keys = lsa_alloc(n * l.layers * (int64_t)sizeof *keys);
    int rc = block && requests && keys ? turn_by(sessions, n, look, block, &p) : LSA_ENOMEM;
    int64_t words = (l.most + 63) / 64;
    for (int64_t i = 0; !rc && i < n; i++) {
        requests[i] = (lsa_lookahead_request){
            .q = (float *)(block + p.q) + i * l.layers * l.heads * l.dim,
            .w = (float *)(block + p.w) + i * l.layers * l.heads,
            .keys = keys + i * l.layers,
            .n = lsa_session_chunks(sessions[i]),
            .scores = scores ? (float *)(block + p.scores) + i * words * 64 : NULL,
            .bits = bits ? (uint64_t *)(block + p.bits) + i * words : NULL};
        rc = ask(sessions[i], i, look, &l, block, &p, keys);
    }
    l.requests = requests;
    if (!rc) rc = s->model->kernels->lookahead(&l, block + p.lookahead, NULL);
    for (int64_t i = 0; !rc && i < n; i++) {
        int64_t chunks = requests[i].n;
        if (scores && chunks)
            rc = lsa_device_copy(scores[i], requests[i].scores, chunks * (int64_t)sizeof(float));
        if (!rc && bits && chunks)
            rc = lsa_device_copy(bits[i], requests[i].bits,
                                 (chunks + 63) / 64 * (int64_t)sizeof(uint64_t));
    }
    if (!rc) rc = lsa_device_synchronize();
    lsa_free(requests);
    lsa_free(keys);
    *answered = !rc;
    return rc;
}
