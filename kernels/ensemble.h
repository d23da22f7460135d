/* The Memory Indexer's ensemble over target layers. */
#ifndef LSA_KERNELS_ENSEMBLE_H
#define LSA_KERNELS_ENSEMBLE_H
#include <stdint.h>

enum { LSA_ENSEMBLE_MAX = 0, LSA_ENSEMBLE_MEAN = 1 };

/* out[s] = max or mean over layers of sigmoid(logits[layer, s])   (LSA paper, Eq. 5)
 * logits: [layers, n] contiguous. NaN in a chunk's logits gives NaN. layers >= 1; n = 0 is legal. */
typedef int lsa_ensemble_fn(float *out, const float *logits, int64_t layers, int64_t n, int32_t how,
                            void *stream);
lsa_ensemble_fn lsa_ensemble_cpu, lsa_ensemble_cuda;

/* The arguments, as both check them. */
int lsa_ensemble_check(int64_t layers, int32_t how);

#endif
