/* Owns a session's arena: which fields there are, where they lie, and how it grows. */
#include "core/session/state.h"

#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"

enum { ALIGN = 64 };

const lsa_field lsa_fields[LSA_FIELDS] = {
    [LSA_FIELD_LOGITS] = {"logits", LSA_F32, LSA_ROWS_ONE},
    [LSA_FIELD_RESIDENTS] = {"residents", LSA_I32, LSA_ROWS_RESIDENTS},
    [LSA_FIELD_WINDOW] = {"window", LSA_F32, LSA_ROWS_WINDOW},
    [LSA_FIELD_KV] = {"kv", LSA_F32, LSA_ROWS_WINDOWS},
    [LSA_FIELD_GATE] = {"gate", LSA_F32, LSA_ROWS_WINDOWS},
    [LSA_FIELD_INDEX_KV] = {"index_kv", LSA_F32, LSA_ROWS_WINDOWS},
    [LSA_FIELD_INDEX_GATE] = {"index_gate", LSA_F32, LSA_ROWS_WINDOWS},
    [LSA_FIELD_QUERIES] = {"queries", LSA_F32, LSA_ROWS_RECENT},
    [LSA_FIELD_QUERY_WEIGHTS] = {"query_weights", LSA_F32, LSA_ROWS_RECENT},
    [LSA_FIELD_HIDDEN] = {"hidden", LSA_F32, LSA_ROWS_RECENT},
    [LSA_FIELD_PICKED] = {"picked", LSA_I32, LSA_ROWS_TWO},
    [LSA_FIELD_PICKED_MASS] = {"picked_mass", LSA_F32, LSA_ROWS_TWO},
    [LSA_FIELD_PICKED_COUNT] = {"picked_count", LSA_I32, LSA_ROWS_TWO},
    [LSA_FIELD_USED] = {"used", LSA_I32, LSA_ROWS_OBSERVED},
    [LSA_FIELD_MASS] = {"mass", LSA_F32, LSA_ROWS_OBSERVED},
    [LSA_FIELD_RESIDENT_KEYS] = {NULL, LSA_U8, LSA_ROWS_RESIDENTS},
};

int lsa_field_in_layer(const lsa_session *s, lsa_field_id field, int64_t layer)
{
    if (layer < 0 || field <= LSA_FIELD_RESIDENTS) return layer < 0 && field <= LSA_FIELD_RESIDENTS;
    int32_t type = s->model->config.layer_type[layer];
    if (field == LSA_FIELD_WINDOW) return 1;
    if (field <= LSA_FIELD_GATE) return type != LSA_LAYER_SLIDING;
    return type == LSA_LAYER_CSA;
}

int64_t lsa_field_width(const lsa_session *s, lsa_field_id field, int64_t layer)
{
    const lsa_config *c = &s->model->config;
    switch (field) {
    case LSA_FIELD_LOGITS:
        return c->vocab;
    case LSA_FIELD_WINDOW:
        return c->head_dim;
    case LSA_FIELD_KV:
    case LSA_FIELD_GATE:
        return c->layer_type[layer] == LSA_LAYER_CSA ? 2 * c->head_dim : c->head_dim;
    case LSA_FIELD_INDEX_KV:
    case LSA_FIELD_INDEX_GATE:
        return 2 * c->index_dim;
    case LSA_FIELD_QUERIES:
        return c->index_heads * c->index_dim;
    case LSA_FIELD_QUERY_WEIGHTS:
        return c->index_heads;
    case LSA_FIELD_HIDDEN:
        return c->hidden;
    case LSA_FIELD_PICKED:
    case LSA_FIELD_PICKED_MASS:
        return c->index_topk;
    case LSA_FIELD_RESIDENT_KEYS:
        return lsa_pool_key_bytes(s->pool);
    default:
        return 1;
    }
}

static int64_t rate_of(const lsa_session *s, int64_t layer)
{
    const lsa_config *c = &s->model->config;
    return c->layer_type[layer] == LSA_LAYER_HCA ? c->hca_rate : c->csa_rate;
}

