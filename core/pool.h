/* Two tiers of chunk records. The cold tier holds every chunk, chunk-major: one record a layer, side by
 * side, so that a chunk moves in one copy. The hot tier is a bounded arena of cells; a cell holds one
 * unit, which is a chunk or a page of chunks. */
#ifndef LSA_POOL_H
#define LSA_POOL_H
#include <stdint.h>

#include "kernels/attention.h"

typedef struct lsa_pool lsa_pool;

typedef struct lsa_pool_counters {
    int64_t fetched_chunks, fetched_bytes;  /* cold to hot; bytes of records, without padding */
    int64_t fetches;                        /* calls that moved something */
    int64_t evicted_chunks;                 /* left the hot tier to make room */
    int64_t transfer_ns;
} lsa_pool_counters;

/* A pool of `layers` records of `record` bytes a chunk, cells of `unit` chunks; no chunks, no cells yet. */
int lsa_pool_new(lsa_pool **out, int64_t layers, int64_t record, int64_t unit);

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

/* Sets the number of hot cells. LSA_ESTATE, naming both counts, when more are in use. */
int lsa_pool_set_cells(lsa_pool *pool, int64_t cells);
int64_t lsa_pool_cells(const lsa_pool *pool);
int64_t lsa_pool_free_cells(const lsa_pool *pool);

/* Writes n records of one layer, `records` packed, to the cold tier. The hot copy of a rewritten chunk is
 * stale: its unit loses its cell. */
int lsa_pool_write(lsa_pool *pool, int64_t layer, const int32_t *chunks, int64_t n, const void *records);

/* Writes one record to the cold tier and, where the chunk has a cell, to the hot tier: a chunk being born. */
int lsa_pool_publish(lsa_pool *pool, int64_t layer, int64_t chunk, const void *record);

/* Reads n records, packed: from the chunk's cell where it has one, else from the cold tier. */
int lsa_pool_read(const lsa_pool *pool, int64_t layer, const int32_t *chunks, int64_t n, void *records);

/* Copies n absent units (ascending) into free cells, then publishes their cells. LSA_ESTATE when one
 * is present or the free cells do not suffice; then nothing changes. */
int lsa_pool_fetch(lsa_pool *pool, const int32_t *units, int64_t n);

/* Takes the cells of n units; absent ones are passed over. */
int lsa_pool_evict(lsa_pool *pool, const int32_t *units, int64_t n);

/* A cell for the unit of a chunk that is being born, if it has none: taken from the free ones, filled with
 * what the cold tier holds of the unit. */
int lsa_pool_adopt(lsa_pool *pool, int64_t chunk);

/* 1 where the unit has a cell. */
int lsa_pool_has(const lsa_pool *pool, int64_t unit);

/* Units with a cell, in no order, into `units` (room for lsa_pool_cells); returns how many. */
int64_t lsa_pool_present(const lsa_pool *pool, int32_t *units);

/* Slots of the given chunks in the hot arena, -1 for absent ones: the ids that lsa_pool_hot_records takes. */
void lsa_pool_slots(const lsa_pool *pool, const int32_t *chunks, int64_t n, int32_t *slots);

/* Where attention finds one layer's records: by chunk id in the cold tier, by slot in the hot one. */
lsa_records lsa_pool_cold_records(const lsa_pool *pool, int64_t layer, int32_t format);
lsa_records lsa_pool_hot_records(const lsa_pool *pool, int64_t layer, int32_t format);

/* Heap bytes of either tier, padding included. */
int64_t lsa_pool_cold_bytes(const lsa_pool *pool);
int64_t lsa_pool_hot_bytes(const lsa_pool *pool);

void lsa_pool_count(const lsa_pool *pool, lsa_pool_counters *out);

#endif
