/* Sparse multi-query attention on the CPU: how a call is cut into tasks, tiles and sections.
 *
 * A query's keys are taken in one order, whatever the call: its window in tiles of 64, then its
 * records in tiles of 64 and sections of 512. Within a section an online softmax goes on from tile
 * to tile; the first section includes the window and the sink. Sections are then joined in order,
 * so that they can run on different threads without another result. */
#include "kernels/attention.h"

#include <math.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/attention_tile.h"
#include "kernels/record_at.h"
#include "kernels/rope.h"

enum {
    TILE = LSA_ATTENTION_TILE,
    SECTION = 8 * TILE,      /* records that one online softmax covers */
    MOST_QUERIES = 32,       /* that share the decoding of a tile ... */
    QUERY_BYTES = 512 * 1024 /* ... while their sums stay in the cache */
};

typedef struct call {
    float *out, *mass;
    const float *q, *window, *sinks;
    const lsa_records *records;
    const int32_t *ids, *counts;
    int64_t tokens, heads, dim, rope_dim, room, own, window_size, id_stride;
    float scale;
    const lsa_attention_ops *ops;
    lsa_attention_decode_fn *decode;
    int64_t padded; /* dim up to a multiple of 16 */
    int64_t most;   /* records of any query */
    int64_t record_bytes;
} call;

/* One query's sums over what it has seen, for all heads. */
typedef struct state {
    float *max, *sum, *acc; /* [heads up to 16s] twice, [heads, padded] */
} state;

/* What one thread works in. */
typedef struct scratch {
    float *tile;    /* [TILE, row_stride] + 64 */
    float *scores;  /* [heads, TILE] */
    float *rescale; /* [heads up to 16s] */
    float *q;       /* [heads, padded] */
    float *kept;    /* [heads, most] */
    float *states;
    const float *rows[TILE + 4];
} scratch;

static int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* Floats from row to row of a tile: rows whole kilobytes apart would compete for few sets of the
 * cache. */
static int64_t row_stride(int64_t padded) { return padded % 256 ? padded : padded + 16; }

/* Rows are used where they lie, unless their length is ragged or one that row_stride avoids. */
static int in_place(const call *c) { return c->dim % 16 == 0 && (c->dim % 256 || c->heads < 8); }

static int64_t sections_of(int64_t records)
{
    return records > SECTION ? (records + SECTION - 1) / SECTION : 1;
}

static int64_t state_floats(int64_t heads, int64_t padded)
{
    return 2 * round_up(heads, 16) + heads * padded;
}

/* Queries that go through the records together; several only where all share the records. */
static int64_t queries_together(int64_t heads, int64_t padded)
{
    int64_t bytes = 2 * (int64_t)sizeof(float) * heads * padded;
    int64_t n = bytes > 0 ? QUERY_BYTES / bytes : 1; /* no heads: a call that check() refuses */
    return n > MOST_QUERIES ? MOST_QUERIES : n < 1 ? 1 : n;
}

static int64_t scratch_floats(int64_t heads, int64_t padded, int64_t most)
{
    return TILE * row_stride(padded) + 64 + heads * (padded + TILE) + round_up(heads, 16) +
           round_up(heads * most, 16) +
           2 * queries_together(heads, padded) * state_floats(heads, padded);
}

static state state_at(float *base, int64_t heads, int64_t padded, int64_t index)
{
    float *max = base + index * state_floats(heads, padded), *sum = max + round_up(heads, 16);
    return (state){max, sum, sum + round_up(heads, 16)};
}

static scratch scratch_at(float *workspace, const call *c, int64_t thread)
{
    int64_t heads = c->heads, padded = c->padded;
    scratch s = {.tile = workspace + thread * scratch_floats(heads, padded, c->most)};
    s.scores = s.tile + TILE * row_stride(padded) + 64;
    s.q = s.scores + heads * TILE;
    s.rescale = s.q + heads * padded;
    s.kept = s.rescale + round_up(heads, 16);
    s.states = s.kept + round_up(heads * c->most, 16);
    return s;
}