static int64_t room_in(const lsa_session *s, lsa_field_id field, int64_t layer,
                       const lsa_state_room *room)
{
    switch (lsa_fields[field].rows) {
    case LSA_ROWS_TWO:
        return 2;
    case LSA_ROWS_WINDOW:
        return s->model->config.window - 1 + room->piece;
    case LSA_ROWS_WINDOWS:
        return 2 * rate_of(s, layer) - 1 + room->piece;
    case LSA_ROWS_RECENT:
        return LSA_RECENT + room->piece;
    case LSA_ROWS_RESIDENTS:
        return room->residents;
    case LSA_ROWS_OBSERVED:
        return room->observed;
    default:
        return 1;
    }
}

int64_t lsa_field_room(const lsa_session *s, lsa_field_id field, int64_t layer)
{
    return room_in(s, field, layer, &s->room);
}

static int is_ring(lsa_field_id field)
{
    lsa_field_rows rows = lsa_fields[field].rows;
    return rows == LSA_ROWS_WINDOW || rows == LSA_ROWS_WINDOWS || rows == LSA_ROWS_RECENT;
}

int64_t lsa_field_count(const lsa_session *s, lsa_field_id field, int64_t layer)
{
    int64_t tokens = s->progress.tokens, n = 1, by_chunk;
    switch (lsa_fields[field].rows) {
    case LSA_ROWS_WINDOW:
        n = s->model->config.window - 1;
        return n < tokens ? n : tokens;
    case LSA_ROWS_WINDOWS:
        n = rate_of(s, layer) + tokens % rate_of(s, layer);
        return n < tokens ? n : tokens;
    case LSA_ROWS_RECENT:
        return LSA_RECENT < tokens ? LSA_RECENT : tokens;
    case LSA_ROWS_RESIDENTS:
        return s->resident_count;
    case LSA_ROWS_OBSERVED:
        by_chunk = lsa_session_chunks(s);
        n = s->observed_by_chunk ? by_chunk : s->resident_count;
        return n < s->room.observed ? n : s->room.observed;
    default:
        return n;
    }
}

/* ---- arenas ---- */

static lsa_arena_id arena_of(lsa_field_id field)
{
    lsa_field_rows rows = lsa_fields[field].rows;
    return rows == LSA_ROWS_RESIDENTS || rows == LSA_ROWS_OBSERVED ? LSA_ARENA_RESIDENTS
                                                                   : LSA_ARENA_RINGS;
}

/* Every field that layers have in an arena, in the order in which they lie: calls visit(context, field, layer, offset, bytes of
 * a row) until it fails; *bytes: of all. */
typedef int visitor(void *context, lsa_field_id field, int64_t layer, int64_t offset,
                    int64_t row_bytes);

static int walk(const lsa_session *s, lsa_arena_id arena, const lsa_state_room *room,
                visitor *visit, void *context, int64_t *bytes)
{
    int64_t at = 0;
    for (int64_t layer = 0; layer < s->model->config.layers; layer++)
        for (int f = 0; f < LSA_FIELDS; f++) {
            lsa_field_id field = (lsa_field_id)f;
            if (!lsa_field_in_layer(s, field, layer) || arena_of(field) != arena) continue;
            int64_t row = lsa_field_width(s, field, layer) * lsa_dtype_size(lsa_fields[f].dtype);
            if (visit) LSA_TRY(visit(context, field, layer, at, row));
            at += (room_in(s, field, layer, room) * row + ALIGN - 1) / ALIGN * ALIGN;
        }
    if (bytes) *bytes = at;
    return LSA_OK;
}

static void bind_ring(lsa_ring *ring, const lsa_session *s, lsa_field_id field, int64_t layer,
                      uint8_t *data)
{
    *ring = (lsa_ring){(float *)data, lsa_field_room(s, field, layer),
                       lsa_field_width(s, field, layer)};
}

