/* A hot tier that is filled on demand: what Level 2 picked among all chunks is brought into cells before attention reads it, and
 * what was used least recently leaves. */
#ifndef LSA_KERNELS_DEMAND_H
#define LSA_KERNELS_DEMAND_H
#include "kernels/span.h"

/* A chunk that came into a cell: in which pass of its session. */
typedef struct lsa_demand_move {
    int32_t chunk, cell;
    int64_t pass;
} lsa_demand_move;

/* Sums over all calls. stall_ns: from the beginning of calls that fetched something to the arrival of what they fetched. */
typedef struct lsa_demand_counts {
    int64_t hits, moves, fetches, stall_ns;
} lsa_demand_counts;

/* One session's. The order of use is a ring of cells, one entry a use: entry p, at order[p % order_room], counts while used[cell]
 * is p, that is, while it is the cell's last one; so that a use costs one write, whatever the number of cells. */
typedef struct lsa_demand {
    int64_t cells, order_room, move_room; /* order_room: at least 4 * cells */
    int64_t bytes;                        /* of a chunk's records in all layers, side by side */
    int32_t *cell_of;                     /* by chunk: cell, or -1 */
    int32_t *chunk_in;                    /* [cells]: undefined where free */
    int64_t *used;                        /* [cells] */
    int32_t *order;                       /* [order_room] */
    int64_t oldest, newest;               /* entries oldest .. newest - 1 */
    int32_t *free_cells;                  /* [cells]: a stack of free_count cells */
    int64_t free_count;
    int32_t *missing; /* [cells]: chunks that the last call fetched */
    int64_t missing_count;
    lsa_demand_move *moves; /* move i of all calls is at i % move_room, where the host reads it */
    lsa_demand_counts count, *counts; /* the latter is a copy for the host */
    int64_t began_ns;                 /* a GPU's: when the last call began */
    int32_t blocks_done;              /* a GPU's: 0 between calls */
} lsa_demand;

/* Spans on demand (demand is not NULL) have one row, whose ids[row * k + j], j < counts[row], are chunks, each once; counts[row] is
 * at most `cells`. They become the cells that the chunks are in.
 * Chunks that have a cell are used now, in their order. After them the others come into free cells, the top of the stack first,
 * where there are too few of which the cells least recently used become free, one on top of the other; their chunks are absent
 * then. Whole chunks are copied, from the cold to the hot records of the layer's store with an offset of 0. The slot of a chunk
 * that is being born follows in born_slot.
 * An unobserved span changes nothing, and has counts[row] 0. */
typedef int lsa_demand_fn(int32_t *ids, int32_t *counts, const lsa_span *spans, int64_t count,
                          int64_t layer, int64_t k, void *stream);
lsa_demand_fn lsa_demand_cpu, lsa_demand_cuda;

#endif
