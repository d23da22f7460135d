/* Owns the two tiers: the cold blocks, the hot arena, and the table that says which unit is in which cell. */
#define _POSIX_C_SOURCE 200809L
#include "core/pool.h"

#include <string.h>
#include <time.h>

#include "core/blocks.h"
#include "core/error.h"
#include "core/memory.h"

enum {
    COLD_SHIFT = 8, /* chunks a block: a fork that appends copies at most one */
    HOT_SHIFT = 6,
    ALIGN = 64,
    ABSENT = -1
};

struct lsa_pool {
    int64_t layers, record, unit;
    lsa_blocks cold;         /* [chunks] */
    lsa_blocks hot;          /* [cells * unit] */
    int32_t *cell_of;        /* [units]: cell, or ABSENT */
    int64_t units_room;
    int32_t *unit_in;        /* [cells]: unit, or ABSENT */
    int32_t *free_cells;     /* stack of free_count cells */
    int64_t cells, free_count;
    lsa_pool_counters counters;
};

static int64_t units_of(const lsa_pool *p, int64_t chunks) { return (chunks + p->unit - 1) / p->unit; }

int lsa_pool_new(lsa_pool **out, int64_t layers, int64_t record, int64_t unit)
{
    if (layers < 1 || record < 1 || unit < 1 || layers > 4096 || record > 1 << 24)
        return lsa_fail(LSA_EARG, "pool: %lld layers, records of %lld bytes, units of %lld chunks",
                        (long long)layers, (long long)record, (long long)unit);
    lsa_pool *p = lsa_alloc_zero(sizeof *p);
    if (!p) return LSA_ENOMEM;
    p->layers = layers;
    p->record = record;
    p->unit = unit;
    int64_t item = (layers * record + ALIGN - 1) / ALIGN * ALIGN;
    lsa_blocks_init(&p->cold, item, COLD_SHIFT);
    lsa_blocks_init(&p->hot, item, HOT_SHIFT);
    *out = p;
    return LSA_OK;
}

void lsa_pool_free(lsa_pool *p)
{
    if (!p) return;
    lsa_blocks_free(&p->cold);
    lsa_blocks_free(&p->hot);
    lsa_free(p->cell_of);
    lsa_free(p->unit_in);
    lsa_free(p->free_cells);
    lsa_free(p);
}

static int copy_ids(int32_t **out, const int32_t *in, int64_t n)
{
    *out = lsa_alloc(n * (int64_t)sizeof **out);
    if (!*out) return LSA_ENOMEM;
    if (n) memcpy(*out, in, (size_t)n * sizeof **out);
    return LSA_OK;
}

int lsa_pool_fork(lsa_pool **out, const lsa_pool *pool)
{
    lsa_pool *p = lsa_alloc_zero(sizeof *p);
    if (!p) return LSA_ENOMEM;
    p->layers = pool->layers;
    p->record = pool->record;
    p->unit = pool->unit;
    p->units_room = units_of(pool, pool->cold.count);
    p->cells = pool->cells;
    p->free_count = pool->free_count;
    int rc = lsa_blocks_fork(&p->cold, &pool->cold);
    if (!rc) rc = lsa_blocks_fork(&p->hot, &pool->hot);
    if (!rc) rc = copy_ids(&p->cell_of, pool->cell_of, p->units_room);
    if (!rc) rc = copy_ids(&p->unit_in, pool->unit_in, p->cells);
    if (!rc) rc = copy_ids(&p->free_cells, pool->free_cells, p->cells);
    if (rc) {
        lsa_pool_free(p);
        return rc;
    }
    *out = p;
    return LSA_OK;
}

int64_t lsa_pool_layers(const lsa_pool *p) { return p->layers; }
int64_t lsa_pool_record_bytes(const lsa_pool *p) { return p->record; }
int64_t lsa_pool_unit(const lsa_pool *p) { return p->unit; }
int64_t lsa_pool_chunks(const lsa_pool *p) { return p->cold.count; }
int64_t lsa_pool_units(const lsa_pool *p) { return units_of(p, p->cold.count); }
int64_t lsa_pool_cells(const lsa_pool *p) { return p->cells; }
int64_t lsa_pool_free_cells(const lsa_pool *p) { return p->free_count; }

