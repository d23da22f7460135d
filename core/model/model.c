/* Owns a loaded model: which tensors it takes, under which names, in which shapes; loader.c has how. */
#include "core/model/model.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/limits.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/model/loader.h"
#include "kernels/table.h"

enum { SAMPLE = 4096, SAMPLES = 16 };

static int load_hc(lsa_loader *l, lsa_hc_weights *hc, const lsa_scope *s, int64_t rows,
                   int64_t scales)
{
    const lsa_config *c = l->config;
    int rc = lsa_load_weight(l, &hc->fn, s, "fn", "fn", rows, c->hc_mult * c->hidden);
    if (!rc) rc = lsa_load_vector(l, &hc->base, s, "base", "base", rows);
    if (!rc) rc = lsa_load_vector(l, &hc->scale, s, "scale", "scale", scales);
    return rc;
}

static int load_compressor(lsa_loader *l, lsa_compressor_weights *w, const lsa_scope *s,
                           int64_t dim, int64_t rate, int overlap)
{
    int64_t width = overlap ? 2 * dim : dim, bias[2] = {rate, width};
    int rc =
        lsa_load_weight(l, &w->kv, s, "kv_proj.weight", "wkv.weight", width, l->config->hidden);
    if (!rc)
        rc = lsa_load_weight(l, &w->gate, s, "gate_proj.weight", "wgate.weight", width,
                             l->config->hidden);
    if (!rc) rc = lsa_load_floats(l, &w->bias, s, "position_bias", "ape", 2, bias);
    if (!rc) rc = lsa_load_vector(l, &w->norm, s, "kv_norm.weight", "norm.weight", dim);
    return rc;
}

static int load_indexer(lsa_loader *l, lsa_layer *layer, const lsa_scope *attention)
{
    const lsa_config *c = l->config;
    lsa_scope indexer = {attention, "compressor.indexer.", "indexer."};
    lsa_scope keys = {attention, "compressor.indexer.", "indexer.compressor."};
    int rc = load_compressor(l, &layer->index_keys, &keys, c->index_dim, c->csa_rate, 1);
    if (!rc)
        rc = lsa_load_weight(l, &layer->index_q_b, &indexer, "q_b_proj.weight", "wq_b.weight",
                             c->index_heads * c->index_dim, c->q_rank);
    if (!rc)
        rc = lsa_load_weight(l, &layer->index_weights, &indexer, "scorer.weights_proj.weight",
                             "weights_proj.weight", c->index_heads, c->hidden);
    return rc;
}

static int load_attention(lsa_loader *l, lsa_layer *layer, const lsa_scope *outer, int32_t type)
{
    const lsa_config *c = l->config;
    lsa_scope s = {outer, "self_attn.", "attn."}, compressor = {&s, "compressor.", "compressor."};
    int64_t width = c->heads * c->head_dim;
    int rc =
        lsa_load_weight(l, &layer->q_a, &s, "q_a_proj.weight", "wq_a.weight", c->q_rank, c->hidden);
    if (!rc)
        rc =
            lsa_load_weight(l, &layer->q_b, &s, "q_b_proj.weight", "wq_b.weight", width, c->q_rank);
    if (!rc)
        rc = lsa_load_weight(l, &layer->kv, &s, "kv_proj.weight", "wkv.weight", c->head_dim,
                             c->hidden);
    if (!rc)
        rc = lsa_load_weight(l, &layer->o_a, &s, "o_a_proj.weight", "wo_a.weight",
                             c->o_groups * c->o_rank, width / c->o_groups);
    if (!rc)
        rc = lsa_load_weight(l, &layer->o_b, &s, "o_b_proj.weight", "wo_b.weight", c->hidden,
                             c->o_groups * c->o_rank);
    if (!rc)
        rc =
            lsa_load_vector(l, &layer->q_a_norm, &s, "q_a_norm.weight", "q_norm.weight", c->q_rank);
    if (!rc)
        rc = lsa_load_vector(l, &layer->kv_norm, &s, "kv_norm.weight", "kv_norm.weight",
                             c->head_dim);
    if (!rc) rc = lsa_load_vector(l, &layer->sinks, &s, "sinks", "attn_sink", c->heads);
    if (!rc && type == LSA_LAYER_HCA)
        rc = load_compressor(l, &layer->compressor, &compressor, c->head_dim, c->hca_rate, 0);
    if (!rc && type == LSA_LAYER_CSA) {
        rc = load_compressor(l, &layer->compressor, &compressor, c->head_dim, c->csa_rate, 1);
        if (!rc) rc = load_indexer(l, layer, &s);
    }
    return rc;
}

