/* Ensemble of indexer logits on the CPU. */
#include "kernels/ensemble.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum { PART = 4096 }; /* chunks of a task */

static inline LSA_BODY f32x16 load(const float *p, int64_t m)
{
    return m == 16 ? f32x16_load(p) : f32x16_load_n(p, m);
}

/* The ensemble of m <= 16 chunks, whose logits of each layer lie n apart. */
static inline LSA_BODY f32x16 joined(const float *logits, int64_t layers, int64_t n, int64_t m,
                                     int32_t how)
{
    f32x16 v = load(logits, m);
    if (how == LSA_ENSEMBLE_MAX) {
        /* sigmoid is monotonic, so the max needs one a chunk; a NaN wins over every number. */
        for (int64_t l = 1; l < layers; l++) v = f32x16_larger(v, load(logits + l * n, m));
        return f32x16_sigmoid(v);
    }
    v = f32x16_sigmoid(v);
    for (int64_t l = 1; l < layers; l++) v += f32x16_sigmoid(load(logits + l * n, m));
    return v / f32x16_set((float)layers);
}

/* Chunks from .. to-1. */
static inline LSA_BODY void ensemble_body(float *out, const float *logits, int64_t layers,
                                          int64_t n, int64_t from, int64_t to, int32_t how)
{
    int64_t s = from;
    for (; s + 16 <= to; s += 16) f32x16_store(out + s, joined(logits + s, layers, n, 16, how));
    if (s < to) f32x16_store_n(out + s, joined(logits + s, layers, n, to - s, how), to - s);
}

LSA_PATHS(ensemble,
          (float *out, const float *logits, int64_t layers, int64_t n, int64_t from, int64_t to,
           int32_t how),
          (out, logits, layers, n, from, to, how))

int lsa_ensemble_check(int64_t layers, int32_t how)
{
    if (layers < 1)
        return lsa_fail(LSA_ESHAPE, "ensemble: %lld layers, at least 1 is needed",
                        (long long)layers);
    if (how != LSA_ENSEMBLE_MAX && how != LSA_ENSEMBLE_MEAN)
        return lsa_fail(LSA_EARG, "ensemble: %d is neither max (0) nor mean (1)", how);
    return LSA_OK;
}

typedef struct call {
    float *out;
    const float *logits;
    int64_t layers, n;
    int32_t how;
} call;

static void join_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const call *c = context;
    ensemble(c->out, c->logits, c->layers, c->n, from * PART, to * PART < c->n ? to * PART : c->n,
             c->how);
}

int lsa_ensemble_cpu(float *out, const float *logits, int64_t layers, int64_t n, int32_t how,
                     void *stream)
{
    (void)stream;
    int rc = lsa_ensemble_check(layers, how);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n * layers / 2), (n + PART - 1) / PART, join_part,
                 &(call){out, logits, layers, n, how});
    return LSA_OK;
}
