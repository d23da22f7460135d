/* Owns how a model has a tensor: found in a checkpoint under one of its names, checked and taken as it is stored, or drawn. */
#include "core/model/loader.h"

#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/model/random_weights.h"
#include "kernels/convert.h"
#include "kernels/table.h"

enum { MOST_NAME = 256 };

/* Appends to the text, `at` bytes long, what fits of `more`; gives its length then. */
static size_t append(char *text, size_t at, const char *more)
{
    size_t n = strlen(more), room = MOST_NAME - 1 - at;
    n = n < room ? n : room;
    memcpy(text + at, more, n);
    text[at + n] = 0;
    return at + n;
}

static size_t append_scope(char *text, const lsa_scope *s, int released)
{
    if (!s) return 0;
    return append(text, append_scope(text, s->outer, released),
                  released ? s->released : s->transformers);
}

/* A tensor's two names. */
static void spell(char first[MOST_NAME], char second[MOST_NAME], const lsa_scope *s,
                  const char *transformers, const char *released)
{
    append(first, append_scope(first, s, 0), transformers);
    append(second, append_scope(second, s, 1), released);
}

/* Takes over a tensor or a block, even on failure. */
static int hold(lsa_model *model, lsa_tensor *tensor, void *block)
{
    lsa_held *h = lsa_alloc(sizeof *h);
    if (!h) {
        lsa_tensor_free(tensor);
        lsa_free(block);
        return LSA_ENOMEM;
    }
    *h = (lsa_held){model->memory->first, tensor, block};
    model->memory->first = h;
    return LSA_OK;
}

/* Memory, zeroed, that the model frees. */
void *lsa_loader_block(lsa_model *model, int64_t bytes)
{
    void *block = lsa_alloc_zero(bytes);
    return block && hold(model, NULL, block) == LSA_OK ? block : NULL;
}

/* The tensor of either name; *place is -1 where there is neither. */
int lsa_loader_find(const lsa_loader *l, int64_t *place, const lsa_scope *s,
                    const char *transformers, const char *released)
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

static int need(const lsa_loader *l, int64_t *place, const lsa_scope *s, const char *transformers,
                const char *released)
{
    char first[MOST_NAME], second[MOST_NAME];
    int rc = lsa_loader_find(l, place, s, transformers, released);
    if (rc || *place >= 0) return rc;
    spell(first, second, s, transformers, released);
    return lsa_fail(LSA_EFORMAT, "%s: tensor %s (or %s) is missing",
                    lsa_checkpoint_path(l->checkpoint), first, second);
}

/* The model holds the tensor, also on failure. */
static int keep(lsa_loader *l, lsa_tensor *t)
{
    int rc = hold(l->model, t, NULL);
    if (!rc) l->model->weight_bytes += lsa_tensor_count(t) * lsa_dtype_size(t->dtype);
    return rc;
}

/* Takes tensor `place`; the model holds it. */
static int take(lsa_loader *l, int64_t place, lsa_tensor **out)
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

