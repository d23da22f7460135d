/* Owns the life of pools, and the table that says which unit is in which cell. */
#include "core/pool.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/pool_state.h"

enum {
    COLD_SHIFT = 8, /* chunks a block: a fork that appends copies at most one */
    KEY_SHIFT = 10, /* LSA_POOL_KEY_RUN */
    HOT_SHIFT = 6,
    ALIGN = 64
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
    lsa_cold_init(&p->cold);
    lsa_blocks_init(&p->hot, item, HOT_SHIFT);
    if (lsa_cold_add(&p->cold, layers * record, item, COLD_SHIFT)) {
        lsa_free(p);
        return LSA_ENOMEM;
    }
    *out = p;
    return LSA_OK;
}

int lsa_pool_add_keys(lsa_pool *p, int64_t key_bytes)
{
    if (p->key || key_bytes < 1) return lsa_fail(LSA_ESTATE, "pool: keys of %lld bytes, it has some of %lld",
                                                 (long long)key_bytes, (long long)p->key);
    int rc = LSA_OK;
    for (int64_t layer = 0; !rc && layer < p->layers; layer++)
        rc = lsa_cold_add(&p->cold, key_bytes, key_bytes, KEY_SHIFT);
    p->key = key_bytes;
    return rc;
}

int lsa_pool_set_disk(lsa_pool *p, const char *directory, const uint8_t *kept_keys)
{
    uint8_t stays[LSA_COLD_PLANES] = {0};
    int64_t leaving = 0;
    if (p->cells) return lsa_fail(LSA_ESTATE, "pool: it has cells, and gets a file before");
    for (int64_t layer = 0; p->key && layer < p->layers; layer++) {
        stays[LSA_RECORDS + 1 + layer] = kept_keys && kept_keys[layer];
        leaving += !stays[LSA_RECORDS + 1 + layer];
    }
    int rc = lsa_cold_set_file(&p->cold, directory, stays);
    if (!rc) lsa_blocks_init(&p->hot_keys, leaving * p->key, HOT_SHIFT);
    return rc;
}

int lsa_pool_write_back(lsa_pool *p) { return lsa_cold_write_back(&p->cold); }
int lsa_pool_spill(lsa_pool *p) { return lsa_cold_spill(&p->cold); }
int lsa_pool_load(lsa_pool *p) { return lsa_cold_load(&p->cold); }
int lsa_pool_spilled(const lsa_pool *p) { return p->cold.away_count > 0; }

