/* Owns a loaded model: which tensors it takes, under which names, in which shapes. */
#include "core/model/model.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/files/checkpoint.h"
#include "core/model/random_weights.h"
#include "kernels/convert.h"
#include "kernels/table.h"

enum { MOST_NAME = 256, SAMPLE = 4096, SAMPLES = 16 };

/* A list of what a model frees: blocks of memory and views that keep the mappings. */
typedef struct held {
    struct held *next;
    lsa_tensor *tensor;
    void *block;
} held;

struct lsa_model_memory {
    held *first;
    uint64_t vectors; /* hash of the small tensors, which are copied and not held */
};

typedef struct loader {
    lsa_model *model;
    const lsa_config *config;
    lsa_checkpoint *checkpoint;
    const lsa_random *random; /* in place of a checkpoint; else NULL */
} loader;

/* The beginning of names in transformers' scheme and in the released one, after an outer beginning. */
typedef struct scope {
    const struct scope *outer;
    const char *transformers, *released;
} scope;

/* Appends to the text, `at` bytes long, what fits of `more`; gives its length then. */
static size_t append(char *text, size_t at, const char *more)
{
    size_t n = strlen(more), room = MOST_NAME - 1 - at;
    n = n < room ? n : room;
    memcpy(text + at, more, n);
    text[at + n] = 0;
    return at + n;
}

static size_t append_scope(char *text, const scope *s, int released)
{
    if (!s) return 0;
    return append(text, append_scope(text, s->outer, released),
                  released ? s->released : s->transformers);
}

/* A tensor's two names. */
static void spell(char first[MOST_NAME], char second[MOST_NAME], const scope *s,
                  const char *transformers, const char *released)
{
    append(first, append_scope(first, s, 0), transformers);
    append(second, append_scope(second, s, 1), released);
}

/* Takes over a tensor or a block, even on failure. */
static int hold(lsa_model *model, lsa_tensor *tensor, void *block)
{
    held *h = lsa_alloc(sizeof *h);
    if (!h) {
        lsa_tensor_free(tensor);
        lsa_free(block);
        return LSA_ENOMEM;
    }
    *h = (held){model->memory->first, tensor, block};
    model->memory->first = h;
    return LSA_OK;
}

/* Memory, zeroed, that the model frees. */
static void *hold_block(lsa_model *model, int64_t bytes)
{
    void *block = lsa_alloc_zero(bytes);
    return block && hold(model, NULL, block) == LSA_OK ? block : NULL;
}

/* The tensor of either name; *place is -1 where there is neither. */
static int find(const loader *l, int64_t *place, const scope *s, const char *transformers,
                const char *released)
{
    char first[MOST_NAME], second[MOST_NAME];
    int64_t other = -1;
    spell(first, second, s, transformers, released);
    *place = 0;
    if (l->random) return LSA_OK; /* it has whatever is looked for */
    int rc = lsa_checkpoint_find(l->checkpoint, place, first);
    if (!rc && strcmp(first, second) != 0) rc = lsa_checkpoint_find(l->checkpoint, &other, second);
    if (rc) return rc;
    if (*place >= 0 && other >= 0)
        return lsa_fail(LSA_EFORMAT, "%s: tensors %s and %s are the same weight",
                        lsa_checkpoint_path(l->checkpoint), first, second);
    if (other >= 0) *place = other;
    return LSA_OK;
}

static int need(const loader *l, int64_t *place, const scope *s, const char *transformers,
                const char *released)
{
    char first[MOST_NAME], second[MOST_NAME];
    int rc = find(l, place, s, transformers, released);
    if (rc || *place >= 0) return rc;
    spell(first, second, s, transformers, released);
    return lsa_fail(LSA_EFORMAT, "%s: tensor %s (or %s) is missing",
                    lsa_checkpoint_path(l->checkpoint), first, second);
}

/* The model holds the tensor, also on failure. */
static int keep(loader *l, lsa_tensor *t)
{
    int rc = hold(l->model, t, NULL);
    if (!rc) l->model->weight_bytes += lsa_tensor_count(t) * lsa_dtype_size(t->dtype);
    return rc;
}

/* Takes tensor `place`; the model holds it. */
static int take(loader *l, int64_t place, lsa_tensor **out)
{
    int rc = lsa_checkpoint_get(l->checkpoint, place, out);
    return rc ? rc : keep(l, *out);
}

