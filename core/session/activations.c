/* Owns the working memory of a forward pass. */
#include "core/session/activations.h"

#include <string.h>

#include "core/base/cpu.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/session/session.h"
#include "kernels/index_score.h"
#include "kernels/table.h"

static int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

/* One array: where its pointer is, and its bytes for a row. */
typedef struct array {
    void *pointer;
    int64_t bytes;
} array;

enum {
    ARRAYS = 40,
    HOST_ARRAYS = 7,       /* the first ones are the host's alone */
    CONTROL_SLACK = 4 * 64 /* alignment of what control packs */
};

static int arrays_of(lsa_activations *a, const lsa_config *c, array out[ARRAYS])
{
    int64_t f = sizeof(float), d = c->hidden, hc = c->hc_mult, wide = c->heads * c->head_dim,
            e = c->experts_per_token;
    const array all[] = {
        {&a->segments, sizeof *a->segments},
        {&a->spans, sizeof *a->spans},
        {&a->steps, sizeof *a->steps},
        {&a->generators, sizeof *a->generators},
        {&a->tokens, f},
        {&a->positions, f},
        {&a->control, sizeof(lsa_span) + sizeof(lsa_steps) + 2 * f},
        {&a->control_there, sizeof(lsa_span) + sizeof(lsa_steps) + 2 * f},
        {&a->streams, hc * d * f},
        {&a->x, d * f},
        {&a->y, d * f},
        {&a->mix, (2 + hc) * hc * f},
        {&a->post, hc * f},
        {&a->comb, hc * hc * f},
        {&a->q_low, c->q_rank * f},
        {&a->q, wide * f},
        {&a->attended, wide * f},
        {&a->o_low, c->o_groups * c->o_rank * f},
        {&a->window_kv, c->head_dim * f},
        {&a->kv, 2 * c->head_dim * f},
        {&a->kv_gate, 2 * c->head_dim * f},
        {&a->index_kv, 2 * c->index_dim * f},
        {&a->index_gate, 2 * c->index_dim * f},
        {&a->entries, c->head_dim * f},
        {&a->key_entries, max(1, c->index_dim) * f},
        {&a->index_q, c->index_heads * c->index_dim * f},
        {&a->index_w, c->index_heads * f},
        {&a->main_table, c->rope_dim * f},
        {&a->compress_table, c->rope_dim * f},
        {&a->ids, max(1, c->index_topk) * f},
        {&a->places, max(1, c->index_topk) * f},
        {&a->mass, max(1, c->index_topk) * f},
        {&a->counts, f},
        {&a->router, c->experts * f},
        {&a->expert_weights, e * f},
        {&a->expert_ids, e * f},
    };
    memcpy(out, all, sizeof all);
    return (int)(sizeof all / sizeof *all);
}

static void *pointer_at(const array *a)
{
    void *block;
    memcpy(&block, a->pointer, sizeof block);
    return block;
}

/* Contents undefined where that costs less. */
static void *allocate(const lsa_activations *a, int64_t bytes)
{
    int32_t kind = a->model->memory_kind;
    return kind == LSA_MEMORY_HOST ? lsa_alloc(bytes) : lsa_alloc_in(kind, bytes);
}

/* Graphs hold addresses and bounds of what they were captured with. */
static void drop_graphs(lsa_activations *a)
{
    for (size_t i = 0; i < sizeof a->graphs / sizeof *a->graphs; i++) {
        lsa_device_graph_free(a->graphs[i].graph);
        a->graphs[i].graph = NULL;
    }
}

/* The model may be gone before: a collector ends what refers to each other in no order. */
static void activations_free(lsa_activations *a)
{
    static const lsa_config none;
    array all[ARRAYS];
    int n = arrays_of(a, &none, all);
    int32_t kind = a->memory_kind;
    for (int i = 0; i < n; i++)
        lsa_free_in(i < HOST_ARRAYS ? LSA_MEMORY_HOST : kind, pointer_at(&all[i]));
    drop_graphs(a);
    lsa_free_in(kind, a->logits);
    lsa_free(a->host_logits);
    lsa_free_in(kind, a->workspace);
    lsa_free_in(kind, a->scratch);
    lsa_free(a);
}

