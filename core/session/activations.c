/* Owns the working memory of a forward pass. */
#include "core/session/activations.h"

#include <omp.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/session/session_state.h"

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* Adds an array to the scratch; 0 on failure. */
static int array(lsa_activations *s, void *pointer, int64_t elements, int64_t size)
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

static int allocate(lsa_activations *s)
{
    const lsa_config *c = &s->model->config;
    int64_t p = s->piece, d = c->hidden, hc = c->hc_mult, wide = c->heads * c->head_dim;
    int64_t dim = max(c->head_dim, c->index_dim), k = max(1, c->index_topk);
    s->entry_dim = dim;
    s->record = dim * (int64_t)sizeof(float) + 64;
    int64_t f = sizeof(float), e = c->experts_per_token, inner = widest_expert(s->model);
    return array(s, &s->streams, p * hc * d, f) && array(s, &s->x, p * d, f) &&
           array(s, &s->y, p * d, f) && array(s, &s->mix, p * (2 + hc) * hc, f) &&
           array(s, &s->post, p * hc, f) && array(s, &s->comb, p * hc * hc, f) &&
           array(s, &s->q_low, p * c->q_rank, f) && array(s, &s->q, p * wide, f) &&
           array(s, &s->attended, p * wide, f) &&
           array(s, &s->o_low, p * c->o_groups * c->o_rank, f) && array(s, &s->tokens, p, f) &&
           array(s, &s->window_kv, p * c->head_dim, f) &&
           array(s, &s->kv, p * 2 * c->head_dim, f) &&
           array(s, &s->kv_gate, p * 2 * c->head_dim, f) &&
           array(s, &s->index_kv, p * 2 * c->index_dim, f) &&
           array(s, &s->index_gate, p * 2 * c->index_dim, f) &&
           array(s, &s->entries, p * s->entry_dim, f) && array(s, &s->records, p * s->record, 1) &&
           array(s, &s->index_q, p * c->index_heads * c->index_dim, f) &&
           array(s, &s->index_w, p * c->index_heads, f) &&
           array(s, &s->main_table, p * c->rope_dim, f) &&
           array(s, &s->compress_table, p * c->rope_dim, f) &&
           array(s, &s->entry_table, p * c->rope_dim, f) && array(s, &s->positions, p, f) &&
           array(s, &s->entry_positions, p, f) && array(s, &s->ids, p * k, f) &&
           array(s, &s->places, p * k, f) && array(s, &s->counts, p, f) &&
           array(s, &s->mass, p * k, f) && array(s, &s->router, p * c->experts, f) &&
           array(s, &s->expert_weights, p * e, f) && array(s, &s->expert_ids, p * e, f) &&
           array(s, &s->fixed, p * e, f) && array(s, &s->members, p, f) &&
           array(s, &s->gathered, p * d, f) && array(s, &s->gate, p * inner, f) &&
           array(s, &s->up, p * inner, f) && array(s, &s->down, p * d, f);
}

static void scratch_free(lsa_activations *s)
{
    void *all[] = {s->streams,
                   s->x,
                   s->y,
                   s->mix,
                   s->post,
                   s->comb,
                   s->q_low,
                   s->q,
                   s->attended,
                   s->o_low,
                   s->entries,
                   s->records,
                   s->index_q,
                   s->index_w,
                   s->main_table,
                   s->compress_table,
                   s->entry_table,
                   s->positions,
                   s->entry_positions,
                   s->ids,
                   s->places,
                   s->counts,
                   s->mass,
                   s->router,
                   s->expert_weights,
                   s->expert_ids,
                   s->fixed,
                   s->members,
                   s->gathered,
                   s->gate,
                   s->up,
                   s->down,
                   s->tokens,
                   s->window_kv,
                   s->kv,
                   s->kv_gate,
                   s->index_kv,
                   s->index_gate,
                   s->logits};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) lsa_free(all[i]);
    for (int i = 0; s->workspaces && i < s->threads; i++) lsa_free(s->workspaces[i].data);
    lsa_free(s->workspaces);
    lsa_level2_scratch_free(s);
    lsa_free(s);
}

int lsa_activations_new(lsa_activations **out, const lsa_model *model, int64_t piece)
{
    if (piece < 1 || piece > 1 << 16)
        return lsa_fail(LSA_EARG, "session: pieces of %lld tokens, 1 to 65536 are possible",
                        (long long)piece);
    lsa_activations *s = lsa_alloc_zero(sizeof *s);
    if (!s) return LSA_ENOMEM;
    atomic_init(&s->references, 1);
    s->model = model;
    s->piece = piece;
    s->threads = lsa_threads();
    s->workspaces = lsa_alloc_zero(s->threads * (int64_t)sizeof *s->workspaces);
    if (!s->workspaces || !allocate(s) || (model->config.csa_layers && lsa_level2_scratch_new(s))) {
        scratch_free(s);
        return LSA_ENOMEM;
    }
    *out = s;
    return LSA_OK;
}

void lsa_activations_retain(lsa_activations *s) { atomic_fetch_add(&s->references, 1); }

void lsa_activations_release(lsa_activations *s)
{
    if (s && atomic_fetch_sub(&s->references, 1) == 1) scratch_free(s);
}

int64_t lsa_activations_bytes(const lsa_activations *s)
{
    int64_t bytes = s->bytes + s->logit_rows * s->model->config.vocab * (int64_t)sizeof(float);
    for (int i = 0; i < s->threads; i++) bytes += s->workspaces[i].bytes;
    return bytes;
}

int64_t lsa_activations_piece(const lsa_activations *s) { return s->piece; }

void *lsa_activations_workspace(lsa_activations *s, int64_t bytes)
{
    lsa_workspace *own = &s->workspaces[omp_get_thread_num()];
    if (bytes <= own->bytes) return own->data;
    void *larger = lsa_alloc(bytes);
    if (!larger) return NULL;
    lsa_free(own->data);
    *own = (lsa_workspace){larger, bytes};
    return larger;
}

float *lsa_activations_logits(lsa_activations *s, int64_t rows)
{
    if (rows <= s->logit_rows) return s->logits;
    float *larger = lsa_alloc(rows * s->model->config.vocab * (int64_t)sizeof *larger);
    if (!larger) return NULL;
    lsa_free(s->logits);
    s->logits = larger;
    s->logit_rows = rows;
    return larger;
}