static void clear(const call *c, state s, int64_t from, int64_t heads, int with_sink)
{
    for (int64_t h = 0; h < heads; h++) {
        s.max[h] = with_sink ? c->sinks[from + h] : -INFINITY;
        s.sum[h] = s.max[h] == -INFINITY ? 0.0f : 1.0f;
    }
    memset(s.acc, 0, (size_t)(heads * c->padded) * sizeof(float));
}

/* Scores come in blocks of four keys. */
static void pad_rows(scratch *s, int64_t n)
{
    for (; n % 4; n++) s->rows[n] = s->rows[0];
}

/* scratch->rows: query t's records `from` .. `from + n - 1`. */
static void gather(const call *c, scratch *s, int64_t t, int64_t from, int64_t n)
{
    const lsa_records *r = c->records;
    const int32_t *ids = c->ids ? c->ids + t * c->id_stride + from : NULL;
    const uint8_t *at[TILE];
    for (int64_t j = 0; j < n; j++) {
        at[j] = lsa_record_at(r, ids ? ids[j] : from + j);
        for (int64_t i = 0; ids && i < c->record_bytes; i += 64) __builtin_prefetch(at[j] + i);
    }
    if (r->format == LSA_KV_F32 && in_place(c))
        for (int64_t j = 0; j < n; j++) s->rows[j] = (const void *)at[j];
    else
        c->decode(s->tile, s->rows, at, n, row_stride(c->padded), c->dim, c->rope_dim, r->format);
    pad_rows(s, n);
}

/* One tile of n keys, in scratch->rows, joins a query's sums. */
static void attend(const call *c, scratch *s, state sums, const float *q, int64_t heads, int64_t n,
                   float *keep)
{
    c->ops->scores(s->scores, q, s->rows, n, heads, c->padded, c->scale);
    for (int64_t h = 0; keep && h < heads; h++)
        memcpy(keep + h * c->most, s->scores + h * TILE, (size_t)n * sizeof(float));
    c->ops->softmax(s->scores, sums.max, sums.sum, s->rescale, n, heads);
    c->ops->accumulate(sums.acc, s->scores, s->rescale, s->rows, n, heads, c->padded);
}

static const float *query(const call *c, scratch *s, int64_t t, int64_t from, int64_t heads)
{
    const float *q = c->q + (t * c->heads + from) * c->dim;
    if (c->padded == c->dim) return q;
    for (int64_t h = 0; h < heads; h++) {
        memcpy(s->q + h * c->padded, q + h * c->dim, (size_t)c->dim * sizeof(float));
        memset(s->q + h * c->padded + c->dim, 0, (size_t)(c->padded - c->dim) * sizeof(float));
    }
    return s->q;
}

static void attend_window(const call *c, scratch *s, state sums, const float *q, int64_t t,
                          int64_t heads)
{
    int64_t end = c->own + t + 1, row = end > c->window_size ? end - c->window_size : 0;
    while (row < end) {
        int64_t n = min(end - row, TILE);
        const uint8_t *at[TILE];
        for (int64_t j = 0; j < n; j++) s->rows[j] = c->window + (row + j) % c->room * c->dim;
        if (!in_place(c)) {
            for (int64_t j = 0; j < n; j++) at[j] = (const uint8_t *)s->rows[j];
            c->decode(s->tile, s->rows, at, n, row_stride(c->padded), c->dim, 0, LSA_KV_F32);
        }
        pad_rows(s, n);
        attend(c, s, sums, q, heads, n, NULL);
        row += n;
    }
}

static int64_t records_of(const call *c, int64_t t) { return c->records ? c->counts[t] : 0; }

