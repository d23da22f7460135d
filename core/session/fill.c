/* Owns synthetic contexts: sessions that are put together like restored ones, of random numbers. */
#include <string.h>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/pool/cold_file.h"
#include "core/session/session_fields.h"
#include "core/session/state.h"
#include "kernels/table.h"

enum { PIECE = 1 << 20 /* numbers drawn at a time */ };

typedef struct filler {
    lsa_session *session;
    uint64_t seed;
    float *numbers; /* [PIECE], or a row */
} filler;

static uint64_t seed_of(const filler *f, const char *name, int64_t from)
{
    return lsa_hash(name, (int64_t)strlen(name), lsa_hash(&from, sizeof from, f->seed));
}

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static int draw_tokens(const filler *f, const lsa_session_part *p, int64_t from, int64_t n)
{
    uint64_t seed = seed_of(f, p->name, from), vocab = (uint64_t)f->session->model->config.vocab;
    int32_t *ids = (int32_t *)f->numbers;
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)(lsa_hash(&i, sizeof i, seed) % vocab);
    return lsa_session_part_write(f->session, p, from, n, ids);
}

static int draw_entries(const filler *f, const lsa_session_part *p, int64_t from, int64_t n)
{
    const lsa_config *c = &f->session->model->config;
    uint8_t *records = lsa_alloc(n * p->columns);
    if (!records) return LSA_ENOMEM;
    int rc = lsa_kernels_cpu.normal(f->numbers, n * c->head_dim, seed_of(f, p->name, from), NULL);
    if (!rc)
        rc = lsa_kernels_cpu.kv_encode(records, f->numbers, n, c->head_dim, c->rope_dim, p->columns,
                                       f->session->kv_format, NULL);
    if (!rc) rc = lsa_session_part_write(f->session, p, from, n, records);
    lsa_free(records);
    return rc;
}

/* Rows from .. from + n - 1 of a part; of those that say what attention did there is nothing. */
static int draw_rows(const filler *f, const lsa_session_part *p, int64_t from, int64_t n)
{
    if (p->what == LSA_PART_TOKENS) return draw_tokens(f, p, from, n);
    if (p->what == LSA_PART_ENTRIES) return draw_entries(f, p, from, n);
    if (p->dtype != LSA_F32 || p->what == LSA_FIELD_PICKED_MASS || p->what == LSA_FIELD_MASS)
        return LSA_OK;
    LSA_TRY(lsa_kernels_cpu.normal(f->numbers, n * p->columns, seed_of(f, p->name, from), NULL));
    return lsa_session_part_write(f->session, p, from, n, f->numbers);
}

static int draw_part(const filler *f, const lsa_session_part *p)
{
    const lsa_config *c = &f->session->model->config;
    int64_t width = p->what == LSA_PART_ENTRIES ? c->head_dim : p->columns, rows = PIECE / width;
    rows = max(rows, 1);
    for (int64_t from = 0; from < p->rows; from += rows) {
        if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
        LSA_TRY(draw_rows(f, p, from, min(rows, p->rows - from)));
    }
    return LSA_OK;
}

/* Records and keys of the chunks from .. from + n - 1: [n, layers * record] and [layers, n, key]. */
static int draw_chunks(const filler *f, int64_t from, int64_t n, uint8_t *records, uint8_t *keys)
{
    const lsa_session *s = f->session;
    const lsa_config *c = &s->model->config;
    int64_t record = lsa_pool_record_bytes(s->pool), key = lsa_pool_key_bytes(s->pool);
    for (int64_t layer = 0; layer < c->csa_layers; layer++) {
        int64_t at[2] = {layer, from};
        uint64_t seed = lsa_hash(at, sizeof at, f->seed);
        LSA_TRY(lsa_kernels_cpu.normal(f->numbers, n * c->head_dim, seed, NULL));
        LSA_TRY(lsa_kernels_cpu.kv_encode(records + layer * record, f->numbers, n, c->head_dim,
                                          c->rope_dim, c->csa_layers * record, s->kv_format, NULL));
        LSA_TRY(lsa_kernels_cpu.normal(f->numbers, n * c->index_dim, ~seed, NULL));
        LSA_TRY(lsa_kernels_cpu.index_encode(keys + layer * n * key, f->numbers, n, c->index_dim,
                                             key, s->kv_format, NULL));
    }
    return LSA_OK;
}

static int fill_chunks(const filler *f, int32_t spill)
{
    lsa_session *s = f->session;
    const lsa_config *c = &s->model->config;
    int64_t chunks = lsa_session_chunks(s), record = lsa_pool_record_bytes(s->pool),
            most = min(LSA_COLD_SEGMENT, PIECE / max(c->head_dim, c->index_dim));
    uint8_t *records = lsa_alloc(most * c->csa_layers * (record + lsa_pool_key_bytes(s->pool)));
    if (!records) return LSA_ENOMEM;
    uint8_t *keys = records + most * c->csa_layers * record;
    int rc = LSA_OK;
    for (int64_t from = 0; !rc && from < chunks; from += most) {
        int64_t n = min(most, chunks - from);
        if (lsa_interrupted()) rc = lsa_fail(LSA_EINTR, "interrupted");
        if (!rc) rc = lsa_session_restore_chunks(s, from + n, spill);
        if (!rc) rc = draw_chunks(f, from, n, records, keys);
        if (!rc) rc = lsa_pool_write_chunks(s->pool, from, n, records, keys);
    }
    lsa_free(records);
    return rc;
}

/* Room for the numbers of a piece, or of a row that is longer. */
static float *room_for(const lsa_session_part *parts, int64_t count)
{
    int64_t most = PIECE;
    for (int64_t i = 0; i < count; i++) most = max(most, parts[i].columns);
    return lsa_alloc(most * (int64_t)sizeof(float));
}

int lsa_session_fill(lsa_session *s, int64_t tokens, uint64_t seed, int32_t spill)
{
    lsa_session_head head;
    lsa_session_part *parts;
    int64_t count;
    if (s->progress.tokens)
        return lsa_fail(LSA_ESTATE, "fill: the session has %lld tokens; a new one is wanted",
                        (long long)s->progress.tokens);
    LSA_TRY(lsa_session_describe(s, &head));
    head.tokens = tokens;
    LSA_TRY(lsa_session_restore_begin(s, &head));
    LSA_TRY(lsa_session_parts(s, &parts, &count));
    filler f = {s, seed, room_for(parts, count)};
    int rc = f.numbers ? LSA_OK : LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < count; i++) rc = draw_part(&f, &parts[i]);
    if (!rc && s->pool) rc = fill_chunks(&f, spill);
    lsa_free(f.numbers);
    lsa_free(parts);
    return rc ? rc : lsa_session_restore_end(s, &head, spill);
}
