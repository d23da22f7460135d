/* Owns the forward and the backward pass of one target layer over a batch of samples. */
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/parallel.h"
#include "core/base/tensor.h"
#include "core/base/try.h"
#include "core/train/trainer_private.h"

/* One call's working memory: everything with a row for each sample. What the host writes comes first; for a GPU it does so in a
 * copy of that part, in pinned memory, that moves at once. */
typedef struct batch {
    const lsa_training_sample *given;
    int64_t n, most, count; /* samples; ids of the longest; ids in all */
    lsa_index_sample *samples;
    float *hidden, *weights;
    int32_t *positions, *ids; /* ids, for a GPU: 0 .. most - 1 */
    uint8_t *keys;            /* for a GPU: those that the ids name, in their order */
    float *low, *normed, *q, *w, *dq, *dw, *table;
    double *losses; /* which the host reads */
    uint8_t *linear, *learn;
    uint8_t *base, *host; /* where the first part lies, and where the host writes it */
    int64_t host_bytes;   /* of it */
} batch;

/* Takes `bytes` bytes of the scratch memory, or only counts them where base is NULL. */
static void *take(uint8_t *base, int64_t *used, int64_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 255) / 256 * 256; /* which cuBLASLt wants of its workspace */
    return at;
}

static int on_gpu(const lsa_trainer *t) { return t->memory != LSA_MEMORY_HOST; }

static int64_t key_bytes(const lsa_trainer *t)
{
    return lsa_index_key_bytes(t->shape.key_format, t->shape.dim);
}

static lsa_weight weight_of(lsa_trainer *t, int64_t layer, int32_t part)
{
    lsa_weight w = {.data = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, part),
                    .block_rows = 1,
                    .block_cols = 1,
                    .dtype = LSA_F32};
    lsa_trainer_part_shape(t, part, &w.rows, &w.cols);
    return w;
}

static int64_t linear_bytes(lsa_trainer *t, int64_t n)
{
    const int32_t parts[] = {LSA_TRAIN_A, LSA_TRAIN_B, LSA_TRAIN_W};
    int64_t most = 0;
    for (int i = 0; i < 3; i++) {
        lsa_weight w = weight_of(t, 0, parts[i]);
        int64_t bytes = t->k->linear_workspace(&w, n, w.rows, LSA_COMPUTE_F32);
        if (bytes > most) most = bytes;
    }
    return most;
}

static int64_t lay_out(batch *b, lsa_trainer *t, uint8_t *base)
{
    const lsa_trainer_shape *s = &t->shape;
    int64_t n = b->n, used = 0, f = sizeof(float);
    b->base = base;
    b->samples = take(base, &used, n * (int64_t)sizeof *b->samples);
    b->hidden = take(base, &used, n * s->hidden * f);
    b->positions = take(base, &used, n * (int64_t)sizeof *b->positions);
    if (on_gpu(t)) {
        b->ids = take(base, &used, b->most * (int64_t)sizeof *b->ids);
        b->weights = take(base, &used, b->count * f);
        b->keys = take(base, &used, b->count * key_bytes(t));
    }
    b->host_bytes = used;
    b->low = take(base, &used, n * s->rank * f);
    b->normed = take(base, &used, n * s->rank * f);
    b->q = take(base, &used, n * s->heads * s->dim * f);
    b->dq = take(base, &used, n * s->heads * s->dim * f);
    b->w = take(base, &used, n * s->heads * f);
    b->dw = take(base, &used, n * s->heads * f);
    b->table = take(base, &used, n * s->rope_dim * f);
    b->losses = take(base, &used, n * (int64_t)sizeof(double));
    b->linear = take(base, &used, linear_bytes(t, n));
    b->learn = take(base, &used, t->k->index_learn_workspace(n, b->most, s->heads, s->dim));
    return used;
}

