/* Owns what a GPU's kernel goes by where chunks are fetched on demand: tables there, and what the pool is told of them. */
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/pool/on_demand.h"
#include "core/pool/pool_state.h"

enum { ALIGN = 256, ENTRIES = 4 /* of the order, for each cell */, NEVER = -1 };

/* One block on the GPU, and one of its size here that it is copied from and to. */
struct lsa_demand_there {
    uint8_t *block, *staging;
    int64_t bytes, cells, chunks; /* of the block; what it has room for */
    lsa_demand_move *moves;
    lsa_demand_counts *counts, seen; /* written by the GPU; what of it the pool was told */
    int64_t move_room;
    int64_t changes; /* of the pool, when the block was sent */
    int ahead;       /* the order is newer there */
};
typedef struct lsa_demand_there there;

/* Where the tables lie in a block. */
typedef struct layout {
    int64_t used, order, free_cells, missing, chunk_in, cell_of, end;
} layout;

static int64_t after(int64_t at, int64_t n, int64_t bytes)
{
    return (at + n * bytes + ALIGN - 1) / ALIGN * ALIGN;
}

static layout layout_of(int64_t cells, int64_t chunks)
{
    layout l = {.used = after(0, 1, sizeof(lsa_demand))};
    l.order = after(l.used, cells, sizeof(int64_t));
    l.free_cells = after(l.order, ENTRIES * cells, sizeof(int32_t));
    l.missing = after(l.free_cells, cells, sizeof(int32_t));
    l.chunk_in = after(l.missing, cells, sizeof(int32_t));
    l.cell_of = after(l.chunk_in, cells, sizeof(int32_t));
    l.end = after(l.cell_of, chunks, sizeof(int32_t));
    return l;
}

static void forget_block(there *t)
{
    lsa_device_free(t->block);
    lsa_free(t->staging);
    t->block = t->staging = NULL;
    t->cells = t->chunks = 0;
    t->changes = NEVER;
}

void lsa_on_demand_free_there(lsa_on_demand *d)
{
    there *t = d->there;
    if (!t) return;
    forget_block(t);
    lsa_free_in(LSA_MEMORY_BOTH, t->moves);
    lsa_free_in(LSA_MEMORY_BOTH, t->counts);
    lsa_free(t);
}

static int open_block(there *t, int64_t cells, int64_t chunks)
{
    int64_t room = chunks > t->chunks ? chunks + chunks / 4 : t->chunks;
    forget_block(t);
    t->bytes = layout_of(cells, room).end;
    void *block = NULL;
    LSA_TRY(lsa_device_alloc(&block, t->bytes));
    t->block = block;
    t->staging = lsa_alloc(t->bytes);
    if (!t->staging) {
        forget_block(t);
        return LSA_ENOMEM;
    }
    t->cells = cells;
    t->chunks = room;
    return LSA_OK;
}

static int open_moves(there *t, int64_t room)
{
    if (room <= t->move_room) return LSA_OK;
    if (!t->counts) t->counts = lsa_alloc_in(LSA_MEMORY_BOTH, sizeof *t->counts);
    lsa_demand_move *moves = lsa_alloc_in(LSA_MEMORY_BOTH, room * (int64_t)sizeof *moves);
    if (!t->counts || !moves) {
        lsa_free_in(LSA_MEMORY_BOTH, moves);
        return LSA_ENOMEM;
    }
    lsa_free_in(LSA_MEMORY_BOTH, t->moves);
    t->moves = moves;
    t->move_room = room;
    t->changes = NEVER;
    return LSA_OK;
}

int lsa_on_demand_reserve_there(lsa_on_demand *d, lsa_pool *p, int64_t chunks, int64_t picks)
{
    LSA_TRY(lsa_on_demand_settle(d, p));
    if (!d->there) {
        if (!(d->there = lsa_alloc_zero(sizeof *d->there))) return LSA_ENOMEM;
        d->there->changes = NEVER;
    }
    there *t = d->there;
    LSA_TRY(open_moves(t, LSA_STEPS_AHEAD * picks));
    if (t->block && t->cells == p->hot->cells && chunks <= t->chunks) return LSA_OK;
    return open_block(t, p->hot->cells, chunks);
}

/* Free cells that its kernel may fill: what was lent, where the hot tier is common; else all. The one on top is the last. */
static int64_t put_free(const lsa_on_demand *d, const lsa_pool *p, int32_t *cells)
{
    const lsa_hot_tier *h = p->hot;
    int64_t n = 0;
    for (int64_t c = h->cells - 1; d->share && n < d->lent && c >= 0; c--)
        if (h->owner[c] == p && h->unit_in[c] == LSA_AWAITED) cells[n++] = (int32_t)c;
    if (d->share) return n;
    if (h->free_count) memcpy(cells, h->free_cells, (size_t)h->free_count * sizeof *h->free_cells);
    return h->free_count;
}