static int load_mlp(lsa_loader *l, lsa_expert_weights *w, const lsa_scope *s, int64_t width)
{
    int64_t hidden = l->config->hidden;
    int rc = lsa_load_weight(l, &w->gate, s, "gate_proj.weight", "w1.weight", width, hidden);
    if (!rc) rc = lsa_load_weight(l, &w->up, s, "up_proj.weight", "w3.weight", width, hidden);
    if (!rc) rc = lsa_load_weight(l, &w->down, s, "down_proj.weight", "w2.weight", hidden, width);
    return rc;
}

static int load_separate_experts(lsa_loader *l, lsa_layer *layer, const lsa_scope *s)
{
    int rc = LSA_OK;
    for (int64_t e = 0; !rc && e < l->config->experts; e++) {
        char number[32];
        snprintf(number, sizeof number, "experts.%lld.", (long long)e);
        lsa_scope expert = {s, number, number};
        rc = load_mlp(l, &layer->experts[e], &expert, l->config->moe_hidden);
    }
    return rc;
}

/* gate_up_proj [E, 2I, D], the gate's rows first, and down_proj [E, D, I]. */
static int load_fused_experts(lsa_loader *l, lsa_layer *layer, const lsa_scope *s)
{
    const lsa_config *c = l->config;
    int64_t gate_up_shape[3] = {c->experts, 2 * c->moe_hidden, c->hidden};
    int64_t down_shape[3] = {c->experts, c->hidden, c->moe_hidden};
    static const char gate_up_name[] = "experts.gate_up_proj", down_name[] = "experts.down_proj";
    lsa_stored gate_up, down;
    int rc = lsa_load_stored(l, &gate_up, s, gate_up_name, gate_up_name, 3, gate_up_shape);
    if (!rc) rc = lsa_load_stored(l, &down, s, down_name, down_name, 3, down_shape);
    for (int64_t e = 0; !rc && e < c->experts; e++) {
        lsa_expert_weights *w = &layer->experts[e];
        rc = lsa_stored_rows(l, &w->gate, &gate_up, e, 0, c->moe_hidden);
        if (!rc) rc = lsa_stored_rows(l, &w->up, &gate_up, e, c->moe_hidden, c->moe_hidden);
        if (!rc) rc = lsa_stored_rows(l, &w->down, &down, e, 0, c->hidden);
    }
    return rc;
}

static int load_experts(lsa_loader *l, lsa_layer *layer, const lsa_scope *s)
{
    int64_t place;
    layer->experts =
        lsa_loader_block(l->model, l->config->experts * (int64_t)sizeof *layer->experts);
    if (!layer->experts) return LSA_ENOMEM;
    int rc = lsa_loader_find(l, &place, s, "experts.gate_up_proj", "experts.gate_up_proj");
    if (rc) return rc;
    return place >= 0 ? load_fused_experts(l, layer, s) : load_separate_experts(l, layer, s);
}

static int load_moe(lsa_loader *l, lsa_layer *layer, const lsa_scope *outer, int hash)
{
    const lsa_config *c = l->config;
    lsa_scope s = {outer, "mlp.", "ffn."}, shared = {&s, "shared_experts.", "shared_experts."};
    int rc =
        lsa_load_weight(l, &layer->router, &s, "gate.weight", "gate.weight", c->experts, c->hidden);
    if (!rc && hash) rc = lsa_load_token_experts(l, layer, &s);
    if (!rc && !hash)
        rc = lsa_load_vector(l, &layer->router_bias, &s, "gate.e_score_correction_bias",
                             "gate.bias", c->experts);
    if (!rc) rc = load_experts(l, layer, &s);
    if (!rc) rc = load_mlp(l, &layer->shared, &shared, c->moe_hidden * c->shared_experts);
    return rc;
}

