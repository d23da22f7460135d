/* Level 2 on the CPU. One query: its candidates by all threads, then one selection. Several queries of a span: groups that pass over
 * the keys together, so that a block of keys is read once for all of them. Several spans: side by side.
 *
 * Picks need few scores. Scores of some likely candidates, the newest and what neighbours picked, say what the k
 * best reach at least; where keys have bounds (index_bound.h), what cannot exceed it is passed over, and what can waits in a list
 * until it is worth being scored, which raises what is to be exceeded. A query for which that leaves out too few, as where many keys
 * are alike, has everything scored. */
#include "kernels/pick.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/index_bound.h"
#include "kernels/index_score.h"
#include "kernels/linear.h"
#include "kernels/topk.h"

enum {
    QUERIES = LSA_BOUND_MOST_TOKENS, /* of a group */
    KEYS = 1024,     /* scored at a time: with the scores of a group they stay in the cache */
    ROW = 64 * KEYS, /* scores of one query at a time, where all threads work on it */
    LIKELY = 256,    /* candidates of a first look, at most, ... */
    NEWEST = 64,     /* of which so many are the newest, ... */
    LEAST_SHARE = 8, /* and which are at most such a share of all */
    WAITING = 48,    /* candidates of a query that wait to be scored: whole tiles of them */
    BOUNDED = 4096,  /* candidates from which bounds pay, or, ... */
    BOUNDED_AVX512 = 12288, /* ... where scores take half the time, ... */
    BOUNDED_PER_PICK = 8,   /* at least so many for each pick */
    REACHED = 8,  /* where bounds leave out less than all but such a share of the candidates, ... */
    SPARED = 512, /* and so many of each query's, all are scored */
    PAUSE = 16    /* groups that a thread does without bounds after one where they did not pay */
};

static int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }
static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* What a thread's last group leaves to its next one. */
typedef struct hints {
    const lsa_span *span; /* NULL: nothing yet */
    int32_t picks;        /* candidates that were picked, ascending */
    int32_t pause;
    int32_t picked[LIKELY];
} hints;

