/* Two tiers of chunk records. The cold tier holds every chunk, chunk-major: one record a layer, side by
 * side, so that a chunk moves in one copy. The hot tier is a bounded arena of cells; a cell holds one
 * unit, which is a chunk or a page of chunks; pools can share one hot tier. The cold tier is in memory, or, on disk, once it was spilled: all but the
 * newest chunks are then in a file, which forks share. A pool may keep index keys beside the records. */
#ifndef LSA_POOL_H
#define LSA_POOL_H
#include <stdint.h>

#include "kernels/kv_record.h"

typedef struct lsa_pool lsa_pool;

typedef struct lsa_pool_counters {
    int64_t fetched_chunks, fetched_bytes; /* cold to hot; bytes of records, without padding */
    int64_t fetches;                       /* calls that moved something */
    int64_t evicted_chunks;                /* left the hot tier to make room */
    int64_t transfer_ns;                   /* that transfers took, in the background too */
    int64_t stall_ns;                      /* that callers waited for them */
} lsa_pool_counters;

/* A pool of `layers` records of `record` bytes a chunk, cells of `unit` chunks; no chunks, no cells yet. One of 0 bytes has
 * residency alone: nothing moves, chunks are counted. */
int lsa_pool_new(lsa_pool **out, int64_t layers, int64_t record, int64_t unit);

/* One index key of that many bytes a layer and chunk from now on; before there are chunks. */
int lsa_pool_add_keys(lsa_pool *pool, int64_t key_bytes);

/* The pool is one for a GPU: cells and index keys lie on it, the records of the cold tier in host memory that it reads. Before
 * there are chunks and cells. */
int lsa_pool_set_gpu(lsa_pool *pool);

/* The cold tier gets a file in `directory`; what is in memory stays there until lsa_pool_spill. kept_keys: [layers], not
 * 0 for layers whose keys never leave memory, or NULL for none; those of a GPU's pool never do. Before there are cells. */
int lsa_pool_set_disk(lsa_pool *pool, const char *directory, const uint8_t *kept_keys);

/* Writes to the file what it does not have, of whole segments of chunks; to spill lets go of them in memory, too, to load
 * has everything in memory again. A failure loses nothing. All three do nothing where there is no file. */
int lsa_pool_write_back(lsa_pool *pool);
int lsa_pool_spill(lsa_pool *pool);
int lsa_pool_load(lsa_pool *pool);

/* 1 while chunks are in the file alone. */
int lsa_pool_spilled(const lsa_pool *pool);

/* An equal pool, sharing all memory until one side writes. Counters start at zero. */
int lsa_pool_fork(lsa_pool **out, const lsa_pool *pool);
void lsa_pool_free(lsa_pool *pool);

int64_t lsa_pool_layers(const lsa_pool *pool);
int64_t lsa_pool_record_bytes(const lsa_pool *pool);
int64_t lsa_pool_unit(const lsa_pool *pool);
int64_t lsa_pool_chunks(const lsa_pool *pool);
int64_t lsa_pool_units(const lsa_pool *pool);

/* Makes `chunks` chunks: new ones zero; units past the end lose their cells. */
int lsa_pool_resize(lsa_pool *pool, int64_t chunks);

/* Memory for what steps to come write: for as many as `chunks` chunks in all, and for the next `cells` free cells that they take.
 * Until a fork, growing to so many chunks, adopting and publishing them cannot fail for want of memory. reserve_all_cells: every
 * cell is the pool's own, so that fetching into any of them cannot either. */
int lsa_pool_reserve(lsa_pool *pool, int64_t chunks, int64_t cells);
int lsa_pool_reserve_all_cells(lsa_pool *pool);

/* Sets the number of hot cells. LSA_ESTATE, naming both counts, when more are in use. */
int lsa_pool_set_cells(lsa_pool *pool, int64_t cells);
int64_t lsa_pool_cells(const lsa_pool *pool);
int64_t lsa_pool_free_cells(const lsa_pool *pool);

/* One hot tier for several pools. A host is a pool without chunks, of the dimensions of `like`, whose cells others take: a
 * pool that is attached to it gives its own cells up, so all its units are absent, and from then on lsa_pool_cells, _free_cells
 * and _set_cells are about the host's. Units belong to their pool: it alone finds, evicts and frees their cells; freeing a
 * pool frees exactly those. A fork of an attached pool has a hot tier of its own, with copies. All pools of a host are used from one
 * thread, but for publishing and reading different pools' chunks. LSA_ESHAPE where cells differ, LSA_ESTATE where
 * `host` is none, or a transfer of `pool` is under way. */
int lsa_pool_new_host(lsa_pool **out, const lsa_pool *like);
int lsa_pool_attach(lsa_pool *pool, lsa_pool *host);

/* Cells that the pool has itself, those on their way included. */
int64_t lsa_pool_held_cells(const lsa_pool *pool);

/* Writes n records of one layer, `records` packed, to the cold tier. The hot copy of a rewritten chunk is
 * stale: its unit loses its cell. */
int lsa_pool_write(lsa_pool *pool, int64_t layer, const int32_t *chunks, int64_t n,
                   const void *records);

/* Writes one record to the cold tier and, where the chunk has a cell, to the hot tier: a chunk being born. */
int lsa_pool_publish(lsa_pool *pool, int64_t layer, int64_t chunk, const void *record);

