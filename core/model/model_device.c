/* Owns a model's weights on a GPU: copies of all of them, under the pointers of the model. */
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/tensor.h"
#include "core/base/try.h"
#include "core/model/model.h"

/* What was put on the GPU, to be freed. */
struct lsa_model_device {
    void **blocks;
    int64_t count, room;
};

static int keep(lsa_model *m, void *block)
{
    struct lsa_model_device *d = m->device;
    if (d->count == d->room) {
        int64_t room = d->room ? 2 * d->room : 256;
        void **blocks = lsa_realloc(d->blocks, room * (int64_t)sizeof *blocks);
        if (!blocks) return LSA_ENOMEM;
        d->blocks = blocks;
        d->room = room;
    }
    d->blocks[d->count++] = block;
    return LSA_OK;
}

/* *pointer, of `bytes` bytes (NULL is left alone), becomes that of a copy. */
static int move_to(lsa_model *m, int32_t kind, void *pointer, int64_t bytes)
{
    void *from, *to;
    memcpy(&from, pointer, sizeof from);
    if (!from || !bytes) return LSA_OK;
    if (!(to = lsa_alloc_in(kind, bytes))) return LSA_ENOMEM;
    if (keep(m, to)) {
        lsa_free_in(kind, to);
        return LSA_ENOMEM;
    }
    LSA_TRY(lsa_device_copy(to, from, bytes));
    memcpy(pointer, &to, sizeof to);
    return LSA_OK;
}

static int move(lsa_model *m, void *pointer, int64_t bytes)
{
    return move_to(m, LSA_MEMORY_GPU, pointer, bytes);
}

static int move_floats(lsa_model *m, const float **pointer, int64_t n)
{
    return move(m, pointer, n * (int64_t)sizeof **pointer);
}

static int move_weight(lsa_model *m, lsa_weight *w)
{
    if (!w->data) return LSA_OK;
    int64_t n = w->rows * w->cols;
    int64_t bytes = w->dtype == LSA_F4_E2M1 ? n / 2 : n * lsa_dtype_size(w->dtype);
    LSA_TRY(move(m, &w->data, bytes));
    if (!w->scale) return LSA_OK;
    int64_t blocks = ((w->rows + w->block_rows - 1) / w->block_rows) *
                     ((w->cols + w->block_cols - 1) / w->block_cols);
    return move(m, &w->scale, blocks * lsa_dtype_size(w->scale_dtype));
}

static int move_hc(lsa_model *m, lsa_hc_weights *hc, int64_t scales)
{
    int64_t outputs = hc->fn.rows;
    LSA_TRY(move_weight(m, &hc->fn));
    LSA_TRY(move_floats(m, &hc->base, outputs));
    return move_floats(m, &hc->scale, scales);
}

static int move_compressor(lsa_model *m, lsa_compressor_weights *cw, int64_t rate, int64_t dim)
{
    if (!cw->kv.data) return LSA_OK;
    int64_t width = cw->kv.rows;
    LSA_TRY(move_weight(m, &cw->kv));
    LSA_TRY(move_weight(m, &cw->gate));
    LSA_TRY(move_floats(m, &cw->bias, rate * width));
    return move_floats(m, &cw->norm, dim);
}

static int move_expert(lsa_model *m, lsa_expert_weights *e)
{
    LSA_TRY(move_weight(m, &e->gate));
    LSA_TRY(move_weight(m, &e->up));
    return move_weight(m, &e->down);
}

