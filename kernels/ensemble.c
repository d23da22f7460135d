/* Ensemble of indexer logits on the CPU. */
#include "kernels/ensemble.h"

#include "core/error.h"
#include "core/simd.h"
#include "kernels/vector_math.h"

/* sigmoid is monotonic, so the max needs one a chunk; a NaN wins over every number. */
static inline LSA_BODY f32x16 largest(f32x16 best, f32x16 v)
{
    return f32x16_select((v > best) | (v != v), v, best);
}

static inline LSA_BODY void ensemble_body(float *out, const float *logits, int64_t layers, int64_t n, int32_t how)
{
    for (int64_t s = 0; s < n; s += 16) {
        int64_t m = n - s < 16 ? n - s : 16;
        f32x16 v = f32x16_load_n(logits + s, m);
        if (how == LSA_ENSEMBLE_MAX) {
            for (int64_t l = 1; l < layers; l++) {
                f32x16 next = f32x16_load_n(logits + l * n + s, m);
                v = f32x16_select(v != v, v, largest(v, next));
            }
            v = f32x16_sigmoid(v);
        } else {
            v = f32x16_sigmoid(v);
            for (int64_t l = 1; l < layers; l++) v += f32x16_sigmoid(f32x16_load_n(logits + l * n + s, m));
            v = v / f32x16_set((float)layers);
        }
        f32x16_store_n(out + s, v, m);
    }
}

LSA_PATHS(ensemble, (float *out, const float *logits, int64_t layers, int64_t n, int32_t how),
          (out, logits, layers, n, how))

int lsa_ensemble_cpu(float *out, const float *logits, int64_t layers, int64_t n, int32_t how, void *stream)
{
    (void)stream;
    if (layers < 1) return lsa_fail(LSA_ESHAPE, "ensemble: %lld layers, at least 1 is needed", (long long)layers);
    if (how != LSA_ENSEMBLE_MAX && how != LSA_ENSEMBLE_MEAN)
        return lsa_fail(LSA_EARG, "ensemble: %d is neither max (0) nor mean (1)", how);
    ensemble(out, logits, layers, n, how);
    return LSA_OK;
}
