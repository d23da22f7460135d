/* Private: the cold tier of a pool. Every chunk has an item in each of several planes (the records of all layers; the
 * index keys of one layer). All are in memory at first; with a file, whole segments of LSA_COLD_SEGMENT chunks can be
 * there instead, where a chunk's items lie together. A segment's copy in the file is as true as the one in memory, or
 * there is none: who writes to a segment lets its copy in the file go. Forks share memory and file until they write. */
#ifndef LSA_COLD_TIER_H
#define LSA_COLD_TIER_H
#include "core/pool/cold_file.h"
#include "core/pool/cow_blocks.h"

enum { LSA_COLD_PLANES = 4097 };

typedef struct lsa_cold_tier_plane {
    lsa_cow_blocks blocks;
    int64_t bytes; /* of an item, without padding */
    int64_t at;    /* of it in the file's items, or -1: it never leaves memory */
} lsa_cold_tier_plane;

typedef struct lsa_cold_tier {
    int64_t count; /* chunks */
    int64_t planes;
    lsa_cold_tier_plane *plane;
    lsa_cold_file *file; /* NULL: memory only */
    int32_t *segment_of; /* [segments]: in the file, or -1 */
    uint8_t *away;       /* [segments]: 1 where memory has let go of them */
    int64_t segments_room, away_count;
} lsa_cold_tier;

void lsa_cold_tier_init(lsa_cold_tier *cold);

/* Another plane, while there are no chunks: items of that many bytes, `item` apart, in blocks of 2^shift. */
int lsa_cold_tier_add(lsa_cold_tier *cold, int64_t bytes, int64_t item, int32_t shift);
void lsa_cold_tier_free(lsa_cold_tier *cold);

/* `out` (uninitialised) becomes an equal tier. */
int lsa_cold_tier_fork(lsa_cold_tier *out, const lsa_cold_tier *cold);

/* See lsa_cow_blocks_reserve: of all planes. */
int lsa_cold_tier_reserve(lsa_cold_tier *cold, int64_t count);

/* Makes `count` chunks: new ones zero. On failure nothing changes. */
int lsa_cold_tier_resize(lsa_cold_tier *cold, int64_t count);

/* Gives the tier a file in `directory`. stays[p] not 0: plane p never leaves memory. LSA_ESTATE when it has one. */
int lsa_cold_tier_set_file(lsa_cold_tier *cold, const char *directory, const uint8_t *stays);

/* Writes what the file does not have of whole segments; spill then lets those go from memory. On failure memory has
 * everything that it had. */
int lsa_cold_tier_write_back(lsa_cold_tier *cold);
int lsa_cold_tier_spill(lsa_cold_tier *cold);

/* Everything into memory. On failure some of it is. */
int lsa_cold_tier_load(lsa_cold_tier *cold);

/* 1 where memory has the chunk in all planes. */
int lsa_cold_tier_in_memory(const lsa_cold_tier *cold, int64_t chunk);

/* A chunk's item in memory, to read. */
const uint8_t *lsa_cold_tier_at(const lsa_cold_tier *cold, int64_t plane, int64_t chunk);

/* The same to write; its segment is brought into memory first. */
int lsa_cold_tier_write(lsa_cold_tier *cold, int64_t plane, int64_t chunk, uint8_t **item);

/* Gets what chunks[i] has: parts[p] is its item of plane p. */
typedef void lsa_cold_tier_parts(void *context, int64_t i, const uint8_t *const *parts);

/* Hands n chunks on, wherever they are, in no order; up to `threads` at a time those that are in memory. */
int lsa_cold_tier_read(const lsa_cold_tier *cold, const int32_t *chunks, int64_t n, int threads,
                       lsa_cold_tier_parts *take, void *context);

#endif