static int move_layer(lsa_model *m, lsa_layer *l, int64_t layer)
{
    const lsa_config *c = &m->config;
    int64_t rate = c->layer_type[layer] == LSA_LAYER_HCA ? c->hca_rate : c->csa_rate;
    lsa_weight *weights[] = {&l->q_a,       &l->q_b,           &l->kv,    &l->o_a, &l->o_b,
                             &l->index_q_b, &l->index_weights, &l->router};
    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++)
        LSA_TRY(move_weight(m, weights[i]));
    LSA_TRY(move_hc(m, &l->attn_hc, 3));
    LSA_TRY(move_hc(m, &l->ffn_hc, 3));
    LSA_TRY(move_floats(m, &l->attn_norm, c->hidden));
    LSA_TRY(move_floats(m, &l->ffn_norm, c->hidden));
    LSA_TRY(move_floats(m, &l->q_a_norm, c->q_rank));
    LSA_TRY(move_floats(m, &l->kv_norm, c->head_dim));
    LSA_TRY(move_floats(m, &l->sinks, c->heads));
    LSA_TRY(move_compressor(m, &l->compressor, rate, c->head_dim));
    LSA_TRY(move_compressor(m, &l->index_keys, rate, c->index_dim));
    LSA_TRY(move_floats(m, &l->router_bias, c->experts));
    LSA_TRY(move(m, &l->token_experts,
                 c->vocab * c->experts_per_token * (int64_t)sizeof *l->token_experts));
    for (int64_t e = 0; e < c->experts; e++) LSA_TRY(move_expert(m, &l->experts[e]));
    if (c->shared_experts) LSA_TRY(move_expert(m, &l->shared));
    /* Launchers read it as well. */
    return move_to(m, LSA_MEMORY_READ, &l->experts, c->experts * (int64_t)sizeof *l->experts);
}

/* LSA_EDEVICE names what a forward pass calls and the GPU has not. */
static int check_kernels(const lsa_kernels *k)
{
    const struct {
        const char *name;
        int here;
    } wanted[] = {{"embed", k->embed != NULL},
                  {"linear", k->linear != NULL},
                  {"linears", k->linears != NULL},
                  {"rope_table", k->rope_table != NULL},
                  {"hc_turn", k->hc_turn != NULL},
                  {"settle", k->settle != NULL},
                  {"moe_route", k->moe_route != NULL},
                  {"experts", k->experts != NULL},
                  {"chain", k->chain != NULL},
                  {"pick", k->pick != NULL},
                  {"locate", k->locate != NULL},
                  {"attend", k->attend != NULL},
                  {"remember", k->remember != NULL},
                  {"observe", k->observe != NULL},
                  {"advance", k->advance != NULL},
                  {"gather", k->gather != NULL},
                  {"index_score", k->index_score != NULL}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++)
        if (!wanted[i].here)
            return lsa_fail(LSA_EDEVICE, "model: the CUDA library has no %s", wanted[i].name);
    return LSA_OK;
}

int lsa_model_to_gpu(lsa_model *m)
{
    const lsa_config *c = &m->config;
    const lsa_kernels *k = lsa_kernels_on(LSA_CUDA);
    if (!k) return LSA_EDEVICE;
    LSA_TRY(check_kernels(k));
    if (m->device) return lsa_fail(LSA_ESTATE, "model: it is on the GPU already");
    m->device = lsa_alloc_zero(sizeof *m->device);
    if (!m->device) return LSA_ENOMEM;
    int tied = m->head.data == m->embed.data;
    LSA_TRY(move_weight(m, &m->embed));
    if (tied)
        m->head = m->embed;
    else
        LSA_TRY(move_weight(m, &m->head));
    LSA_TRY(move_floats(m, &m->norm, c->hidden));
    LSA_TRY(move_hc(m, &m->hc_head, 1));
    LSA_TRY(move(m, &m->main_freq, c->rope_dim / 2 * (int64_t)sizeof(float)));
    LSA_TRY(move(m, &m->compress_freq, c->rope_dim / 2 * (int64_t)sizeof(float)));
    for (int64_t i = 0; i < c->layers; i++) LSA_TRY(move_layer(m, &m->layers[i], i));
    LSA_TRY(move_to(m, LSA_MEMORY_READ, &m->layers, c->layers * (int64_t)sizeof *m->layers));
    m->kernels = k;
    m->memory_kind = LSA_MEMORY_GPU;
    m->gpu = lsa_device_current();
    return LSA_OK;
}

void lsa_model_device_free(struct lsa_model_device *device)
{
    if (!device) return;
    for (int64_t i = 0; i < device->count; i++) lsa_free_in(LSA_MEMORY_GPU, device->blocks[i]);
    lsa_free(device->blocks);
    lsa_free(device);
}
