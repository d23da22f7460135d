/* Owns transfers: units of the cold tier into cells, at once or on a thread of their own. In the background the source is
 * a fork of the cold tier, and the cells' memory is this pool's alone, so that nothing that happens meanwhile is met. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/cpu.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "core/pool/gpu_fill.h"
#include "core/pool/mirror.h"

enum { COPY_BYTES_NS = 8 /* of one thread, about: what is worth a second one */ };

/* Chunks on their way into cells: which, and where each one goes. */
typedef struct filling {
    int64_t count;
    int32_t *chunks;
    uint8_t **records, **keys;
    int64_t record_bytes, planes;
    const lsa_cold_tier_plane *plane;
} filling;

static void filling_free(filling *f)
{
    lsa_free(f->chunks);
    lsa_free(f->records);
    lsa_free(f->keys);
    memset(f, 0, sizeof *f); /* who failed to open it may free what it is part of */
}

/* The chunks of n units, and the memory of n cells for them. */
static int filling_open(filling *f, lsa_pool *p, const int32_t *units, const int32_t *cells,
                        int64_t n)
{
    int64_t most = n * p->unit;
    memset(f, 0, sizeof *f);
    f->record_bytes = p->cold.plane[LSA_RECORDS].bytes;
    f->planes = p->cold.planes;
    f->plane = p->cold.plane;
    f->chunks = lsa_alloc(most * (int64_t)sizeof *f->chunks);
    f->records = lsa_alloc(most * (int64_t)sizeof *f->records);
    f->keys = lsa_alloc(most * (int64_t)sizeof *f->keys);
    int rc = f->chunks && f->records && f->keys ? LSA_OK : LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++)
        for (int64_t j = 0; !rc && j < p->unit && units[i] * p->unit + j < p->cold.count;
             j++, f->count++) {
            f->chunks[f->count] = (int32_t)(units[i] * p->unit + j);
            rc = lsa_hot_tier_open_slot(p->hot, cells[i] * p->unit + j, &f->records[f->count],
                                        &f->keys[f->count]);
        }
    if (rc) filling_free(f);
    return rc;
}

static void fill_slot(void *context, int64_t i, const uint8_t *const *parts)
{
    const filling *f = context;
    memcpy(f->records[i], parts[LSA_RECORDS], (size_t)f->record_bytes);
    if (!f->keys[i]) return;
    for (int64_t p = LSA_RECORDS + 1; p < f->planes; p++)
        if (f->plane[p].at >= 0)
            memcpy(f->keys[i] + f->plane[p].at - f->record_bytes, parts[p],
                   (size_t)f->plane[p].bytes);
}

/* The same as fill_slot for a chunk that memory has. */
static void fill_from_memory(const lsa_pool *p, int64_t chunk, uint8_t *record, uint8_t *keys)
{
    const lsa_cold_tier *c = &p->cold;
    int64_t bytes = c->plane[LSA_RECORDS].bytes;
    memcpy(record, lsa_cold_tier_at(c, LSA_RECORDS, chunk), (size_t)bytes);
    for (int64_t i = LSA_RECORDS + 1; keys && i < c->planes; i++)
        if (c->plane[i].at >= 0)
            memcpy(keys + c->plane[i].at - bytes, lsa_cold_tier_at(c, i, chunk),
                   (size_t)c->plane[i].bytes);
}

/* What memory has of one unit's chunks, into its cell, whose memory is the pool's own. */
static void fill_cell(const lsa_pool *p, int32_t unit, int32_t cell)
{
    const lsa_hot_tier *h = p->hot;
    for (int64_t j = 0; j < p->unit && unit * p->unit + j < p->cold.count; j++) {
        int64_t slot = cell * p->unit + j;
        uint8_t *keys = h->keys.item ? (uint8_t *)lsa_cow_blocks_at(&h->keys, slot) : NULL;
        fill_from_memory(p, unit * p->unit + j, (uint8_t *)lsa_cow_blocks_at(&h->records, slot),
                         keys);
    }
}