/* The block as it is to be there, from the pool's tables and the list. */
static void lay_out(const lsa_on_demand *d, const lsa_pool *p)
{
    there *t = d->there;
    const lsa_hot_tier *h = p->hot;
    layout l = layout_of(t->cells, t->chunks);
    int64_t *used = (int64_t *)(t->staging + l.used);
    int32_t *order = (int32_t *)(t->staging + l.order),
            *cell_of = (int32_t *)(t->staging + l.cell_of);
    lsa_demand head = {.cells = t->cells,
                       .order_room = ENTRIES * t->cells,
                       .move_room = t->move_room,
                       .bytes = p->layers * p->record,
                       .cell_of = (int32_t *)(t->block + l.cell_of),
                       .chunk_in = (int32_t *)(t->block + l.chunk_in),
                       .used = (int64_t *)(t->block + l.used),
                       .order = (int32_t *)(t->block + l.order),
                       .free_cells = (int32_t *)(t->block + l.free_cells),
                       .free_count = put_free(d, p, (int32_t *)(t->staging + l.free_cells)),
                       .missing = (int32_t *)(t->block + l.missing),
                       .moves = t->moves,
                       .count = *t->counts,
                       .counts = t->counts};
    for (int64_t c = 0; c < t->cells; c++) used[c] = NEVER;
    for (int32_t c = d->oldest; c >= 0; c = d->newer[c]) {
        if (h->owner[c] != p || h->unit_in[c] < 0) continue; /* its chunk is gone */
        used[c] = head.newest;
        order[head.newest++] = c;
    }
    int64_t bytes = t->cells * (int64_t)sizeof(int32_t);
    if (bytes) memcpy(t->staging + l.chunk_in, h->unit_in, (size_t)bytes);
    for (int64_t u = 0; u < t->chunks; u++) cell_of[u] = u < p->cold.count ? p->cell_of[u] : NEVER;
    memcpy(t->staging, &head, sizeof head);
}

int lsa_on_demand_send(lsa_on_demand *d, lsa_pool *p, lsa_demand **out)
{
    there *t = d->there;
    *out = NULL;
    if (!t) return LSA_OK;
    *out = (lsa_demand *)t->block;
    if (t->changes == p->changes && t->cells == p->hot->cells) return LSA_OK;
    LSA_TRY(lsa_on_demand_settle(d, p));
    if (t->cells != p->hot->cells) { /* a common one's, which others have grown */
        LSA_TRY(lsa_pool_reserve_all_cells(p));
        LSA_TRY(open_block(t, p->hot->cells, t->chunks));
    }
    *out = (lsa_demand *)t->block;
    if (d->share) lsa_on_demand_lend(d, p);
    lay_out(d, p);
    LSA_TRY(lsa_device_copy(t->block, t->staging, t->bytes));
    t->changes = p->changes;
    t->seen = *t->counts;
    return LSA_OK;
}

/* The cell of a move has its chunk in the pool's tables, too. */
static void follow(lsa_on_demand *d, lsa_pool *p, const lsa_demand_move *m)
{
    lsa_hot_tier *h = p->hot;
    if (h->owner[m->cell] && h->unit_in[m->cell] == LSA_AWAITED) {
        d->lent--;
    } else if (h->owner[m->cell]) {
        p->cell_of[h->unit_in[m->cell]] = LSA_ABSENT;
        p->counters.evicted_chunks++;
    } else { /* was on top of the free ones */
        h->owner[m->cell] = p;
        h->free_count--;
        p->held++;
    }
    h->unit_in[m->cell] = m->chunk;
    p->cell_of[m->chunk] = m->cell;
}

void lsa_on_demand_commit(lsa_on_demand *d, lsa_pool *p, int64_t first, int64_t steps,
                          int64_t *hits)
{
    there *t = d->there;
    if (!t) {
        d->held[0] = p->held;
        return;
    }
    lsa_demand_counts now = *t->counts;
    int64_t i = t->seen.moves, n = now.moves - i, stall = now.stall_ns - t->seen.stall_ns;
    for (int64_t step = 0; step < steps; step++) {
        for (; i < now.moves && t->moves[i % t->move_room].pass <= first + step; i++)
            follow(d, p, &t->moves[i % t->move_room]);
        d->held[step] = lsa_on_demand_held(d, p);
    }
    *hits += now.hits - t->seen.hits;
    p->counters.fetches += now.fetches - t->seen.fetches;
    p->counters.fetched_chunks += n;
    p->counters.fetched_bytes += n * p->layers * p->record;
    p->counters.transfer_ns += stall;
    p->counters.stall_ns += stall;
    t->seen = now;
    t->ahead = 1;
}

void lsa_on_demand_undo(lsa_on_demand *d, lsa_pool *p)
{
    there *t = d->there;
    if (!t || !t->counts) return;
    int64_t from = t->seen.moves, evicted = p->counters.evicted_chunks;
    t->seen = *t->counts;
    t->ahead = t->ahead || t->seen.moves > from;
    for (int64_t i = from; i < t->seen.moves; i++) follow(d, p, &t->moves[i % t->move_room]);
    for (int64_t i = from; i < t->seen.moves; i++) { /* whether its bytes came is not known */
        const lsa_demand_move *m = &t->moves[i % t->move_room];
        if (p->cell_of[m->chunk] == m->cell) lsa_pool_release_cell(p, m->chunk);
    }
    p->counters.evicted_chunks = evicted;
}

int lsa_on_demand_settle(lsa_on_demand *d, lsa_pool *p)
{
    there *t = d->there;
    if (!t || !t->ahead) return LSA_OK;
    layout l = layout_of(t->cells, t->chunks);
    lsa_demand head;
    LSA_TRY(lsa_on_demand_room(d, p->hot->cells));
    LSA_TRY(lsa_device_copy_back(t->staging, t->block, l.free_cells));
    memcpy(&head, t->staging, sizeof head);
    const int64_t *used = (const int64_t *)(t->staging + l.used);
    const int32_t *order = (const int32_t *)(t->staging + l.order);
    for (int64_t i = head.oldest; i < head.newest; i++) {
        int32_t cell = order[i % head.order_room];
        if (used[cell] == i && cell < p->hot->cells) lsa_on_demand_put_first(d, cell);
    }
    t->ahead = 0;
    return LSA_OK;
}