/* Memory for all of it, and `more` bytes behind. */
static uint8_t *make_room(batch *b, lsa_trainer *t, int64_t more)
{
    int64_t used = lay_out(b, t, NULL);
    uint8_t *base = lsa_trainer_scratch(t, used + more);
    if (!base) return NULL;
    lay_out(b, t, base);
    b->host = base;
    if (on_gpu(t)) {
        b->host = lsa_trainer_pinned(t, b->host_bytes + b->n * (int64_t)sizeof *b->losses);
        if (!b->host) return NULL;
        b->losses = (double *)(b->host + b->host_bytes);
    }
    return base + used;
}

/* Where the host writes what lies at `at`. */
static void *host_of(const batch *b, const void *at)
{
    return b->host + ((const uint8_t *)at - b->base);
}

/* Checks the samples, and counts. */
static int measure(batch *b, const lsa_training_sample *samples, int64_t n)
{
    b->given = samples;
    b->n = n;
    for (int64_t i = 0; i < n; i++) {
        const lsa_training_sample *x = samples + i;
        int64_t count = x->positives + x->negatives;
        if (x->positives < 0 || x->negatives < 0)
            return lsa_fail(LSA_ESHAPE, "trainer: sample %lld has %lld positives, %lld negatives",
                            (long long)i, (long long)x->positives, (long long)x->negatives);
        if (x->position < 0 || x->position > INT32_MAX)
            return lsa_fail(LSA_EARG,
                            "trainer: sample %lld is at position %lld, 0 to %d are possible",
                            (long long)i, (long long)x->position, INT32_MAX);
        if (x->hidden_dtype != LSA_F32 && x->hidden_dtype != LSA_BF16)
            return lsa_fail(LSA_EDTYPE, "trainer: hidden states of dtype %d are not f32 or bf16",
                            x->hidden_dtype);
        for (int64_t j = 0; j < count; j++)
            if (x->ids[j] < 0 || x->ids[j] >= x->key_count)
                return lsa_fail(LSA_EARG, "trainer: sample %lld has chunk %d, of %lld",
                                (long long)i, x->ids[j], (long long)x->key_count);
        b->count += count;
        if (count > b->most) b->most = count;
    }
    b->most = (b->most + 63) / 64 * 64; /* few shapes: a product's algorithm is chosen for each */
    return LSA_OK;
}

/* ---- what the host writes ---- */

typedef struct packing {
    const batch *b;
    int64_t key_bytes;
} packing;

/* Samples' weights and keys, side by side. */
static void pack_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const packing *p = context;
    const lsa_index_sample *samples = host_of(p->b, p->b->samples);
    for (int64_t i = from; i < to; i++) {
        const lsa_training_sample *x = p->b->given + i;
        int64_t count = x->positives + x->negatives;
        uint8_t *keys = host_of(p->b, samples[i].keys);
        if (count)
            memcpy(host_of(p->b, samples[i].weights), x->weights, (size_t)count * sizeof(float));
        for (int64_t j = 0; j < count; j++)
            memcpy(keys + j * p->key_bytes, (const uint8_t *)x->keys + x->ids[j] * p->key_bytes,
                   (size_t)p->key_bytes);
    }
}

/* Everything that the samples say, where the device reads it. */
static int load(lsa_trainer *t, batch *b)
{
    int64_t size = t->shape.hidden, before = 0;
    float *hidden = host_of(b, b->hidden);
    int32_t *positions = host_of(b, b->positions);
    lsa_index_sample *samples = host_of(b, b->samples);
    for (int64_t i = 0; i < b->n; i++) {
        const lsa_training_sample *x = b->given + i;
        LSA_TRY(lsa_kernels_cpu.convert(hidden + i * size, x->hidden, size, LSA_F32,
                                        x->hidden_dtype, NULL));
        positions[i] = (int32_t)x->position;
        samples[i] = (lsa_index_sample){x->keys, x->ids, x->weights, x->positives, x->negatives};
        if (!on_gpu(t)) continue;
        samples[i].keys = b->keys + before * key_bytes(t);
        samples[i].ids = b->ids;
        samples[i].weights = b->weights + before;
        before += x->positives + x->negatives;
    }
    if (!on_gpu(t)) return LSA_OK;
    int32_t *ids = host_of(b, b->ids);
    for (int64_t j = 0; j < b->most; j++) ids[j] = (int32_t)j;
    packing p = {b, key_bytes(t)};
    lsa_parallel(lsa_threads_for(b->count * 16), b->n, pack_part, &p);
    return lsa_device_copy(b->base, b->host, b->host_bytes);
}