static void show_shape(char *text, int64_t room, int32_t rank, const int64_t *shape)
{
    int64_t at = snprintf(text, (size_t)room, "[");
    for (int32_t i = 0; i < rank && at < room; i++)
        at +=
            snprintf(text + at, (size_t)(room - at), "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (at < room) snprintf(text + at, (size_t)(room - at), "]");
}

static int fail_shape(const loader *l, int64_t place, const lsa_tensor *t, int32_t rank,
                      const int64_t *shape)
{
    char has[160], wants[160];
    show_shape(has, sizeof has, t->rank, t->shape);
    show_shape(wants, sizeof wants, rank, shape);
    return lsa_fail(LSA_ESHAPE, "%s: tensor %s is %s of %s, config.json makes it %s",
                    lsa_checkpoint_file(l->checkpoint, place),
                    lsa_checkpoint_name(l->checkpoint, place), has, lsa_dtype_name(t->dtype),
                    wants);
}

static int fail_dtype(const loader *l, int64_t place, const lsa_tensor *t, const char *expected)
{
    return lsa_fail(LSA_EDTYPE, "%s: tensor %s: dtype is %s, %s is expected",
                    lsa_checkpoint_file(l->checkpoint, place),
                    lsa_checkpoint_name(l->checkpoint, place), lsa_dtype_name(t->dtype), expected);
}

static int same_shape(const lsa_tensor *t, int32_t rank, const int64_t *shape)
{
    return t->rank == rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) == 0;
}

static int draw_floats(loader *l, const float **out, const scope *s, const char *transformers,
                       int32_t rank, const int64_t *shape)
{
    char first[MOST_NAME], second[MOST_NAME];
    int64_t n = rank == 2 ? shape[0] * shape[1] : shape[0], bytes = n * (int64_t)sizeof(float);
    float *copy = hold_block(l->model, bytes);
    if (!copy) return LSA_ENOMEM;
    spell(first, second, s, transformers, transformers);
    LSA_TRY(lsa_random_vector(copy, l->random, first, n));
    l->model->weight_bytes += bytes;
    l->model->memory->vectors = lsa_hash(copy, bytes, l->model->memory->vectors);
    *out = copy;
    return LSA_OK;
}

/* A small tensor as f32. */
static int load_floats(loader *l, const float **out, const scope *s, const char *transformers,
                       const char *released, int32_t rank, const int64_t *shape)
{
    int64_t place;
    lsa_tensor *t;
    if (l->random) return draw_floats(l, out, s, transformers, rank, shape);
    int rc = need(l, &place, s, transformers, released);
    if (!rc) rc = lsa_checkpoint_get(l->checkpoint, place, &t);
    if (rc) return rc;
    int64_t n = lsa_tensor_count(t);
    l->model->weight_bytes += n * lsa_dtype_size(t->dtype);
    float *copy = NULL;
    if (!same_shape(t, rank, shape))
        rc = fail_shape(l, place, t, rank, shape);
    else if (t->dtype != LSA_F32 && t->dtype != LSA_BF16 && t->dtype != LSA_F16)
        rc = fail_dtype(l, place, t, "f32, bf16 or f16");
    else if (!(copy = hold_block(l->model, n * (int64_t)sizeof *copy)))
        rc = LSA_ENOMEM;
    else
        rc = lsa_kernels_cpu.convert(copy, t->data, n, LSA_F32, t->dtype, NULL);
    if (!rc)
        l->model->memory->vectors =
            lsa_hash(copy, n * (int64_t)sizeof *copy, l->model->memory->vectors);
    lsa_tensor_free(t);
    *out = copy;
    return rc;
}

static int load_vector(loader *l, const float **out, const scope *s, const char *transformers,
                       const char *released, int64_t n)
{
    return load_floats(l, out, s, transformers, released, 1, &n);
}

/* A weight as it is stored; experts in one tensor add a dimension in front. */
typedef struct stored {
    int64_t place;
    const lsa_tensor *data, *scale;
    int64_t rows, cols;             /* of one expert, unpacked */
    int64_t scale_rows, scale_cols; /* likewise */
    int64_t block_rows, block_cols;
    int32_t dtype, scale_dtype;
} stored;

static int is_scaled(const stored *s) { return s->dtype == LSA_F8_E4M3 || s->dtype == LSA_F4_E2M1; }

