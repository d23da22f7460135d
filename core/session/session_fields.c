/* Owns the parts of a session for a file: the fields of its arenas (state.c) and what lies in blocks and in the pool. */
#include "core/session/session_fields.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/pool/pool_state.h"
#include "core/session/state.h"

_Static_assert((int)LSA_SESSION_MOVING == (int)LSA_MOVING_COLUMNS &&
                   (int)LSA_SESSION_MESSAGE == (int)LSA_MOVING_MESSAGE,
               "a transfer's shape is the file's");

enum { MOST_PARTS = 8 /* beside fields and entries */ };

/* ---- the list ---- */

typedef struct list {
    lsa_session_part *parts;
    int64_t count;
} list;

static void add(list *l, const char *name, int32_t what, int32_t dtype, int64_t rows,
                int64_t columns, int64_t layer)
{
    lsa_session_part *p = &l->parts[l->count++];
    memset(p, 0, sizeof *p);
    if (layer < 0)
        snprintf(p->name, sizeof p->name, "%s", name);
    else
        snprintf(p->name, sizeof p->name, "layer.%lld.%s", (long long)layer, name);
    p->what = what;
    p->dtype = dtype;
    p->rows = rows;
    p->columns = columns;
    p->layer = layer;
}

static void add_fields(list *l, const lsa_session *s, int64_t layer)
{
    for (int f = 0; f < LSA_FIELDS; f++) {
        lsa_field_id field = (lsa_field_id)f;
        if (!lsa_fields[f].name || !lsa_field_in_layer(s, field, layer)) continue;
        int64_t rows = lsa_field_count(s, field, layer), width = lsa_field_width(s, field, layer);
        if (field == LSA_FIELD_PICKED || field == LSA_FIELD_PICKED_MASS) rows = width, width = 1;
        add(l, lsa_fields[f].name, f, lsa_fields[f].dtype, rows, width, layer);
    }
}

int lsa_session_parts(const lsa_session *s, lsa_session_part **parts, int64_t *count)
{
    const lsa_config *c = &s->model->config;
    int64_t most = (c->layers + 1) * (LSA_FIELDS + 1) + MOST_PARTS;
    list l = {lsa_alloc(most * (int64_t)sizeof *l.parts), 0};
    if (!l.parts) return LSA_ENOMEM;
    add(&l, "tokens", LSA_PART_TOKENS, LSA_I32, s->progress.tokens, 1, -1);
    add_fields(&l, s, -1);
    for (int64_t i = 0; i < c->layers; i++) {
        add_fields(&l, s, i);
        if (c->layer_type[i] == LSA_LAYER_HCA)
            add(&l, "entries", LSA_PART_ENTRIES, LSA_U8, s->progress.tokens / c->hca_rate,
                s->entries[i].item, i);
    }
    if (s->pool) {
        add(&l, "pool.units", LSA_PART_UNIT_IN, LSA_I32, s->pool->hot->cells, 1, -1);
        add(&l, "pool.free_cells", LSA_PART_FREE_CELLS, LSA_I32, s->pool->hot->free_count, 1, -1);
    }
    if (s->demand) /* settled by lsa_session_describe */
        add(&l, "pool.by_use", LSA_PART_BY_USE, LSA_I32,
            lsa_on_demand_cells(s->demand, s->pool, NULL), 1, -1);
    if (s->pool && s->pool->transfer) {
        add(&l, "pool.moving", LSA_PART_MOVING, LSA_I32, lsa_background_fetch_count(s->pool),
            LSA_MOVING_COLUMNS, -1);
        add(&l, "pool.moving_message", LSA_PART_MOVING_MESSAGE, LSA_U8, LSA_MOVING_MESSAGE, 1, -1);
    }
    *parts = l.parts;
    *count = l.count;
    return LSA_OK;
}

/* Rows of what is observed: every CSA layer's. */
static int64_t observed_rows(const lsa_session *s) { return lsa_field_count(s, LSA_FIELD_USED, 0); }