/* Cells that a fork shares become the pool's own. */
static int own_cells(lsa_pool *p, const int32_t *cells, int64_t n)
{
    uint8_t *record, *keys;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < p->unit; j++)
            LSA_TRY(lsa_hot_tier_open_slot(p->hot, cells[i] * p->unit + j, &record, &keys));
    return LSA_OK;
}

/* Chunks of n units and their slots in n cells, each list with room for `most`; returns how many. */
static int64_t list_chunks(const lsa_pool *p, const int32_t *units, const int32_t *cells, int64_t n,
                           int32_t *chunks, int32_t *slots)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < p->unit && units[i] * p->unit + j < p->cold.count; j++, count++) {
            chunks[count] = (int32_t)(units[i] * p->unit + j);
            slots[count] = (int32_t)(cells[i] * p->unit + j);
        }
    return count;
}

static int is_on_gpu(const lsa_pool *p) { return p->hot->records.memory != LSA_MEMORY_HOST; }

static int fill_gpu_cells(lsa_pool *p, const int32_t *units, const int32_t *cells, int64_t n)
{
    int64_t most = n * p->unit;
    LSA_TRY(own_cells(p, cells, n));
    int32_t *chunks = lsa_alloc(2 * most * (int64_t)sizeof *chunks), *slots = chunks + most;
    if (!chunks) return LSA_ENOMEM;
    int64_t count = list_chunks(p, units, cells, n, chunks, slots);
    lsa_records to = lsa_pool_hot_records(p, 0, 0);
    int rc = lsa_gpu_fill(&p->cold, &to, slots, chunks, count, 0);
    lsa_free(chunks);
    return rc;
}

typedef struct cells_to_fill {
    lsa_pool *p;
    const int32_t *units, *cells;
} cells_to_fill;

static void fill_some(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const cells_to_fill *f = context;
    for (int64_t i = from; i < to; i++) fill_cell(f->p, f->units[i], f->cells[i]);
}

static int fill_cells_from_memory(lsa_pool *p, const int32_t *units, const int32_t *cells,
                                  int64_t n)
{
    int64_t bytes = n * p->unit * p->cold.plane[LSA_RECORDS].bytes;
    if (is_on_gpu(p)) return fill_gpu_cells(p, units, cells, n);
    LSA_TRY(own_cells(p, cells, n));
    lsa_parallel(lsa_threads_for(bytes / COPY_BYTES_NS), n, fill_some,
                 &(cells_to_fill){p, units, cells});
    return LSA_OK;
}

/* Chunks that n units have. */
static int64_t chunks_of(const lsa_pool *p, const int32_t *units, int64_t n)
{
    int64_t chunks = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t left = p->cold.count - units[i] * p->unit;
        chunks += left < p->unit ? left : p->unit;
    }
    return chunks;
}

/* Copies what the cold tier holds of n units into n cells; *chunks (may be NULL): how many that are. */
static int fill_cells(lsa_pool *p, const int32_t *units, const int32_t *cells, int64_t n,
                      int64_t *chunks)
{
    filling f;
    if (chunks) *chunks = chunks_of(p, units, n);
    if (p->record == 0 && p->key == 0) return LSA_OK;
    if (is_on_gpu(p)) return fill_gpu_cells(p, units, cells, n);
    if (!lsa_pool_spilled(p)) return fill_cells_from_memory(p, units, cells, n);
    int rc = filling_open(&f, p, units, cells, n);
    if (rc) return rc;
    int threads = lsa_threads_for(f.count * f.record_bytes / COPY_BYTES_NS);
    rc = lsa_cold_tier_read(&p->cold, f.chunks, f.count, threads, fill_slot, &f);
    filling_free(&f);
    return rc;
}

