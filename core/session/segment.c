/* Owns what a segment does to its session around a pass: places before it, the books after it. */
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/session/forward.h"

/* Tokens drawn by the steps are not known yet: their places are. */
static int add_tokens(const lsa_segment *g, int64_t known)
{
    lsa_cow_blocks *ids = &g->s->token_ids;
    LSA_TRY(lsa_cow_blocks_resize(ids, g->end));
    for (int64_t i = 0; i < g->end - g->from; i++) {
        uint8_t *id = lsa_cow_blocks_write(ids, g->from + i);
        if (!id) return LSA_ENOMEM;
        if (i < known) memcpy(id, &g->tokens[i], (size_t)ids->item); /* little-endian */
    }
    return LSA_OK;
}

/* Where those chunks of the segment are that have a cell. */
static int find_born(const lsa_segment *g)
{
    lsa_session *s = g->s;
    int64_t rate = s->model->config.csa_rate, first = g->from / rate, n = g->end / rate - first;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = (int32_t)(first + i);
        lsa_pool_slots(s->pool, &id, 1, &s->born_slots[i]);
    }
    if (s->born_slots_there == s->born_slots) return LSA_OK;
    return lsa_copy_in(s->memory_kind, s->born_slots_there, s->born_slots,
                       n * (int64_t)sizeof *s->born_slots);
}

/* Chunks of the segment get their place in the pool, and among residents a cell; HCA entries theirs. */
static int add_places(const lsa_segment *g)
{
    lsa_session *s = g->s;
    const lsa_config *c = &s->model->config;
    for (int64_t i = 0; i < c->layers; i++) {
        if (c->layer_type[i] == LSA_LAYER_HCA)
            LSA_TRY(lsa_cow_blocks_resize(&s->entries[i], g->end / c->hca_rate));
    }
    if (!s->pool) return LSA_OK;
    int64_t before = g->from / c->csa_rate, after = g->end / c->csa_rate;
    LSA_TRY(lsa_pool_resize(s->pool, after));
    for (int64_t chunk = before; g->among_residents && chunk < after; chunk++) {
        int32_t id = (int32_t)chunk;
        int64_t place = s->resident_count + chunk - before;
        LSA_TRY(lsa_pool_adopt(s->pool, chunk));
        s->residents[place] = id;
        lsa_pool_slots(s->pool, &id, 1, &s->slots[place]);
    }
    if (g->among_residents) return lsa_state_send_residents(s, s->resident_count, after - before);
    return find_born(g);
}

int lsa_segment_begin(lsa_segment *g, int decoding, lsa_span *span)
{
    lsa_session *s = g->s;
    LSA_TRY(add_tokens(g, decoding ? g->given : g->n));
    LSA_TRY(add_places(g));
    const lsa_layer_store *layers;
    lsa_demand *demand = NULL;
    if (decoding && s->demand) LSA_TRY(lsa_on_demand_send(s->demand, s->pool, &demand));
    lsa_state_bind_blocks(s);
    LSA_TRY(lsa_state_layers(s, &layers));
    *span = (lsa_span){.layers = layers,
                       .row = g->row,
                       .rows = g->n,
                       .among_residents = g->among_residents,
                       .in_cells = g->among_residents || (decoding && s->demand),
                       .observed_by_chunk = s->observed_by_chunk,
                       .residents = s->resident_count,
                       .chunks = s->pool ? g->from / s->model->config.csa_rate : 0,
                       .resident = s->residents_there,
                       .slot = lsa_state_slots_there(s),
                       .demand = demand};
    span->born_from = span->chunks;
    span->born_slot =
        g->among_residents ? lsa_state_slots_there(s) + s->resident_count : s->born_slots_there;
    return LSA_OK;
}

/* Nothing from position `end` on is there. Cutting back does not fail. */
static void cut(const lsa_segment *g, int64_t end)
{
    lsa_session *s = g->s;
    const lsa_config *c = &s->model->config;
    lsa_cow_blocks_resize(&s->token_ids, end);
    for (int64_t i = 0; i < c->layers; i++)
        if (c->layer_type[i] == LSA_LAYER_HCA)
            lsa_cow_blocks_resize(&s->entries[i], end / c->hca_rate);
    if (s->pool) lsa_pool_resize(s->pool, end / c->csa_rate);
}

void lsa_segment_undo(lsa_segment *g)
{
    if (g->s->demand) lsa_on_demand_undo(g->s->demand, g->s->pool);
    cut(g, g->from);
}

int lsa_segment_fetch(lsa_segment *g, int32_t *ids, int64_t count)
{
    lsa_session *s = g->s;
    LSA_TRY(lsa_on_demand_use(s->demand, s->pool, ids, count, &g->hits));
    lsa_pool_slots(s->pool, ids, count, ids);
    return find_born(g); /* one that was just picked has its other layers' records to come */
}

void lsa_segment_commit(lsa_segment *g, const lsa_steps *steps)
{
    lsa_session *s = g->s;
    int64_t rate = s->model->config.csa_rate, end = g->from + g->taken;
    if (s->demand && steps)
        lsa_on_demand_commit(s->demand, s->pool, s->progress.passes, g->taken, &g->hits);
    if (end < g->end) cut(g, end);
    for (int64_t i = g->given; steps && i < g->taken; i++)
        memcpy(lsa_cow_blocks_write(&s->token_ids, g->from + i), &steps->tokens[i],
               (size_t)s->token_ids.item);
    if (g->among_residents) s->resident_count += end / rate - g->from / rate;
    s->progress.tokens = g->end = end;
    s->progress.passes += steps ? g->taken : 1;
    s->counters.hits += g->hits;
}
