/* Private: what a pool is made of, shared by pool.c (its life, its table), pool_records.c (what is written and read) and
 * pool_transfer.c (what moves from the cold tier to the hot one). Its hot tier (core/pool/hot_tier.h) may be other pools', too. */
#ifndef LSA_POOL_STATE_H
#define LSA_POOL_STATE_H
#include "core/pool/cold_tier.h"
#include "core/pool/hot_tier.h"
#include "core/pool/pool.h"

enum {
    LSA_ABSENT = -1,  /* no cell; no unit */
    LSA_AWAITED = -2, /* a cell whose unit is on its way into it */
    LSA_RECORDS = 0 /* the cold tier's planes: records of all layers, then the keys of each layer */
};

typedef struct lsa_background_fetch lsa_background_fetch;

/* A transfer under way, as it can be put back: [n, 3] unit, cell, 1 where the unit has changed since. */
enum { LSA_MOVING_COLUMNS = 3, LSA_MOVING_MESSAGE = 1024 };

struct lsa_pool {
    int64_t layers, record, unit, key;
    lsa_cold_tier cold; /* [chunks] */
    lsa_hot_tier *hot;
    lsa_cow_blocks mirror;  /* [chunks] while `mirrored` is 1 (core/pool/mirror.h) */
    int32_t mirrored;       /* 1, 0 or LSA_MIRROR_NEVER */
    int64_t mirror_refused; /* how often a GPU had no room for it */
    int attached;           /* the hot tier is a host's */
    int32_t *cell_of;       /* [units]: cell, or LSA_ABSENT */
    int64_t units_room;
    int64_t
        changes; /* of the tables of cells and the order of their use, so far: a copy of them is as old as its number */
    int64_t held;                   /* cells that it has, those that it awaits units for included */
    lsa_background_fetch *transfer; /* under way in the background, or NULL */
    lsa_pool_counters counters;
};

/* pool.c */
int lsa_pool_check_chunk(const lsa_pool *p, int64_t chunk);
int lsa_pool_check_unit(const lsa_pool *p, int64_t unit);
int lsa_pool_unit_room(lsa_pool *p, int64_t chunks);
int64_t lsa_pool_slot(const lsa_pool *p, int64_t chunk);
void lsa_pool_release_cell(lsa_pool *p, int64_t unit);

/* The cells, which are next in its hot tier, are now those of n units: once the units' bytes are there. */
void lsa_pool_place(lsa_pool *p, const int32_t *cells, const int32_t *units, int64_t n);

/* pool_transfer.c, about a transfer under way, if there is one. Units first .. end-1 change, so their copies that are on
 * the way will not arrive. To settle: waits for the bytes, without publishing them. To free: waits, and forgets it. */
void lsa_background_fetch_spoil(lsa_pool *p, int64_t first, int64_t end);
void lsa_background_fetch_settle(const lsa_pool *p);
void lsa_background_fetch_free(lsa_pool *p);

/* A transfer that has settled, as numbers, and back. code, message: how it ended. */
int64_t lsa_background_fetch_count(const lsa_pool *p);
void lsa_background_fetch_rows(const lsa_pool *p, int32_t *rows);
int lsa_background_fetch_code(const lsa_pool *p);
const char *lsa_background_fetch_message(const lsa_pool *p);
int lsa_background_fetch_restore(lsa_pool *p, const int32_t *rows, int64_t n, int code,
                                 const char *message);

/* unit_in and free_cells were filled from a file: checks that they agree, and gives the cells what they hold. */
int lsa_pool_restore_cells(lsa_pool *p);

#endif