/* Takes tensor s->place, checks its shape and dtype. int8 is how packed fp4 is stored: two values a byte. */
static int take_numbers(loader *l, stored *s, int32_t rank, const int64_t *shape)
{
    int64_t wanted[3];
    lsa_tensor *t;
    int rc = take(l, s->place, &t);
    if (rc) return rc;
    memcpy(wanted, shape, (size_t)rank * sizeof *shape);
    s->data = t;
    s->dtype = t->dtype;
    s->rows = shape[rank - 2];
    s->cols = shape[rank - 1];
    if (t->dtype == LSA_I8) {
        s->dtype = LSA_F4_E2M1;
        if (s->cols % 2)
            return fail_dtype(l, s->place, t, "for an odd number of columns a wider dtype");
        wanted[rank - 1] /= 2;
    } else if (t->dtype != LSA_F32 && t->dtype != LSA_BF16 && t->dtype != LSA_F16 &&
               t->dtype != LSA_F8_E4M3) {
        return fail_dtype(l, s->place, t, "f32, bf16, f16, f8_e4m3 or packed fp4 (i8)");
    }
    return same_shape(t, rank, wanted) ? LSA_OK : fail_shape(l, s->place, t, rank, wanted);
}

/* The name of a tensor's scales: X.scale or X.weight_scale_inv beside X.weight, X_scale or X_scale_inv beside others. */
static int find_scale(const loader *l, const stored *s, int64_t *place)
{
    static const char weight[] = ".weight";
    const char *name = lsa_checkpoint_name(l->checkpoint, s->place);
    size_t length = strlen(name), tail = sizeof weight - 1;
    int is_weight = length > tail && strcmp(name + length - tail, weight) == 0;
    char text[MOST_NAME];
    size_t at = append(
        text, 0, name + (strncmp(name, "model.", 6) ? 0 : 6)); /* with and without are tried */
    if (is_weight) text[at - tail] = 0;
    scope base = {NULL, text, text};
    return is_weight ? need(l, place, &base, ".weight_scale_inv", ".scale")
                     : need(l, place, &base, "_scale_inv", "_scale");
}

/* Block edge of n values in `blocks` blocks: the format's own where it fits, so that a short last block is seen as
 * such, else n / blocks. 0: neither. */
static int64_t block_edge(int64_t n, int64_t blocks, int64_t usual)
{
    if (blocks < 1) return 0;
    if ((n + usual - 1) / usual == blocks) return usual;
    return n % blocks ? 0 : n / blocks;
}

/* Whether t is a grid of equal blocks of the numbers. */
static int set_scale(stored *s, const lsa_tensor *t, int32_t rank)
{
    int fp4 = s->dtype == LSA_F4_E2M1;
    s->scale = t;
    s->scale_dtype = t->dtype == LSA_F32 ? LSA_F32 : LSA_F8_E8M0;
    if (t->rank == rank && (rank == 2 || t->shape[0] == s->data->shape[0])) {
        s->scale_rows = t->shape[rank - 2];
        s->scale_cols = t->shape[rank - 1];
        s->block_rows = block_edge(s->rows, s->scale_rows, fp4 ? 1 : 128);
        s->block_cols = block_edge(s->cols, s->scale_cols, fp4 ? 32 : 128);
    }
    return s->block_rows && s->block_cols;
}

static int take_scale(loader *l, stored *s)
{
    int64_t place;
    lsa_tensor *t;
    int32_t rank = s->data->rank;
    int rc = find_scale(l, s, &place);
    if (!rc) rc = take(l, place, &t);
    if (rc) return rc;
    if (t->dtype != LSA_F32 && t->dtype != LSA_F8_E8M0 && t->dtype != LSA_U8)
        return fail_dtype(l, place, t, "f8_e8m0, u8 or f32");
    if (set_scale(s, t, rank)) return LSA_OK;
    char has[160], numbers[160];
    show_shape(has, sizeof has, t->rank, t->shape);
    show_shape(numbers, sizeof numbers, rank, s->data->shape);
    return lsa_fail(
        LSA_ESHAPE, "%s: tensor %s is %s, which are no equal blocks of its weight's %s of %s",
        lsa_checkpoint_file(l->checkpoint, place), lsa_checkpoint_name(l->checkpoint, place), has,
        numbers, lsa_dtype_name(s->dtype));
}

