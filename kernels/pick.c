/* Level 2 on the CPU. One query: its candidates' scores by all threads, then one selection. Several queries of a span: groups
 * that pass over the keys together, so that a block of keys is read once for all of them. Several spans: side by side.
 *
 * A group's picks need few of its scores to the last bit. Where products of bf16 are faster and keys are exact in it, a group scores
 * in bf16 first and takes some more than the k best; a bound of what rounding its queries changes says which of them can be among
 * the k best, and these are scored again. Where the bound leaves out too few, everything is. */
#include "kernels/pick.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/index_score.h"
#include "kernels/linear.h"
#include "kernels/number_formats.h"
#include "kernels/topk.h"

enum {
    QUERIES = 32,        /* of a group */
    KEYS = 1024,         /* scored at a time: with the scores of a group they stay in the cache */
    ROW = 64 * KEYS,     /* scores of one query at a time, where all threads work on it */
    NEWEST_PER_PICK = 8, /* candidates of a first look, ... */
    LEAST_SHARE = 64,    /* which are at most such a share of all */
    ROUGH = 16 * KEYS,   /* candidates from which scoring twice pays, ... */
    ROUGH_PER_PICK = 16, /* at least so many for each pick */
    SPARE = 192          /* candidates taken by bf16 beyond k and half of it */
};

static int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }
static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

