/* Owns the life of pools, and the table that says which unit is in which cell. */
#include "core/pool/pool.h"

#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/pool/mirror.h"

enum {
    COLD_SHIFT = 8, /* chunks a block: a fork that appends copies at most one */
    KEY_SHIFT = 10, /* LSA_POOL_KEY_RUN */
    ALIGN = 64
};

static int64_t units_of(const lsa_pool *p, int64_t chunks)
{
    return (chunks + p->unit - 1) / p->unit;
}

int lsa_pool_new(lsa_pool **out, int64_t layers, int64_t record, int64_t unit)
{
    if (layers < 1 || record < 0 || unit < 1 || layers > 4096 || record > 1 << 24)
        return lsa_fail(LSA_EARG, "pool: %lld layers, records of %lld bytes, units of %lld chunks",
                        (long long)layers, (long long)record, (long long)unit);
    lsa_pool *p = lsa_alloc_zero(sizeof *p);
    if (!p) return LSA_ENOMEM;
    p->layers = layers;
    p->record = record;
    p->unit = unit;
    int64_t item = (layers * record + ALIGN - 1) / ALIGN * ALIGN;
    lsa_cold_tier_init(&p->cold);
    lsa_cow_blocks_init(&p->mirror, item, KEY_SHIFT);
    int rc = lsa_cold_tier_add(&p->cold, layers * record, item, COLD_SHIFT);
    if (!rc) rc = lsa_hot_tier_new(&p->hot, item, 0, unit);
    if (rc) {
        lsa_pool_free(p);
        return rc;
    }
    *out = p;
    return LSA_OK;
}

int lsa_pool_add_keys(lsa_pool *p, int64_t key_bytes)
{
    if (p->key || key_bytes < 1)
        return lsa_fail(LSA_ESTATE, "pool: keys of %lld bytes, it has some of %lld",
                        (long long)key_bytes, (long long)p->key);
    int rc = LSA_OK;
    for (int64_t layer = 0; !rc && layer < p->layers; layer++)
        rc = lsa_cold_tier_add(&p->cold, key_bytes, key_bytes, KEY_SHIFT);
    p->key = key_bytes;
    return rc;
}

int lsa_pool_set_gpu(lsa_pool *p)
{
    lsa_hot_tier *h = p->hot;
    if (p->cold.count || h->cells) return lsa_fail(LSA_ESTATE, "pool: it has chunks or cells");
    for (int64_t i = 0; i < p->cold.planes; i++) {
        lsa_cow_blocks *b = &p->cold.plane[i].blocks;
        lsa_cow_blocks_init_in(b, b->item, b->shift,
                               i == LSA_RECORDS ? LSA_MEMORY_BOTH : LSA_MEMORY_GPU);
    }
    lsa_cow_blocks_init_in(&p->mirror, p->mirror.item, p->mirror.shift, LSA_MEMORY_GPU);
    lsa_cow_blocks_init_in(&h->records, h->records.item, h->records.shift, LSA_MEMORY_GPU);
    lsa_cow_blocks_init_in(&h->keys, h->keys.item, h->keys.shift, LSA_MEMORY_GPU);
    return LSA_OK;
}

int lsa_pool_set_disk(lsa_pool *p, const char *directory, const uint8_t *kept_keys)
{
    uint8_t stays[LSA_COLD_PLANES] = {0};
    int64_t leaving = 0;
    int on_gpu = p->hot->records.memory != LSA_MEMORY_HOST; /* where keys lie on it */
    if (p->hot->cells || p->hot->common)
        return lsa_fail(LSA_ESTATE, "pool: it has cells, and gets a file before");
    for (int64_t layer = 0; p->key && layer < p->layers; layer++) {
        stays[LSA_RECORDS + 1 + layer] = on_gpu || (kept_keys && kept_keys[layer]);
        leaving += !stays[LSA_RECORDS + 1 + layer];
    }
    int rc = lsa_cold_tier_set_file(&p->cold, directory, stays);
    if (!rc && leaving) lsa_cow_blocks_init(&p->hot->keys, leaving * p->key, p->hot->keys.shift);
    return rc;
}