/* One section of n queries' records, for heads from .. from + heads - 1; states holds n states of
 * so many heads. More than one query: only where all share the records. keep: NULL, or where the
 * heads' scores go. */
static void attend_section(const call *c, scratch *s, float *states, int64_t t, int64_t n,
                           int64_t from, int64_t heads, int64_t section, float *keep)
{
    int64_t most = 0, start = section * SECTION;
    for (int64_t i = 0; i < n; i++) {
        int64_t records = records_of(c, t + i);
        if (records > most) most = records;
        if (section > 0 && records <= start) continue;
        state sums = state_at(states, heads, c->padded, i);
        clear(c, sums, from, heads, section == 0);
        if (section == 0) attend_window(c, s, sums, query(c, s, t + i, from, heads), t + i, heads);
    }
    int64_t end = min(most, start + SECTION);
    for (int64_t at = start; at < end; at += TILE) {
        gather(c, s, t, at, min(end - at, TILE));
        for (int64_t i = 0; i < n; i++) {
            int64_t keys = min(records_of(c, t + i) - at, TILE);
            if (keys <= 0) continue;
            attend(c, s, state_at(states, heads, c->padded, i), query(c, s, t + i, from, heads),
                   heads, keys, keep ? keep + at : NULL);
        }
    }
}

static void finish(const call *c, state sums, int64_t t, int64_t from, int64_t heads)
{
    float *out = c->out + (t * c->heads + from) * c->dim;
    for (int64_t h = 0; h < heads; h++) {
        float factor = sums.sum[h] == 0.0f ? 0.0f : 1.0f / sums.sum[h];
        for (int64_t i = 0; i < c->dim; i++)
            out[h * c->dim + i] = sums.acc[h * c->padded + i] * factor;
    }
}

static void join(const call *c, state into, state part, int64_t heads)
{
    c->ops->merge(into.max, into.sum, into.acc, part.max, part.sum, part.acc, heads, c->padded);
}

/* n queries from t on, all heads and sections. */
static void attend_queries(const call *c, scratch *s, int64_t t, int64_t n)
{
    float *sums = s->states, *part = sums + n * state_floats(c->heads, c->padded);
    float *keep = c->mass ? s->kept : NULL;
    int64_t most = 0;
    for (int64_t i = 0; i < n; i++)
        if (records_of(c, t + i) > most) most = records_of(c, t + i);
    attend_section(c, s, sums, t, n, 0, c->heads, 0, keep);
    for (int64_t section = 1; section < sections_of(most); section++) {
        attend_section(c, s, part, t, n, 0, c->heads, section, keep);
        for (int64_t i = 0; i < n; i++)
            if (records_of(c, t + i) > section * SECTION)
                join(c, state_at(sums, c->heads, c->padded, i),
                     state_at(part, c->heads, c->padded, i), c->heads);
    }
    for (int64_t i = 0; i < n; i++)
        finish(c, state_at(sums, c->heads, c->padded, i), t + i, 0, c->heads);
    if (!keep) return;
    state first = state_at(sums, c->heads, c->padded, 0);
    c->ops->mass(c->mass + t * c->id_stride, keep, first.max, first.sum, records_of(c, t), c->heads,
                 c->most);
}

/* How a call of fewer queries than threads is cut: each query by heads and by sections. */
typedef struct cut {
    int64_t group, groups;   /* heads of a task; tasks that make all heads */
    float *kept, *max, *sum; /* [heads, most] [heads] [heads] */
    float *states;           /* [sections, groups] */
} cut;

/* For any number of threads; group sizes are multiples of 4. */
static int64_t cut_floats(int64_t heads, int64_t padded, int64_t most)
{
    int64_t quads = round_up(heads, 4);
    return round_up(heads * (most + 2), 16) +
           sections_of(most) * (8 * quads + 64 + 2 * quads * padded);
}

