/* Extending what sessions keep, on the CPU: a span after the other, with the kernels of each part. */
#include "kernels/extend.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/compress.h"
#include "kernels/record_at.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"

/* A ring's place for a position. */
static float *ring_at(const lsa_ring *ring, int64_t position)
{
    return ring->data + position % ring->room * ring->width;
}

/* n rows of positions from .. go into a ring, or come out of one, in at most two runs. */
static void to_ring(const lsa_ring *ring, int64_t from, int64_t n, const float *rows)
{
    while (n > 0) {
        int64_t run = ring->room - from % ring->room;
        if (run > n) run = n;
        memcpy(ring_at(ring, from), rows, (size_t)(run * ring->width) * sizeof *rows);
        from += run, rows += run * ring->width, n -= run;
    }
}

static void from_ring(float *rows, const lsa_ring *ring, int64_t from, int64_t n)
{
    while (n > 0) {
        int64_t run = ring->room - from % ring->room;
        if (run > n) run = n;
        memcpy(rows, ring_at(ring, from), (size_t)(run * ring->width) * sizeof *rows);
        from += run, rows += run * ring->width, n -= run;
    }
}

static const lsa_ring *ring_of(const lsa_layer_store *store, int32_t what)
{
    switch (what) {
    case LSA_KEEP_WINDOW:
        return &store->window;
    case LSA_KEEP_QUERIES:
        return &store->queries;
    case LSA_KEEP_QUERY_WEIGHTS:
        return &store->query_weights;
    default:
        return &store->hidden;
    }
}

int lsa_keep_rows_check(int32_t what)
{
    if (what >= LSA_KEEP_WINDOW && what <= LSA_KEEP_HIDDEN) return LSA_OK;
    return lsa_fail(LSA_EARG, "keep_rows: %d is none of the rows that a layer keeps", what);
}

int lsa_keep_rows_cpu(const lsa_span *spans, int64_t count, int64_t layer, int32_t what,
                      const float *rows, int64_t width, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_keep_rows_check(what));
    for (int64_t i = 0; i < count; i++) {
        const lsa_span *s = &spans[i];
        to_ring(ring_of(&s->layers[layer], what), s->progress->tokens, s->rows,
                rows + s->row * width);
    }
    return LSA_OK;
}

/* ---- entries ---- */

static int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }

/* What a call works in: windows as compress wants them, one behind the other; positions and rope tables; an encoded entry. */
typedef struct work {
    float *kv, *gate, *table;
    int32_t *positions;
    uint8_t *encoded;
} work;

static int64_t most_windows(int64_t rows, int64_t rate) { return (rows + rate - 1) / rate + 1; }

static int64_t encoded_bytes(int64_t dim) { return dim * (int64_t)sizeof(float) + 64; }

int64_t lsa_extend_workspace(int64_t rows, int64_t rate, int64_t dim, int64_t rope_dim,
                             int32_t overlap)
{
    int64_t windows = most_windows(rows, rate), width = overlap ? 2 * dim : dim;
    int64_t f = sizeof(float);
    return 2 * round_up((windows + 1) * rate * width * f) + round_up(windows * rope_dim * f) +
           round_up(windows * f) + round_up(encoded_bytes(dim));
}

static work work_in(void *workspace, const lsa_extension *x, int64_t rows)
{
    int64_t windows = most_windows(rows, x->rate), width = x->overlap ? 2 * x->dim : x->dim;
    int64_t f = sizeof(float), ring = round_up((windows + 1) * x->rate * width * f);
    uint8_t *at = workspace;
    work w = {.kv = (void *)at, .gate = (void *)(at + ring)};
    at += 2 * ring;
    w.table = (void *)at;
    at += round_up(windows * x->rope_dim * f);
    w.positions = (void *)at;
    w.encoded = at + round_up(windows * f);
    return w;
}

