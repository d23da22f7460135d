/* Owns lsa_demand_cpu. */
#include "kernels/demand.h"

#include <string.h>

#include "core/base/clock.h"
#include "core/base/error.h"

static uint8_t *whole_record(const lsa_records *r, int64_t i)
{
    return r->blocks[i >> r->block_shift] + (i & (((int64_t)1 << r->block_shift) - 1)) * r->stride;
}

static void use(lsa_demand *d, int32_t cell)
{
    d->order[d->newest % d->order_room] = cell;
    d->used[cell] = d->newest++;
}

/* Entries that count move to the beginning of the others, where n more would not fit. */
static void pack_order(lsa_demand *d, int64_t n)
{
    int64_t newest = d->newest;
    if (newest + n - d->oldest <= d->order_room) return;
    d->newest = d->oldest;
    for (int64_t p = d->oldest; p < newest; p++) {
        int32_t cell = d->order[p % d->order_room];
        if (d->used[cell] == p) use(d, cell);
    }
}

/* The slot of a chunk that is being born, for the layers to come. */
static void tell_born(const lsa_span *s, int32_t chunk, int32_t cell)
{
    if (chunk >= s->born_from) s->born_slot[chunk - s->born_from] = cell;
}

/* n cells of the stack are free. */
static void make_room(lsa_demand *d, const lsa_span *s, int64_t n)
{
    for (; d->free_count < n; d->oldest++) {
        int32_t cell = d->order[d->oldest % d->order_room];
        if (d->used[cell] != d->oldest) continue;
        d->cell_of[d->chunk_in[cell]] = -1;
        tell_born(s, d->chunk_in[cell], -1);
        d->free_cells[d->free_count++] = cell;
    }
}

static void fetch(lsa_demand *d, const lsa_span *s, int64_t layer, int32_t chunk)
{
    const lsa_layer_store *store = &s->layers[layer];
    int32_t cell = d->free_cells[--d->free_count];
    d->cell_of[chunk] = cell;
    d->chunk_in[cell] = chunk;
    use(d, cell);
    tell_born(s, chunk, cell);
    d->moves[d->count.moves++ % d->move_room] = (lsa_demand_move){chunk, cell, s->progress->passes};
    memcpy(whole_record(&store->hot, cell), whole_record(&store->cold, chunk), (size_t)d->bytes);
}

static void have(int32_t *ids, int32_t n, const lsa_span *s, int64_t layer)
{
    lsa_demand *d = s->demand;
    int64_t began = lsa_clock_ns();
    pack_order(d, n);
    d->missing_count = 0;
    for (int32_t j = 0; j < n; j++) {
        int32_t cell = d->cell_of[ids[j]];
        if (cell >= 0)
            use(d, cell);
        else
            d->missing[d->missing_count++] = ids[j];
    }
    make_room(d, s, d->missing_count);
    for (int64_t i = 0; i < d->missing_count; i++) fetch(d, s, layer, d->missing[i]);
    for (int32_t j = 0; j < n; j++) ids[j] = d->cell_of[ids[j]];
    d->count.hits += n - d->missing_count;
    d->count.fetches += d->missing_count > 0;
    if (d->missing_count) d->count.stall_ns += lsa_clock_ns() - began;
    *d->counts = d->count;
}

int lsa_demand_cpu(int32_t *ids, int32_t *counts, const lsa_span *spans, int64_t count,
                   int64_t layer, int64_t k, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < count; i++) {
        const lsa_span *s = &spans[i];
        if (!s->demand) continue;
        if (s->unobserved) counts[s->row] = 0;
        if (!s->unobserved) have(ids + s->row * k, counts[s->row], s, layer);
    }
    return LSA_OK;
}
