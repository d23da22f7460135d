/* Owns the trainer's memory, and the update of its weights. */
#include "core/train/trainer.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/tensor.h"
#include "core/base/try.h"
#include "core/train/trainer_private.h"
#include "kernels/table.h"

static int check(const lsa_trainer_shape *s)
{
    if (s->layers < 1 || s->hidden < 1 || s->rank < 1 || s->heads < 1 || s->dim < 1)
        return lsa_fail(LSA_ESHAPE,
                        "trainer: %lld layers, hidden %lld, rank %lld, %lld heads of %lld",
                        (long long)s->layers, (long long)s->hidden, (long long)s->rank,
                        (long long)s->heads, (long long)s->dim);
    if (s->rope_dim < 0 || s->rope_dim % 2 || s->rope_dim > s->dim)
        return lsa_fail(LSA_ESHAPE, "trainer: %lld rope dimensions of %lld", (long long)s->rope_dim,
                        (long long)s->dim);
    if (lsa_index_key_bytes(s->key_format, s->dim) < 1)
        return lsa_fail(LSA_EARG, "trainer: key format %d is not f32, bf16 or fp8", s->key_format);
    if (s->key_format == LSA_KV_FP8 && (s->dim & (s->dim - 1)))
        return lsa_fail(LSA_ESHAPE,
                        "trainer: fp8 keys of dimension %lld; rotated ones have a power of two",
                        (long long)s->dim);
    return LSA_OK;
}

int lsa_trainer_part_shape(const lsa_trainer *t, int32_t part, int64_t *rows, int64_t *cols)
{
    const lsa_trainer_shape *s = &t->shape;
    const int64_t shapes[4][2] = {
        {s->rank, s->hidden}, {1, s->rank}, {s->heads * s->dim, s->rank}, {s->heads, s->hidden}};
    if (part < 0 || part >= LSA_TRAIN_PARTS)
        return lsa_fail(LSA_EARG, "trainer: there is no part %d", part);
    *rows = shapes[part][0];
    *cols = shapes[part][1];
    return LSA_OK;
}

static int make(lsa_trainer **out, const lsa_trainer_shape *shape, const float *inv_freq,
                int32_t device)
{
    const lsa_kernels *k = lsa_kernels_on(device);
    if (!k) return LSA_EDEVICE;
    if (!k->index_learn)
        return lsa_fail(LSA_EDEVICE, "trainer: the CUDA library has no index_learn");
    lsa_trainer *t = lsa_alloc_zero(sizeof *t);
    if (!t) return LSA_ENOMEM;
    t->shape = *shape;
    t->k = k;
    t->memory = device == LSA_CPU ? LSA_MEMORY_HOST : LSA_MEMORY_GPU;
    t->gpu = device == LSA_CPU ? 0 : lsa_device_current();
    for (int32_t part = 0; part < LSA_TRAIN_PARTS; part++) {
        int64_t rows = 0, cols = 0;
        lsa_trainer_part_shape(t, part, &rows, &cols);
        t->offset[part + 1] = t->offset[part] + (rows * cols + 15) / 16 * 16;
    }
    int64_t half = shape->rope_dim / 2;
    t->inv_freq = lsa_alloc_in(t->memory, half * (int64_t)sizeof(float));
    for (int kind = 0; kind < LSA_TRAIN_KINDS; kind++)
        t->all[kind] = lsa_alloc_in(t->memory, lsa_trainer_count(t) * (int64_t)sizeof(float));
    if (!t->inv_freq || !t->all[0] || !t->all[1] || !t->all[2] || !t->all[3]) {
        lsa_trainer_free(t);
        return LSA_ENOMEM;
    }
    if (half) memcpy(t->inv_freq, inv_freq, (size_t)half * sizeof(float));
    *out = t;
    return LSA_OK;
}

int lsa_trainer_new(lsa_trainer **out, const lsa_trainer_shape *shape, const float *inv_freq,
                    int32_t device, int32_t gpu)
{
    LSA_TRY(check(shape));
    if (device != LSA_CUDA) return make(out, shape, inv_freq, device);
    int32_t before;
    LSA_TRY(lsa_device_enter(gpu, &before));
    return lsa_device_back(before, make(out, shape, inv_freq, device));
}

