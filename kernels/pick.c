/* Level 2 on the CPU. One query: its candidates' scores by all threads, then one selection. Several queries of a span: groups
 * that pass over the keys together, so that a block of keys is read once for all of them. Several spans: side by side. */
#include "kernels/pick.h"

#include <stddef.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/index_score.h"
#include "kernels/topk.h"

enum {
    QUERIES = 32,   /* of a group */
    KEYS = 1024,    /* scored at a time: with the scores of a group they stay in the cache */
    ROW = 64 * KEYS /* scores of one query at a time, where all threads work on it */
};

static int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }
static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* One thread's memory. */
typedef struct share {
    float *scores, *values; /* [QUERIES, KEYS], [QUERIES, capacity] */
    int32_t *ids;           /* [QUERIES, capacity] */
    void *workspace;
} share;

/* A call and its threads' memory. */
typedef struct call {
    int32_t *places, *counts;
    float *values;
    int64_t layer;
    const lsa_picking *p;
    uint8_t *workspace;
    int64_t share_bytes;
    lsa_failure failure;
} call;

static int64_t score_workspace(int64_t heads, int64_t dim, int32_t format, int32_t compute)
{
    int64_t most = 0;
    for (int64_t rows = 1; rows <= QUERIES; rows++) {
        int64_t bytes = lsa_index_score_workspace(rows, KEYS, heads, dim, format, compute);
        if (bytes > most) most = bytes;
    }
    return round_up(most);
}

static int64_t share_bytes(int64_t k, int64_t score)
{
    int64_t capacity = lsa_topk_capacity((int32_t)k), f = sizeof(float);
    return QUERIES * KEYS * f + 2 * round_up(QUERIES * capacity * f) + score;
}

int64_t lsa_pick_workspace(int64_t rows, int64_t most, int64_t k, int64_t heads, int64_t dim,
                           int32_t key_format, int32_t compute)
{
    (void)rows, (void)most;
    int64_t score = score_workspace(heads, dim, key_format, compute);
    return ROW * (int64_t)sizeof(float) + lsa_threads() * share_bytes(k, score);
}

static share share_of(const call *c, int thread)
{
    int64_t capacity = lsa_topk_capacity((int32_t)c->p->k), f = sizeof(float);
    uint8_t *at = c->workspace + ROW * f + thread * c->share_bytes;
    share s = {.scores = (void *)at};
    at += QUERIES * KEYS * f;
    s.values = (void *)at;
    at += round_up(QUERIES * capacity * f);
    s.ids = (void *)at;
    s.workspace = at + round_up(QUERIES * capacity * f);
    return s;
}

/* Scores of n candidates from `from` for `rows` queries of the pass from `row` on, block by block of the keys. */
static int score_keys(const call *c, const lsa_span *s, int64_t row, int64_t rows, int64_t from,
                      int64_t n, float *scores, int64_t stride, void *workspace)
{
    const lsa_picking *p = c->p;
    const lsa_layer_store *store = &s->layers[c->layer];
    const lsa_records *r = &store->keys;
    int64_t key = lsa_index_key_bytes(p->key_format, p->dim), taken;
    for (int64_t at = from; at < from + n; at += taken) {
        const uint8_t *keys = s->among_residents ? store->resident_keys + at * key : NULL;
        taken = from + n - at;
        if (!keys) {
            int64_t block = at >> r->block_shift, within = at - (block << r->block_shift);
            taken = min(taken, ((int64_t)1 << r->block_shift) - within);
            keys = r->blocks[block] + within * r->stride + r->offset;
        }
        LSA_TRY(lsa_index_score_cpu(scores + at - from, p->queries + row * p->heads * p->dim,
                                    p->weights + row * p->heads, keys, rows, taken, p->heads,
                                    p->dim, s->among_residents ? key : r->stride, stride,
                                    p->key_format, p->compute, workspace, NULL));
    }
    return LSA_OK;
}

static int64_t candidates_at(const call *c, const lsa_span *s, int64_t position)
{
    int64_t chunks = (position + 1) / c->p->rate;
    return s->among_residents ? s->residents + chunks - s->chunks : chunks;
}

static int64_t scoring_work(const call *c, int64_t candidates)
{
    return candidates * (c->p->heads * c->p->dim / 16) / 4;
}

/* Blocks of one query's candidates. */
typedef struct scored_row {
    call *c;
    const lsa_span *s;
    float *scores;
    int64_t row, from, n;
    void *workspace; /* NULL: each thread has its own */
} scored_row;

static void score_blocks(void *context, int64_t from, int64_t to, int thread)
{
    const scored_row *r = context;
    void *workspace = r->workspace ? r->workspace : share_of(r->c, thread).workspace;
    for (int64_t b = from; b < to; b++) {
        int64_t at = b * KEYS, m = min(r->n - at, KEYS);
        lsa_failure_note(&r->c->failure, score_keys(r->c, r->s, r->row, 1, r->from + at, m,
                                                    r->scores + at, m, workspace));
    }
}