/* One thread's memory. */
typedef struct share {
    float *scores, *values; /* [QUERIES, KEYS], [QUERIES, capacity] */
    int32_t *ids;           /* [QUERIES, capacity] */
    float *rough;           /* [taken]: a query's scores in bf16, then to the last bit */
    int32_t *taken;         /* [taken]: what they are of */
    uint8_t *keys;          /* [taken]: side by side */
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

/* Candidates that a query in bf16 takes. */
static int64_t taken_of(int64_t k) { return k + k / 2 + SPARE; }

/* Bytes of what share has, in its order. */
enum { PARTS = 7 };

static void part_bytes(int64_t bytes[PARTS], int64_t k, int64_t key, int64_t score)
{
    int64_t taken = taken_of(k), f = sizeof(float);
    bytes[0] = QUERIES * KEYS * f;
    bytes[1] = bytes[2] = round_up(QUERIES * lsa_topk_capacity((int32_t)taken) * f);
    bytes[3] = bytes[4] = round_up(taken * f);
    bytes[5] = round_up(taken * key);
    bytes[6] = score;
}

static int64_t share_bytes(int64_t k, int64_t key, int64_t score)
{
    int64_t bytes[PARTS], all = 0;
    part_bytes(bytes, k, key, score);
    for (int i = 0; i < PARTS; i++) all += bytes[i];
    return all;
}

/* Of either compute, since a group takes both. */
static int64_t workspace_of(int64_t heads, int64_t dim, int32_t format)
{
    int64_t f32 = score_workspace(heads, dim, format, LSA_COMPUTE_F32);
    int64_t bf16 = score_workspace(heads, dim, format, LSA_COMPUTE_BF16);
    return f32 > bf16 ? f32 : bf16;
}

int64_t lsa_pick_workspace(int64_t rows, int64_t most, int64_t k, int64_t heads, int64_t dim,
                           int32_t key_format, int32_t compute)
{
    (void)rows, (void)most, (void)compute;
    int64_t key = lsa_index_key_bytes(key_format, dim);
    return ROW * (int64_t)sizeof(float) +
           lsa_threads() * share_bytes(k, key, workspace_of(heads, dim, key_format));
}

static share share_of(const call *c, int thread)
{
    const lsa_picking *p = c->p;
    int64_t bytes[PARTS];
    uint8_t *at[PARTS] = {c->workspace + ROW * (int64_t)sizeof(float) + thread * c->share_bytes};
    part_bytes(bytes, p->k, lsa_index_key_bytes(p->key_format, p->dim), 0);
    for (int i = 1; i < PARTS; i++) at[i] = at[i - 1] + bytes[i - 1];
    return (share){(void *)at[0], (void *)at[1], (void *)at[2], (void *)at[3],
                   (void *)at[4], at[5],         at[6]};
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

static void note_scales(float *largest, const uint8_t *keys, int64_t n, int64_t stride, int64_t dim)
{
    float most = *largest;
    for (int64_t i = 0; i < n; i++) {
        float scale;
        memcpy(&scale, keys + i * stride + dim, sizeof scale);
        scale = fabsf(scale);
        if (!(scale <= most)) most = scale == scale ? scale : INFINITY;
    }
    *largest = most;
}

/* Scores of n candidates from `from` for `rows` queries of the pass from `row` on, block by block of the keys. */
static int score_keys(const call *c, const lsa_span *s, int32_t compute, int64_t row, int64_t rows,
                      int64_t from, int64_t n, float *scores, int64_t stride, float *largest_scale,
                      void *workspace)
{
    const lsa_picking *p = c->p;
    const lsa_layer_store *store = &s->layers[c->layer];
    const lsa_records *r = &store->keys;
    int64_t key = lsa_index_key_bytes(p->key_format, p->dim), taken;
    for (int64_t at = from; at < from + n; at += taken) {
        int64_t together = (int64_t)1 << r->block_shift;
        int64_t stride_of_key = s->among_residents ? key : r->stride;
        taken = from + n - at;
        if (!s->among_residents) taken = min(taken, together - at % together);
        LSA_TRY(lsa_index_score_cpu(scores + at - from, p->queries + row * p->heads * p->dim,
                                    p->weights + row * p->heads, key_at(c, s, at), rows, taken,
                                    p->heads, p->dim, stride_of_key, stride, p->key_format, compute,
                                    workspace, NULL));
        if (largest_scale)
            note_scales(largest_scale, key_at(c, s, at), taken, stride_of_key, p->dim);
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
        lsa_failure_note(&r->c->failure,
                         score_keys(r->c, r->s, r->c->p->compute, r->row, 1, r->from + at, m,
                                    r->scores + at, m, NULL, workspace));
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

/* n queries of a span, from its row `first` on, that pass over the keys together. */
typedef struct group {
    call *c;
    const lsa_span *s;
    int64_t first, n, most; /* candidates of the last one, who has most */
    share own;
    int64_t k; /* candidates to take for each */
    int32_t compute;
    int is_rough;
    float largest_scale; /* of a key, where it is rough */
    lsa_topk_state state[QUERIES];
} group;

static int64_t candidates_of(const group *g, int64_t i)
{
    return candidates_at(g->c, g->s, g->s->progress->tokens + g->first + i);
}

static int score_block(group *g, int64_t from, int64_t n)
{
    return score_keys(g->c, g->s, g->compute, g->s->row + g->first, g->n, from, n, g->own.scores,
                      KEYS, g->is_rough ? &g->largest_scale : NULL, g->own.workspace);
}

/* The k best of the newest that all see: no candidate below the least of them is among the k best of all. Scores rise towards the
 * end more often than not, and whatever is taken has to be cut back. */
static int look_at_newest(group *g)
{
    int64_t seen = candidates_of(g, 0), n = round_up(NEWEST_PER_PICK * g->k);
    if (n > KEYS || n * LEAST_SHARE > seen) return LSA_OK;
    LSA_TRY(score_block(g, seen - n, n));
    for (int64_t i = 0; i < g->n; i++)
        lsa_topk_expect(&g->state[i],
                        lsa_topk_least(g->own.scores + i * KEYS, (int32_t)n, (int32_t)g->k));
    return LSA_OK;
}

/* Leaves each query's g->k best in its state. */
static int take_best(group *g)
{
    int32_t k = (int32_t)g->k, capacity = lsa_topk_capacity(k);
    for (int64_t i = 0; i < g->n; i++)
        lsa_topk_begin(&g->state[i], k, g->own.values + i * capacity, g->own.ids + i * capacity);
    LSA_TRY(look_at_newest(g));
    for (int64_t from = 0; from < g->most; from += KEYS) {
        int64_t m = min(g->most - from, KEYS);
        LSA_TRY(score_block(g, from, m));
        for (int64_t i = 0; i < g->n; i++) {
            int64_t visible = min(candidates_of(g, i) - from, m);
            if (visible > 0)
                lsa_topk_push(&g->state[i], g->own.scores + i * KEYS, visible, (int32_t)from);
        }
    }
    return LSA_OK;
}

static int pick_exactly(group *g)
{
    const call *c = g->c;
    int64_t k = c->p->k, row = g->s->row + g->first;
    g->k = k;
    g->compute = c->p->compute;
    LSA_TRY(take_best(g));
    for (int64_t i = 0; i < g->n; i++)
        c->counts[row + i] = lsa_topk_finish(&g->state[i], c->places + (row + i) * k,
                                             c->values ? c->values + (row + i) * k : NULL);
    return LSA_OK;
}

/* How far a query's score in bf16 can be from its score. A key's numbers are exact, 448 times its scale at most; what rounding
 * takes from the query's is known; either sum rounds once a number, once a head, and for the scale. Some more is added for what is
 * too small to be normal. Not finite where a sum could overflow. */
static double bound_of(const group *g, int64_t i)
{
    const lsa_picking *p = g->c->p;
    int64_t row = g->s->row + g->first + i;
    const float *q = p->queries + row * p->heads * p->dim, *w = p->weights + row * p->heads;
    double all = 0, lost = 0, weights = 0, scale = fabs((double)g->largest_scale);
    for (int64_t h = 0; h < p->heads; h++, q += p->dim) {
        double sum = 0, rounded = 0, weight = fabs((double)w[h]);
        for (int64_t d = 0; d < p->dim; d++) {
            sum += fabs((double)q[d]);
            rounded += fabs((double)q[d] - (double)bf16_to_f32(f32_to_bf16(q[d])));
        }
        all += sum * weight;
        lost += rounded * weight;
        weights += weight;
        if (!(sum * 448 < 1e30)) return INFINITY;
    }
    double sums = (2.0 * (double)(p->dim + p->heads) + 8) * 0x1p-23;
    if (!(all * 448 * (scale > 1 ? scale : 1) < 1e30)) return INFINITY;
    double tiny = (double)(p->dim * p->heads) * (1 + weights) * 448 * (1 + scale) * 0x1p-120;
    return 448 * scale * (lost * 1.001 + all * sums) + tiny;
}

/* Keeps, of what query i has taken, what can be among the k best: their number; -1 where something that was not taken can be. */
static int64_t keep_possible(group *g, int64_t i)
{
    share *own = &g->own;
    int64_t k = g->c->p->k, kept = 0;
    int32_t n = lsa_topk_finish(&g->state[i], own->taken, own->rough);
    double bound = bound_of(g, i);
    if (!(bound < INFINITY)) return -1;
    if (n <= k) return n;
    double least = (double)lsa_topk_least(own->rough, n, (int32_t)k) - 2 * bound;
    if (n == g->k && (double)lsa_topk_least(own->rough, n, n) >= least) return -1;
    for (int32_t j = 0; j < n; j++)
        if ((double)own->rough[j] >= least) own->taken[kept++] = own->taken[j];
    return kept;
}

/* Picks among the n candidates in own.taken by their scores to the last bit. */
static int pick_among(group *g, int64_t i, int64_t n)
{
    const call *c = g->c;
    const lsa_picking *p = c->p;
    share *own = &g->own;
    int64_t row = g->s->row + g->first + i, key = lsa_index_key_bytes(p->key_format, p->dim);
    int32_t *places = c->places + row * p->k;
    for (int64_t j = 0; j < n; j++)
        memcpy(own->keys + j * key, key_at(c, g->s, own->taken[j]), (size_t)key);
    LSA_TRY(lsa_index_score_cpu(own->rough, p->queries + row * p->heads * p->dim,
                                p->weights + row * p->heads, own->keys, 1, n, p->heads, p->dim, key,
                                n, p->key_format, p->compute, own->workspace, NULL));
    lsa_topk_state state;
    lsa_topk_begin(&state, (int32_t)p->k, g->state[i].values, g->state[i].ids);
    lsa_topk_push(&state, own->rough, n, 0);
    int32_t count = lsa_topk_finish(&state, places, c->values ? c->values + row * p->k : NULL);
    for (int32_t j = 0; j < count; j++) places[j] = own->taken[places[j]];
    c->counts[row] = count;
    return LSA_OK;
}

/* In bf16 first; those for whom that left too much open once more, when nothing that the others took is needed. */
static int pick_roughly(group *g)
{
    int open[QUERIES];
    g->k = taken_of(g->c->p->k);
    g->compute = LSA_COMPUTE_BF16;
    LSA_TRY(take_best(g));
    for (int64_t i = 0; i < g->n; i++) {
        int64_t n = keep_possible(g, i);
        open[i] = n < 0;
        if (n >= 0) LSA_TRY(pick_among(g, i, n));
    }
    group one = *g;
    one.n = 1, one.is_rough = 0;
    for (int64_t i = 0; i < g->n; i++) {
        if (!open[i]) continue;
        one.first = g->first + i;
        one.most = candidates_of(g, i);
        LSA_TRY(pick_exactly(&one));
    }
    return LSA_OK;
}

static int is_worth_roughness(const group *g)
{
    const lsa_picking *p = g->c->p;
    int64_t n = candidates_of(g, 0);
    return lsa_cpu_is_bf16_faster() && p->compute == LSA_COMPUTE_F32 &&
           p->key_format == LSA_KV_FP8 && p->k > 0 && n >= ROUGH && n / ROUGH_PER_PICK >= p->k;
}

static void pick_group(call *c, const lsa_span *s, int64_t first, int64_t n, int thread)
{
    group g = {.c = c, .s = s, .first = first, .n = n, .own = share_of(c, thread)};
    g.most = candidates_of(&g, n - 1);
    g.is_rough = is_worth_roughness(&g);
    lsa_failure_note(&c->failure, g.is_rough ? pick_roughly(&g) : pick_exactly(&g));
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
    call c = {.places = places, .counts = counts, .values = values, .layer = layer, .p = picking};
    c.workspace = workspace;
    c.share_bytes = share_bytes(picking->k, lsa_index_key_bytes(picking->key_format, picking->dim),
                                workspace_of(picking->heads, picking->dim, picking->key_format));
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