static int take_stored(loader *l, stored *s, int64_t place, int32_t rank, const int64_t *shape)
{
    *s = (stored){.place = place};
    int rc = take_numbers(l, s, rank, shape);
    if (!rc && is_scaled(s)) rc = take_scale(l, s);
    return rc;
}

/* The same in a model of random weights. */
static int draw_stored(loader *l, stored *s, const scope *outer, const char *transformers,
                       int32_t rank, const int64_t *shape)
{
    char first[MOST_NAME], second[MOST_NAME];
    lsa_tensor *t;
    spell(first, second, outer, transformers, transformers);
    LSA_TRY(lsa_random_weight(&t, l->random, first, rank, shape));
    LSA_TRY(keep(l, t));
    *s = (stored){.data = t,
                  .rows = shape[rank - 2],
                  .cols = shape[rank - 1],
                  .dtype = t->dtype == LSA_I8 ? LSA_F4_E2M1 : t->dtype};
    if (!is_scaled(s)) return LSA_OK;
    LSA_TRY(lsa_random_scale(&t, s->data, rank, shape));
    LSA_TRY(keep(l, t));
    set_scale(s, t, rank);
    return LSA_OK;
}

/* A weight of either name, from the checkpoint or drawn. */
static int have_stored(loader *l, stored *s, const scope *outer, const char *transformers,
                       const char *released, int32_t rank, const int64_t *shape)
{
    int64_t place;
    if (l->random) return draw_stored(l, s, outer, transformers, rank, shape);
    LSA_TRY(need(l, &place, outer, transformers, released));
    return take_stored(l, s, place, rank, shape);
}

/* Rows from .. from + rows - 1 of one expert (0 where there is no such dimension). */
static int slice(const loader *l, lsa_weight *w, const stored *s, int64_t expert, int64_t from,
                 int64_t rows)
{
    int64_t row_bytes = s->dtype == LSA_F4_E2M1 ? s->cols / 2 : s->cols * lsa_dtype_size(s->dtype);
    *w = (lsa_weight){.rows = rows,
                      .cols = s->cols,
                      .dtype = s->dtype,
                      .scale_dtype = s->scale_dtype,
                      .block_rows = s->block_rows,
                      .block_cols = s->block_cols};
    w->data = (const char *)s->data->data + (expert * s->rows + from) * row_bytes;
    if (!s->scale) return LSA_OK;
    if (from % s->block_rows)
        return lsa_fail(LSA_ESHAPE,
                        "%s: tensor %s: its halves of %lld rows are no whole blocks of %lld",
                        lsa_checkpoint_file(l->checkpoint, s->place),
                        lsa_checkpoint_name(l->checkpoint, s->place), (long long)from,
                        (long long)s->block_rows);
    int64_t scale_row = (expert * s->scale_rows + from / s->block_rows) * s->scale_cols;
    w->scale = (const char *)s->scale->data + scale_row * lsa_dtype_size(s->scale->dtype);
    return LSA_OK;
}

static int load_weight(loader *l, lsa_weight *w, const scope *s, const char *transformers,
                       const char *released, int64_t rows, int64_t cols)
{
    int64_t shape[2] = {rows, cols};
    stored numbers;
    int rc = have_stored(l, &numbers, s, transformers, released, 2, shape);
    return rc ? rc : slice(l, w, &numbers, 0, 0, rows);
}

static int load_hc(loader *l, lsa_hc_weights *hc, const scope *s, int64_t rows, int64_t scales)
{
    const lsa_config *c = l->config;
    int rc = load_weight(l, &hc->fn, s, "fn", "fn", rows, c->hc_mult * c->hidden);
    if (!rc) rc = load_vector(l, &hc->base, s, "base", "base", rows);
    if (!rc) rc = load_vector(l, &hc->scale, s, "scale", "scale", scales);
    return rc;
}

static int load_compressor(loader *l, lsa_compressor_weights *w, const scope *s, int64_t dim,
                           int64_t rate, int overlap)
{
    int64_t width = overlap ? 2 * dim : dim, bias[2] = {rate, width};
    int rc = load_weight(l, &w->kv, s, "kv_proj.weight", "wkv.weight", width, l->config->hidden);
    if (!rc)
        rc = load_weight(l, &w->gate, s, "gate_proj.weight", "wgate.weight", width,
                         l->config->hidden);
    if (!rc) rc = load_floats(l, &w->bias, s, "position_bias", "ape", 2, bias);
    if (!rc) rc = load_vector(l, &w->norm, s, "kv_norm.weight", "norm.weight", dim);
    return rc;
}