static int64_t slot_of(const lsa_pool *p, int64_t chunk)
{
    int32_t cell = p->cell_of[chunk / p->unit];
    return cell == ABSENT ? ABSENT : cell * p->unit + chunk % p->unit;
}

static void release_cell(lsa_pool *p, int64_t unit)
{
    int32_t cell = p->cell_of[unit];
    p->cell_of[unit] = ABSENT;
    p->unit_in[cell] = ABSENT;
    p->free_cells[p->free_count++] = cell;
}

/* A begun unit may have a cell: its new chunks are as zero there as in the cold tier. */
static int clear_new(lsa_pool *p, int64_t from, int64_t to)
{
    for (int64_t c = from; c < to && c / p->unit < units_of(p, from); c++) {
        int64_t slot = slot_of(p, c);
        if (slot == ABSENT) return LSA_OK;
        uint8_t *bytes = lsa_blocks_write(&p->hot, slot);
        if (!bytes) return LSA_ENOMEM;
        memset(bytes, 0, (size_t)p->hot.item);
    }
    return LSA_OK;
}

int lsa_pool_resize(lsa_pool *p, int64_t chunks)
{
    if (chunks < 0 || chunks > INT32_MAX)
        return lsa_fail(LSA_EARG, "pool: %lld chunks, at most %d", (long long)chunks, INT32_MAX);
    int64_t old_units = units_of(p, p->cold.count), units = units_of(p, chunks);
    if (units > p->units_room) {
        int64_t room = units > 2 * p->units_room ? units : 2 * p->units_room;
        int32_t *table = lsa_realloc(p->cell_of, room * (int64_t)sizeof *table);
        if (!table) return LSA_ENOMEM;
        p->cell_of = table;
        p->units_room = room;
    }
    int64_t old = p->cold.count;
    int rc = lsa_blocks_resize(&p->cold, chunks);
    if (!rc) rc = clear_new(p, old, chunks);
    if (rc) {
        lsa_blocks_resize(&p->cold, old < chunks ? old : chunks);
        return rc;
    }
    for (int64_t u = units; u < old_units; u++)
        if (p->cell_of[u] != ABSENT) release_cell(p, u);
    for (int64_t u = old_units; u < units; u++) p->cell_of[u] = ABSENT;
    return LSA_OK;
}

int lsa_pool_set_cells(lsa_pool *p, int64_t cells)
{
    int64_t used = p->cells - p->free_count;
    if (cells < used || cells < 0 || cells > INT32_MAX / p->unit)
        return lsa_fail(LSA_ESTATE, "pool: %lld cells, %lld are in use", (long long)cells, (long long)used);
    for (int64_t c = p->cells - 1; c >= cells; c--) /* only cells past the last one in use can go */
        if (p->unit_in[c] != ABSENT) cells = c + 1;
    if (cells == p->cells) return LSA_OK;
    int32_t *unit_in = lsa_alloc(cells * (int64_t)sizeof *unit_in);
    int32_t *free_cells = lsa_alloc(cells * (int64_t)sizeof *free_cells);
    if (!unit_in || !free_cells || lsa_blocks_resize(&p->hot, cells * p->unit)) {
        lsa_free(unit_in);
        lsa_free(free_cells);
        return LSA_ENOMEM;
    }
    p->free_count = 0;
    for (int64_t c = cells - 1; c >= 0; c--) { /* the lowest free cell on top */
        unit_in[c] = c < p->cells ? p->unit_in[c] : ABSENT;
        if (unit_in[c] == ABSENT) free_cells[p->free_count++] = (int32_t)c;
    }
    lsa_free(p->unit_in);
    lsa_free(p->free_cells);
    p->unit_in = unit_in;
    p->free_cells = free_cells;
    p->cells = cells;
    return LSA_OK;
}