/* By all threads; within a team by this thread of it alone. */
static void pick_one(call *c, const lsa_span *s, int64_t row, int64_t candidates, int thread)
{
    const lsa_picking *p = c->p;
    int alone = lsa_in_parallel();
    share own = share_of(c, thread);
    scored_row r = {c, s, alone ? own.scores : (float *)c->workspace, row, 0, 0, NULL};
    if (alone) r.workspace = own.workspace;
    lsa_topk_state state;
    lsa_topk_begin(&state, (int32_t)p->k, own.values, own.ids);
    int64_t room = alone ? QUERIES * KEYS : ROW;
    for (r.from = 0; r.from < candidates; r.from += room) {
        r.n = min(candidates - r.from, room);
        lsa_parallel(lsa_threads_for(scoring_work(c, r.n)), (r.n + KEYS - 1) / KEYS, score_blocks,
                     &r);
        if (c->failure.code) return;
        lsa_topk_push(&state, r.scores, r.n, (int32_t)r.from);
    }
    c->counts[row] =
        lsa_topk_finish(&state, c->places + row * p->k, c->values ? c->values + row * p->k : NULL);
}

/* n queries of a span, from its row `first` on. */
static void pick_group(call *c, const lsa_span *s, int64_t first, int64_t n, int thread)
{
    const lsa_picking *p = c->p;
    share own = share_of(c, thread);
    int32_t k = (int32_t)p->k, capacity = lsa_topk_capacity(k);
    lsa_topk_state state[QUERIES];
    int64_t position = s->progress->tokens + first, row = s->row + first;
    for (int64_t i = 0; i < n; i++)
        lsa_topk_begin(&state[i], k, own.values + i * capacity, own.ids + i * capacity);
    int64_t most = candidates_at(c, s, position + n - 1);
    for (int64_t from = 0; from < most; from += KEYS) {
        int64_t m = min(most - from, KEYS);
        int rc = score_keys(c, s, row, n, from, m, own.scores, KEYS, own.workspace);
        if (rc) {
            lsa_failure_note(&c->failure, rc);
            return;
        }
        for (int64_t i = 0; i < n; i++) {
            int64_t visible = min(candidates_at(c, s, position + i) - from, m);
            if (visible > 0)
                lsa_topk_push(&state[i], own.scores + i * KEYS, visible, (int32_t)from);
        }
    }
    for (int64_t i = 0; i < n; i++)
        c->counts[row + i] = lsa_topk_finish(&state[i], c->places + (row + i) * k,
                                             c->values ? c->values + (row + i) * k : NULL);
}

/* The groups of a span. */
typedef struct grouped {
    call *c;
    const lsa_span *s;
    int within; /* the thread of a team that does all of them; -1: no team */
} grouped;

static void pick_groups(void *context, int64_t from, int64_t to, int thread)
{
    const grouped *g = context;
    for (int64_t i = from; i < to; i++)
        pick_group(g->c, g->s, i * QUERIES, min(g->s->rows - i * QUERIES, QUERIES),
                   g->within < 0 ? thread : g->within);
}

static void pick_span(call *c, const lsa_span *s, int thread)
{
    if (s->rows == 1) {
        pick_one(c, s, s->row, candidates_at(c, s, s->progress->tokens), thread);
        return;
    }
    grouped g = {c, s, lsa_in_parallel() ? thread : -1};
    int64_t most = candidates_at(c, s, s->progress->tokens + s->rows);
    lsa_parallel(lsa_threads_for(s->rows * scoring_work(c, most)),
                 (s->rows + QUERIES - 1) / QUERIES, pick_groups, &g);
}

typedef struct side_by_side {
    call *c;
    const lsa_span *spans;
} side_by_side;

static void pick_spans(void *context, int64_t from, int64_t to, int thread)
{
    const side_by_side *b = context;
    for (int64_t i = from; i < to; i++) pick_span(b->c, &b->spans[i], thread);
}

int lsa_pick_cpu(int32_t *places, float *values, int32_t *counts, const lsa_span *spans,
                 int64_t count, int64_t layer, const lsa_picking *picking, void *workspace,
                 void *stream)
{
    (void)stream;
    int64_t score =
        score_workspace(picking->heads, picking->dim, picking->key_format, picking->compute);
    call c = {.places = places, .counts = counts, .values = values, .layer = layer, .p = picking};
    c.workspace = workspace;
    c.share_bytes = share_bytes(picking->k, score);
    int64_t work = 0;
    for (int64_t i = 0; i < count; i++)
        work += scoring_work(&c, candidates_at(&c, &spans[i], spans[i].progress->tokens));
    /* Fewer spans than threads: one after the other, each by all of them. */
    int threads = lsa_threads_for(work);
    if (2 * count <= threads) threads = 1;
    if (threads > 1)
        lsa_parallel(threads, count, pick_spans, &(side_by_side){&c, spans});
    else
        for (int64_t i = 0; i < count; i++) pick_span(&c, &spans[i], 0);
    return lsa_failure_raise(&c.failure);
}

int lsa_locate_cpu(int32_t *ids, const int32_t *places, const int32_t *counts,
                   const lsa_span *spans, int64_t count, int64_t k, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < count; i++) {
        const lsa_span *s = &spans[i];
        for (int64_t row = s->row; row < s->row + s->rows; row++)
            for (int32_t j = 0; j < counts[row]; j++) {
                int32_t place = places[row * k + j];
                ids[row * k + j] = s->among_residents ? s->slot[place] : place;
            }
    }
    return LSA_OK;
}