static int bind_field(void *context, lsa_field_id field, int64_t layer, int64_t offset,
                      int64_t row_bytes)
{
    lsa_session *s = context;
    uint8_t *at = s->arenas[arena_of(field)].data + offset, *second = at + row_bytes;
    lsa_layer_store *l = &s->layers[layer];
    switch (field) {
    case LSA_FIELD_WINDOW:
        bind_ring(&l->window, s, field, layer, at);
        break;
    case LSA_FIELD_KV:
        bind_ring(&l->kv, s, field, layer, at);
        break;
    case LSA_FIELD_GATE:
        bind_ring(&l->gate, s, field, layer, at);
        break;
    case LSA_FIELD_INDEX_KV:
        bind_ring(&l->index_kv, s, field, layer, at);
        break;
    case LSA_FIELD_INDEX_GATE:
        bind_ring(&l->index_gate, s, field, layer, at);
        break;
    case LSA_FIELD_QUERIES:
        bind_ring(&l->queries, s, field, layer, at);
        break;
    case LSA_FIELD_QUERY_WEIGHTS:
        bind_ring(&l->query_weights, s, field, layer, at);
        break;
    case LSA_FIELD_HIDDEN:
        bind_ring(&l->hidden, s, field, layer, at);
        break;
    case LSA_FIELD_PICKED:
        l->picked[0] = (int32_t *)at, l->picked[1] = (int32_t *)second;
        break;
    case LSA_FIELD_PICKED_MASS:
        l->picked_mass[0] = (float *)at, l->picked_mass[1] = (float *)second;
        break;
    case LSA_FIELD_PICKED_COUNT:
        l->picked_count[0] = (int32_t *)at, l->picked_count[1] = (int32_t *)second;
        break;
    case LSA_FIELD_USED:
        l->used = (int32_t *)at;
        break;
    case LSA_FIELD_MASS:
        l->mass = (float *)at;
        break;
    case LSA_FIELD_RESIDENT_KEYS:
        l->resident_keys = at;
        break;
    default:
        break;
    }
    return LSA_OK;
}

/* Where a field lies. */
typedef struct place {
    lsa_field_id field;
    int64_t layer, offset, row_bytes;
} place;

static int find_field(void *context, lsa_field_id field, int64_t layer, int64_t offset,
                      int64_t row_bytes)
{
    place *p = context;
    if (p->field != field || p->layer != layer) return LSA_OK;
    p->offset = offset;
    p->row_bytes = row_bytes;
    return 1;
}

static uint8_t *row_in(uint8_t *data, const lsa_session *s, const lsa_state_room *room,
                       lsa_field_id field, int64_t layer, int64_t row_bytes, int64_t i)
{
    if (is_ring(field)) {
        int64_t first = s->progress.tokens - lsa_field_count(s, field, layer);
        return data + (first + i) % room_in(s, field, layer, room) * row_bytes;
    }
    if (lsa_fields[field].rows == LSA_ROWS_TWO) return data + (s->progress.passes & 1) * row_bytes;
    return data + i * row_bytes;
}

uint8_t *lsa_field_row(const lsa_session *s, lsa_field_id field, int64_t layer, int64_t i)
{
    place p = {field, layer, 0, 0};
    if (field == LSA_FIELD_LOGITS) return (uint8_t *)s->logits;
    if (field == LSA_FIELD_RESIDENTS) return (uint8_t *)(s->residents + i);
    walk(s, arena_of(field), &s->room, find_field, &p, NULL);
    return row_in(s->arenas[arena_of(field)].data + p.offset, s, &s->room, field, layer,
                  p.row_bytes, i);
}

int64_t lsa_field_run(const lsa_session *s, lsa_field_id field, int64_t layer, int64_t i, int64_t n)
{
    if (!is_ring(field)) return n;
    int64_t room = lsa_field_room(s, field, layer);
    int64_t at = (s->progress.tokens - lsa_field_count(s, field, layer) + i) % room;
    return n < room - at ? n : room - at;
}

/* From one arena to a larger one. Of fields side by side that keep their rooms, one copy. */
typedef struct moving {
    lsa_session *s;
    uint8_t *to;
    const lsa_state_room *room;
    int64_t from_offset; /* the walk of the old rooms, beside that of the new ones */
    const uint8_t *run;  /* what is to be copied next, so many bytes of it */
    uint8_t *run_to;
    int64_t run_bytes;
} moving;

static int end_run(moving *m)
{
    int rc = lsa_copy_in(m->s->memory_kind, m->run_to, m->run, m->run_bytes);
    m->run_bytes = 0;
    return rc;
}

static int add_run(moving *m, uint8_t *to, const uint8_t *from, int64_t bytes)
{
    if (m->run_bytes && (to != m->run_to + m->run_bytes || from != m->run + m->run_bytes))
        LSA_TRY(end_run(m));
    if (!m->run_bytes) m->run_to = to, m->run = from;
    m->run_bytes += bytes;
    return LSA_OK;
}