static int load_indexer(loader *l, lsa_layer *layer, const scope *attention)
{
    const lsa_config *c = l->config;
    scope indexer = {attention, "compressor.indexer.", "indexer."};
    scope keys = {attention, "compressor.indexer.", "indexer.compressor."};
    int rc = load_compressor(l, &layer->index_keys, &keys, c->index_dim, c->csa_rate, 1);
    if (!rc)
        rc = load_weight(l, &layer->index_q_b, &indexer, "q_b_proj.weight", "wq_b.weight",
                         c->index_heads * c->index_dim, c->q_rank);
    if (!rc)
        rc = load_weight(l, &layer->index_weights, &indexer, "scorer.weights_proj.weight",
                         "weights_proj.weight", c->index_heads, c->hidden);
    return rc;
}

static int load_attention(loader *l, lsa_layer *layer, const scope *outer, int32_t type)
{
    const lsa_config *c = l->config;
    scope s = {outer, "self_attn.", "attn."}, compressor = {&s, "compressor.", "compressor."};
    int64_t width = c->heads * c->head_dim;
    int rc =
        load_weight(l, &layer->q_a, &s, "q_a_proj.weight", "wq_a.weight", c->q_rank, c->hidden);
    if (!rc)
        rc = load_weight(l, &layer->q_b, &s, "q_b_proj.weight", "wq_b.weight", width, c->q_rank);
    if (!rc)
        rc = load_weight(l, &layer->kv, &s, "kv_proj.weight", "wkv.weight", c->head_dim, c->hidden);
    if (!rc)
        rc = load_weight(l, &layer->o_a, &s, "o_a_proj.weight", "wo_a.weight",
                         c->o_groups * c->o_rank, width / c->o_groups);
    if (!rc)
        rc = load_weight(l, &layer->o_b, &s, "o_b_proj.weight", "wo_b.weight", c->hidden,
                         c->o_groups * c->o_rank);
    if (!rc)
        rc = load_vector(l, &layer->q_a_norm, &s, "q_a_norm.weight", "q_norm.weight", c->q_rank);
    if (!rc)
        rc = load_vector(l, &layer->kv_norm, &s, "kv_norm.weight", "kv_norm.weight", c->head_dim);
    if (!rc) rc = load_vector(l, &layer->sinks, &s, "sinks", "attn_sink", c->heads);
    if (!rc && type == LSA_LAYER_HCA)
        rc = load_compressor(l, &layer->compressor, &compressor, c->head_dim, c->hca_rate, 0);
    if (!rc && type == LSA_LAYER_CSA) {
        rc = load_compressor(l, &layer->compressor, &compressor, c->head_dim, c->csa_rate, 1);
        if (!rc) rc = load_indexer(l, layer, &s);
    }
    return rc;
}

static int load_mlp(loader *l, lsa_expert_weights *w, const scope *s, int64_t width)
{
    int64_t hidden = l->config->hidden;
    int rc = load_weight(l, &w->gate, s, "gate_proj.weight", "w1.weight", width, hidden);
    if (!rc) rc = load_weight(l, &w->up, s, "up_proj.weight", "w3.weight", width, hidden);
    if (!rc) rc = load_weight(l, &w->down, s, "down_proj.weight", "w2.weight", hidden, width);
    return rc;
}

static int load_separate_experts(loader *l, lsa_layer *layer, const scope *s)
{
    int rc = LSA_OK;
    for (int64_t e = 0; !rc && e < l->config->experts; e++) {
        char number[32];
        snprintf(number, sizeof number, "experts.%lld.", (long long)e);
        scope expert = {s, number, number};
        rc = load_mlp(l, &layer->experts[e], &expert, l->config->moe_hidden);
    }
    return rc;
}