void *lsa_activations_scratch(lsa_activations *a, int64_t bytes)
{
    if (bytes <= a->scratch_bytes) return a->scratch;
    lsa_free_in(a->memory_kind, a->scratch);
    a->scratch_bytes = 0;
    bytes += bytes / 4; /* who asks of a context that grows asks for a little more each time */
    if ((a->scratch = allocate(a, bytes))) a->scratch_bytes = bytes;
    return a->scratch;
}

int lsa_activations_new(lsa_activations **out, const lsa_model *model, int64_t piece)
{
    if (piece < 1 || piece > 1 << 16)
        return lsa_fail(LSA_EARG, "session: pieces of %lld tokens, 1 to 65536 are possible",
                        (long long)piece);
    lsa_activations *a = lsa_alloc_zero(sizeof *a);
    if (!a) return LSA_ENOMEM;
    atomic_init(&a->references, 1);
    a->model = model;
    a->memory_kind = model->memory_kind;
    a->piece = piece;
    array all[ARRAYS];
    int n = arrays_of(a, &model->config, all), rc = LSA_OK;
    for (int i = 0; !rc && i < n; i++) {
        int64_t bytes = piece * all[i].bytes + CONTROL_SLACK;
        void *block = i < HOST_ARRAYS ? lsa_alloc_zero(bytes) : allocate(a, bytes);
        memcpy(all[i].pointer, &block, sizeof block);
        a->bytes += piece * all[i].bytes;
        if (!block) rc = LSA_ENOMEM;
    }
    if (rc) {
        activations_free(a);
        return rc;
    }
    *out = a;
    return LSA_OK;
}

void lsa_activations_retain(lsa_activations *a) { atomic_fetch_add(&a->references, 1); }

void lsa_activations_release(lsa_activations *a)
{
    if (a && atomic_fetch_sub(&a->references, 1) == 1) activations_free(a);
}

int64_t lsa_activations_bytes(const lsa_activations *a)
{
    int64_t logits = a->logit_rows * a->model->config.vocab * (int64_t)sizeof(float);
    return a->bytes + (a->host_logits ? 3 : 1) * logits + a->workspace_bytes;
}

int64_t lsa_activations_piece(const lsa_activations *a) { return a->piece; }

/* ---- workspace ---- */

static int64_t linear_most(const lsa_kernels *k, const lsa_weight *const *weights, int n,
                           int64_t rows, int32_t compute)
{
    int64_t most = 0;
    for (int i = 0; i < n; i++)
        if (weights[i]->data)
            most = max(most, k->linear_workspace(weights[i], rows, weights[i]->rows, compute));
    return most;
}

static int64_t layer_workspace(const lsa_kernels *k, const lsa_config *c, const lsa_layer *l,
                               int64_t rows, int32_t compute)
{
    const lsa_weight *weights[] = {&l->attn_hc.fn,
                                   &l->ffn_hc.fn,
                                   &l->q_a,
                                   &l->q_b,
                                   &l->kv,
                                   &l->o_b,
                                   &l->compressor.kv,
                                   &l->compressor.gate,
                                   &l->index_keys.kv,
                                   &l->index_keys.gate,
                                   &l->index_q_b,
                                   &l->index_weights,
                                   &l->router};
    int64_t most = linear_most(k, weights, sizeof weights / sizeof *weights, rows, compute);
    most = max(most, k->linear_workspace(&l->o_a, rows, c->o_rank, compute));
    return max(most, k->experts_workspace(l->experts, c->shared_experts ? &l->shared : NULL, rows,
                                          c->hidden, c->experts, c->experts_per_token, compute));
}

static int64_t most_workspace(const lsa_kernels *k, const lsa_model *m, int64_t rows,
                              int64_t records, int64_t chunks, int64_t logit_rows)
{
    const lsa_config *c = &m->config;
    int64_t most = 0;
    for (int32_t compute = LSA_COMPUTE_F32; compute <= LSA_COMPUTE_BF16; compute++) {
        const lsa_weight *head[] = {&m->hc_head.fn, &m->head};
        most = max(most, linear_most(k, head, 2, max(rows, logit_rows), compute));
        for (int64_t i = 0; i < c->layers; i++)
            most = max(most, layer_workspace(k, c, &m->layers[i], rows, compute));
    }
    for (int32_t how = LSA_SCORE_F32; c->csa_layers && how <= LSA_SCORE_FP8; how++)
        for (int32_t format = LSA_KV_F32; format <= LSA_KV_FP8; format++)
            most = max(most, k->pick_workspace(rows, chunks, c->index_topk, c->index_heads,
                                               c->index_dim, format, how));
    most = max(most, k->attention_workspace(rows, c->heads, c->head_dim, c->window, records,
                                            c->index_topk));
    most = max(most, k->extend_workspace(rows, c->csa_rate, c->head_dim, c->rope_dim, 1));
    most = max(most, k->extend_workspace(rows, c->hca_rate, c->head_dim, c->rope_dim, 0));
    return max(most, k->extend_workspace(rows, c->csa_rate, c->index_dim, c->rope_dim, 1));
}