static int check_fetch(const lsa_pool *p, const int32_t *units, int64_t n)
{
    int64_t all = lsa_pool_units(p);
    for (int64_t i = 0; i < n; i++) {
        if (units[i] < 0 || units[i] >= all) return lsa_pool_check_unit(p, units[i]);
        if (p->cell_of[units[i]] != LSA_ABSENT || (i && units[i] <= units[i - 1]))
            return lsa_fail(LSA_ESTATE,
                            "pool: fetch of %d, which is present or not in ascending order",
                            units[i]);
    }
    if (n <= p->hot->free_count) return LSA_OK;
    return lsa_fail(LSA_ESTATE, "pool: fetch of %lld, %lld cells are free", (long long)n,
                    (long long)p->hot->free_count);
}

static void count_fetched(lsa_pool *p, int64_t chunks)
{
    p->counters.fetches++;
    p->counters.fetched_chunks += chunks;
    p->counters.fetched_bytes += chunks * p->layers * p->record;
}

int lsa_pool_fetch(lsa_pool *p, const int32_t *units, int64_t n)
{
    int rc = check_fetch(p, units, n);
    if (rc || n == 0) return rc;
    if (is_on_gpu(p) && p->record) LSA_TRY(lsa_gpu_prepare(0)); /* which is no transfer */
    int64_t start = lsa_clock_ns(), chunks = 0;
    const int32_t *cells = lsa_hot_tier_next(p->hot, n);
    if ((rc = fill_cells(p, units, cells, n, &chunks))) return rc; /* data first, published below */
    lsa_pool_place(p, cells, units, n);
    int64_t took = lsa_clock_ns() - start;
    count_fetched(p, chunks);
    p->counters.transfer_ns += took;
    p->counters.stall_ns += took;
    return LSA_OK;
}

int lsa_pool_reserve(lsa_pool *p, int64_t chunks, int64_t cells)
{
    const lsa_hot_tier *h = p->hot;
    int64_t begun = p->cold.count, unit = begun / p->unit;
    if (cells > h->free_count) cells = h->free_count;
    LSA_TRY(lsa_pool_unit_room(p, chunks));
    LSA_TRY(lsa_cold_tier_reserve(&p->cold, chunks));
    lsa_mirror_reserve(p, chunks);
    if (begun % p->unit && lsa_pool_has(p, unit)) /* what is born joins a cell that is there */
        LSA_TRY(own_cells(p, &p->cell_of[unit], 1));
    return own_cells(p, h->free_cells + h->free_count - cells, cells);
}

int lsa_pool_reserve_all_cells(lsa_pool *p)
{
    for (int32_t cell = 0; cell < p->hot->cells; cell++) LSA_TRY(own_cells(p, &cell, 1));
    return LSA_OK;
}

int lsa_pool_adopt(lsa_pool *p, int64_t chunk)
{
    int rc = lsa_pool_check_chunk(p, chunk);
    if (rc) return rc;
    int64_t unit = chunk / p->unit;
    if (p->cell_of[unit] != LSA_ABSENT) return LSA_OK;
    if (!p->hot->free_count)
        return lsa_fail(LSA_ESTATE, "pool: no free cell for chunk %lld", (long long)chunk);
    const int32_t *cell = lsa_hot_tier_next(p->hot, 1);
    int32_t first = (int32_t)unit;
    if (is_on_gpu(p) && chunk % p->unit == 0) /* the pass that bears it writes all of it there */
        rc = own_cells(p, cell, 1);
    else if (lsa_cold_tier_in_memory(&p->cold, unit * p->unit)) /* as the whole unit is, mostly */
        rc = p->record || p->key ? fill_cells_from_memory(p, &first, cell, 1) : LSA_OK;
    else
        rc = fill_cells(p, &first, cell, 1, NULL);
    if (rc) return rc;
    lsa_pool_place(p, cell, &first, 1);
    int64_t earlier =
        chunk % p->unit; /* chunks of the unit that were born before come from the cold tier */
    p->counters.fetched_chunks += earlier;
    p->counters.fetched_bytes += earlier * p->layers * p->record;
    return LSA_OK;
}

/* ---- in the background ---- */

