/* Owns the parts of a session: which there are, where they lie, and what they have to satisfy. */
#include "core/session/session_fields.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/pool/pool_state.h"
#include "core/session/forward.h"

enum part_kind {
    TOKENS,
    LOGITS,
    RESIDENTS,
    ROWS,
    ENTRIES,
    HIDDEN,
    PICKED,
    PICKED_MASS,
    PICKED_COUNT,
    USED,
    MASS,
    UNIT_IN,
    FREE_CELLS,
    BY_USE,
    MOVING,
    MOVING_MESSAGE
};

_Static_assert((int)LSA_SESSION_MOVING == (int)LSA_MOVING_COLUMNS &&
                   (int)LSA_SESSION_MESSAGE == (int)LSA_MOVING_MESSAGE,
               "a transfer's shape is the file's");

enum { ROW_LISTS = 7, MOST_PARTS_A_LAYER = 16, MOST_PARTS = 8 };

/* The row histories of a layer: what they are called, and how many rows the next token needs. */
typedef struct history {
    const char *name;
    lsa_row_history *rows;
    int64_t keep;
} history;

static int histories(const lsa_session *s, int64_t layer, history out[ROW_LISTS])
{
    const lsa_config *c = &s->model->config;
    lsa_layer_state *l = &s->layers[layer];
    int hca = c->layer_type[layer] == LSA_LAYER_HCA, csa = l->csa >= 0, n = 0;
    int64_t rate = csa ? c->csa_rate : c->hca_rate, unfinished = rate + s->tokens % rate;
    out[n++] = (history){"window", &l->window, c->window - 1};
    if (!csa && !hca) return n;
    out[n++] = (history){"kv", &l->kv, unfinished};
    out[n++] = (history){"gate", &l->gate, unfinished};
    if (!csa) return n;
    out[n++] = (history){"index_kv", &l->index_kv, unfinished};
    out[n++] = (history){"index_gate", &l->index_gate, unfinished};
    out[n++] = (history){"queries", &l->queries, LSA_RECENT};
    out[n++] = (history){"query_weights", &l->query_weights, LSA_RECENT};
    return n;
}

static int64_t kept(const lsa_session *s, const history *h)
{
    return s->tokens < h->keep ? s->tokens : h->keep;
}

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

static int64_t observed_rows(const lsa_session *s)
{
    int64_t n = s->observed_by_chunk ? lsa_session_chunks(s) : s->resident_count;
    return n < s->observed_room ? n : s->observed_room;
}

static void add_layer(list *out, const lsa_session *s, int64_t layer)
{
    const lsa_config *c = &s->model->config;
    const lsa_layer_state *l = &s->layers[layer];
    history h[ROW_LISTS];
    int n = histories(s, layer, h);
    for (int i = 0; i < n; i++)
        add(out, h[i].name, ROWS, LSA_F32, kept(s, &h[i]), h[i].rows->width, layer);
    if (c->layer_type[layer] == LSA_LAYER_HCA)
        add(out, "entries", ENTRIES, LSA_U8, s->tokens / c->hca_rate, l->entries.item, layer);
    if (l->csa < 0) return;
    add(out, "hidden", HIDDEN, LSA_F32, 1, c->hidden, layer);
    add(out, "picked", PICKED, LSA_I32, c->index_topk, 1, layer);
    add(out, "picked_mass", PICKED_MASS, LSA_F32, c->index_topk, 1, layer);
    add(out, "picked_count", PICKED_COUNT, LSA_I32, 1, 1, layer);
    add(out, "used", USED, LSA_I32, observed_rows(s), 1, layer);
    add(out, "mass", MASS, LSA_F32, observed_rows(s), 1, layer);
}