/* Reads n records, packed: from the chunk's cell where it has one, else from the cold tier. */
int lsa_pool_read(const lsa_pool *pool, int64_t layer, const int32_t *chunks, int64_t n,
                  void *records);

/* Copies n absent units (ascending) into free cells, then publishes their cells. LSA_ESTATE when one
 * is present or the free cells do not suffice; then nothing changes. */
int lsa_pool_fetch(lsa_pool *pool, const int32_t *units, int64_t n);

/* The same in two parts. Start: the free cells are taken, and filled on a thread of their own; the units are absent.
 * Finish: waits, then publishes. A unit that changed meanwhile, or got a cell in another way, does not arrive; after a
 * failure none does, and nothing else is lost. LSA_ESTATE for a second start. A fork does not get what is on its way. */
int lsa_pool_start(lsa_pool *pool, const int32_t *units, int64_t n);
int lsa_pool_finish(lsa_pool *pool);
int lsa_pool_under_way(const lsa_pool *pool);

/* Takes the cells of n units; absent ones are passed over. */
int lsa_pool_evict(lsa_pool *pool, const int32_t *units, int64_t n);

/* A cell for the unit of a chunk that is being born, if it has none: taken from the free ones, filled with
 * what the cold tier holds of the unit; on a GPU, of the chunks before it in the unit, since the pass that bears it writes the rest. */
int lsa_pool_adopt(lsa_pool *pool, int64_t chunk);

/* 1 where the unit has a cell. */
int lsa_pool_has(const lsa_pool *pool, int64_t unit);

/* Units with a cell, in no order, into `units` (room for lsa_pool_held_cells); returns how many. */
int64_t lsa_pool_present(const lsa_pool *pool, int32_t *units);

/* Slots of the given chunks in the hot arena, -1 for absent ones: the ids that lsa_pool_hot_records takes. */
void lsa_pool_slots(const lsa_pool *pool, const int32_t *chunks, int64_t n, int32_t *slots);

/* Where attention finds one layer's records: by chunk id in the cold tier (which is to be in memory), by slot in the hot
 * one. */
lsa_records lsa_pool_cold_records(const lsa_pool *pool, int64_t layer, int32_t format);
lsa_records lsa_pool_hot_records(const lsa_pool *pool, int64_t layer, int32_t format);

/* On a GPU: whether its own memory has all records, too, beside the cold tier, for attention among all chunks; by chunk, and
 * without blocks where it has not. Where the GPU has no room there is none, attention reads the cold tier over the bus, and how
 * often that came about is counted. What a GPU writes it writes to both; what the host writes is the end of the mirror. NEVER: nor
 * will there be one. */
enum { LSA_MIRROR_NEVER = -1 };
void lsa_pool_set_mirror(lsa_pool *pool, int32_t on);
lsa_records lsa_pool_mirror_records(const lsa_pool *pool, int64_t layer, int32_t format);
int64_t lsa_pool_mirror_refused(const lsa_pool *pool);

/* A layer's index keys likewise: by chunk, and by slot where cells have them (no blocks otherwise). */
lsa_records lsa_pool_key_records(const lsa_pool *pool, int64_t layer, int32_t format);
lsa_records lsa_pool_hot_key_records(const lsa_pool *pool, int64_t layer, int32_t format);

/* Keys, packed. publish: of the n chunks from `first`, to the cold tier and to their cells. read: of the n chunks from
 * `first`, wherever they are. */
int64_t lsa_pool_key_bytes(const lsa_pool *pool);
int lsa_pool_publish_keys(lsa_pool *pool, int64_t layer, int64_t first, int64_t n,
                          const void *keys);
int lsa_pool_read_keys(const lsa_pool *pool, int64_t layer, int64_t first, int64_t n, void *keys);

/* Everything that n chunks from `first` have, wherever they are: records [n, layers * record], keys [layers, n, key]. */
int lsa_pool_read_chunks(const lsa_pool *pool, int64_t first, int64_t n, void *records, void *keys);
int lsa_pool_write_chunks(lsa_pool *pool, int64_t first, int64_t n, const void *records,
                          const void *keys);

/* 1 where memory has a layer's keys of all chunks; they then lie together in runs of LSA_POOL_KEY_RUN chunks. */
enum { LSA_POOL_KEY_RUN = 1024 };
int lsa_pool_has_keys(const lsa_pool *pool, int64_t layer);

/* LSA_ESTATE where keys of some layer can leave memory. */
int lsa_pool_keys_stay(const lsa_pool *pool);
const uint8_t *lsa_pool_keys(const lsa_pool *pool, int64_t layer, int64_t chunk);

/* Heap bytes of either tier and the mirror, padding included (cold: without keys; hot, attached to a host: of the cells it has); bytes of
 * the file. */
int64_t lsa_pool_cold_bytes(const lsa_pool *pool);
int64_t lsa_pool_hot_bytes(const lsa_pool *pool);
int64_t lsa_pool_mirror_bytes(const lsa_pool *pool);
int64_t lsa_pool_disk_bytes(const lsa_pool *pool);

void lsa_pool_count(const lsa_pool *pool, lsa_pool_counters *out);

#endif