static int check_layer(const lsa_pool *p, int64_t layer)
{
    if (layer >= 0 && layer < p->layers) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: layer %lld, the pool has %lld", (long long)layer, (long long)p->layers);
}

static int check_chunk(const lsa_pool *p, int64_t chunk)
{
    if (chunk >= 0 && chunk < p->cold.count) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: chunk %lld, the pool has %lld", (long long)chunk, (long long)p->cold.count);
}

static int check_unit(const lsa_pool *p, int64_t unit)
{
    if (unit >= 0 && unit < lsa_pool_units(p)) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: %s %lld, the pool has %lld", p->unit == 1 ? "chunk" : "page",
                    (long long)unit, (long long)lsa_pool_units(p));
}

int lsa_pool_has(const lsa_pool *p, int64_t unit)
{
    return unit >= 0 && unit < lsa_pool_units(p) && p->cell_of[unit] != ABSENT;
}

int lsa_pool_write(lsa_pool *p, int64_t layer, const int32_t *chunks, int64_t n, const void *records)
{
    int rc = check_layer(p, layer);
    for (int64_t i = 0; !rc && i < n; i++) rc = check_chunk(p, chunks[i]);
    for (int64_t i = 0; !rc && i < n; i++) {
        uint8_t *to = lsa_blocks_write(&p->cold, chunks[i]);
        if (!to) return LSA_ENOMEM;
        if (lsa_pool_has(p, chunks[i] / p->unit)) release_cell(p, chunks[i] / p->unit);
        memcpy(to + layer * p->record, (const uint8_t *)records + i * p->record, (size_t)p->record);
    }
    return rc;
}

int lsa_pool_publish(lsa_pool *p, int64_t layer, int64_t chunk, const void *record)
{
    int rc = check_layer(p, layer);
    if (!rc) rc = check_chunk(p, chunk);
    if (rc) return rc;
    uint8_t *to = lsa_blocks_write(&p->cold, chunk);
    if (!to) return LSA_ENOMEM;
    memcpy(to + layer * p->record, record, (size_t)p->record);
    int64_t slot = slot_of(p, chunk);
    if (slot == ABSENT) return LSA_OK;
    if (!(to = lsa_blocks_write(&p->hot, slot))) return LSA_ENOMEM;
    memcpy(to + layer * p->record, record, (size_t)p->record);
    return LSA_OK;
}

int lsa_pool_read(const lsa_pool *p, int64_t layer, const int32_t *chunks, int64_t n, void *records)
{
    int rc = check_layer(p, layer);
    for (int64_t i = 0; !rc && i < n; i++) rc = check_chunk(p, chunks[i]);
    for (int64_t i = 0; !rc && i < n; i++) {
        int64_t slot = slot_of(p, chunks[i]);
        const uint8_t *from = slot == ABSENT ? lsa_blocks_at(&p->cold, chunks[i]) : lsa_blocks_at(&p->hot, slot);
        memcpy((uint8_t *)records + i * p->record, from + layer * p->record, (size_t)p->record);
    }
    return rc;
}