/* ---- passes ---- */

/* Queries before and after the norm are kept: the gradient needs them. */
static int forward(lsa_trainer *t, int64_t layer, batch *b)
{
    const lsa_trainer_shape *s = &t->shape;
    const lsa_kernels *k = t->k;
    int64_t n = b->n, width = s->heads * s->dim;
    lsa_weight wa = weight_of(t, layer, LSA_TRAIN_A), wb = weight_of(t, layer, LSA_TRAIN_B);
    lsa_weight ww = weight_of(t, layer, LSA_TRAIN_W);
    const float *norm = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, LSA_TRAIN_NORM);
    LSA_TRY(load(t, b));
    LSA_TRY(k->linear(b->low, b->hidden, &wa, n, 0, s->rank, s->hidden, s->rank, LSA_COMPUTE_F32,
                      b->linear, NULL));
    LSA_TRY(k->rmsnorm(b->normed, b->low, norm, n, s->rank, s->norm_eps, NULL));
    LSA_TRY(k->linear(b->q, b->normed, &wb, n, 0, width, s->rank, width, LSA_COMPUTE_F32, b->linear,
                      NULL));
    LSA_TRY(k->rope_table(b->table, t->inv_freq, b->positions, n, s->rope_dim / 2, NULL));
    LSA_TRY(k->rope(b->q, b->table, n, s->heads, s->dim, s->rope_dim, 0, NULL));
    if (s->key_format == LSA_KV_FP8) LSA_TRY(k->hadamard(b->q, n * s->heads, s->dim, NULL));
    LSA_TRY(k->linear(b->w, b->hidden, &ww, n, 0, s->heads, s->hidden, s->heads, LSA_COMPUTE_F32,
                      b->linear, NULL));
    float scale = 1.0f / sqrtf((float)s->dim) / sqrtf((float)s->heads);
    return k->scale(b->w, scale, n * s->heads, NULL);
}

static int backward(lsa_trainer *t, int64_t layer, batch *b)
{
    const lsa_trainer_shape *s = &t->shape;
    const lsa_kernels *k = t->k;
    int64_t n = b->n, width = s->heads * s->dim;
    float *d[LSA_TRAIN_PARTS], *dnormed = b->q,
                               scale = 1.0f / sqrtf((float)s->dim) / sqrtf((float)s->heads);
    for (int32_t part = 0; part < LSA_TRAIN_PARTS; part++)
        d[part] = lsa_trainer_part(t, LSA_TRAIN_GRADIENT, layer, part);
    const float *wb = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, LSA_TRAIN_B);
    const float *norm = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, LSA_TRAIN_NORM);
    LSA_TRY(k->scale(b->dw, scale, n * s->heads, NULL));
    if (s->key_format == LSA_KV_FP8) LSA_TRY(k->hadamard(b->dq, n * s->heads, s->dim, NULL));
    LSA_TRY(k->rope(b->dq, b->table, n, s->heads, s->dim, s->rope_dim, 1, NULL));
    LSA_TRY(k->gemm(d[LSA_TRAIN_B], b->dq, b->normed, width, s->rank, n, s->rank, width, s->rank, 1,
                    0, NULL));
    LSA_TRY(k->gemm(dnormed, b->dq, wb, n, s->rank, width, s->rank, width, s->rank, 0, 0, NULL));
    LSA_TRY(k->rmsnorm_gradient(dnormed, d[LSA_TRAIN_NORM], dnormed, b->low, norm, n, s->rank,
                                s->norm_eps, NULL));
    LSA_TRY(k->gemm(d[LSA_TRAIN_A], dnormed, b->hidden, s->rank, s->hidden, n, s->hidden, s->rank,
                    s->hidden, 1, 0, NULL));
    return k->gemm(d[LSA_TRAIN_W], b->dw, b->hidden, s->heads, s->hidden, n, s->hidden, s->heads,
                   s->hidden, 1, 0, NULL);
}