static int load_layer(lsa_loader *l, int64_t i)
{
    if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
    const lsa_config *c = l->config;
    lsa_layer *layer = &l->model->layers[i];
    int64_t mix = (2 + c->hc_mult) * c->hc_mult;
    char number[32];
    snprintf(number, sizeof number, "layers.%lld.", (long long)i);
    lsa_scope s = {NULL, number, number};
    lsa_scope attn_hc = {&s, "attn_hc.", "hc_attn_"}, ffn_hc = {&s, "ffn_hc.", "hc_ffn_"};
    int rc = load_hc(l, &layer->attn_hc, &attn_hc, mix, 3);
    if (!rc) rc = load_hc(l, &layer->ffn_hc, &ffn_hc, mix, 3);
    if (!rc)
        rc = lsa_load_vector(l, &layer->attn_norm, &s, "input_layernorm.weight", "attn_norm.weight",
                             c->hidden);
    if (!rc)
        rc = lsa_load_vector(l, &layer->ffn_norm, &s, "post_attention_layernorm.weight",
                             "ffn_norm.weight", c->hidden);
    if (!rc) rc = load_attention(l, layer, &s, c->layer_type[i]);
    if (!rc) rc = load_moe(l, layer, &s, c->hash_moe[i]);
    return rc;
}

static int load_head(lsa_loader *l)
{
    const lsa_config *c = l->config;
    lsa_model *m = l->model;
    lsa_scope top = {NULL, "", ""}, hc = {NULL, "hc_head.hc_", "hc_head_"};
    int64_t place;
    int rc = lsa_load_weight(l, &m->embed, &top, "embed_tokens.weight", "embed.weight", c->vocab,
                             c->hidden);
    if (!rc) rc = lsa_load_vector(l, &m->norm, &top, "norm.weight", "norm.weight", c->hidden);
    if (!rc) rc = load_hc(l, &m->hc_head, &hc, c->hc_mult, 1);
    if (!rc) rc = lsa_loader_find(l, &place, &top, "lm_head.weight", "head.weight");
    if (rc) return rc;
    if ((place < 0 || l->random) && c->tied_embeddings) {
        m->head = m->embed;
        return LSA_OK;
    }
    return lsa_load_weight(l, &m->head, &top, "lm_head.weight", "head.weight", c->vocab, c->hidden);
}

static int load_frequencies(lsa_model *m)
{
    int64_t bytes = m->config.rope_dim / 2 * (int64_t)sizeof(float);
    m->main_freq = lsa_loader_block(m, bytes);
    m->compress_freq = lsa_loader_block(m, bytes);
    if (!m->main_freq || !m->compress_freq) return LSA_ENOMEM;
    lsa_rope_frequencies(m->main_freq, &m->config.main_rope, m->config.rope_dim);
    lsa_rope_frequencies(m->compress_freq, &m->config.compress_rope, m->config.rope_dim);
    return LSA_OK;
}

static int load_all(lsa_loader *l)
{
    lsa_model *m = l->model;
    m->layers = lsa_loader_block(m, m->config.layers * (int64_t)sizeof *m->layers);
    if (!m->layers) return LSA_ENOMEM;
    int rc = load_frequencies(m);
    if (!rc) rc = load_head(l);
    for (int64_t i = 0; !rc && i < m->config.layers; i++) rc = load_layer(l, i);
    return rc;
}

static int load_directory(lsa_model *m, const char *directory)
{
    int64_t room = (int64_t)strlen(directory) + 16;
    char *path = lsa_alloc(room);
    if (!path) return LSA_ENOMEM;
    snprintf(path, (size_t)room, "%s/config.json", directory);
    int rc = lsa_config_load(&m->config, path);
    lsa_free(path);
    if (rc) return rc;
    lsa_loader l = {m, &m->config, NULL, NULL};
    rc = lsa_checkpoint_open(&l.checkpoint, directory);
    if (rc) return rc;
    rc = load_all(&l);
    lsa_checkpoint_close(l.checkpoint);
    return rc;
}

static lsa_model *empty_model(void)
{
    lsa_model *m = lsa_alloc_zero(sizeof *m);
    struct lsa_model_memory *memory = m ? lsa_alloc_zero(sizeof *memory) : NULL;
    if (!memory) {
        lsa_free(m);
        return NULL;
    }
    m->memory = memory;
    m->kernels = &lsa_kernels_cpu;
    m->memory_kind = LSA_MEMORY_HOST;
    return m;
}

/* The model, or, after a failure, nothing. */
static int hand_over(lsa_model **out, lsa_model *m, int rc)
{
    if (rc)
        lsa_model_free(m);
    else
        *out = m;
    return rc;
}

int lsa_model_load(lsa_model **out, const char *directory)
{
    lsa_model *m = empty_model();
    return m ? hand_over(out, m, load_directory(m, directory)) : LSA_ENOMEM;
}