static int fail_shape(const lsa_loader *l, int64_t place, const lsa_tensor *t, int32_t rank,
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

static int fail_dtype(const lsa_loader *l, int64_t place, const lsa_tensor *t, const char *expected)
{
    return lsa_fail(LSA_EDTYPE, "%s: tensor %s: dtype is %s, %s is expected",
                    lsa_checkpoint_file(l->checkpoint, place),
                    lsa_checkpoint_name(l->checkpoint, place), lsa_dtype_name(t->dtype), expected);
}

static int same_shape(const lsa_tensor *t, int32_t rank, const int64_t *shape)
{
    return t->rank == rank && memcmp(t->shape, shape, (size_t)rank * sizeof *shape) == 0;
}

static int draw_floats(lsa_loader *l, const float **out, const lsa_scope *s,
                       const char *transformers, int32_t rank, const int64_t *shape)
{
    char first[MOST_NAME], second[MOST_NAME];
    int64_t n = rank == 2 ? shape[0] * shape[1] : shape[0], bytes = n * (int64_t)sizeof(float);
    float *copy = lsa_loader_block(l->model, bytes);
    if (!copy) return LSA_ENOMEM;
    spell(first, second, s, transformers, transformers);
    LSA_TRY(lsa_random_vector(copy, l->random, first, n));
    l->model->weight_bytes += bytes;
    l->model->memory->vectors = lsa_hash(copy, bytes, l->model->memory->vectors);
    *out = copy;
    return LSA_OK;
}

/* A small tensor as f32. */
int lsa_load_floats(lsa_loader *l, const float **out, const lsa_scope *s, const char *transformers,
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
    else if (!(copy = lsa_loader_block(l->model, n * (int64_t)sizeof *copy)))
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

int lsa_load_vector(lsa_loader *l, const float **out, const lsa_scope *s, const char *transformers,
                    const char *released, int64_t n)
{
    return lsa_load_floats(l, out, s, transformers, released, 1, &n);
}

static int is_scaled(const lsa_stored *s)
{
    return s->dtype == LSA_F8_E4M3 || s->dtype == LSA_F4_E2M1;
}

/* Takes tensor s->place, checks its shape and dtype. int8 is how packed fp4 is stored: two values a byte. */
static int take_numbers(lsa_loader *l, lsa_stored *s, int32_t rank, const int64_t *shape)
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
static int find_scale(const lsa_loader *l, const lsa_stored *s, int64_t *place)
{
    static const char weight[] = ".weight";
    const char *name = lsa_checkpoint_name(l->checkpoint, s->place);
    size_t length = strlen(name), tail = sizeof weight - 1;
    int is_weight = length > tail && strcmp(name + length - tail, weight) == 0;
    char text[MOST_NAME];
    size_t at = append(
        text, 0, name + (strncmp(name, "model.", 6) ? 0 : 6)); /* with and without are tried */
    if (is_weight) text[at - tail] = 0;
    lsa_scope base = {NULL, text, text};
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
static int set_scale(lsa_stored *s, const lsa_tensor *t, int32_t rank)
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

static int take_scale(lsa_loader *l, lsa_stored *s)
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

static int take_stored(lsa_loader *l, lsa_stored *s, int64_t place, int32_t rank,
                       const int64_t *shape)
{
    *s = (lsa_stored){.place = place};
    int rc = take_numbers(l, s, rank, shape);
    if (!rc && is_scaled(s)) rc = take_scale(l, s);
    return rc;
}

/* The same in a model of random weights. */
static int draw_stored(lsa_loader *l, lsa_stored *s, const lsa_scope *outer,
                       const char *transformers, int32_t rank, const int64_t *shape)
{
    char first[MOST_NAME], second[MOST_NAME];
    lsa_tensor *t;
    spell(first, second, outer, transformers, transformers);
    LSA_TRY(lsa_random_weight(&t, l->random, first, rank, shape));
    LSA_TRY(keep(l, t));
    *s = (lsa_stored){.data = t,
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
int lsa_load_stored(lsa_loader *l, lsa_stored *s, const lsa_scope *outer, const char *transformers,
                    const char *released, int32_t rank, const int64_t *shape)
{
    int64_t place;
    if (l->random) return draw_stored(l, s, outer, transformers, rank, shape);
    LSA_TRY(need(l, &place, outer, transformers, released));
    return take_stored(l, s, place, rank, shape);
}

/* Rows from .. from + rows - 1 of one expert (0 where there is no such dimension). */
int lsa_stored_rows(const lsa_loader *l, lsa_weight *w, const lsa_stored *s, int64_t expert,
                    int64_t from, int64_t rows)
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

int lsa_load_weight(lsa_loader *l, lsa_weight *w, const lsa_scope *s, const char *transformers,
                    const char *released, int64_t rows, int64_t cols)
{
    int64_t shape[2] = {rows, cols};
    lsa_stored numbers;
    int rc = lsa_load_stored(l, &numbers, s, transformers, released, 2, shape);
    return rc ? rc : lsa_stored_rows(l, w, &numbers, 0, 0, rows);
}

static int draw_token_experts(lsa_loader *l, lsa_layer *layer, const lsa_scope *s)
{
    const lsa_config *c = l->config;
    char first[MOST_NAME], second[MOST_NAME];
    int64_t bytes = c->vocab * c->experts_per_token * (int64_t)sizeof(int32_t);
    int32_t *table = lsa_loader_block(l->model, bytes);
    if (!table) return LSA_ENOMEM;
    spell(first, second, s, "gate.tid2eid", "gate.tid2eid");
    lsa_random_experts(table, l->random, first, c->vocab, c->experts_per_token, c->experts);
    l->model->weight_bytes += bytes;
    layer->token_experts = table;
    return LSA_OK;
}

/* The table of hash routing, as int32, every expert in range. */
int lsa_load_token_experts(lsa_loader *l, lsa_layer *layer, const lsa_scope *s)
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
    else if (!(table = lsa_loader_block(l->model, n * (int64_t)sizeof *table)))
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