/* A chunk's record or key, encoded, goes where it belongs. */
static void publish(const lsa_span *s, const lsa_layer_store *store, const lsa_extension *x,
                    int64_t chunk, const uint8_t *encoded, int64_t bytes)
{
    int keys = x->what == LSA_EXTEND_KEYS;
    const lsa_records *hot = keys ? &store->hot_keys : &store->hot;
    memcpy(lsa_record_at(keys ? &store->keys : &store->cold, chunk), encoded, (size_t)bytes);
    if (!keys && store->mirror.blocks)
        memcpy(lsa_record_at(&store->mirror, chunk), encoded, (size_t)bytes);
    int32_t slot = s->born_slot && hot->blocks ? s->born_slot[chunk - s->born_from] : -1;
    if (slot >= 0) memcpy(lsa_record_at(hot, slot), encoded, (size_t)bytes);
    if (keys && s->among_residents)
        memcpy(store->resident_keys + (s->residents + chunk - s->chunks) * bytes, encoded,
               (size_t)bytes);
}

/* entries [fresh, dim]: the windows from `first` on. */
static int make_entries(float *entries, const lsa_extension *x, const work *w, const lsa_ring *kv,
                        const lsa_ring *gate, int64_t first, int64_t fresh)
{
    int before = x->overlap && first > 0;
    int64_t from = (first - before) * x->rate, rows = (fresh + before) * x->rate;
    int64_t skipped = before * x->rate * kv->width;
    from_ring(w->kv, kv, from, rows);
    from_ring(w->gate, gate, from, rows);
    LSA_TRY(lsa_compress_cpu(entries, w->kv + skipped, w->gate + skipped, before ? w->kv : NULL,
                             before ? w->gate : NULL, x->bias, fresh, x->rate, x->dim, x->overlap,
                             NULL));
    LSA_TRY(lsa_rmsnorm_cpu(entries, entries, x->norm, fresh, x->dim, x->norm_eps, NULL));
    for (int64_t i = 0; i < fresh; i++) w->positions[i] = (int32_t)((first + i) * x->rate);
    LSA_TRY(lsa_rope_table_cpu(w->table, x->inv_freq, w->positions, fresh, x->rope_dim / 2, NULL));
    return lsa_rope_cpu(entries, w->table, fresh, 1, x->dim, x->rope_dim, 0, NULL);
}

static int extend(float *entries, const lsa_span *s, int64_t layer, const lsa_extension *x,
                  const work *w)
{
    const lsa_layer_store *store = &s->layers[layer];
    int keys = x->what == LSA_EXTEND_KEYS;
    const lsa_ring *kv = keys ? &store->index_kv : &store->kv,
                   *gate = keys ? &store->index_gate : &store->gate;
    int64_t from = s->progress->tokens, first = from / x->rate;
    int64_t fresh = (from + s->rows) / x->rate - first;
    to_ring(kv, from, s->rows, x->kv + s->row * kv->width);
    to_ring(gate, from, s->rows, x->gate + s->row * gate->width);
    if (!fresh) return LSA_OK;
    LSA_TRY(make_entries(entries, x, w, kv, gate, first, fresh));
    int64_t bytes = keys ? lsa_index_key_bytes(x->format, x->dim)
                         : lsa_kv_record_bytes(x->format, x->dim, x->rope_dim);
    for (int64_t i = 0; i < fresh; i++) {
        const float *entry = entries + i * x->dim;
        if (keys)
            LSA_TRY(lsa_index_encode_cpu(w->encoded, entry, 1, x->dim, bytes, x->format, NULL));
        else
            LSA_TRY(lsa_kv_encode_cpu(w->encoded, entry, 1, x->dim, x->rope_dim, bytes, x->format,
                                      NULL));
        publish(s, store, x, first + i, w->encoded, bytes);
    }
    return LSA_OK;
}

int lsa_extend_check(const lsa_extension *extension)
{
    if (extension->what == LSA_EXTEND_RECORDS || extension->what == LSA_EXTEND_KEYS) return LSA_OK;
    return lsa_fail(LSA_EARG, "extend: %d is neither records nor keys", extension->what);
}

int lsa_extend_cpu(float *entries, const lsa_span *spans, int64_t count, int64_t layer,
                   const lsa_extension *extension, void *workspace, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_extend_check(extension));
    for (int64_t i = 0; i < count; i++) {
        const lsa_span *s = &spans[i];
        work w = work_in(workspace, extension, s->rows);
        LSA_TRY(extend(entries + s->row * extension->dim, s, layer, extension, &w));
    }
    return LSA_OK;
}