static int reserve_logits(lsa_activations *a, int64_t rows)
{
    int64_t bytes = rows * a->model->config.vocab * (int64_t)sizeof(float);
    int host = a->model->memory_kind == LSA_MEMORY_HOST;
    float *larger = allocate(a, host ? bytes : 2 * bytes);
    float *in_host = host ? NULL : lsa_alloc(2 * bytes);
    if (!larger || (!host && !in_host)) {
        lsa_free_in(a->model->memory_kind, larger);
        lsa_free(in_host);
        return LSA_ENOMEM;
    }
    lsa_free_in(a->model->memory_kind, a->logits);
    lsa_free(a->host_logits);
    a->logits = larger;
    a->host_logits = in_host;
    drop_graphs(a);
    a->logit_rows = rows;
    return LSA_OK;
}

int lsa_activations_reserve(lsa_activations *a, int64_t rows, int64_t records, int64_t chunks,
                            int64_t logit_rows)
{
    int threads = lsa_threads();
    if (logit_rows > a->logit_rows) LSA_TRY(reserve_logits(a, logit_rows));
    records = max(records, a->model->config.index_topk);
    if (rows <= a->rows && records <= a->records && chunks <= a->chunks && threads <= a->threads)
        return LSA_OK;
    rows = max(rows, a->rows);
    records = records <= a->records ? a->records : max(records, 2 * a->records);
    chunks = chunks <= a->chunks ? a->chunks : max(chunks, 2 * a->chunks);
    threads = threads > a->threads ? threads : a->threads;
    int64_t bytes = most_workspace(a->model->kernels, a->model, rows, records, chunks, rows);
    if (bytes > a->workspace_bytes) {
        void *larger = allocate(a, bytes);
        if (!larger) return LSA_ENOMEM;
        lsa_free_in(a->model->memory_kind, a->workspace);
        a->workspace = larger;
        a->workspace_bytes = bytes;
    }
    drop_graphs(a);
    a->rows = rows;
    a->records = records;
    a->chunks = chunks;
    a->threads = threads;
    return LSA_OK;
}

static int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int lsa_activations_upload(lsa_activations *a, int64_t count, int64_t rows, lsa_pass_rows *out)
{
    for (int64_t i = 0; i < count; i++) a->spans[i].progress = &a->steps[i].progress;
    *out = (lsa_pass_rows){a->spans, a->steps, a->tokens, a->positions};
    if (a->model->memory_kind == LSA_MEMORY_HOST) return LSA_OK;
    int64_t steps = aligned(count * (int64_t)sizeof(lsa_span)),
            tokens = aligned(steps + count * (int64_t)sizeof(lsa_steps)),
            positions = aligned(tokens + rows * (int64_t)sizeof(int32_t)),
            end = positions + rows * (int64_t)sizeof(int32_t);
    *out = (lsa_pass_rows){(lsa_span *)a->control_there, (lsa_steps *)(a->control_there + steps),
                           (int32_t *)(a->control_there + tokens),
                           (int32_t *)(a->control_there + positions)};
    lsa_span *spans = (lsa_span *)a->control;
    for (int64_t i = 0; i < count; i++) {
        spans[i] = a->spans[i];
        spans[i].progress = &out->steps[i].progress;
    }
    memcpy(a->control + steps, a->steps, (size_t)count * sizeof *a->steps);
    memcpy(a->control + tokens, a->tokens, (size_t)rows * sizeof(int32_t));
    memcpy(a->control + positions, a->positions, (size_t)rows * sizeof(int32_t));
    return lsa_device_copy(a->control_there, a->control, end);
}

int lsa_activations_download(lsa_activations *a, int64_t count, const lsa_pass_rows *from)
{
    if (from->steps == a->steps) return LSA_OK;
    return lsa_device_copy_back(a->steps, from->steps, count * (int64_t)sizeof *a->steps);
}