void lsa_trainer_free(lsa_trainer *t)
{
    if (!t) return;
    for (int kind = 0; kind < LSA_TRAIN_KINDS; kind++) lsa_free_in(t->memory, t->all[kind]);
    lsa_free_in(t->memory, t->inv_freq);
    lsa_free_in(t->memory, t->scratch);
    if (t->pinned) lsa_free_in(LSA_MEMORY_BOTH, t->pinned);
    lsa_free(t);
}

int64_t lsa_trainer_count(const lsa_trainer *t)
{
    return t->shape.layers * t->offset[LSA_TRAIN_PARTS];
}

float *lsa_trainer_all(lsa_trainer *t, int32_t kind)
{
    return kind >= 0 && kind < LSA_TRAIN_KINDS ? t->all[kind] : NULL;
}

float *lsa_trainer_part(lsa_trainer *t, int32_t kind, int64_t layer, int32_t part)
{
    if (kind < 0 || kind >= LSA_TRAIN_KINDS || layer < 0 || layer >= t->shape.layers || part < 0 ||
        part >= LSA_TRAIN_PARTS)
        return NULL;
    return t->all[kind] + layer * t->offset[LSA_TRAIN_PARTS] + t->offset[part];
}

static void *grow(int32_t kind, void **block, int64_t *has, int64_t bytes)
{
    if (bytes > *has || !*block) {
        void *larger = kind == LSA_MEMORY_HOST ? lsa_alloc(bytes) : lsa_alloc_in(kind, bytes);
        if (!larger) return NULL;
        lsa_free_in(kind, *block);
        *block = larger;
        *has = bytes;
    }
    return *block;
}

void *lsa_trainer_scratch(lsa_trainer *t, int64_t bytes)
{
    return grow(t->memory, &t->scratch, &t->scratch_bytes, bytes);
}

void *lsa_trainer_pinned(lsa_trainer *t, int64_t bytes)
{
    return grow(LSA_MEMORY_BOTH, &t->pinned, &t->pinned_bytes, bytes);
}

int lsa_trainer_use(const lsa_trainer *t, int32_t *before)
{
    *before = lsa_device_in_use();
    return t->memory == LSA_MEMORY_HOST ? LSA_OK : lsa_device_enter(t->gpu, before);
}

int lsa_trainer_wait(const lsa_trainer *t)
{
    return t->memory == LSA_MEMORY_HOST ? LSA_OK : lsa_device_synchronize();
}

static int gradient_norm(lsa_trainer *t, double *norm)
{
    int64_t n = lsa_trainer_count(t);
    void *workspace = lsa_trainer_scratch(t, t->k->square_sum_workspace(n));
    double *sum = t->memory == LSA_MEMORY_HOST ? norm : lsa_trainer_pinned(t, sizeof *sum);
    if (!workspace || !sum) return LSA_ENOMEM;
    LSA_TRY(t->k->square_sum(sum, t->all[LSA_TRAIN_GRADIENT], n, workspace, NULL));
    LSA_TRY(lsa_trainer_wait(t));
    *norm = sqrt(*sum);
    return LSA_OK;
}

static int update(lsa_trainer *t, lsa_adamw *how, double clip, double *norm)
{
    LSA_TRY(gradient_norm(t, norm));
    if (!isfinite(*norm)) return LSA_OK;
    how->gradient_scale = clip > 0 && *norm > clip ? (float)(clip / *norm) : 1.0f;
    LSA_TRY(t->k->adamw(t->all[LSA_TRAIN_VALUE], t->all[LSA_TRAIN_FIRST], t->all[LSA_TRAIN_SECOND],
                        t->all[LSA_TRAIN_GRADIENT], lsa_trainer_count(t), how, NULL));
    return lsa_trainer_wait(t);
}

int lsa_trainer_update(lsa_trainer *t, lsa_adamw *how, double clip, double *norm)
{
    int32_t before;
    LSA_TRY(lsa_trainer_use(t, &before));
    return lsa_device_back(before, update(t, how, clip, norm));
}