static int move_field(void *context, lsa_field_id field, int64_t layer, int64_t offset,
                      int64_t row_bytes)
{
    moving *m = context;
    lsa_session *s = m->s;
    uint8_t *from = s->arenas[arena_of(field)].data + m->from_offset, *to = m->to + offset;
    int64_t old = lsa_field_room(s, field, layer), rooms = room_in(s, field, layer, m->room);
    int64_t bytes = (old * row_bytes + ALIGN - 1) / ALIGN * ALIGN;
    m->from_offset += bytes;
    if (old == rooms) return add_run(m, to, from, bytes);
    if (!is_ring(field)) return add_run(m, to, from, (old < rooms ? old : rooms) * row_bytes);
    for (int64_t i = 0, n = lsa_field_count(s, field, layer); i < n; i++)
        LSA_TRY(add_run(m, row_in(to, s, m->room, field, layer, row_bytes, i),
                        row_in(from, s, &s->room, field, layer, row_bytes, i), row_bytes));
    return LSA_OK;
}

/* ---- residents ---- */

enum { LISTS = 2 /* residents, slots */ };

static void free_lists(const lsa_session *s, int32_t *here, int32_t *there)
{
    if (there != here) lsa_free_in(s->memory_kind, there);
    lsa_free(here);
}

/* Room for n residents, in the host and where kernels read; those of `from` are there. */
static int make_lists(const lsa_session *s, int64_t n, const lsa_session *from, int32_t **here,
                      int32_t **there)
{
    int64_t bytes = LISTS * n * (int64_t)sizeof **here, count = from->resident_count;
    int apart = s->memory_kind != LSA_MEMORY_HOST;
    if (count > n) count = n;
    *here = lsa_alloc_zero(bytes);
    *there = apart ? lsa_alloc_in(s->memory_kind, bytes) : *here;
    int rc = *here && *there ? LSA_OK : LSA_ENOMEM;
    if (!rc && count) {
        memcpy(*here, from->residents, (size_t)count * sizeof **here);
        lsa_pool_slots(s->pool, *here, count,
                       *here + n); /* a fork's cells may have other numbers */
    }
    if (!rc && apart) rc = lsa_copy_in(s->memory_kind, *there, *here, bytes);
    if (rc) free_lists(s, *here, *there);
    return rc;
}

static void put_lists(lsa_session *s, int64_t n, int32_t *here, int32_t *there)
{
    free_lists(s, s->residents, s->residents_there);
    s->residents = here;
    s->slots = here + n;
    s->residents_there = there;
}

int32_t *lsa_state_slots_there(const lsa_session *s)
{
    return s->residents_there + s->room.residents;
}

int lsa_state_send_residents(lsa_session *s, int64_t from, int64_t n)
{
    int64_t bytes = n * (int64_t)sizeof *s->residents;
    int32_t *to = s->residents_there + from;
    if (s->residents_there == s->residents) return LSA_OK;
    LSA_TRY(lsa_copy_in(s->memory_kind, to, s->residents + from, bytes));
    return lsa_copy_in(s->memory_kind, to + s->room.residents, s->slots + from, bytes);
}

static int keeps_room(const lsa_session *s, lsa_arena_id arena, const lsa_state_room *room)
{
    if (!s->arenas[arena].data) return 0;
    return arena == LSA_ARENA_RINGS
               ? room->piece == s->room.piece
               : room->residents == s->room.residents && room->observed == s->room.observed;
}

static int make_arena(lsa_session *s, lsa_arena_id id, const lsa_state_room *room, lsa_arena *made)
{
    walk(s, id, room, NULL, NULL, &made->bytes);
    if (!(made->data = lsa_alloc_in(s->memory_kind, made->bytes))) return LSA_ENOMEM;
    if (!s->arenas[id].data) return LSA_OK;
    moving m = {.s = s, .to = made->data, .room = room};
    LSA_TRY(walk(s, id, room, move_field, &m, NULL));
    return end_run(&m);
}

static int bind_all(lsa_session *s)
{
    for (int i = 0; i < LSA_ARENAS; i++)
        LSA_TRY(walk(s, (lsa_arena_id)i, &s->room, bind_field, s, NULL));
    return LSA_OK;
}