static cut cut_of(const call *c, float *workspace, int64_t threads)
{
    cut k = {.group = round_up((c->heads + threads - 1) / threads, 4)};
    k.groups = (c->heads + k.group - 1) / k.group;
    k.kept = workspace;
    k.max = k.kept + c->heads * c->most;
    k.sum = k.max + c->heads;
    k.states = workspace + round_up(c->heads * (c->most + 2), 16);
    return k;
}

static int64_t cut_heads(const call *c, const cut *k, int64_t g)
{
    return min(k->group, c->heads - g * k->group);
}

static float *cut_states(const call *c, const cut *k, int64_t section, int64_t g)
{
    return k->states + (section * k->groups + g) * state_floats(k->group, c->padded);
}

static void cut_task(const call *c, scratch *s, const cut *k, int64_t t, int64_t task)
{
    int64_t g = task % k->groups, section = task / k->groups, from = g * k->group;
    attend_section(c, s, cut_states(c, k, section, g), t, 1, from, cut_heads(c, k, g), section,
                   c->mass ? k->kept + from * c->most : NULL);
}

static void cut_join(const call *c, const cut *k, int64_t t, int64_t g, int64_t sections)
{
    int64_t from = g * k->group, heads = cut_heads(c, k, g);
    state sums = state_at(cut_states(c, k, 0, g), heads, c->padded, 0);
    for (int64_t section = 1; section < sections; section++)
        join(c, sums, state_at(cut_states(c, k, section, g), heads, c->padded, 0), heads);
    finish(c, sums, t, from, heads);
    memcpy(k->max + from, sums.max, (size_t)heads * sizeof(float));
    memcpy(k->sum + from, sums.sum, (size_t)heads * sizeof(float));
}

/* A call's queries, or one of them that is cut, with the memory of its threads. */
typedef struct shared {
    const call *c;
    float *workspace;
    cut k;
    int64_t t, together;
} shared;

static void cut_tasks(void *context, int64_t from, int64_t to, int thread)
{
    const shared *a = context;
    scratch s = scratch_at(a->workspace, a->c, thread);
    for (int64_t task = from; task < to; task++) cut_task(a->c, &s, &a->k, a->t, task);
}

static void cut_joins(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const shared *a = context;
    for (int64_t g = from; g < to; g++)
        cut_join(a->c, &a->k, a->t, g, sections_of(records_of(a->c, a->t)));
}

static void cut_mass(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const shared *a = context;
    const call *c = a->c;
    int64_t j = from * TILE, end = min(to * TILE, records_of(c, a->t));
    c->ops->mass(c->mass + a->t * c->id_stride + j, a->k.kept + j, a->k.max, a->k.sum, end - j,
                 c->heads, c->most);
}

static void attend_cut(const call *c, float *workspace, int threads)
{
    shared a = {.c = c, .workspace = workspace};
    a.k = cut_of(c, workspace + lsa_threads() * scratch_floats(c->heads, c->padded, c->most),
                 threads);
    for (a.t = 0; a.t < c->tokens; a.t++) {
        int64_t records = records_of(c, a.t);
        lsa_parallel(threads, a.k.groups * sections_of(records), cut_tasks, &a);
        lsa_parallel(lsa_threads_for(sections_of(records) * c->heads * c->dim / 8), a.k.groups,
                     cut_joins, &a);
        if (c->mass)
            lsa_parallel(lsa_threads_for(records * c->heads), (records + TILE - 1) / TILE, cut_mass,
                         &a);
    }
}

/* Work in the unit of lsa_threads_for; sets the most records of a query. */
static int64_t measure(call *c)
{
    int64_t keys = c->tokens * min(c->window_size, c->own + c->tokens);
    for (int64_t t = 0; t < c->tokens; t++) {
        keys += records_of(c, t);
        if (records_of(c, t) > c->most) c->most = records_of(c, t);
    }
    return keys * (c->heads + 2) * c->dim / 24;
}

