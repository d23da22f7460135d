/* Private: a hot tier that is filled on demand. Level 2 picks among all chunks; a picked chunk without a cell is fetched before
 * attention reads it, into the cell of the chunk whose last use is longest ago. The order of the cells is a list; steps on a GPU
 * keep it there, and it becomes the list again where the host goes by it. */
#ifndef LSA_ON_DEMAND_H
#define LSA_ON_DEMAND_H
#include "kernels/advance.h"
#include "kernels/demand.h"

struct lsa_pool;

typedef struct lsa_on_demand {
    int32_t *newer,
        *older; /* [room]: neighbours by last use, NONE at an end; a cell that is not listed is its own newer one */
    int32_t newest, oldest;
    int32_t *absent; /* [room]: chunks of a step that have no cell */
    int64_t room;
    int64_t share; /* cells of a common hot tier that it may have; 0: all, of one of its own */
    int64_t lent;  /* cells that the pool has, and no unit in: a GPU's to fill */
    struct lsa_demand_there *there; /* on a GPU: the tables that its kernel goes by; else NULL */
    int64_t held[LSA_STEPS_AHEAD];  /* cells that the pool had after the steps of the last run */
} lsa_on_demand;

/* The list of what has a cell in the pool now, in the order of the units. */
int lsa_on_demand_new(lsa_on_demand **out, const struct lsa_pool *pool);
void lsa_on_demand_free(lsa_on_demand *demand);

/* Of a fork `to` of the pool `from`, whose cells may have other numbers. */
int lsa_on_demand_fork(lsa_on_demand **out, const lsa_on_demand *demand,
                       const struct lsa_pool *from, const struct lsa_pool *to);

/* Cells that it may have, and those in use. */
int64_t lsa_on_demand_most(const lsa_on_demand *demand, const struct lsa_pool *pool);
int64_t lsa_on_demand_held(const lsa_on_demand *demand, const struct lsa_pool *pool);

/* Memory for as many cells as the pool has and for `chunks` chunks, of which a step picks at most `picks`, so that a step's use of
 * them takes none. */
int lsa_on_demand_reserve(lsa_on_demand *demand, struct lsa_pool *pool, int64_t chunks,
                          int64_t picks);

/* Has n chunks (ascending) in cells: fetches those that have none, and *hits gains the number of the others. What leaves was
 * used before any of them. LSA_ESTATE when there are fewer cells than chunks. A failure loses no chunk. */
int lsa_on_demand_use(lsa_on_demand *demand, struct lsa_pool *pool, const int32_t *chunks,
                      int64_t n, int64_t *hits);

/* Steps on a GPU use chunks by themselves (kernels/demand.h). Before them: the tables, up to date there, *out; NULL elsewhere. After
 * `steps` of them from pass `first` on, and once the GPU is done: the pool has what they brought, *hits gains their hits. Where they
 * failed: no chunk that they may have brought has a cell. settle: the order of use is known here. */
int lsa_on_demand_send(lsa_on_demand *demand, struct lsa_pool *pool, lsa_demand **out);
void lsa_on_demand_commit(lsa_on_demand *demand, struct lsa_pool *pool, int64_t first,
                          int64_t steps, int64_t *hits);
void lsa_on_demand_undo(lsa_on_demand *demand, struct lsa_pool *pool);
int lsa_on_demand_settle(lsa_on_demand *demand, struct lsa_pool *pool);

/* Cells of the common hot tier are lent to the GPU, up to the share; those not filled go back. */
void lsa_on_demand_lend(lsa_on_demand *demand, struct lsa_pool *pool);
void lsa_on_demand_give_back(lsa_on_demand *demand, struct lsa_pool *pool);

/* The list, for on_demand_gpu.c, whose part of reserving and freeing the others are. */
int lsa_on_demand_room(lsa_on_demand *demand, int64_t cells);
void lsa_on_demand_put_first(lsa_on_demand *demand, int32_t cell);
int lsa_on_demand_reserve_there(lsa_on_demand *demand, struct lsa_pool *pool, int64_t chunks,
                                int64_t picks);
void lsa_on_demand_free_there(lsa_on_demand *demand);

/* The listed cells that are in use, newest first, into `cells` (NULL: counts); and a list from them, LSA_EFORMAT when they are
 * not cells in use, each once. */
int64_t lsa_on_demand_cells(const lsa_on_demand *demand, const struct lsa_pool *pool,
                            int32_t *cells);
int lsa_on_demand_restore(lsa_on_demand *demand, const struct lsa_pool *pool, const int32_t *cells,
                          int64_t n);

#endif