int lsa_state_resize(lsa_session *s, const lsa_state_room *room)
{
    lsa_arena made[LSA_ARENAS] = {{0}};
    int32_t *here, *there;
    LSA_TRY(make_lists(s, room->residents, s, &here, &there));
    int rc = LSA_OK;
    for (int i = 0; !rc && i < LSA_ARENAS; i++)
        if (!keeps_room(s, (lsa_arena_id)i, room))
            rc = make_arena(s, (lsa_arena_id)i, room, &made[i]);
    if (rc) {
        for (int i = 0; i < LSA_ARENAS; i++) lsa_free_in(s->memory_kind, made[i].data);
        free_lists(s, here, there);
        return rc;
    }
    put_lists(s, room->residents, here, there);
    for (int i = 0; i < LSA_ARENAS; i++) {
        if (!made[i].data) continue;
        lsa_free_in(s->memory_kind, s->arenas[i].data);
        s->arenas[i] = made[i];
    }
    s->room = *room;
    return bind_all(s);
}

int lsa_state_copy(lsa_session *s, const lsa_session *from)
{
    int32_t *here, *there;
    for (int i = 0; i < LSA_ARENAS; i++) {
        lsa_arena *a = &s->arenas[i];
        a->bytes = from->arenas[i].bytes;
        if (!(a->data = lsa_alloc_in(s->memory_kind, a->bytes))) return LSA_ENOMEM;
        LSA_TRY(lsa_copy_in(s->memory_kind, a->data, from->arenas[i].data, a->bytes));
    }
    LSA_TRY(make_lists(s, from->room.residents, from, &here, &there));
    put_lists(s, from->room.residents, here, there);
    s->room = from->room;
    return bind_all(s);
}

void lsa_state_free(lsa_session *s)
{
    free_lists(s, s->residents, s->residents_there);
    for (int i = 0; i < LSA_ARENAS; i++) lsa_free_in(s->memory_kind, s->arenas[i].data);
}

void lsa_state_bind_blocks(lsa_session *s)
{
    const lsa_config *c = &s->model->config;
    for (int64_t i = 0, csa = 0; i < c->layers; i++) {
        lsa_layer_store *l = &s->layers[i];
        if (c->layer_type[i] == LSA_LAYER_HCA) {
            const lsa_cow_blocks *b = &s->entries[i];
            l->cold = (lsa_records){b->data, b->item, 0, b->shift, s->kv_format};
        }
        if (c->layer_type[i] != LSA_LAYER_CSA) continue;
        l->cold = lsa_pool_cold_records(s->pool, csa, s->kv_format);
        l->mirror = lsa_pool_mirror_records(s->pool, csa, s->kv_format);
        l->hot = lsa_pool_hot_records(s->pool, csa, s->kv_format);
        l->keys = lsa_pool_key_records(s->pool, csa, s->kv_format);
        l->hot_keys = lsa_pool_hot_key_records(s->pool, csa, s->kv_format);
        csa++;
    }
}

int lsa_state_layers(lsa_session *s, const lsa_layer_store **layers)
{
    size_t bytes = (size_t)s->layer_count * sizeof *s->layers;
    *layers = s->layers_there ? s->layers_there : s->layers;
    if (!s->layers_there || memcmp(s->layers_sent, s->layers, bytes) == 0) return LSA_OK;
    LSA_TRY(lsa_device_copy(s->layers_there, s->layers, (int64_t)bytes));
    memcpy(s->layers_sent, s->layers, bytes);
    return LSA_OK;
}

int64_t lsa_csa_ordinal(const lsa_config *c, int64_t layer)
{
    int64_t csa = 0;
    if (c->layer_type[layer] != LSA_LAYER_CSA) return -1;
    for (int64_t i = 0; i < layer; i++) csa += c->layer_type[i] == LSA_LAYER_CSA;
    return csa;
}

int64_t lsa_csa_layer(const lsa_session *s, int64_t csa)
{
    const lsa_config *c = &s->model->config;
    for (int64_t i = 0, at = 0; csa >= 0 && i < c->layers; i++) {
        if (c->layer_type[i] != LSA_LAYER_CSA) continue;
        if (at++ == csa) return i;
    }
    lsa_fail(LSA_EARG, "session: CSA layer %lld; the model has %lld", (long long)csa,
             (long long)c->csa_layers);
    return -1;
}