int lsa_attention_check(const lsa_records *records, int64_t tokens, int64_t heads, int64_t dim,
                        int64_t rope_dim, int64_t room, int64_t own, int64_t window_size)
{
    if (tokens < 0 || heads < 1 || dim < 1 || rope_dim < 0 || rope_dim > dim || own < 0 ||
        window_size < 0 || (tokens && room < min(window_size + tokens - 1, own + tokens)))
        return lsa_fail(LSA_ESHAPE,
                        "attention: [%lld, %lld, %lld] queries, %lld rotated values, window of "
                        "%lld at %lld in a ring of %lld",
                        (long long)tokens, (long long)heads, (long long)dim, (long long)rope_dim,
                        (long long)window_size, (long long)own, (long long)room);
    if (records && lsa_kv_record_bytes(records->format, dim, rope_dim) == 0)
        return lsa_fail(LSA_EARG, "attention: record format %d is unknown", records->format);
    return LSA_OK;
}

static void attend_part(void *context, int64_t from, int64_t to, int thread)
{
    const shared *a = context;
    int64_t end = min(to * a->together, a->c->tokens);
    scratch s = scratch_at(a->workspace, a->c, thread);
    for (int64_t t = from * a->together; t < end; t += a->together)
        attend_queries(a->c, &s, t, min(a->together, end - t));
}

static void attend_all(const call *c, float *workspace, int threads)
{
    shared a = {.c = c, .workspace = workspace, .together = 1};
    if (c->records && !c->ids && !c->mass)
        a.together = min(queries_together(c->heads, c->padded),
                         (c->tokens + 2 * threads - 1) / (2 * threads));
    lsa_parallel(threads, (c->tokens + a.together - 1) / a.together, attend_part, &a);
}

int lsa_attention_cpu(float *out, float *mass, const float *q, const float *window,
                      const float *sinks, const lsa_records *records, const int32_t *ids,
                      const int32_t *counts, int64_t tokens, int64_t heads, int64_t dim,
                      int64_t rope_dim, int64_t room, int64_t own, int64_t window_size,
                      int64_t id_stride, float scale, void *workspace, void *stream)
{
    (void)stream;
    call c = {.out = out, .mass = records ? mass : NULL, .q = q, .window = window, .sinks = sinks};
    c.records = records, c.ids = ids, c.counts = counts;
    c.tokens = tokens, c.heads = heads, c.dim = dim, c.padded = round_up(dim, 16);
    c.rope_dim = rope_dim, c.room = room, c.own = own, c.window_size = window_size,
    c.id_stride = id_stride;
    c.scale = scale, c.ops = lsa_attention_ops_now(), c.decode = lsa_attention_decode_now();
    c.record_bytes = records ? lsa_kv_record_bytes(records->format, dim, rope_dim) : 0;
    int rc = lsa_attention_check(records, tokens, heads, dim, rope_dim, room, own, window_size);
    if (rc) return rc;
    if (tokens == 0) return LSA_OK;
    int threads = lsa_threads_for(measure(&c));
    if (tokens < threads)
        attend_cut(&c, workspace, threads);
    else
        attend_all(&c, workspace, threads);
    return LSA_OK;
}

/* ---- spans ---- */

/* One span's attention; counts of entries are written on the way. */
static int attend_span(float *out, float *mass, const lsa_span *s, int64_t layer,
                       const lsa_attending *a, void *workspace)
{
    const lsa_layer_store *store = &s->layers[layer];
    int64_t from = s->progress->tokens, at = s->row * a->heads * a->dim, picks = s->row * a->k;
    int with_ids = a->source == LSA_ATTEND_PICKED;
    const lsa_records *records = with_ids && s->in_cells ? &store->hot
                                 : store->mirror.blocks  ? &store->mirror
                                                         : &store->cold;
    if (a->source == LSA_ATTEND_WINDOW) records = NULL;
    if (a->source == LSA_ATTEND_ENTRIES)
        for (int64_t t = 0; t < s->rows; t++)
            a->counts[s->row + t] = (int32_t)((from + t + 1) / a->rate);
    return lsa_attention_cpu(out + at, mass && with_ids ? mass + picks : NULL, a->q + at,
                             store->window.data, a->sinks, records,
                             with_ids ? a->ids + picks : NULL, a->counts + s->row, s->rows,
                             a->heads, a->dim, a->rope_dim, store->window.room, from,
                             a->window_size, with_ids ? a->k : 0, a->scale, workspace, NULL);
}

