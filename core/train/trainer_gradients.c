/* Owns the forward and the backward pass of one target layer over a batch of samples. */
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/model/indexer.h"
#include "core/train/trainer_private.h"
#include "kernels/convert.h"
#include "kernels/gemm.h"
#include "kernels/hadamard.h"
#include "kernels/index_gradient.h"
#include "kernels/index_score.h"
#include "kernels/rmsnorm.h"
#include "kernels/rmsnorm_gradient.h"
#include "kernels/rope.h"
#include "kernels/table.h"

/* One call's working memory: everything with a row for each sample. */
typedef struct batch {
    float *hidden, *low, *normed, *q, *w, *dq, *dw, *table;
    float *logits, *slope; /* a row of `most` for each thread */
    int32_t *positions;
    double *losses;
    uint8_t *linear, *gather; /* gather: gather_bytes for each thread */
    int64_t most, gather_bytes;
    int threads;
} batch;

/* Takes `bytes` bytes of the scratch memory, or only counts them where base is NULL. */
static void *take(uint8_t *base, int64_t *used, int64_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
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
        int64_t bytes = lsa_linear_workspace(&w, n, w.rows, LSA_COMPUTE_F32);
        if (bytes > most) most = bytes;
    }
    return most;
}

static int64_t lay_out(batch *b, lsa_trainer *t, uint8_t *base, int64_t n)
{
    const lsa_trainer_shape *s = &t->shape;
    int64_t used = 0, f = sizeof(float);
    b->hidden = take(base, &used, n * s->hidden * f);
    b->low = take(base, &used, n * s->rank * f);
    b->normed = take(base, &used, n * s->rank * f);
    b->q = take(base, &used, n * s->heads * s->dim * f);
    b->dq = take(base, &used, n * s->heads * s->dim * f);
    b->w = take(base, &used, n * s->heads * f);
    b->dw = take(base, &used, n * s->heads * f);
    b->table = take(base, &used, n * s->rope_dim * f);
    b->positions = take(base, &used, n * (int64_t)sizeof(int32_t));
    b->losses = take(base, &used, n * (int64_t)sizeof(double));
    b->linear = take(base, &used, linear_bytes(t, n));
    b->logits = take(base, &used, b->threads * b->most * f);
    b->slope = take(base, &used, b->threads * b->most * f);
    b->gather_bytes = (lsa_index_gradient_workspace(b->most, s->heads, s->dim) + 63) / 64 * 64;
    b->gather = take(base, &used, b->threads * b->gather_bytes);
    return used;
}

/* Checks the samples; sets what depends on the longest one. */
static int measure(batch *b, const lsa_trainer_shape *s, const lsa_training_sample *samples,
                   int64_t n)
{
    int64_t all = 0;
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
        all += count;
        if (count > b->most) b->most = count;
    }
    b->most = (b->most + 15) / 16 * 16;
    b->threads = lsa_threads_for(all * s->heads * s->dim / 8);
    return LSA_OK;
}

static int load_hidden(float *out, const lsa_training_sample *samples, int64_t n, int64_t size)
{
    int rc = LSA_OK;
    for (int64_t i = 0; !rc && i < n; i++)
        rc = lsa_kernels_cpu.convert(out + i * size, samples[i].hidden, size, LSA_F32,
                                     samples[i].hidden_dtype, NULL);
    return rc;
}