/* What is too large is told before its first weight is drawn. */
static int check_memory(const lsa_config *c, const char *name, const lsa_random *random)
{
    double each =
        random->dtype == LSA_RANDOM_RELEASED ? 0.5 : (double)lsa_dtype_size(random->dtype);
    double bytes = each * 3 * (double)c->layers * (double)c->experts * (double)c->moe_hidden *
                   (double)c->hidden;
    int64_t left = lsa_limits_memory("");
    if (bytes <= (double)left) return LSA_OK;
    return lsa_fail(
        LSA_ENOMEM,
        "%s: the weights of %lld layers of %lld experts take %.1f GB, %.1f GB of memory "
        "are left",
        name, (long long)c->layers, (long long)c->experts, bytes / 1e9, (double)left / 1e9);
}

int lsa_model_random(lsa_model **out, const char *config, const char *name,
                     const lsa_random *random)
{
    lsa_model *m = empty_model();
    if (!m) return LSA_ENOMEM;
    lsa_loader l = {m, &m->config, NULL, random};
    int rc = lsa_config_parse(&m->config, config, name);
    if (!rc) rc = check_memory(&m->config, name, random);
    if (!rc) rc = load_all(&l);
    return hand_over(out, m, rc);
}

void lsa_model_free(lsa_model *model)
{
    if (!model) return;
    lsa_model_device_free(model->device);
    for (lsa_held *h = model->memory->first, *next; h; h = next) {
        next = h->next;
        lsa_tensor_free(h->tensor);
        lsa_free(h->block);
        lsa_free(h);
    }
    lsa_free(model->memory);
    lsa_free(model);
}

/* ---- identity ---- */

/* All of a small block, evenly spread samples of a large one. */
static uint64_t hash_samples(const uint8_t *data, int64_t bytes, uint64_t seed)
{
    if (bytes <= SAMPLE * SAMPLES) return lsa_hash(data, bytes, seed);
    for (int64_t i = 0; i < SAMPLES; i++)
        seed = lsa_hash(data + (bytes - SAMPLE) / (SAMPLES - 1) * i, SAMPLE, seed);
    return seed;
}

static uint64_t hash_rope(const lsa_rope_config *r, uint64_t seed)
{
    double numbers[] = {r->theta,     r->yarn,     r->factor, r->original_positions,
                        r->beta_fast, r->beta_slow};
    return lsa_hash(numbers, sizeof numbers, seed);
}

/* Field by field: between them may be anything. */
static uint64_t hash_config(const lsa_config *c)
{
    int64_t sizes[] = {c->vocab,
                       c->hidden,
                       c->layers,
                       c->heads,
                       c->head_dim,
                       c->rope_dim,
                       c->q_rank,
                       c->window,
                       c->csa_rate,
                       c->hca_rate,
                       c->index_heads,
                       c->index_dim,
                       c->index_topk,
                       c->o_groups,
                       c->o_rank,
                       c->hc_mult,
                       c->hc_iters,
                       c->experts,
                       c->experts_per_token,
                       c->shared_experts,
                       c->moe_hidden,
                       c->scoring,
                       c->tied_embeddings};
    float numbers[] = {c->norm_eps, c->hc_eps, c->routed_scaling, c->swiglu_limit};
    uint64_t hash = lsa_hash(sizes, sizeof sizes, 0);
    hash = lsa_hash(numbers, sizeof numbers, hash);
    hash = hash_rope(&c->compress_rope, hash_rope(&c->main_rope, hash));
    hash = lsa_hash(c->layer_type, c->layers * (int64_t)sizeof *c->layer_type, hash);
    return lsa_hash(c->hash_moe, c->layers * (int64_t)sizeof *c->hash_moe, hash);
}

void lsa_model_identity(const lsa_model *model, uint64_t *config, uint64_t *weights)
{
    *config = hash_config(&model->config);
    *weights = model->memory->vectors;
    for (const lsa_held *h = model->memory->first; h; h = h->next) {
        if (!h->tensor) continue;
        int64_t bytes = lsa_tensor_count(h->tensor) * lsa_dtype_size(h->tensor->dtype);
        *weights = lsa_hash(h->tensor->shape, h->tensor->rank * (int64_t)sizeof *h->tensor->shape,
                            *weights);
        *weights = hash_samples(h->tensor->data, bytes, *weights);
    }
}