int lsa_session_parts(const lsa_session *s, lsa_session_part **parts, int64_t *count)
{
    const lsa_config *c = &s->model->config;
    list l = {lsa_alloc((c->layers * MOST_PARTS_A_LAYER + MOST_PARTS) * (int64_t)sizeof *l.parts),
              0};
    if (!l.parts) return LSA_ENOMEM;
    add(&l, "tokens", TOKENS, LSA_I32, s->tokens, 1, -1);
    add(&l, "logits", LOGITS, LSA_F32, 1, c->vocab, -1);
    add(&l, "residents", RESIDENTS, LSA_I32, s->resident_count, 1, -1);
    for (int64_t i = 0; i < c->layers; i++) add_layer(&l, s, i);
    if (s->pool) {
        add(&l, "pool.units", UNIT_IN, LSA_I32, s->pool->hot->cells, 1, -1);
        add(&l, "pool.free_cells", FREE_CELLS, LSA_I32, s->pool->hot->free_count, 1, -1);
    }
    if (s->demand)
        add(&l, "pool.by_use", BY_USE, LSA_I32, lsa_on_demand_cells(s->demand, s->pool, NULL), 1,
            -1);
    if (s->pool && s->pool->transfer) {
        add(&l, "pool.moving", MOVING, LSA_I32, lsa_background_fetch_count(s->pool),
            LSA_MOVING_COLUMNS, -1);
        add(&l, "pool.moving_message", MOVING_MESSAGE, LSA_U8, LSA_MOVING_MESSAGE, 1, -1);
    }
    *parts = l.parts;
    *count = l.count;
    return LSA_OK;
}

int lsa_session_describe(const lsa_session *s, lsa_session_head *head)
{
    memset(head, 0, sizeof *head);
    head->tokens = s->tokens;
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

/* The first row of a part that lies in one piece of the session's own memory. */
static void *base_of(const lsa_session *s, const lsa_session_part *p)
{
    lsa_layer_state *l = p->layer >= 0 ? &s->layers[p->layer] : NULL;
    switch (p->what) {
    case LOGITS:
        return s->logits;
    case RESIDENTS:
        return s->residents;
    case HIDDEN:
        return l->hidden;
    case PICKED:
        return l->last_ids;
    case PICKED_MASS:
        return l->last_mass;
    case PICKED_COUNT:
        return &l->last_count;
    case USED:
        return l->used;
    case MASS:
        return l->mass;
    case UNIT_IN:
        return s->pool->hot->unit_in;
    case FREE_CELLS:
        return s->pool->hot->free_cells;
    default:
        return NULL;
    }
}

static const history *history_of(const lsa_session *s, const lsa_session_part *p,
                                 history h[ROW_LISTS])
{
    char name[sizeof p->name];
    int n = histories(s, p->layer, h);
    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof name, "layer.%lld.%s", (long long)p->layer, h[i].name);
        if (strcmp(name, p->name) == 0) return &h[i];
    }
    return NULL;
}

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

