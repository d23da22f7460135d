/* A set of residents takes over. */
#ifndef LSA_KERNELS_RESIDE_H
#define LSA_KERNELS_RESIDE_H
#include "kernels/span.h"

/* In each of `count` layers that have index keys: the key of chunks[i], which lies at slots[i] of the store's hot_keys where cells
 * have the layer's keys, becomes its resident_keys[i], for i < n; the first `observed` of used and mass become 0. Keys are `bytes`
 * long, and lie so far apart. */
typedef int lsa_reside_fn(const lsa_layer_store *layers, int64_t count, const int32_t *chunks,
                          const int32_t *slots, int64_t n, int64_t observed, int64_t bytes,
                          void *stream);
lsa_reside_fn lsa_reside_cpu, lsa_reside_cuda;

#endif