int lsa_pool_write_back(lsa_pool *p) { return lsa_cold_tier_write_back(&p->cold); }
int lsa_pool_spill(lsa_pool *p) { return lsa_cold_tier_spill(&p->cold); }
int lsa_pool_load(lsa_pool *p) { return lsa_cold_tier_load(&p->cold); }
int lsa_pool_spilled(const lsa_pool *p) { return p->cold.away_count > 0; }

/* Gives up the hot tier, and first what it has there. */
static void leave_hot(lsa_pool *p)
{
    lsa_hot_tier *h = p->hot;
    if (h && h->references > 1)
        for (int64_t c = h->cells - 1; p->held && c >= 0; c--) {
            if (h->owner[c] != p) continue;
            lsa_hot_tier_vacate(h, (int32_t)c);
            p->held--;
        }
    lsa_hot_tier_release(h);
    p->hot = NULL;
    p->held = 0;
}

void lsa_pool_free(lsa_pool *p)
{
    if (!p) return;
    lsa_background_fetch_free(p);
    lsa_cold_tier_free(&p->cold);
    lsa_mirror_drop(p);
    leave_hot(p);
    lsa_free(p->cell_of);
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
    lsa_background_fetch_settle(pool); /* it writes to memory that is shared from here on */
    lsa_cow_blocks_init_in(&p->mirror, pool->mirror.item, pool->mirror.shift, pool->mirror.memory);
    lsa_mirror_fork(p, pool);
    int rc = lsa_cold_tier_fork(&p->cold, &pool->cold);
    if (!rc) rc = copy_ids(&p->cell_of, pool->cell_of, p->units_room);
    if (!rc) rc = lsa_hot_tier_fork(&p->hot, pool->hot, pool, p);
    if (rc) {
        lsa_pool_free(p);
        return rc;
    }
    for (int32_t c = 0; c < p->hot->cells;
         c++) { /* a common tier's cells have other numbers in the fork's own */
        if (p->hot->owner[c] != p) continue;
        p->cell_of[p->hot->unit_in[c]] = c;
        p->held++;
    }
    *out = p;
    return LSA_OK;
}

int64_t lsa_pool_layers(const lsa_pool *p) { return p->layers; }
int64_t lsa_pool_record_bytes(const lsa_pool *p) { return p->record; }
int64_t lsa_pool_unit(const lsa_pool *p) { return p->unit; }
int64_t lsa_pool_chunks(const lsa_pool *p) { return p->cold.count; }
int64_t lsa_pool_units(const lsa_pool *p) { return units_of(p, p->cold.count); }
int64_t lsa_pool_cells(const lsa_pool *p) { return p->hot->cells; }
int64_t lsa_pool_free_cells(const lsa_pool *p) { return p->hot->free_count; }
int64_t lsa_pool_held_cells(const lsa_pool *p) { return p->held; }

int64_t lsa_pool_slot(const lsa_pool *p, int64_t chunk)
{
    int32_t cell = p->cell_of[chunk / p->unit];
    return cell == LSA_ABSENT ? LSA_ABSENT : cell * p->unit + chunk % p->unit;
}

void lsa_pool_release_cell(lsa_pool *p, int64_t unit)
{
    int32_t cell = p->cell_of[unit];
    p->cell_of[unit] = LSA_ABSENT;
    lsa_hot_tier_vacate(p->hot, cell);
    p->held--;
    p->changes++;
}

void lsa_pool_place(lsa_pool *p, const int32_t *cells, const int32_t *units, int64_t n)
{
    lsa_hot_tier_occupy(p->hot, cells, n, p, units, 0);
    for (int64_t i = 0; i < n; i++) p->cell_of[units[i]] = cells[i];
    p->held += n;
    p->changes++;
}