void lsa_pool_free(lsa_pool *p)
{
    if (!p) return;
    lsa_transfer_free(p);
    lsa_cold_free(&p->cold);
    lsa_blocks_free(&p->hot);
    lsa_blocks_free(&p->hot_keys);
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
    p->key = pool->key;
    p->units_room = units_of(pool, pool->cold.count);
    p->cells = pool->cells;
    p->free_count = pool->free_count;
    lsa_transfer_settle(pool); /* it writes to memory that is shared from here on */
    int rc = lsa_cold_fork(&p->cold, &pool->cold);
    if (!rc) rc = lsa_blocks_fork(&p->hot, &pool->hot);
    if (!rc) rc = lsa_blocks_fork(&p->hot_keys, &pool->hot_keys);
    if (!rc) rc = copy_ids(&p->cell_of, pool->cell_of, p->units_room);
    if (!rc) rc = copy_ids(&p->unit_in, pool->unit_in, p->cells);
    if (!rc) rc = copy_ids(&p->free_cells, pool->free_cells, p->cells);
    if (rc) {
        lsa_pool_free(p);
        return rc;
    }
    for (int32_t c = 0; c < p->cells; c++) /* what is on its way is not the fork's */
        if (p->unit_in[c] == LSA_AWAITED) {
            p->unit_in[c] = LSA_ABSENT;
            p->free_cells[p->free_count++] = c;
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

int64_t lsa_pool_slot(const lsa_pool *p, int64_t chunk)
{
    int32_t cell = p->cell_of[chunk / p->unit];
    return cell == LSA_ABSENT ? LSA_ABSENT : cell * p->unit + chunk % p->unit;
}

void lsa_pool_release_cell(lsa_pool *p, int64_t unit)
{
    int32_t cell = p->cell_of[unit];
    p->cell_of[unit] = LSA_ABSENT;
    p->unit_in[cell] = LSA_ABSENT;
    p->free_cells[p->free_count++] = cell;
}

int lsa_pool_open_slot(lsa_pool *p, int64_t slot, uint8_t **record, uint8_t **keys)
{
    *record = lsa_blocks_write(&p->hot, slot);
    *keys = p->hot_keys.item ? lsa_blocks_write(&p->hot_keys, slot) : NULL;
    return *record && (*keys || !p->hot_keys.item) ? LSA_OK : LSA_ENOMEM;
}

/* A begun unit may have a cell: its new chunks are as zero there as in the cold tier. */
static int clear_new(lsa_pool *p, int64_t from, int64_t to)
{
    for (int64_t c = from; c < to && c / p->unit < units_of(p, from); c++) {
        int64_t slot = lsa_pool_slot(p, c);
        uint8_t *record, *keys;
        if (slot == LSA_ABSENT) return LSA_OK;
        if (lsa_pool_open_slot(p, slot, &record, &keys)) return LSA_ENOMEM;
        memset(record, 0, (size_t)p->hot.item);
        if (keys) memset(keys, 0, (size_t)p->hot_keys.item);
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
    int rc = lsa_cold_resize(&p->cold, chunks);
    if (!rc) rc = clear_new(p, old, chunks);
    if (rc) {
        lsa_cold_resize(&p->cold, old < chunks ? old : chunks);
        return rc;
    }
    lsa_transfer_spoil(p, (old < chunks ? old : chunks) / p->unit, INT64_MAX);
    for (int64_t u = units; u < old_units; u++)
        if (p->cell_of[u] != LSA_ABSENT) lsa_pool_release_cell(p, u);
    for (int64_t u = old_units; u < units; u++) p->cell_of[u] = LSA_ABSENT;
    return LSA_OK;
}

int lsa_pool_set_cells(lsa_pool *p, int64_t cells)
{
    int64_t used = p->cells - p->free_count;
    if (cells < used || cells < 0 || cells > INT32_MAX / p->unit)
        return lsa_fail(LSA_ESTATE, "pool: %lld cells, %lld are in use", (long long)cells, (long long)used);
    for (int64_t c = p->cells - 1; c >= cells; c--) /* only cells past the last one in use can go */
        if (p->unit_in[c] != LSA_ABSENT) cells = c + 1;
    if (cells == p->cells) return LSA_OK;
    int32_t *unit_in = lsa_alloc(cells * (int64_t)sizeof *unit_in);
    int32_t *free_cells = lsa_alloc(cells * (int64_t)sizeof *free_cells);
    int rc = unit_in && free_cells ? LSA_OK : LSA_ENOMEM;
    if (!rc) rc = lsa_blocks_resize(&p->hot, cells * p->unit);
    if (!rc && p->hot_keys.item && (rc = lsa_blocks_resize(&p->hot_keys, cells * p->unit)))
        lsa_blocks_resize(&p->hot, p->hot_keys.count);
    if (rc) {
        lsa_free(unit_in);
        lsa_free(free_cells);
        return rc;
    }
    p->free_count = 0;
    for (int64_t c = cells - 1; c >= 0; c--) { /* the lowest free cell on top */
        unit_in[c] = c < p->cells ? p->unit_in[c] : LSA_ABSENT;
        if (unit_in[c] == LSA_ABSENT) free_cells[p->free_count++] = (int32_t)c;
    }
    lsa_free(p->unit_in);
    lsa_free(p->free_cells);
    p->unit_in = unit_in;
    p->free_cells = free_cells;
    p->cells = cells;
    return LSA_OK;
}

int lsa_pool_check_chunk(const lsa_pool *p, int64_t chunk)
{
    if (chunk >= 0 && chunk < p->cold.count) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: chunk %lld, the pool has %lld", (long long)chunk, (long long)p->cold.count);
}

int lsa_pool_check_unit(const lsa_pool *p, int64_t unit)
{
    if (unit >= 0 && unit < lsa_pool_units(p)) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: %s %lld, the pool has %lld", p->unit == 1 ? "chunk" : "page",
                    (long long)unit, (long long)lsa_pool_units(p));
}

int lsa_pool_has(const lsa_pool *p, int64_t unit)
{
    return unit >= 0 && unit < lsa_pool_units(p) && p->cell_of[unit] != LSA_ABSENT;
}

int lsa_pool_evict(lsa_pool *p, const int32_t *units, int64_t n)
{
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < n; i++) rc = lsa_pool_check_unit(p, units[i]);
    for (int64_t i = 0; !rc && i < n; i++) {
        if (p->cell_of[units[i]] == LSA_ABSENT) continue;
        lsa_pool_release_cell(p, units[i]);
        int64_t left = p->cold.count - units[i] * p->unit;
        p->counters.evicted_chunks += left < p->unit ? left : p->unit;
    }
    return rc;
}

int64_t lsa_pool_present(const lsa_pool *p, int32_t *units)
{
    int64_t n = 0;
    for (int64_t c = 0; c < p->cells; c++)
        if (p->unit_in[c] >= 0) units[n++] = p->unit_in[c];
    return n;
}

void lsa_pool_slots(const lsa_pool *p, const int32_t *chunks, int64_t n, int32_t *slots)
{
    for (int64_t i = 0; i < n; i++) slots[i] = (int32_t)lsa_pool_slot(p, chunks[i]);
}

static lsa_records records_in(const lsa_blocks *b, int64_t offset, int32_t format)
{
    return (lsa_records){(const uint8_t *const *)b->data, b->item, offset, b->shift, format};
}

lsa_records lsa_pool_cold_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->cold.plane[LSA_RECORDS].blocks, layer * p->record, format);
}

lsa_records lsa_pool_hot_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->hot, layer * p->record, format);
}

int64_t lsa_pool_cold_bytes(const lsa_pool *p) { return lsa_blocks_bytes(&p->cold.plane[LSA_RECORDS].blocks); }
int64_t lsa_pool_hot_bytes(const lsa_pool *p) { return lsa_blocks_bytes(&p->hot) + lsa_blocks_bytes(&p->hot_keys); }
int64_t lsa_pool_disk_bytes(const lsa_pool *p) { return p->cold.file ? lsa_cold_file_bytes(p->cold.file) : 0; }

void lsa_pool_count(const lsa_pool *p, lsa_pool_counters *out) { *out = p->counters; }