int lsa_session_describe(const lsa_session *s, lsa_session_head *head)
{
    memset(head, 0, sizeof *head);
    head->tokens = s->progress.tokens;
    head->kv_format = s->kv_format;
    head->compute = s->compute;
    head->tiered = s->tiered;
    head->residents = s->resident_count;
    head->observed = observed_rows(s);
    head->observed_by_chunk = s->observed_by_chunk;
    head->counters = s->counters;
    head->used_cells = -1;
    if (!s->pool) return LSA_OK;
    if (s->pool->attached)
        return lsa_fail(
            LSA_ESTATE,
            "session: its hot tier is shared with others, a fork of it has one of its own");
    if (s->demand) LSA_TRY(lsa_on_demand_settle(s->demand, s->pool));
    lsa_background_fetch_settle(s->pool);
    head->unit = s->pool->unit;
    head->cells = s->pool->hot->cells;
    head->free_cells = s->pool->hot->free_count;
    head->spilled = lsa_pool_spilled(s->pool);
    head->moving = lsa_background_fetch_count(s->pool);
    head->moving_code = lsa_background_fetch_code(s->pool);
    head->moved = s->pool->counters;
    head->used_cells = s->demand ? lsa_on_demand_cells(s->demand, s->pool, NULL) : -1;
    return LSA_OK;
}

/* ---- rows ---- */

static int64_t row_bytes(const lsa_session_part *p)
{
    return p->columns * lsa_dtype_size(p->dtype);
}

static int check_rows(const lsa_session_part *p, int64_t from, int64_t n)
{
    if (from >= 0 && n >= 0 && from + n <= p->rows) return LSA_OK;
    return lsa_fail(LSA_EARG, "%s: rows %lld to %lld; there are %lld", p->name, (long long)from,
                    (long long)(from + n - 1), (long long)p->rows);
}

static void units_read(const lsa_hot_tier *h, int64_t from, int64_t n, int32_t *units)
{
    for (int64_t i = 0; i < n; i++)
        units[i] = h->owner[from + i] ? h->unit_in[from + i] : LSA_ABSENT;
}

static int by_use_read(const lsa_session *s, int64_t from, int64_t n, int32_t *rows)
{
    int32_t *all = lsa_alloc(s->pool->hot->cells * (int64_t)sizeof *all);
    if (!all) return LSA_ENOMEM;
    lsa_on_demand_cells(s->demand, s->pool, all);
    memcpy(rows, all + from, (size_t)n * sizeof *all);
    lsa_free(all);
    return LSA_OK;
}

static int moving_read(const lsa_session *s, int64_t from, int64_t n, void *rows)
{
    int32_t *all =
        lsa_alloc(lsa_background_fetch_count(s->pool) * LSA_MOVING_COLUMNS * (int64_t)sizeof *all);
    if (!all) return LSA_ENOMEM;
    lsa_background_fetch_rows(s->pool, all);
    memcpy(rows, all + from * LSA_MOVING_COLUMNS, (size_t)(n * LSA_MOVING_COLUMNS) * sizeof *all);
    lsa_free(all);
    return LSA_OK;
}

/* Rows of a field, to `out` or from `in`: run by run where it is a ring. */
static int copy_field(const lsa_session *s, const lsa_session_part *p, int64_t from, int64_t n,
                      uint8_t *out, const uint8_t *in)
{
    lsa_field_id field = (lsa_field_id)p->what;
    int32_t kind = p->layer < 0 ? LSA_MEMORY_HOST : s->memory_kind;
    int64_t bytes = row_bytes(p);
    if (field == LSA_FIELD_PICKED || field == LSA_FIELD_PICKED_MASS) { /* one row of the field */
        uint8_t *row = lsa_field_row(s, field, p->layer, 0) + from * bytes;
        return lsa_copy_in(kind, out ? out : row, in ? in : row, n * bytes);
    }
    while (n > 0) {
        int64_t run = lsa_field_run(s, field, p->layer, from, n);
        uint8_t *row = lsa_field_row(s, field, p->layer, from);
        LSA_TRY(lsa_copy_in(kind, out ? out : row, in ? in : row, run * bytes));
        if (out) out += run * bytes;
        if (in) in += run * bytes;
        from += run, n -= run;
    }
    return LSA_OK;
}

int lsa_session_part_read(const lsa_session *s, const lsa_session_part *p, int64_t from, int64_t n,
                          void *rows)
{
    int64_t bytes = row_bytes(p);
    int rc = check_rows(p, from, n);
    if (rc || !n) return rc;
    switch (p->what) {
    case LSA_PART_TOKENS:
        lsa_session_token_ids(s, from, n, rows);
        return LSA_OK;
    case LSA_PART_ENTRIES:
        return lsa_cow_blocks_pack(&s->entries[p->layer], from, n, bytes, rows);
    case LSA_PART_MOVING:
        return moving_read(s, from, n, rows);
    case LSA_PART_BY_USE:
        return by_use_read(s, from, n, rows);
    case LSA_PART_UNIT_IN:
        units_read(s->pool->hot, from, n, rows);
        return LSA_OK;
    case LSA_PART_MOVING_MESSAGE: {
        char message[LSA_MOVING_MESSAGE] = {0};
        snprintf(message, sizeof message, "%s", lsa_background_fetch_message(s->pool));
        memcpy(rows, message + from, (size_t)n);
        return LSA_OK;
    }
    case LSA_PART_FREE_CELLS:
        memcpy(rows, s->pool->hot->free_cells + from, (size_t)(n * bytes));
        return LSA_OK;
    default:
        return copy_field(s, p, from, n, rows, NULL);
    }
}