/* gate_up_proj [E, 2I, D], the gate's rows first, and down_proj [E, D, I]. */
static int load_fused_experts(loader *l, lsa_layer *layer, const scope *s)
{
    const lsa_config *c = l->config;
    int64_t gate_up_shape[3] = {c->experts, 2 * c->moe_hidden, c->hidden};
    int64_t down_shape[3] = {c->experts, c->hidden, c->moe_hidden};
    static const char gate_up_name[] = "experts.gate_up_proj", down_name[] = "experts.down_proj";
    stored gate_up, down;
    int rc = have_stored(l, &gate_up, s, gate_up_name, gate_up_name, 3, gate_up_shape);
    if (!rc) rc = have_stored(l, &down, s, down_name, down_name, 3, down_shape);
    for (int64_t e = 0; !rc && e < c->experts; e++) {
        lsa_expert_weights *w = &layer->experts[e];
        rc = slice(l, &w->gate, &gate_up, e, 0, c->moe_hidden);
        if (!rc) rc = slice(l, &w->up, &gate_up, e, c->moe_hidden, c->moe_hidden);
        if (!rc) rc = slice(l, &w->down, &down, e, 0, c->hidden);
    }
    return rc;
}

static int load_experts(loader *l, lsa_layer *layer, const scope *s)
{
    int64_t place;
    layer->experts = hold_block(l->model, l->config->experts * (int64_t)sizeof *layer->experts);
    if (!layer->experts) return LSA_ENOMEM;
    int rc = find(l, &place, s, "experts.gate_up_proj", "experts.gate_up_proj");
    if (rc) return rc;
    return place >= 0 ? load_fused_experts(l, layer, s) : load_separate_experts(l, layer, s);
}

static int draw_token_experts(loader *l, lsa_layer *layer, const scope *s)
{
    const lsa_config *c = l->config;
    char first[MOST_NAME], second[MOST_NAME];
    int64_t bytes = c->vocab * c->experts_per_token * (int64_t)sizeof(int32_t);
    int32_t *table = hold_block(l->model, bytes);
    if (!table) return LSA_ENOMEM;
    spell(first, second, s, "gate.tid2eid", "gate.tid2eid");
    lsa_random_experts(table, l->random, first, c->vocab, c->experts_per_token, c->experts);
    l->model->weight_bytes += bytes;
    layer->token_experts = table;
    return LSA_OK;
}

/* The table of hash routing, as int32, every expert in range. */
static int load_token_experts(loader *l, lsa_layer *layer, const scope *s)
{
    const lsa_config *c = l->config;
    int64_t place, shape[2] = {c->vocab, c->experts_per_token};
    lsa_tensor *t;
    int32_t *table = NULL;
    if (l->random) return draw_token_experts(l, layer, s);
    int rc = need(l, &place, s, "gate.tid2eid", "gate.tid2eid");
    if (!rc) rc = lsa_checkpoint_get(l->checkpoint, place, &t);
    if (rc) return rc;
    int64_t n = lsa_tensor_count(t);
    l->model->weight_bytes += n * lsa_dtype_size(t->dtype);
    if (!same_shape(t, 2, shape))
        rc = fail_shape(l, place, t, 2, shape);
    else if (t->dtype != LSA_I64 && t->dtype != LSA_I32)
        rc = fail_dtype(l, place, t, "i64 or i32");
    else if (!(table = hold_block(l->model, n * (int64_t)sizeof *table)))
        rc = LSA_ENOMEM;
    for (int64_t i = 0; !rc && i < n; i++) {
        int64_t id =
            t->dtype == LSA_I64 ? ((const int64_t *)t->data)[i] : ((const int32_t *)t->data)[i];
        if (id < 0 || id >= c->experts)
            rc = lsa_fail(LSA_EFORMAT, "%s: tensor %s: token %lld goes to expert %lld of %lld",
                          lsa_checkpoint_file(l->checkpoint, place),
                          lsa_checkpoint_name(l->checkpoint, place),
                          (long long)(i / c->experts_per_token), (long long)id,
                          (long long)c->experts);
        else
            table[i] = (int32_t)id;
    }
    lsa_tensor_free(t);
    layer->token_experts = table;
    return rc;
}

static int load_moe(loader *l, lsa_layer *layer, const scope *outer, int hash)
{
    const lsa_config *c = l->config;
    scope s = {outer, "mlp.", "ffn."}, shared = {&s, "shared_experts.", "shared_experts."};
    int rc =
        load_weight(l, &layer->router, &s, "gate.weight", "gate.weight", c->experts, c->hidden);
    if (!rc && hash) rc = load_token_experts(l, layer, &s);
    if (!rc && !hash)
        rc = load_vector(l, &layer->router_bias, &s, "gate.e_score_correction_bias", "gate.bias",
                         c->experts);
    if (!rc) rc = load_experts(l, layer, &s);
    if (!rc) rc = load_mlp(l, &layer->shared, &shared, c->moe_hidden * c->shared_experts);
    return rc;
}

