// Ensemble of indexer logits on the GPU, with the CPU's bits: a chunk a thread.
#include "kernels/cuda_launch.h"
#include "kernels/vector_math.h"

extern "C" {
#include "kernels/ensemble.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// Grid: (ceil(n / 256)), block: 256.
__global__ static void ensemble_each(float *out, const float *logits, int64_t layers, int64_t n,
                                     int32_t how)
{
    for (int64_t s = lsa_thread(); s < n; s += lsa_threads()) {
        f32x16 v = logits[s];
        if (how == LSA_ENSEMBLE_MAX) {
            for (int64_t l = 1; l < layers; l++) v = f32x16_larger(v, logits[l * n + s]);
            v = f32x16_sigmoid(v);
        } else {
            v = f32x16_sigmoid(v);
            for (int64_t l = 1; l < layers; l++) v += f32x16_sigmoid(logits[l * n + s]);
            v = v / f32x16_set((float)layers);
        }
        out[s] = v.lane;
    }
}

// ---- launcher ----

int lsa_ensemble_cuda(float *out, const float *logits, int64_t layers, int64_t n, int32_t how,
                      void *stream)
{
    int rc = lsa_ensemble_check(layers, how);
    if (rc || n <= 0) return rc;
    ensemble_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(out, logits, layers,
                                                                                n, how);
    return lsa_launched("ensemble", layers, n);
}