int lsa_session_part_read(const lsa_session *s, const lsa_session_part *p, int64_t from, int64_t n,
                          void *rows)
{
    int64_t bytes = row_bytes(p);
    history h[ROW_LISTS];
    const history *of;
    int rc = check_rows(p, from, n);
    if (rc || !n) return rc;
    switch (p->what) {
    case TOKENS:
        lsa_session_token_ids(s, from, n, rows);
        return LSA_OK;
    case ENTRIES:
        lsa_cow_blocks_pack(&s->layers[p->layer].entries, from, n, bytes, rows);
        return LSA_OK;
    case MOVING:
        return moving_read(s, from, n, rows);
    case BY_USE:
        return by_use_read(s, from, n, rows);
    case UNIT_IN:
        units_read(s->pool->hot, from, n, rows);
        return LSA_OK;
    case ROWS:
        if (!(of = history_of(s, p, h))) return lsa_fail(LSA_EARG, "%s: no such part", p->name);
        memcpy(rows, lsa_row_history_at(of->rows, s->tokens - p->rows + from), (size_t)(n * bytes));
        return LSA_OK;
    case MOVING_MESSAGE: {
        char message[LSA_MOVING_MESSAGE] = {0};
        snprintf(message, sizeof message, "%s", lsa_background_fetch_message(s->pool));
        memcpy(rows, message + from, (size_t)n);
        return LSA_OK;
    }
    default:
        memcpy(rows, (const uint8_t *)base_of(s, p) + from * bytes, (size_t)(n * bytes));
        return LSA_OK;
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
            LSA_TRY(lsa_cow_blocks_resize(&s->layers[i].entries, h->tokens / c->hca_rate));
    s->tokens = h->tokens;
    s->tiered = (int32_t)h->tiered;
    s->observed_by_chunk = (int)h->observed_by_chunk;
    s->counters = h->counters;
    history held[ROW_LISTS];
    for (int64_t i = 0; i < c->layers; i++) {
        int n = histories(s, i, held);
        for (int j = 0; j < n; j++) held[j].rows->first = s->tokens - kept(s, &held[j]);
    }
    if (!s->pool) return LSA_OK;
    LSA_TRY(lsa_session_resident_room(s, h->residents));
    LSA_TRY(lsa_session_observed_room(s, h->observed));
    LSA_TRY(lsa_pool_set_cells(s->pool, h->cells));
    s->resident_count = h->residents;
    s->pool->hot->free_count = h->free_cells;
    s->pool->counters = h->moved;
    return LSA_OK;
}

int lsa_session_restore_chunks(lsa_session *s, int64_t chunks, int32_t spill)
{
    if (spill) LSA_TRY(lsa_pool_spill(s->pool));
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
    int64_t bytes = row_bytes(p);
    history h[ROW_LISTS];
    const history *of;
    int rc = check_rows(p, from, n);
    if (rc || !n) return rc;
    switch (p->what) {
    case TOKENS:
        return tokens_write(s, from, n, rows);
    case ENTRIES:
        return entries_write(&s->layers[p->layer].entries, from, n, rows);
    case ROWS:
        if (!(of = history_of(s, p, h))) return lsa_fail(LSA_EARG, "%s: no such part", p->name);
        memcpy(lsa_row_history_at(of->rows, s->tokens - p->rows + from), rows, (size_t)(n * bytes));
        return LSA_OK;
    case BY_USE:
    case MOVING:
    case MOVING_MESSAGE:
        return lsa_fail(LSA_EARG, "%s: is put back at the end", p->name);
    default:
        memcpy((uint8_t *)base_of(s, p) + from * bytes, rows, (size_t)(n * bytes));
        return LSA_OK;
    }
}

/* ---- whether it fits together ---- */

static int check_layer(const lsa_session *s, const lsa_layer_state *l)
{
    int64_t chunks = lsa_session_chunks(s);
    if (l->last_count < 0 || l->last_count > s->model->config.index_topk)
        return lsa_fail(LSA_EFORMAT, "CSA layer %lld: %d chunks were picked; at most %lld are",
                        (long long)l->csa, l->last_count, (long long)s->model->config.index_topk);
    for (int32_t i = 0; i < l->last_count; i++)
        if (l->last_ids[i] < 0 || l->last_ids[i] >= chunks)
            return lsa_fail(LSA_EFORMAT, "CSA layer %lld: pick %d is chunk %d, of %lld",
                            (long long)l->csa, i, l->last_ids[i], (long long)chunks);
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
    if (spill) LSA_TRY(lsa_pool_spill(s->pool));
    LSA_TRY(lsa_pool_restore_cells(s->pool));
    LSA_TRY(check_residents(s));
    int64_t awaited = s->pool->held;
    for (int64_t u = 0; u < lsa_pool_units(s->pool); u++) awaited -= lsa_pool_has(s->pool, u);
    LSA_TRY(want("awaited cells", awaited, h->moving, h->moving));
    for (int64_t i = 0; i < s->model->config.layers; i++) {
        lsa_layer_state *l = &s->layers[i];
        if (l->csa < 0) continue;
        LSA_TRY(check_layer(s, l));
        LSA_TRY(lsa_pool_keys_of_cells(s->pool, l->csa, s->residents, s->resident_count,
                                       l->resident_keys));
    }
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