/* Queries before and after the norm are kept: the gradient needs them. */
static int forward(lsa_trainer *t, int64_t layer, const lsa_training_sample *samples, int64_t n,
                   batch *b)
{
    const lsa_trainer_shape *s = &t->shape;
    int64_t width = s->heads * s->dim;
    lsa_weight wa = weight_of(t, layer, LSA_TRAIN_A), wb = weight_of(t, layer, LSA_TRAIN_B);
    lsa_weight ww = weight_of(t, layer, LSA_TRAIN_W);
    const float *norm = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, LSA_TRAIN_NORM);
    int rc = load_hidden(b->hidden, samples, n, s->hidden);
    if (!rc)
        rc = lsa_kernels_cpu.linear(b->low, b->hidden, &wa, n, 0, s->rank, s->hidden, s->rank,
                                    LSA_COMPUTE_F32, b->linear, NULL);
    if (!rc) rc = lsa_kernels_cpu.rmsnorm(b->normed, b->low, norm, n, s->rank, s->norm_eps, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.linear(b->q, b->normed, &wb, n, 0, width, s->rank, width,
                                    LSA_COMPUTE_F32, b->linear, NULL);
    for (int64_t i = 0; i < n; i++) b->positions[i] = (int32_t)samples[i].position;
    if (!rc)
        rc = lsa_kernels_cpu.rope_table(b->table, t->inv_freq, b->positions, n, s->rope_dim / 2,
                                        NULL);
    if (!rc) rc = lsa_kernels_cpu.rope(b->q, b->table, n, s->heads, s->dim, s->rope_dim, 0, NULL);
    if (!rc && s->key_format == LSA_KV_FP8)
        rc = lsa_kernels_cpu.hadamard(b->q, n * s->heads, s->dim, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.linear(b->w, b->hidden, &ww, n, 0, s->heads, s->hidden, s->heads,
                                    LSA_COMPUTE_F32, b->linear, NULL);
    float scale = 1.0f / sqrtf((float)s->dim) / sqrtf((float)s->heads);
    for (int64_t i = 0; !rc && i < n * s->heads; i++) b->w[i] *= scale;
    return rc;
}

/* One sample: its loss, and the gradients of its query and head weights. */
static int score(const lsa_trainer_shape *s, const lsa_training_sample *x,
                 const lsa_index_loss *how, double share, batch *b, int64_t i, int thread)
{
    int64_t width = s->heads * s->dim, count = x->positives + x->negatives;
    float *logits = b->logits + thread * b->most, *slope = b->slope + thread * b->most,
          *w = b->w + i * s->heads;
    void *workspace = b->gather + thread * b->gather_bytes;
    int rc = lsa_kernels_cpu.index_gather(
        logits, b->q + i * width, w, x->keys, x->ids, count, s->heads, s->dim,
        lsa_index_key_bytes(s->key_format, s->dim), s->key_format, workspace, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.index_loss(b->losses + i, slope, logits, x->weights, x->positives,
                                        x->negatives, how, NULL);
    for (int64_t j = 0; j < count; j++) slope[j] *= (float)share;
    if (!rc)
        rc = lsa_kernels_cpu.index_gradient(b->dq + i * width, b->dw + i * s->heads, slope, w,
                                            count, s->heads, s->dim, workspace, NULL);
    return rc;
}

typedef struct sample_scoring {
    const lsa_trainer_shape *s;
    const lsa_training_sample *samples;
    const lsa_index_loss *how;
    double share;
    batch *b;
    atomic_int failed;
} sample_scoring;

static void score_part(void *context, int64_t from, int64_t to, int thread)
{
    sample_scoring *c = context;
    for (int64_t i = from; i < to; i++) {
        int rc = score(c->s, c->samples + i, c->how, c->share, c->b, i, thread);
        if (rc) c->failed = rc;
    }
}

static int score_all(const lsa_trainer_shape *s, const lsa_training_sample *samples, int64_t n,
                     const lsa_index_loss *how, double share, batch *b)
{
    sample_scoring c = {s, samples, how, share, b, LSA_OK};
    lsa_parallel(b->threads, n, score_part, &c);
    return c.failed;
}

static int backward(lsa_trainer *t, int64_t layer, int64_t n, batch *b)
{
    const lsa_trainer_shape *s = &t->shape;
    int64_t width = s->heads * s->dim;
    float *d[LSA_TRAIN_PARTS], *dnormed = b->q,
                               scale = 1.0f / sqrtf((float)s->dim) / sqrtf((float)s->heads);
    for (int32_t part = 0; part < LSA_TRAIN_PARTS; part++)
        d[part] = lsa_trainer_part(t, LSA_TRAIN_GRADIENT, layer, part);
    const float *wb = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, LSA_TRAIN_B);
    const float *norm = lsa_trainer_part(t, LSA_TRAIN_VALUE, layer, LSA_TRAIN_NORM);
    for (int64_t i = 0; i < n * s->heads; i++) b->dw[i] *= scale;
    int rc = s->key_format == LSA_KV_FP8
                 ? lsa_kernels_cpu.hadamard(b->dq, n * s->heads, s->dim, NULL)
                 : LSA_OK;
    if (!rc) rc = lsa_kernels_cpu.rope(b->dq, b->table, n, s->heads, s->dim, s->rope_dim, 1, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.gemm(d[LSA_TRAIN_B], b->dq, b->normed, width, s->rank, n, s->rank,
                                  width, s->rank, 1, 0, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.gemm(dnormed, b->dq, wb, n, s->rank, width, s->rank, width, s->rank, 0,
                                  0, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.rmsnorm_gradient(dnormed, d[LSA_TRAIN_NORM], dnormed, b->low, norm, n,
                                              s->rank, s->norm_eps, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.gemm(d[LSA_TRAIN_A], dnormed, b->hidden, s->rank, s->hidden, n,
                                  s->hidden, s->rank, s->hidden, 1, 0, NULL);
    if (!rc)
        rc = lsa_kernels_cpu.gemm(d[LSA_TRAIN_W], b->dw, b->hidden, s->heads, s->hidden, n,
                                  s->hidden, s->heads, s->hidden, 1, 0, NULL);
    return rc;
}

int lsa_trainer_gradients(lsa_trainer *t, int64_t layer, const lsa_training_sample *samples,
                          int64_t n, const lsa_index_loss *how, double share, double *loss)
{
    batch b = {0};
    double nothing;
    if (layer < 0 || layer >= t->shape.layers)
        return lsa_fail(LSA_EARG, "trainer: layer %lld of %lld", (long long)layer,
                        (long long)t->shape.layers);
    if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
    int rc = lsa_kernels_cpu.index_loss(&nothing, NULL, NULL, NULL, 0, 0, how,
                                        NULL); /* a bad loss, told by this thread */
    if (!rc) rc = measure(&b, &t->shape, samples, n);
    if (rc) return rc;
    uint8_t *base = lsa_trainer_scratch(t, lay_out(&b, t, NULL, n));
    if (!base) return LSA_ENOMEM;
    lay_out(&b, t, base, n);
    rc = forward(t, layer, samples, n, &b);
    if (!rc) rc = score_all(&t->shape, samples, n, how, share, &b);
    if (!rc) rc = backward(t, layer, n, &b);
    double sum = 0;
    for (int64_t i = 0; !rc && i < n; i++) sum += b.losses[i];
    *loss += share * sum;
    return rc;
}

int lsa_trainer_logits(lsa_trainer *t, int64_t layer, const lsa_training_sample *sample,
                       float *logits)
{
    const lsa_trainer_shape *s = &t->shape;
    batch b = {.threads = 1};
    lsa_training_sample alone = *sample;
    if (layer < 0 || layer >= s->layers)
        return lsa_fail(LSA_EARG, "trainer: layer %lld of %lld", (long long)layer,
                        (long long)s->layers);
    alone.positives = alone.negatives = 0;
    int rc = measure(&b, s, &alone, 1);
    if (rc) return rc;
    b.threads = 1;
    int64_t fixed = lay_out(&b, t, NULL, 1);
    int64_t scoring = lsa_index_score_workspace(1, sample->key_count, s->heads, s->dim,
                                                s->key_format, LSA_COMPUTE_F32);
    uint8_t *base = lsa_trainer_scratch(t, fixed + scoring);
    if (!base) return LSA_ENOMEM;
    lay_out(&b, t, base, 1);
    rc = forward(t, layer, &alone, 1, &b);
    if (rc) return rc;
    return lsa_kernels_cpu.index_score(logits, b.q, b.w, sample->keys, 1, sample->key_count,
                                       s->heads, s->dim, lsa_index_key_bytes(s->key_format, s->dim),
                                       sample->key_count, s->key_format, LSA_COMPUTE_F32,
                                       base + fixed, NULL);
}
