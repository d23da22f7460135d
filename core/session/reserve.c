/* Owns what has to be there before steps run: memory for everything that they add, so that they themselves take none. */
#include "core/base/error.h"
#include "core/base/try.h"
#include "core/session/state.h"

enum { SPARE = 64 /* places and chunks more than are asked for, so that room is seldom made */ };

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Room for n of something: at least what there is; when it has to grow, by a quarter more. */
static int64_t grown(int64_t room, int64_t n) { return n <= room ? room : n + n / 4 + SPARE; }

/* Chunks that are born on the way to `end` tokens. */
static int64_t born_until(const lsa_session *s, int64_t end)
{
    return s->pool ? end / s->model->config.csa_rate - lsa_session_chunks(s) : 0;
}

static int reserve_arena(lsa_session *s, int64_t end)
{
    int64_t chunks = s->pool ? end / s->model->config.csa_rate : 0;
    lsa_state_room room = s->room;
    if (s->tiered) room.residents = grown(room.residents, s->resident_count + born_until(s, end));
    room.observed =
        s->observed_by_chunk ? grown(room.observed, chunks) : max(room.observed, room.residents);
    if (room.residents == s->room.residents && room.observed == s->room.observed) return LSA_OK;
    return lsa_state_resize(s, &room);
}

static int reserve(lsa_session *s, int64_t rows, int64_t end)
{
    const lsa_config *c = &s->model->config;
    int64_t entries = c->hca_layers ? end / c->hca_rate : 0;
    int64_t chunks = c->csa_layers ? end / c->csa_rate : 0;
    LSA_TRY(lsa_activations_reserve(s->activations, rows, entries, chunks, 1));
    if (end <= s->reserved) return LSA_OK;
    LSA_TRY(lsa_cow_blocks_reserve(&s->token_ids, end));
    for (int64_t i = 0; i < c->layers; i++)
        if (c->layer_type[i] == LSA_LAYER_HCA)
            LSA_TRY(lsa_cow_blocks_reserve(&s->entries[i], entries));
    if (s->pool) {
        int64_t born = born_until(s, end);
        LSA_TRY(lsa_pool_reserve(s->pool, end / c->csa_rate,
                                 s->tiered ? born / lsa_pool_unit(s->pool) + 1 : 0));
        if (s->demand)
            LSA_TRY(
                lsa_on_demand_reserve(s->demand, s->pool, chunks, c->csa_layers * c->index_topk));
    }
    LSA_TRY(reserve_arena(s, end));
    lsa_state_bind_blocks(s);
    s->reserved = end;
    return LSA_OK;
}

/* Attention among all chunks reads them near a GPU; decoding among residents, or on demand, gives back what a prefill had there.
 * Where a pass picks fewer than there are, all are not worth bringing. */
static void choose_mirror(lsa_session *s, int64_t rows, int prefill)
{
    if (!s->pool) return;
    int among_all = !s->tiered && !s->demand;
    if (among_all || (prefill && rows * s->model->config.index_topk >= lsa_session_chunks(s)))
        lsa_pool_set_mirror(s->pool, 1);
    else if (!prefill)
        lsa_pool_set_mirror(s->pool, 0);
}

int lsa_session_reserve_rows(lsa_session *s, int64_t rows)
{
    choose_mirror(s, rows, 1);
    return reserve(s, rows, s->progress.tokens + rows);
}

int lsa_session_reserve_steps(lsa_session *s, int64_t steps)
{
    int64_t end = s->progress.tokens + steps, most = s->model->config.max_positions;
    choose_mirror(s, 1, 0);
    return reserve(s, 1, end < most ? end : most);
}