/* A begun unit may have a cell: its new chunks are as zero there as in the cold tier. */
static int clear_new(lsa_pool *p, int64_t from, int64_t to)
{
    for (int64_t c = from; c < to && c / p->unit < units_of(p, from); c++) {
        int64_t slot = lsa_pool_slot(p, c);
        uint8_t *record, *keys;
        if (slot == LSA_ABSENT) return LSA_OK;
        if (lsa_hot_tier_open_slot(p->hot, slot, &record, &keys)) return LSA_ENOMEM;
        if (lsa_cow_blocks_clear(&p->hot->records, slot)) return LSA_ENOMEM;
        if (keys && lsa_cow_blocks_clear(&p->hot->keys, slot)) return LSA_ENOMEM;
    }
    return LSA_OK;
}

int lsa_pool_unit_room(lsa_pool *p, int64_t chunks)
{
    int64_t units = units_of(p, chunks);
    if (units <= p->units_room) return LSA_OK;
    int64_t room = units > 2 * p->units_room ? units : 2 * p->units_room;
    int32_t *table = lsa_realloc(p->cell_of, room * (int64_t)sizeof *table);
    if (!table) return LSA_ENOMEM;
    p->cell_of = table;
    p->units_room = room;
    return LSA_OK;
}

int lsa_pool_resize(lsa_pool *p, int64_t chunks)
{
    if (chunks < 0 || chunks > INT32_MAX)
        return lsa_fail(LSA_EARG, "pool: %lld chunks, at most %d", (long long)chunks, INT32_MAX);
    int64_t old_units = units_of(p, p->cold.count), units = units_of(p, chunks);
    int room = lsa_pool_unit_room(p, chunks);
    if (room) return room;
    int64_t old = p->cold.count;
    int rc = lsa_cold_tier_resize(&p->cold, chunks);
    if (!rc) rc = clear_new(p, old, chunks);
    if (rc) {
        lsa_cold_tier_resize(&p->cold, old < chunks ? old : chunks);
        return rc;
    }
    lsa_mirror_resize(p);
    lsa_background_fetch_spoil(p, (old < chunks ? old : chunks) / p->unit, INT64_MAX);
    for (int64_t u = units; u < old_units; u++)
        if (p->cell_of[u] != LSA_ABSENT) lsa_pool_release_cell(p, u);
    for (int64_t u = old_units; u < units; u++) p->cell_of[u] = LSA_ABSENT;
    return LSA_OK;
}

int lsa_pool_set_cells(lsa_pool *p, int64_t cells)
{
    int64_t used = p->hot->cells - p->hot->free_count;
    int64_t most = INT32_MAX / p->unit;
    if (cells > most)
        return lsa_fail(LSA_EARG, "pool: %lld cells, at most %lld are possible", (long long)cells,
                        (long long)most);
    if (cells < used || cells < 0)
        return lsa_fail(LSA_ESTATE, "pool: %lld cells, %lld are in use", (long long)cells,
                        (long long)used);
    return lsa_hot_tier_set_cells(p->hot, cells);
}

/* ---- one hot tier for several pools ---- */

int lsa_pool_new_host(lsa_pool **out, const lsa_pool *like)
{
    lsa_pool *p;
    int rc = lsa_pool_new(&p, like->layers, like->record, like->unit);
    if (rc) return rc;
    p->hot->common = 1;
    lsa_cow_blocks_init(&p->hot->keys, like->hot->keys.item, p->hot->keys.shift);
    if (like->hot->records.memory != LSA_MEMORY_HOST) rc = lsa_pool_set_gpu(p);
    *out = p;
    return rc;
}

