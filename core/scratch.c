/* Owns the working memory of a forward pass. */
#include "core/scratch.h"

#include <string.h>

#include "core/cpu.h"
#include "core/error.h"
#include "core/memory.h"
#include "core/session_state.h"

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Adds an array to the scratch; 0 on failure. */
static int array(lsa_scratch *s, void *pointer, int64_t elements, int64_t size)
{
    void *block = lsa_alloc(elements * size);
    memcpy(pointer, &block, sizeof block);
    s->bytes += elements * size;
    return block != NULL;
}

static int64_t widest_expert(const lsa_model *m)
{
    return m->config.moe_hidden * max(1, m->config.shared_experts);
}

static int allocate(lsa_scratch *s)
{
    const lsa_config *c = &s->model->config;
    int64_t p = s->piece, d = c->hidden, hc = c->hc_mult, wide = c->heads * c->head_dim;
    int64_t rate = c->csa_layers ? c->csa_rate : c->hca_layers ? c->hca_rate : 1;
    if (c->hca_layers && c->hca_rate < rate) rate = c->hca_rate;
    int64_t fresh = p / rate + 1, dim = max(c->head_dim, c->index_dim), k = max(1, c->index_topk);
    int64_t f = sizeof(float), e = c->experts_per_token, inner = widest_expert(s->model);
    return array(s, &s->streams, p * hc * d, f) && array(s, &s->x, p * d, f) && array(s, &s->y, p * d, f) &&
           array(s, &s->mix, p * (2 + hc) * hc, f) && array(s, &s->post, p * hc, f) &&
           array(s, &s->comb, p * hc * hc, f) && array(s, &s->q_low, p * c->q_rank, f) &&
           array(s, &s->q, p * wide, f) && array(s, &s->attended, p * wide, f) &&
           array(s, &s->o_low, p * c->o_groups * c->o_rank, f) && array(s, &s->entries, fresh * dim, f) &&
           array(s, &s->records, fresh * (dim * f + 64), 1) &&
           array(s, &s->index_q, p * c->index_heads * c->index_dim, f) &&
           array(s, &s->index_w, p * c->index_heads, f) && array(s, &s->main_table, p * c->rope_dim, f) &&
           array(s, &s->compress_table, p * c->rope_dim, f) && array(s, &s->entry_table, fresh * c->rope_dim, f) &&
           array(s, &s->ids, p * k, f) && array(s, &s->places, p * k, f) && array(s, &s->counts, p, f) &&
           array(s, &s->mass, p * k, f) && array(s, &s->router, p * c->experts, f) &&
           array(s, &s->expert_weights, p * e, f) && array(s, &s->expert_ids, p * e, f) &&
           array(s, &s->fixed, p * e, f) && array(s, &s->members, p, f) && array(s, &s->gathered, p * d, f) &&
           array(s, &s->gate, p * inner, f) && array(s, &s->up, p * inner, f) && array(s, &s->down, p * d, f);
}

static void scratch_free(lsa_scratch *s)
{
    void *all[] = {s->streams, s->x, s->y, s->mix, s->post, s->comb, s->q_low, s->q, s->attended, s->o_low,
                   s->entries, s->records, s->index_q, s->index_w, s->main_table, s->compress_table,
                   s->entry_table, s->ids, s->places, s->counts, s->mass, s->router, s->expert_weights,
                   s->expert_ids, s->fixed, s->members, s->gathered, s->gate, s->up, s->down, s->workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) lsa_free(all[i]);
    lsa_level2_scratch_free(s);
    lsa_free(s);
}

int lsa_scratch_new(lsa_scratch **out, const lsa_model *model, int64_t piece)
{
    if (piece < 1 || piece > 1 << 16)
        return lsa_fail(LSA_EARG, "session: pieces of %lld tokens, 1 to 65536 are possible", (long long)piece);
    lsa_scratch *s = lsa_alloc_zero(sizeof *s);
    if (!s) return LSA_ENOMEM;
    atomic_init(&s->references, 1);
    s->model = model;
    s->piece = piece;
    s->threads = lsa_threads();
    if (!allocate(s) || (model->config.csa_layers && lsa_level2_scratch_new(s))) {
        scratch_free(s);
        return LSA_ENOMEM;
    }
    *out = s;
    return LSA_OK;
}

void lsa_scratch_retain(lsa_scratch *s) { atomic_fetch_add(&s->references, 1); }

void lsa_scratch_release(lsa_scratch *s)
{
    if (s && atomic_fetch_sub(&s->references, 1) == 1) scratch_free(s);
}

int64_t lsa_scratch_bytes(const lsa_scratch *s) { return s->bytes + s->workspace_bytes; }

int64_t lsa_scratch_piece(const lsa_scratch *s) { return s->piece; }

void *lsa_scratch_workspace(lsa_scratch *s, int64_t bytes)
{
    if (bytes <= s->workspace_bytes) return s->workspace;
    void *larger = lsa_alloc(bytes);
    if (!larger) return NULL;
    lsa_free(s->workspace);
    s->workspace = larger;
    s->workspace_bytes = bytes;
    return larger;
}