struct lsa_background_fetch {
    filling filling;
    lsa_cold_tier source;
    lsa_records to; /* a GPU's cells, by a table of its own; no blocks elsewhere */
    uint8_t **table;
    int32_t *slots;         /* of the filling's chunks */
    int32_t *units, *cells; /* [n] */
    uint8_t *spoiled;       /* [n] */
    int64_t n;
    pthread_t thread;
    int32_t gpu; /* where the cells are */
    int running, rc;
    int64_t ns;
    char message[1024];
};

static void *transfer_run(void *context)
{
    lsa_background_fetch *t = context;
    int64_t start = lsa_clock_ns();
    int32_t before;
    t->rc = t->table ? lsa_device_enter(t->gpu, &before) : LSA_OK;
    if (!t->rc)
        t->rc = t->table ? lsa_gpu_fill(&t->source, &t->to, t->slots, t->filling.chunks,
                                        t->filling.count, 1)
                         : lsa_cold_tier_read(&t->source, t->filling.chunks, t->filling.count, 1,
                                              fill_slot, &t->filling);
    if (t->rc) snprintf(t->message, sizeof t->message, "%s", lsa_error());
    t->ns = lsa_clock_ns() - start;
    return NULL;
}

static void transfer_delete(lsa_background_fetch *t)
{
    filling_free(&t->filling);
    lsa_cold_tier_free(&t->source);
    lsa_free_in(LSA_MEMORY_BOTH, t->table);
    lsa_free(t->slots);
    lsa_free(t->units);
    lsa_free(t->cells);
    lsa_free(t->spoiled);
    lsa_free(t);
}

/* Where a GPU's cells are: the tier's table may move while the transfer is under way, its blocks do not. */
static int note_gpu_cells(lsa_background_fetch *t, lsa_pool *p, const int32_t *units,
                          const int32_t *cells)
{
    const lsa_cow_blocks *b = &p->hot->records;
    int64_t bytes = b->blocks * (int64_t)sizeof *t->table;
    t->slots = lsa_alloc(t->n * p->unit * (int64_t)sizeof *t->slots);
    t->table = lsa_alloc_in(LSA_MEMORY_BOTH, bytes);
    if (!t->slots || !t->table) return LSA_ENOMEM;
    memcpy(t->table, b->data, (size_t)bytes);
    list_chunks(p, units, cells, t->n, t->filling.chunks, t->slots);
    t->to = lsa_pool_hot_records(p, 0, 0);
    t->to.blocks = t->table;
    t->gpu = lsa_device_current();
    return LSA_OK;
}

static int transfer_new(lsa_background_fetch **out, lsa_pool *p, const int32_t *units,
                        const int32_t *cells, int64_t n)
{
    lsa_background_fetch *t = lsa_alloc_zero(sizeof *t);
    if (!t) return LSA_ENOMEM;
    t->n = n;
    t->units = lsa_alloc(n * (int64_t)sizeof *t->units);
    t->cells = lsa_alloc(n * (int64_t)sizeof *t->cells);
    t->spoiled = lsa_alloc_zero(n);
    int rc = t->units && t->cells && t->spoiled ? LSA_OK : LSA_ENOMEM;
    if (!rc) rc = filling_open(&t->filling, p, units, cells, n);
    if (!rc && is_on_gpu(p) && p->record) rc = note_gpu_cells(t, p, units, cells);
    if (!rc) rc = lsa_cold_tier_fork(&t->source, &p->cold);
    if (rc) {
        transfer_delete(t);
        return rc;
    }
    t->filling.plane = t->source.plane;
    memcpy(t->units, units, (size_t)n * sizeof *units);
    memcpy(t->cells, cells, (size_t)n * sizeof *cells);
    *out = t;
    return LSA_OK;
}