static int load_layer(loader *l, int64_t i)
{
    if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
    const lsa_config *c = l->config;
    lsa_layer *layer = &l->model->layers[i];
    int64_t mix = (2 + c->hc_mult) * c->hc_mult;
    char number[32];
    snprintf(number, sizeof number, "layers.%lld.", (long long)i);
    scope s = {NULL, number, number};
    scope attn_hc = {&s, "attn_hc.", "hc_attn_"}, ffn_hc = {&s, "ffn_hc.", "hc_ffn_"};
    int rc = load_hc(l, &layer->attn_hc, &attn_hc, mix, 3);
    if (!rc) rc = load_hc(l, &layer->ffn_hc, &ffn_hc, mix, 3);
    if (!rc)
        rc = load_vector(l, &layer->attn_norm, &s, "input_layernorm.weight", "attn_norm.weight",
                         c->hidden);
    if (!rc)
        rc = load_vector(l, &layer->ffn_norm, &s, "post_attention_layernorm.weight",
                         "ffn_norm.weight", c->hidden);
    if (!rc) rc = load_attention(l, layer, &s, c->layer_type[i]);
    if (!rc) rc = load_moe(l, layer, &s, c->hash_moe[i]);
    return rc;
}

static int load_head(loader *l)
{
    const lsa_config *c = l->config;
    lsa_model *m = l->model;
    scope top = {NULL, "", ""}, hc = {NULL, "hc_head.hc_", "hc_head_"};
    int64_t place;
    int rc =
        load_weight(l, &m->embed, &top, "embed_tokens.weight", "embed.weight", c->vocab, c->hidden);
    if (!rc) rc = load_vector(l, &m->norm, &top, "norm.weight", "norm.weight", c->hidden);
    if (!rc) rc = load_hc(l, &m->hc_head, &hc, c->hc_mult, 1);
    if (!rc) rc = find(l, &place, &top, "lm_head.weight", "head.weight");
    if (rc) return rc;
    if ((place < 0 || l->random) && c->tied_embeddings) {
        m->head = m->embed;
        return LSA_OK;
    }
    return load_weight(l, &m->head, &top, "lm_head.weight", "head.weight", c->vocab, c->hidden);
}

static int load_frequencies(lsa_model *m)
{
    int64_t bytes = m->config.rope_dim / 2 * (int64_t)sizeof(float);
    m->main_freq = hold_block(m, bytes);
    m->compress_freq = hold_block(m, bytes);
    if (!m->main_freq || !m->compress_freq) return LSA_ENOMEM;
    lsa_rope_frequencies(m->main_freq, &m->config.main_rope, m->config.rope_dim);
    lsa_rope_frequencies(m->compress_freq, &m->config.compress_rope, m->config.rope_dim);
    return LSA_OK;
}

static int load_all(loader *l)
{
    lsa_model *m = l->model;
    m->layers = hold_block(m, m->config.layers * (int64_t)sizeof *m->layers);
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
    loader l = {m, &m->config, NULL, NULL};
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

int lsa_model_random(lsa_model **out, const char *config, const char *name,
                     const lsa_random *random)
{
    lsa_model *m = empty_model();
    if (!m) return LSA_ENOMEM;
    loader l = {m, &m->config, NULL, random};
    int rc = lsa_config_parse(&m->config, config, name);
    if (!rc) rc = load_all(&l);
    return hand_over(out, m, rc);
}

void lsa_model_free(lsa_model *model)
{
    if (!model) return;
    lsa_model_device_free(model->device);
    for (held *h = model->memory->first, *next; h; h = next) {
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
    for (const held *h = model->memory->first; h; h = h->next) {
        if (!h->tensor) continue;
        int64_t bytes = lsa_tensor_count(h->tensor) * lsa_dtype_size(h->tensor->dtype);
        *weights = lsa_hash(h->tensor->shape, h->tensor->rank * (int64_t)sizeof *h->tensor->shape,
                            *weights);
        *weights = hash_samples(h->tensor->data, bytes, *weights);
    }
}
