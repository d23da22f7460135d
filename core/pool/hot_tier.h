/* Private: the hot tier of pools: an arena of cells, each of which holds one unit of one pool. A
 * pool has one of its own, or shares a common one with others. Who takes and fills cells is
 * core/pool/pool.c and core/pool/background_fetch.c. */
#ifndef LSA_HOT_TIER_H
#define LSA_HOT_TIER_H
#include "core/pool/cow_blocks.h"

struct lsa_pool;

typedef struct lsa_hot_tier {
    int64_t references; /* pools */
    int common;         /* made for several pools: its blocks are never shared with a fork's */
    int64_t unit;
    lsa_cow_blocks records; /* [cells * unit] */
    lsa_cow_blocks keys;    /* [cells * unit]: keys of the layers whose keys can be on disk */
    const struct lsa_pool **owner; /* [cells]: whose unit it is; NULL: free */
    int32_t *unit_in;    /* [cells]: unit, or what the owner says of a cell that it awaits */
    int32_t *free_cells; /* stack of free_count cells */
    int64_t cells, free_count;
} lsa_hot_tier;

/* No cells yet: records of `item` bytes a chunk, keys of `key_item` bytes (0: none). Starts with
 * one reference. */
int lsa_hot_tier_new(lsa_hot_tier **out, int64_t item, int64_t key_item, int64_t unit);
void lsa_hot_tier_release(lsa_hot_tier *hot);

/* Cells past the last one in use can go. On failure nothing changes. */
int lsa_hot_tier_set_cells(lsa_hot_tier *hot, int64_t cells);

/* The n free cells that are next, as a list that ascends where the stack of free ones is in order;
 * they stay free until lsa_hot_tier_occupy has them all. */
int32_t *lsa_hot_tier_next(lsa_hot_tier *hot, int64_t n);

/* Takes the n next cells for the owner's units; units NULL: `all` for each. */
void lsa_hot_tier_occupy(lsa_hot_tier *hot, const int32_t *cells, int64_t n,
                         const struct lsa_pool *owner, const int32_t *units, int32_t all);
void lsa_hot_tier_vacate(lsa_hot_tier *hot, int32_t cell);

/* A cell's slot to write to: its record and, where cells have keys, its keys (else NULL). */
int lsa_hot_tier_open_slot(lsa_hot_tier *hot, int64_t slot, uint8_t **record, uint8_t **keys);

/* A hot tier of its own for `owner`, a fork of `from`: cells that hold the same units under the
 * same numbers, sharing memory until either side writes; or, of a common tier, copies of the cells
 * that `from` has. Cells that await a unit are free. */
int lsa_hot_tier_fork(lsa_hot_tier **out, const lsa_hot_tier *hot, const struct lsa_pool *from,
                      const struct lsa_pool *owner);

#endif