int lsa_pool_start(lsa_pool *p, const int32_t *units, int64_t n)
{
    lsa_background_fetch *t;
    if (p->transfer) return lsa_fail(LSA_ESTATE, "pool: a transfer is under way");
    int rc = check_fetch(p, units, n);
    if (rc || n == 0) return rc;
    if (is_on_gpu(p) && p->record) LSA_TRY(lsa_gpu_prepare(1));
    if ((rc = transfer_new(&t, p, units, lsa_hot_tier_next(p->hot, n), n))) return rc;
    if (pthread_create(&t->thread, NULL, transfer_run, t)) {
        transfer_delete(t);
        return lsa_fail(LSA_ENOMEM, "pool: no thread for a transfer");
    }
    t->running = 1;
    p->transfer = t;
    lsa_hot_tier_occupy(p->hot, t->cells, n, p, NULL, LSA_AWAITED);
    p->held += n;
    return LSA_OK;
}

void lsa_background_fetch_settle(const lsa_pool *p)
{
    if (!p->transfer || !p->transfer->running) return;
    pthread_join(p->transfer->thread, NULL);
    p->transfer->running = 0;
}

void lsa_background_fetch_free(lsa_pool *p)
{
    if (!p->transfer) return;
    lsa_background_fetch_settle(p);
    transfer_delete(p->transfer);
    p->transfer = NULL;
}

void lsa_background_fetch_spoil(lsa_pool *p, int64_t first, int64_t end)
{
    lsa_background_fetch *t = p->transfer;
    if (!t) return;
    int64_t low = 0, high = t->n;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (t->units[middle] < first)
            low = middle + 1;
        else
            high = middle;
    }
    for (; low < t->n && t->units[low] < end; low++) t->spoiled[low] = 1;
}

int lsa_pool_under_way(const lsa_pool *p) { return p->transfer != NULL; }

int lsa_pool_finish(lsa_pool *p)
{
    lsa_background_fetch *t = p->transfer;
    if (!t) return LSA_OK;
    int64_t start = lsa_clock_ns(), chunks = 0;
    lsa_background_fetch_settle(p);
    for (int64_t i = 0; i < t->n; i++) { /* what another way got a cell meanwhile has it */
        int arrived = !t->rc && !t->spoiled[i] && p->cell_of[t->units[i]] == LSA_ABSENT;
        if (arrived) {
            p->hot->unit_in[t->cells[i]] = t->units[i];
            p->cell_of[t->units[i]] = t->cells[i];
            int64_t left = p->cold.count - t->units[i] * p->unit;
            chunks += left < p->unit ? left : p->unit;
        } else {
            lsa_hot_tier_vacate(p->hot, t->cells[i]);
            p->held--;
        }
    }
    count_fetched(p, chunks);
    p->counters.transfer_ns += t->ns;
    p->counters.stall_ns += lsa_clock_ns() - start;
    int rc = t->rc ? lsa_fail(t->rc, "%s", t->message) : LSA_OK;
    lsa_background_fetch_free(p);
    return rc;
}

/* ---- from a file ---- */

int64_t lsa_background_fetch_count(const lsa_pool *p) { return p->transfer ? p->transfer->n : 0; }
int lsa_background_fetch_code(const lsa_pool *p) { return p->transfer ? p->transfer->rc : LSA_OK; }
const char *lsa_background_fetch_message(const lsa_pool *p)
{
    return p->transfer ? p->transfer->message : "";
}

void lsa_background_fetch_rows(const lsa_pool *p, int32_t *rows)
{
    const lsa_background_fetch *t = p->transfer;
    for (int64_t i = 0; i < lsa_background_fetch_count(p); i++) {
        rows[i * LSA_MOVING_COLUMNS] = t->units[i];
        rows[i * LSA_MOVING_COLUMNS + 1] = t->cells[i];
        rows[i * LSA_MOVING_COLUMNS + 2] = t->spoiled[i];
    }
}