static int64_t span_work(const lsa_span *s, const lsa_attending *a)
{
    int64_t records = a->source == LSA_ATTEND_WINDOW    ? 0
                      : a->source == LSA_ATTEND_ENTRIES ? s->progress->tokens / a->rate
                                                        : a->k;
    return s->rows * (a->window_size + records) * (a->heads + 2) * a->dim / 24;
}

/* Spans side by side: a thread of a team works alone. */
typedef struct side_by_side {
    float *out, *mass, *workspace;
    const lsa_span *spans;
    const lsa_attending *attending;
    int64_t layer, share;
    lsa_failure failure;
} side_by_side;

static void attend_spans(void *context, int64_t from, int64_t to, int thread)
{
    side_by_side *b = context;
    for (int64_t i = from; i < to; i++)
        lsa_failure_note(&b->failure, attend_span(b->out, b->mass, &b->spans[i], b->layer,
                                                  b->attending, b->workspace + thread * b->share));
}

static int attend_spans_of_pass(float *out, float *mass, const lsa_span *spans, int64_t count,
                                int64_t layer, const lsa_attending *attending, void *workspace)
{
    int64_t work = 0, most = 0, rows = 0;
    for (int64_t i = 0; i < count; i++) {
        const lsa_span *s = &spans[i];
        int64_t entries = (s->progress->tokens + s->rows) / (attending->rate ? attending->rate : 1);
        work += span_work(s, attending);
        if (attending->source == LSA_ATTEND_ENTRIES && entries > most) most = entries;
        if (s->rows > rows) rows = s->rows;
    }
    if (attending->source != LSA_ATTEND_ENTRIES) most = attending->k;
    int threads = count > 1 ? lsa_threads_for(work) : 1;
    if (threads == 1 || 2 * count <= threads) { /* one after the other, each with all threads */
        for (int64_t i = 0; i < count; i++)
            LSA_TRY(attend_span(out, mass, &spans[i], layer, attending, workspace));
        return LSA_OK;
    }
    int64_t share =
        round_up(scratch_floats(attending->heads, round_up(attending->dim, 16), most), 16);
    side_by_side b = {out, mass, workspace, spans, attending, layer, share, {0}};
    lsa_parallel(threads, count, attend_spans, &b);
    return lsa_failure_raise(&b.failure);
}

int lsa_attend_cpu(float *out, float *mass, const lsa_span *spans, int64_t count, int64_t layer,
                   const lsa_attending *attending, void *workspace, void *stream)
{
    const lsa_attending *a = attending;
    LSA_TRY(attend_spans_of_pass(out, mass, spans, count, layer, a, workspace));
    return a->table ? lsa_rope_cpu(out, a->table, a->rows, a->heads, a->dim, a->rope_dim, 1, stream)
                    : LSA_OK;
}

int64_t lsa_attention_workspace(int64_t tokens, int64_t heads, int64_t dim, int64_t window_size,
                                int64_t most_records, int64_t most_masses)
{
    (void)tokens, (void)window_size, (void)most_masses;
    int64_t padded = round_up(dim, 16), threads = lsa_threads();
    int64_t floats = threads * round_up(scratch_floats(heads, padded, most_records), 16);
    if (threads > 1) floats += cut_floats(heads, padded, most_records);
    return round_up(floats * (int64_t)sizeof(float), 64);
}