/* One thread's memory. */
typedef struct share {
    float *scores, *values; /* [QUERIES, KEYS], [QUERIES, capacity] */
    int32_t *ids;           /* [QUERIES, capacity] */
    int32_t *waiting;       /* [QUERIES, WAITING] */
    uint8_t *keys;          /* [LIKELY]: side by side */
    hints *hints;
    void *bounds, *workspace;
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

/* Bytes of what share has, in its order. */
enum { PARTS = 8 };

static void part_bytes(int64_t bytes[PARTS], const lsa_picking *p)
{
    int64_t f = sizeof(float), capacity = lsa_topk_capacity((int32_t)p->k);
    int64_t key = lsa_index_key_bytes(p->key_format, p->dim);
    bytes[0] = QUERIES * KEYS * f;
    bytes[1] = bytes[2] = round_up(QUERIES * capacity * f);
    bytes[3] = QUERIES * WAITING * f;
    bytes[4] = round_up(LIKELY * key);
    bytes[5] = round_up(sizeof(hints));
    bytes[6] = round_up(lsa_index_bound_workspace(QUERIES, p->heads, p->dim));
    bytes[7] = score_workspace(p->heads, p->dim, p->key_format, p->compute);
}

static int64_t share_bytes(const lsa_picking *p)
{
    int64_t bytes[PARTS], all = 0;
    part_bytes(bytes, p);
    for (int i = 0; i < PARTS; i++) all += bytes[i];
    return all;
}

int64_t lsa_pick_workspace(int64_t rows, int64_t most, int64_t k, int64_t heads, int64_t dim,
                           int32_t key_format, int32_t compute)
{
    lsa_picking p = {.heads = heads, .dim = dim, .k = k, .rows = rows, .most = most};
    p.key_format = key_format;
    p.compute = compute;
    return ROW * (int64_t)sizeof(float) + lsa_threads() * share_bytes(&p);
}

static share share_of(const call *c, int thread)
{
    int64_t bytes[PARTS];
    uint8_t *at[PARTS] = {c->workspace + ROW * (int64_t)sizeof(float) + thread * c->share_bytes};
    part_bytes(bytes, c->p);
    for (int i = 1; i < PARTS; i++) at[i] = at[i - 1] + bytes[i - 1];
    return (share){(void *)at[0], (void *)at[1], (void *)at[2], (void *)at[3],
                   at[4],         (void *)at[5], at[6],         at[7]};
}

static const uint8_t *key_at(const call *c, const lsa_span *s, int64_t i)
{
    const lsa_layer_store *store = &s->layers[c->layer];
    const lsa_records *r = &store->keys;
    if (s->among_residents)
        return store->resident_keys + i * lsa_index_key_bytes(c->p->key_format, c->p->dim);
    int64_t block = i >> r->block_shift;
    return r->blocks[block] + (i - (block << r->block_shift)) * r->stride + r->offset;
}

static int64_t stride_of(const call *c, const lsa_span *s)
{
    return s->among_residents ? lsa_index_key_bytes(c->p->key_format, c->p->dim)
                              : s->layers[c->layer].keys.stride;
}

/* Candidates from the i-th on whose keys are a stride apart. */
static int64_t together_at(const call *c, const lsa_span *s, int64_t i)
{
    if (s->among_residents) return INT64_MAX;
    int64_t block = (int64_t)1 << s->layers[c->layer].keys.block_shift;
    return block - i % block;
}

/* Scores of n candidates from `from` for `rows` queries of the pass from `row` on, block by block of the keys. */
static int score_keys(const call *c, const lsa_span *s, int64_t row, int64_t rows, int64_t from,
                      int64_t n, float *scores, int64_t stride, void *workspace)
{
    const lsa_picking *p = c->p;
    for (int64_t at = from, taken; at < from + n; at += taken) {
        taken = min(from + n - at, together_at(c, s, at));
        LSA_TRY(lsa_index_score_cpu(scores + at - from, p->queries + row * p->heads * p->dim,
                                    p->weights + row * p->heads, key_at(c, s, at), rows, taken,
                                    p->heads, p->dim, stride_of(c, s), stride, p->key_format,
                                    p->compute, workspace, NULL));
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

/* n queries of a span, from its row `first` on, that pass over the keys together. */
typedef struct group {
    call *c;
    const lsa_span *s;
    int64_t first, n, fewest, most; /* candidates of the first one and of the last */
    share own;
    lsa_topk_state state[QUERIES];
    int32_t waiting[QUERIES],
        reached[QUERIES]; /* candidates: that wait; that could not be left out */
} group;

static int64_t row_of(const group *g, int64_t i) { return g->s->row + g->first + i; }

static int64_t candidates_of(const group *g, int64_t i)
{
    return candidates_at(g->c, g->s, g->s->progress->tokens + g->first + i);
}

/* Scores of candidates `ids` for `rows` queries from the i-th on. */
static int score_some(group *g, int64_t i, int64_t rows, const int32_t *ids, int64_t n)
{
    const lsa_picking *p = g->c->p;
    int64_t row = row_of(g, i), key = lsa_index_key_bytes(p->key_format, p->dim);
    for (int64_t j = 0; j < n; j++)
        memcpy(g->own.keys + j * key, key_at(g->c, g->s, ids[j]), (size_t)key);
    return lsa_index_score_cpu(g->own.scores, p->queries + row * p->heads * p->dim,
                               p->weights + row * p->heads, g->own.keys, rows, n, p->heads, p->dim,
                               key, n, p->key_format, p->compute, g->own.workspace, NULL);
}

/* ---- a first look ---- */

/* Adds ids, ascending, to an ascending list of n that has room for `most`: how many are in it then, each once. */
static int32_t merge(int32_t *list, int32_t n, int32_t most, const int32_t *ids, int32_t count)
{
    int32_t merged[LIKELY], i = 0, j = 0;
    uint32_t all = 0, room = (uint32_t)most;
    while (all < room && (i < n || j < count)) {
        int32_t a = i < n ? list[i] : INT32_MAX, b = j < count ? ids[j] : INT32_MAX;
        merged[all++] = a < b ? a : b;
        i += a <= b;
        j += b <= a;
    }
    memcpy(list, merged, all * sizeof *list);
    return (int32_t)all;
}

/* Candidates of all queries that are likely to be among the best: what neighbours picked, and the newest. */
static int32_t likely_ones(const group *g, int32_t *ids, int32_t most)
{
    const lsa_layer_store *store = &g->s->layers[g->c->layer];
    int64_t seen = candidates_of(g, 0), passes = g->s->progress->passes & 1;
    const hints *last = g->own.hints;
    int32_t n = 0, newest[NEWEST], from = (int32_t)seen - NEWEST;
    for (int32_t i = 0; i < NEWEST; i++) newest[i] = from + i;
    if (last->span == g->s)
        n = merge(ids, 0, most - NEWEST, last->picked, last->picks);
    else if (!g->s->among_residents && store->picked_count[passes])
        n = merge(ids, 0, most - NEWEST, store->picked[passes], *store->picked_count[passes]);
    while (n > 0 && ids[n - 1] >= from) n--;
    return merge(ids, n, most, newest, NEWEST);
}

/* No candidate below the k-th best of these is among the k best of all. */
static int look_at_likely(group *g)
{
    int64_t k = g->c->p->k, seen = candidates_of(g, 0);
    int32_t ids[LIKELY], most = (int32_t)min(LIKELY, seen / LEAST_SHARE);
    if (most < 2 * NEWEST) return LSA_OK;
    int32_t n = likely_ones(g, ids, most);
    if (n < k) return LSA_OK;
    LSA_TRY(score_some(g, 0, g->n, ids, n));
    for (int64_t i = 0; i < g->n; i++)
        lsa_topk_expect(&g->state[i], lsa_topk_least(g->own.scores + i * n, n, (int32_t)k));
    return LSA_OK;
}

static int begin_group(group *g)
{
    int32_t k = (int32_t)g->c->p->k, capacity = lsa_topk_capacity(k);
    for (int64_t i = 0; i < g->n; i++)
        lsa_topk_begin(&g->state[i], k, g->own.values + i * capacity, g->own.ids + i * capacity);
    return look_at_likely(g);
}

static void finish_query(group *g, int64_t i)
{
    const call *c = g->c;
    int64_t row = row_of(g, i), k = c->p->k;
    c->counts[row] =
        lsa_topk_finish(&g->state[i], c->places + row * k, c->values ? c->values + row * k : NULL);
}

/* ---- all scores ---- */

static int pick_by_scores(group *g)
{
    LSA_TRY(begin_group(g));
    for (int64_t from = 0; from < g->most; from += KEYS) {
        int64_t m = min(g->most - from, KEYS);
        LSA_TRY(score_keys(g->c, g->s, row_of(g, 0), g->n, from, m, g->own.scores, KEYS,
                           g->own.workspace));
        for (int64_t i = 0; i < g->n; i++) {
            int64_t visible = min(candidates_of(g, i) - from, m);
            if (visible > 0)
                lsa_topk_push(&g->state[i], g->own.scores + i * KEYS, visible, (int32_t)from);
        }
    }
    for (int64_t i = 0; i < g->n; i++) finish_query(g, i);
    return LSA_OK;
}

/* ---- scores of what bounds do not leave out ---- */

static int score_waiting(group *g, int64_t i)
{
    const int32_t *ids = g->own.waiting + i * WAITING;
    LSA_TRY(score_some(g, i, 1, ids, g->waiting[i]));
    lsa_topk_offer(&g->state[i], g->own.scores, ids, g->waiting[i]);
    g->waiting[i] = 0;
    return LSA_OK;
}

/* The candidates whose bits are set, from candidate `from` on. */
static int add_reached(group *g, int64_t i, uint64_t bits, int64_t from)
{
    if (from + LSA_BOUND_KEYS > g->fewest) {
        int64_t visible = candidates_of(g, i) - from;
        if (visible < 1) return LSA_OK;
        if (visible < LSA_BOUND_KEYS) bits &= ((uint64_t)1 << visible) - 1;
    }
    int32_t *waiting = g->own.waiting + i * WAITING, n = g->waiting[i];
    g->reached[i] += __builtin_popcountll(bits);
    for (; bits; bits &= bits - 1) {
        waiting[n++] = (int32_t)from + __builtin_ctzll(bits);
        if (n < WAITING) continue;
        g->waiting[i] = n;
        LSA_TRY(score_waiting(g, i));
        n = 0;
    }
    g->waiting[i] = n;
    return LSA_OK;
}

/* Whether the bounds left out enough. */
static int are_few_reached(const group *g, int64_t seen)
{
    int64_t all = 0;
    for (int64_t i = 0; i < g->n; i++) all += g->reached[i];
    return all <= g->n * (seen / REACHED + SPARED);
}

static int pick_by_bounds(group *g)
{
    const call *c = g->c;
    const lsa_picking *p = c->p;
    int64_t row = row_of(g, 0);
    uint64_t reached[QUERIES];
    float least[QUERIES];
    lsa_index_bound bound;
    lsa_index_bound_begin(&bound, p->queries + row * p->heads * p->dim, p->weights + row * p->heads,
                          g->n, p->heads, p->dim, p->compute, g->own.bounds);
    LSA_TRY(begin_group(g));
    for (int64_t i = 0; i < g->n; i++) g->waiting[i] = g->reached[i] = 0;
    for (int64_t from = 0, m; from < g->most; from += m) {
        m = min(min(g->most - from, LSA_BOUND_KEYS), together_at(c, g->s, from));
        for (int64_t i = 0; i < g->n; i++) least[i] = g->state[i].threshold;
        lsa_index_bound_reach(reached, &bound, least, key_at(c, g->s, from), m, stride_of(c, g->s));
        for (int64_t i = 0; i < g->n; i++)
            if (reached[i]) LSA_TRY(add_reached(g, i, reached[i], from));
        if (from % KEYS == 0 && !are_few_reached(g, from)) {
            g->own.hints->pause = PAUSE;
            return pick_by_scores(g);
        }
    }
    for (int64_t i = 0; i < g->n; i++) {
        LSA_TRY(score_waiting(g, i));
        finish_query(g, i);
    }
    return LSA_OK;
}

/* Without VNNI, AVX-512 multiplies bytes no faster than floats. */
static int64_t bounded_from(void)
{
    int level = lsa_cpu_level();
    return level == LSA_CPU_AVX512        ? INT64_MAX
           : level == LSA_CPU_AVX512_BF16 ? BOUNDED_AVX512
                                          : BOUNDED;
}

static int is_worth_bounds(const group *g)
{
    const lsa_picking *p = g->c->p;
    int64_t n = candidates_of(g, 0);
    if (g->own.hints->pause > 0) {
        g->own.hints->pause--;
        return 0;
    }
    return p->k > 0 && n >= bounded_from() && n / BOUNDED_PER_PICK >= p->k &&
           lsa_index_bound_has(p->heads, p->dim, p->key_format, p->compute);
}

/* ---- one query ---- */

/* Which of a query's candidates its bounds do not leave out. */
typedef struct bounded_row {
    call *c;
    const lsa_span *s;
    const lsa_index_bound *bound;
    uint64_t *reached; /* a bit for each */
    float least;
    int64_t from, n;
} bounded_row;

static void bound_tiles(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const bounded_row *r = context;
    for (int64_t tile = from; tile < to; tile++) {
        int64_t first = r->from + tile * LSA_BOUND_KEYS;
        int64_t end = min(first + LSA_BOUND_KEYS, r->from + r->n);
        r->reached[tile] = 0;
        for (int64_t at = first, m; at < end; at += m) {
            uint64_t bits;
            m = min(end - at, together_at(r->c, r->s, at));
            lsa_index_bound_reach(&bits, r->bound, &r->least, key_at(r->c, r->s, at), m,
                                  stride_of(r->c, r->s));
            r->reached[tile] |= bits << (at - first);
        }
    }
}

/* The first candidates alone, then always as many as were looked at, so that most are held against a bar that is high. Returns
 * whether the bounds left out enough. */
static int pick_one_by_bounds(group *g, int *enough)
{
    call *c = g->c;
    const lsa_picking *p = c->p;
    int64_t row = row_of(g, 0);
    lsa_index_bound bound;
    uint64_t reached[ROW / LSA_BOUND_KEYS];
    bounded_row r = {c, g->s, &bound, reached, 0, 0, 0};
    lsa_index_bound_begin(&bound, p->queries + row * p->heads * p->dim, p->weights + row * p->heads,
                          1, p->heads, p->dim, p->compute, g->own.bounds);
    LSA_TRY(begin_group(g));
    g->waiting[0] = g->reached[0] = 0;
    for (; r.from < g->most; r.from += r.n) {
        r.n = min(min(r.from < KEYS ? KEYS : r.from, ROW), g->most - r.from);
        r.least = g->state[0].threshold;
        int64_t tiles = (r.n + LSA_BOUND_KEYS - 1) / LSA_BOUND_KEYS;
        lsa_parallel(lsa_threads_for(scoring_work(c, r.n) / 2), tiles, bound_tiles, &r);
        for (int64_t i = 0; i < tiles; i++)
            LSA_TRY(add_reached(g, 0, reached[i], r.from + i * LSA_BOUND_KEYS));
        *enough = are_few_reached(g, r.from + r.n);
        if (!*enough) return LSA_OK;
        LSA_TRY(score_waiting(g, 0));
    }
    finish_query(g, 0);
    return LSA_OK;
}

static void pick_one_by_scores(call *c, const lsa_span *s, int64_t row, int64_t candidates,
                               int thread)
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

/* By all threads; within a team by this thread of it alone. */
static void pick_one(call *c, const lsa_span *s, int thread)
{
    group g = {.c = c, .s = s, .n = 1, .own = share_of(c, thread)};
    int enough = 0;
    g.fewest = g.most = candidates_of(&g, 0);
    if (is_worth_bounds(&g)) lsa_failure_note(&c->failure, pick_one_by_bounds(&g, &enough));
    if (!enough && !c->failure.code) pick_one_by_scores(c, s, s->row, g.most, thread);
}

/* Of the last queries, as many as there is room for. */
static void keep_hints(group *g)
{
    const call *c = g->c;
    hints *h = g->own.hints;
    h->span = g->s;
    h->picks = 0;
    for (int64_t i = g->n - 1; i >= 0; i--) {
        int64_t row = row_of(g, i);
        if (h->picks + c->counts[row] > LIKELY - NEWEST) break;
        h->picks = merge(h->picked, h->picks, LIKELY, c->places + row * c->p->k, c->counts[row]);
    }
}

static void pick_group(call *c, const lsa_span *s, int64_t first, int64_t n, int thread)
{
    group g = {.c = c, .s = s, .first = first, .n = n, .own = share_of(c, thread)};
    g.fewest = candidates_of(&g, 0);
    g.most = candidates_of(&g, n - 1);
    int rc = is_worth_bounds(&g) ? pick_by_bounds(&g) : pick_by_scores(&g);
    if (!rc) keep_hints(&g);
    lsa_failure_note(&c->failure, rc);
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
        pick_one(c, s, thread);
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
    call c = {.places = places, .counts = counts, .values = values, .layer = layer, .p = picking};
    c.workspace = workspace;
    c.share_bytes = share_bytes(picking);
    for (int i = 0; i < lsa_threads(); i++) {
        hints *h = share_of(&c, i).hints;
        h->span = NULL;
        h->pause = 0;
    }
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