static int check_moving(const lsa_pool *p, const int32_t *rows, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        const int32_t *row = rows + i * LSA_MOVING_COLUMNS;
        int fits = row[0] >= 0 && (row[2] || row[0] < lsa_pool_units(p)) &&
                   (!i || row[0] > row[-LSA_MOVING_COLUMNS]);
        if (!fits || row[1] < 0 || row[1] >= p->hot->cells || p->hot->owner[row[1]] != p ||
            p->hot->unit_in[row[1]] != LSA_AWAITED)
            return lsa_fail(
                LSA_EFORMAT,
                "transfer %lld brings unit %d to cell %d; the pool has %lld units, %lld cells",
                (long long)i, row[0], row[1], (long long)lsa_pool_units(p),
                (long long)p->hot->cells);
    }
    return LSA_OK;
}

int lsa_background_fetch_restore(lsa_pool *p, const int32_t *rows, int64_t n, int code,
                                 const char *message)
{
    int rc = check_moving(p, rows, n);
    if (rc || !n) return rc;
    int32_t *units = lsa_alloc(n * (int64_t)sizeof *units),
            *cells = lsa_alloc(n * (int64_t)sizeof *cells);
    if (!units || !cells) rc = LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++) {
        units[i] = rows[i * LSA_MOVING_COLUMNS];
        cells[i] = rows[i * LSA_MOVING_COLUMNS + 1];
    }
    if (!rc) rc = transfer_new(&p->transfer, p, units, cells, n);
    lsa_free(units);
    lsa_free(cells);
    if (rc) return rc;
    lsa_background_fetch *t = p->transfer;
    for (int64_t i = 0; i < n; i++) t->spoiled[i] = rows[i * LSA_MOVING_COLUMNS + 2] != 0;
    transfer_run(t);
    if (t->rc) return lsa_fail(t->rc, "%s", t->message);
    t->rc = code;
    snprintf(t->message, sizeof t->message, "%s", message);
    return LSA_OK;
}

/* Every cell is in use by one unit, awaits one, or is on the list of free ones, once. */
static int check_cells(lsa_pool *p)
{
    lsa_hot_tier *h = p->hot;
    for (int64_t c = 0; c < h->cells; c++) {
        int32_t unit = h->unit_in[c];
        if (unit == LSA_ABSENT) continue;
        h->owner[c] = p;
        p->held++;
        if (unit == LSA_AWAITED) continue;
        if (unit < 0 || unit >= lsa_pool_units(p) || p->cell_of[unit] != LSA_ABSENT)
            return lsa_fail(LSA_EFORMAT, "cell %lld has unit %d, of %lld, each in one cell",
                            (long long)c, unit, (long long)lsa_pool_units(p));
        p->cell_of[unit] = (int32_t)c;
    }
    if (h->cells - p->held != h->free_count)
        return lsa_fail(LSA_EFORMAT, "%lld cells are free, %lld are listed",
                        (long long)(h->cells - p->held), (long long)h->free_count);
    uint8_t *seen = lsa_alloc_zero(h->cells);
    if (!seen) return LSA_ENOMEM;
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < h->free_count; i++) {
        int32_t cell = h->free_cells[i];
        if (cell < 0 || cell >= h->cells || h->owner[cell] || seen[cell])
            rc = lsa_fail(LSA_EFORMAT, "free cell %lld is %d, of %lld", (long long)i, cell,
                          (long long)h->cells);
        else
            seen[cell] = 1;
    }
    lsa_free(seen);
    return rc;
}

int lsa_pool_restore_cells(lsa_pool *p)
{
    int rc = check_cells(p);
    int32_t *units = lsa_alloc(p->held * (int64_t)sizeof *units),
            *cells = lsa_alloc(p->held * (int64_t)sizeof *cells);
    if (!rc && (!units || !cells)) rc = LSA_ENOMEM;
    int64_t n = 0;
    for (int64_t u = 0; !rc && u < lsa_pool_units(p); u++) /* ascending: few large reads */
        if (p->cell_of[u] != LSA_ABSENT) {
            units[n] = (int32_t)u;
            cells[n++] = p->cell_of[u];
        }
    if (!rc && n) rc = fill_cells(p, units, cells, n, NULL);
    lsa_free(units);
    lsa_free(cells);
    return rc;
}