/* ---- from a file ---- */

static int want(const char *name, int64_t value, int64_t least, int64_t most)
{
    if (value >= least && value <= most) return LSA_OK;
    return lsa_fail(LSA_EFORMAT, "%s is %lld; it can be %lld to %lld", name, (long long)value,
                    (long long)least, (long long)most);
}

static int check_head(const lsa_session *s, const lsa_session_head *h)
{
    const lsa_config *c = &s->model->config;
    int64_t chunks = h->tokens / c->csa_rate, most = s->pool ? chunks : 0;
    LSA_TRY(want("tokens", h->tokens, 0, c->max_positions));
    LSA_TRY(want("kv format", h->kv_format, s->kv_format, s->kv_format));
    LSA_TRY(want("compute", h->compute, s->compute, s->compute));
    LSA_TRY(want("unit", h->unit, s->pool ? s->pool->unit : 0, s->pool ? s->pool->unit : 0));
    LSA_TRY(want("tiered", h->tiered, 0, s->pool != NULL));
    LSA_TRY(want("residents", h->residents, 0, most));
    LSA_TRY(want("observed_by_chunk", h->observed_by_chunk, 0, 1));
    LSA_TRY(want("observed", h->observed, 0, h->observed_by_chunk ? most : h->residents));
    LSA_TRY(want("cells", h->cells, 0, s->pool ? INT32_MAX / s->pool->unit : 0));
    LSA_TRY(want("free cells", h->free_cells, 0, h->cells));
    LSA_TRY(want("spilled", h->spilled, 0, 1));
    LSA_TRY(want("used cells", h->used_cells, -1, h->tiered ? -1 : h->cells));
    LSA_TRY(want("moving", h->moving, 0, h->cells - h->free_cells));
    return want("moving_code", h->moving_code, LSA_EDEVICE, LSA_OK);
}

int lsa_session_restore_begin(lsa_session *s, const lsa_session_head *h)
{
    const lsa_config *c = &s->model->config;
    LSA_TRY(check_head(s, h));
    LSA_TRY(lsa_cow_blocks_resize(&s->token_ids, h->tokens));
    for (int64_t i = 0; i < c->layers; i++)
        if (c->layer_type[i] == LSA_LAYER_HCA)
            LSA_TRY(lsa_cow_blocks_resize(&s->entries[i], h->tokens / c->hca_rate));
    s->progress.tokens = h->tokens;
    s->tiered = (int32_t)h->tiered;
    s->observed_by_chunk = (int)h->observed_by_chunk;
    s->counters = h->counters;
    if (!s->pool) return LSA_OK;
    lsa_state_room room = s->room;
    room.residents = h->residents;
    room.observed = h->observed > h->residents ? h->observed : h->residents;
    LSA_TRY(lsa_state_resize(s, &room));
    LSA_TRY(lsa_pool_set_cells(s->pool, h->cells));
    s->resident_count = h->residents;
    s->pool->hot->free_count = h->free_cells;
    s->pool->counters = h->moved;
    return LSA_OK;
}

/* What its disk refuses stays in memory: the next cycle tries again, and says so. */
static int spill_if_possible(lsa_session *s, int32_t spill)
{
    int rc = spill ? lsa_pool_spill(s->pool) : LSA_OK;
    return rc == LSA_EIO ? LSA_OK : rc;
}

int lsa_session_restore_chunks(lsa_session *s, int64_t chunks, int32_t spill)
{
    LSA_TRY(spill_if_possible(s, spill));
    return lsa_pool_resize(s->pool, chunks);
}

static int tokens_write(lsa_session *s, int64_t from, int64_t n, const int32_t *ids)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t *to = lsa_cow_blocks_write(&s->token_ids, from + i);
        if (!to) return LSA_ENOMEM;
        if (ids[i] < 0 || ids[i] >= s->model->config.vocab)
            return lsa_fail(LSA_EFORMAT, "token %lld is %d; the vocabulary has %lld",
                            (long long)(from + i), ids[i], (long long)s->model->config.vocab);
        memcpy(to, &ids[i], (size_t)s->token_ids.item);
    }
    return LSA_OK;
}