/* Copies what the cold tier holds of a unit into a cell; the number of chunks, or a negative code. */
static int64_t fill_cell(lsa_pool *p, int64_t unit, int64_t cell)
{
    int64_t from = unit * p->unit, to = from + p->unit;
    if (to > p->cold.count) to = p->cold.count;
    for (int64_t c = from; c < to; c++) {
        uint8_t *slot = lsa_blocks_write(&p->hot, cell * p->unit + c - from);
        if (!slot) return LSA_ENOMEM;
        memcpy(slot, lsa_blocks_at(&p->cold, c), (size_t)(p->layers * p->record));
    }
    return to - from;
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int lsa_pool_fetch(lsa_pool *p, const int32_t *units, int64_t n)
{
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < n; i++) {
        rc = check_unit(p, units[i]);
        if (!rc && (p->cell_of[units[i]] != ABSENT || (i && units[i] <= units[i - 1])))
            rc = lsa_fail(LSA_ESTATE, "pool: fetch of %d, which is present or not in ascending order", units[i]);
    }
    if (!rc && n > p->free_count)
        rc = lsa_fail(LSA_ESTATE, "pool: fetch of %lld, %lld cells are free", (long long)n, (long long)p->free_count);
    if (rc || n == 0) return rc;
    int64_t start = now_ns(), chunks = 0;
    for (int64_t i = 0; i < n; i++) { /* data first, published below: a failure leaves no trace */
        int64_t filled = fill_cell(p, units[i], p->free_cells[p->free_count - 1 - i]);
        if (filled < 0) return (int)filled;
        chunks += filled;
    }
    for (int64_t i = 0; i < n; i++) {
        int32_t cell = p->free_cells[--p->free_count];
        p->unit_in[cell] = units[i];
        p->cell_of[units[i]] = cell;
    }
    p->counters.fetches++;
    p->counters.fetched_chunks += chunks;
    p->counters.fetched_bytes += chunks * p->layers * p->record;
    p->counters.transfer_ns += now_ns() - start;
    return LSA_OK;
}

int lsa_pool_evict(lsa_pool *p, const int32_t *units, int64_t n)
{
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < n; i++) rc = check_unit(p, units[i]);
    for (int64_t i = 0; !rc && i < n; i++) {
        if (p->cell_of[units[i]] == ABSENT) continue;
        release_cell(p, units[i]);
        int64_t left = p->cold.count - units[i] * p->unit;
        p->counters.evicted_chunks += left < p->unit ? left : p->unit;
    }
    return rc;
}

int lsa_pool_adopt(lsa_pool *p, int64_t chunk)
{
    int rc = check_chunk(p, chunk);
    if (rc) return rc;
    int64_t unit = chunk / p->unit;
    if (p->cell_of[unit] != ABSENT) return LSA_OK;
    if (!p->free_count) return lsa_fail(LSA_ESTATE, "pool: no free cell for chunk %lld", (long long)chunk);
    int32_t cell = p->free_cells[p->free_count - 1];
    int64_t filled = fill_cell(p, unit, cell);
    if (filled < 0) return (int)filled;
    p->free_count--;
    p->unit_in[cell] = (int32_t)unit;
    p->cell_of[unit] = cell;
    int64_t earlier = chunk % p->unit; /* chunks of the unit that were born before come from the cold tier */
    p->counters.fetched_chunks += earlier;
    p->counters.fetched_bytes += earlier * p->layers * p->record;
    return LSA_OK;
}

int64_t lsa_pool_present(const lsa_pool *p, int32_t *units)
{
    int64_t n = 0;
    for (int64_t c = 0; c < p->cells; c++)
        if (p->unit_in[c] != ABSENT) units[n++] = p->unit_in[c];
    return n;
}

void lsa_pool_slots(const lsa_pool *p, const int32_t *chunks, int64_t n, int32_t *slots)
{
    for (int64_t i = 0; i < n; i++) slots[i] = (int32_t)slot_of(p, chunks[i]);
}

static lsa_records records_in(const lsa_blocks *b, int64_t offset, int32_t format)
{
    return (lsa_records){(const uint8_t *const *)b->data, b->item, offset, b->shift, format};
}

lsa_records lsa_pool_cold_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->cold, layer * p->record, format);
}

lsa_records lsa_pool_hot_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->hot, layer * p->record, format);
}

int64_t lsa_pool_cold_bytes(const lsa_pool *p) { return lsa_blocks_bytes(&p->cold); }
int64_t lsa_pool_hot_bytes(const lsa_pool *p) { return lsa_blocks_bytes(&p->hot); }

void lsa_pool_count(const lsa_pool *p, lsa_pool_counters *out) { *out = p->counters; }