static int check_layer(const lsa_trainer *t, int64_t layer)
{
    if (layer >= 0 && layer < t->shape.layers) return LSA_OK;
    return lsa_fail(LSA_EARG, "trainer: layer %lld of %lld", (long long)layer,
                    (long long)t->shape.layers);
}

static int gradients(lsa_trainer *t, int64_t layer, const lsa_training_sample *samples, int64_t n,
                     const lsa_index_loss *how, double share, double *loss)
{
    const lsa_trainer_shape *s = &t->shape;
    batch b = {0};
    if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
    LSA_TRY(lsa_index_learn_check(n, 0, s->heads, s->dim, s->key_format, how));
    LSA_TRY(measure(&b, samples, n));
    if (!make_room(&b, t, 0)) return LSA_ENOMEM;
    LSA_TRY(forward(t, layer, &b));
    LSA_TRY(t->k->index_learn(b.losses, b.dq, b.dw, b.q, b.w, b.samples, n, b.most, s->heads,
                              s->dim, s->key_format, how, (float)share, b.learn, NULL));
    LSA_TRY(backward(t, layer, &b));
    LSA_TRY(lsa_trainer_wait(t));
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += b.losses[i];
    *loss += share * sum;
    return LSA_OK;
}

int lsa_trainer_gradients(lsa_trainer *t, int64_t layer, const lsa_training_sample *samples,
                          int64_t n, const lsa_index_loss *how, double share, double *loss)
{
    int32_t before;
    LSA_TRY(check_layer(t, layer));
    LSA_TRY(lsa_trainer_use(t, &before));
    return lsa_device_back(before, gradients(t, layer, samples, n, how, share, loss));
}

static int logits_of(lsa_trainer *t, int64_t layer, const lsa_training_sample *sample,
                     float *logits)
{
    const lsa_trainer_shape *s = &t->shape;
    batch b = {0};
    lsa_training_sample alone = *sample;
    int64_t count = sample->key_count, rest = 0;
    alone.positives = alone.negatives = 0;
    LSA_TRY(measure(&b, &alone, 1));
    int64_t scoring =
        t->k->index_score_workspace(1, count, s->heads, s->dim, s->key_format, LSA_COMPUTE_F32);
    int64_t keys_bytes = on_gpu(t) ? count * key_bytes(t) : 0,
            logits_bytes = on_gpu(t) ? count * (int64_t)sizeof *logits : 0;
    take(NULL, &rest, scoring);
    take(NULL, &rest, keys_bytes);
    take(NULL, &rest, logits_bytes);
    uint8_t *at = make_room(&b, t, rest);
    if (!at) return LSA_ENOMEM;
    rest = 0;
    void *workspace = take(at, &rest, scoring);
    void *keys = take(at, &rest, keys_bytes), *out = take(at, &rest, logits_bytes);
    LSA_TRY(forward(t, layer, &b));
    if (on_gpu(t)) LSA_TRY(lsa_device_copy(keys, sample->keys, keys_bytes));
    LSA_TRY(t->k->index_score(on_gpu(t) ? out : logits, b.q, b.w, on_gpu(t) ? keys : sample->keys,
                              1, count, s->heads, s->dim, key_bytes(t), count, s->key_format,
                              LSA_COMPUTE_F32, workspace, NULL));
    return on_gpu(t) ? lsa_device_copy(logits, out, logits_bytes) : LSA_OK;
}

int lsa_trainer_logits(lsa_trainer *t, int64_t layer, const lsa_training_sample *sample,
                       float *logits)
{
    int32_t before;
    LSA_TRY(check_layer(t, layer));
    LSA_TRY(lsa_trainer_use(t, &before));
    return lsa_device_back(before, logits_of(t, layer, sample, logits));
}