static int entries_write(lsa_cow_blocks *entries, int64_t from, int64_t n, const uint8_t *rows)
{
    for (int64_t i = 0; i < n; i++) {
        uint8_t *to = lsa_cow_blocks_write(entries, from + i);
        if (!to) return LSA_ENOMEM;
        memcpy(to, rows + i * entries->item, (size_t)entries->item);
    }
    return LSA_OK;
}

int lsa_session_part_write(lsa_session *s, const lsa_session_part *p, int64_t from, int64_t n,
                           const void *rows)
{
    int rc = check_rows(p, from, n);
    if (rc || !n) return rc;
    switch (p->what) {
    case LSA_PART_TOKENS:
        return tokens_write(s, from, n, rows);
    case LSA_PART_ENTRIES:
        return entries_write(&s->entries[p->layer], from, n, rows);
    case LSA_PART_BY_USE:
    case LSA_PART_MOVING:
    case LSA_PART_MOVING_MESSAGE:
        return lsa_fail(LSA_EARG, "%s: is put back at the end", p->name);
    case LSA_PART_UNIT_IN:
        memcpy(s->pool->hot->unit_in + from, rows, (size_t)(n * row_bytes(p)));
        return LSA_OK;
    case LSA_PART_FREE_CELLS:
        memcpy(s->pool->hot->free_cells + from, rows, (size_t)(n * row_bytes(p)));
        return LSA_OK;
    default:
        return copy_field(s, p, from, n, NULL, rows);
    }
}

/* ---- whether it fits together ---- */

static int check_layer(const lsa_session *s, int64_t csa)
{
    const lsa_layer_store *l = &s->layers[lsa_csa_layer(s, csa)];
    int64_t chunks = lsa_session_chunks(s), last = s->progress.passes & 1;
    int32_t count, *picked = s->activations->places;
    LSA_TRY(lsa_copy_in(s->memory_kind, &count, l->picked_count[last], sizeof count));
    if (count < 0 || count > s->model->config.index_topk)
        return lsa_fail(LSA_EFORMAT, "CSA layer %lld: %d chunks were picked; at most %lld are",
                        (long long)csa, count, (long long)s->model->config.index_topk);
    LSA_TRY(lsa_copy_in(s->memory_kind, picked, l->picked[last], count * (int64_t)sizeof *picked));
    for (int32_t i = 0; i < count; i++)
        if (picked[i] < 0 || picked[i] >= chunks)
            return lsa_fail(LSA_EFORMAT, "CSA layer %lld: pick %d is chunk %d, of %lld",
                            (long long)csa, i, picked[i], (long long)chunks);
    return LSA_OK;
}

static int check_residents(const lsa_session *s)
{
    int64_t chunks = lsa_session_chunks(s);
    for (int64_t i = 0; i < s->resident_count; i++) {
        int32_t chunk = s->residents[i];
        if (chunk < 0 || chunk >= chunks || (i && chunk <= s->residents[i - 1]) ||
            !lsa_pool_has(s->pool, chunk / s->pool->unit))
            return lsa_fail(
                LSA_EFORMAT,
                "resident %lld is chunk %d, of %lld: it is out of order, or has no cell",
                (long long)i, chunk, (long long)chunks);
    }
    return LSA_OK;
}

int lsa_session_restore_end(lsa_session *s, const lsa_session_head *h, int32_t spill)
{
    if (!s->pool) return LSA_OK;
    LSA_TRY(lsa_pool_resize(s->pool, lsa_session_chunks(s)));
    LSA_TRY(spill_if_possible(s, spill));
    LSA_TRY(lsa_pool_restore_cells(s->pool));
    LSA_TRY(check_residents(s));
    int64_t awaited = s->pool->held;
    for (int64_t u = 0; u < lsa_pool_units(s->pool); u++) awaited -= lsa_pool_has(s->pool, u);
    LSA_TRY(want("awaited cells", awaited, h->moving, h->moving));
    LSA_TRY(lsa_session_reside(s, s->resident_count, 0));
    for (int64_t csa = 0; csa < s->model->config.csa_layers; csa++) LSA_TRY(check_layer(s, csa));
    s->pool->counters = h->moved; /* without what restoring moved */
    return LSA_OK;
}

int lsa_session_restore_on_demand(lsa_session *s, const lsa_session_head *h, const int32_t *cells)
{
    LSA_TRY(lsa_session_set_on_demand(s, 1));
    return lsa_on_demand_restore(s->demand, s->pool, cells, h->used_cells);
}

int lsa_session_restore_moving(lsa_session *s, const lsa_session_head *h, const int32_t *rows,
                               const char *message)
{
    return lsa_background_fetch_restore(s->pool, rows, h->moving, (int)h->moving_code, message);
}