int lsa_pool_attach(lsa_pool *p, lsa_pool *host)
{
    const lsa_hot_tier *own = p->hot, *common = host->hot;
    if (!common->common) return lsa_fail(LSA_ESTATE, "pool: attaching to one that is no host");
    if (p->transfer) return lsa_fail(LSA_ESTATE, "pool: attaching while a transfer is under way");
    if (own->records.item != common->records.item || own->keys.item != common->keys.item ||
        own->unit != common->unit)
        return lsa_fail(
            LSA_ESHAPE,
            "pool: cells of %lld chunks of %lld + %lld bytes, the host's are %lld of %lld + %lld",
            (long long)own->unit, (long long)own->records.item, (long long)own->keys.item,
            (long long)common->unit, (long long)common->records.item, (long long)common->keys.item);
    if (own == common) return LSA_OK;
    for (int64_t u = 0; u < units_of(p, p->cold.count); u++) p->cell_of[u] = LSA_ABSENT;
    leave_hot(p);
    p->hot = host->hot;
    p->hot->references++;
    p->attached = 1;
    p->changes++;
    return LSA_OK;
}

int lsa_pool_check_chunk(const lsa_pool *p, int64_t chunk)
{
    if (chunk >= 0 && chunk < p->cold.count) return LSA_OK;
    return lsa_fail(LSA_EARG, "pool: chunk %lld, the pool has %lld", (long long)chunk,
                    (long long)p->cold.count);
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
    int64_t all = lsa_pool_units(p);
    for (int64_t i = 0; i < n; i++)
        if (units[i] < 0 || units[i] >= all) return lsa_pool_check_unit(p, units[i]);
    for (int64_t i = 0; i < n; i++) {
        if (p->cell_of[units[i]] == LSA_ABSENT) continue;
        lsa_pool_release_cell(p, units[i]);
        int64_t left = p->cold.count - units[i] * p->unit;
        p->counters.evicted_chunks += left < p->unit ? left : p->unit;
    }
    return LSA_OK;
}

int64_t lsa_pool_present(const lsa_pool *p, int32_t *units)
{
    int64_t n = 0;
    const lsa_hot_tier *h = p->hot;
    for (int64_t c = 0; c < h->cells && n < p->held; c++)
        if (h->owner[c] == p && h->unit_in[c] >= 0) units[n++] = h->unit_in[c];
    return n;
}

void lsa_pool_slots(const lsa_pool *p, const int32_t *chunks, int64_t n, int32_t *slots)
{
    for (int64_t i = 0; i < n; i++) slots[i] = (int32_t)lsa_pool_slot(p, chunks[i]);
}

static lsa_records records_in(const lsa_cow_blocks *b, int64_t offset, int32_t format)
{
    return (lsa_records){(uint8_t *const *)b->data, b->item, offset, b->shift, format};
}

lsa_records lsa_pool_key_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->cold.plane[LSA_RECORDS + 1 + layer].blocks, 0, format);
}

lsa_records lsa_pool_hot_key_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    const lsa_cold_tier_plane *plane = &p->cold.plane[LSA_RECORDS + 1 + layer];
    if (plane->at < 0) return (lsa_records){0};
    return records_in(&p->hot->keys, plane->at - p->cold.plane[LSA_RECORDS].bytes, format);
}

lsa_records lsa_pool_cold_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->cold.plane[LSA_RECORDS].blocks, layer * p->record, format);
}

lsa_records lsa_pool_mirror_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->mirror, layer * p->record, format);
}

lsa_records lsa_pool_hot_records(const lsa_pool *p, int64_t layer, int32_t format)
{
    return records_in(&p->hot->records, layer * p->record, format);
}

int64_t lsa_pool_cold_bytes(const lsa_pool *p)
{
    return lsa_cow_blocks_bytes(&p->cold.plane[LSA_RECORDS].blocks);
}
int64_t lsa_pool_hot_bytes(const lsa_pool *p)
{
    const lsa_hot_tier *h = p->hot;
    if (p->attached) return p->held * h->unit * (h->records.item + h->keys.item);
    return lsa_cow_blocks_bytes(&h->records) + lsa_cow_blocks_bytes(&h->keys);
}
int64_t lsa_pool_disk_bytes(const lsa_pool *p)
{
    return p->cold.file ? lsa_cold_file_bytes(p->cold.file) : 0;
}

void lsa_pool_count(const lsa_pool *p, lsa_pool_counters *out) { *out = p->counters; }
