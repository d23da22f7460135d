/* Moving records between tiers. */
#ifndef LSA_KERNELS_GATHER_H
#define LSA_KERNELS_GATHER_H
#include "kernels/kv_record.h"

/* Copies `bytes` bytes of record chunks[i] of `from` to record slots[i] of `to`, for i < n; no slot is there twice. Blocks
 * lie on 64-byte boundaries, and strides are multiples of 64. On a GPU `from` can be memory of the host, which is then read
 * over the bus, and `to`, `from` are read before the call returns; on a stream of its own it takes 2 multiprocessors, else 4. */
typedef int lsa_gather_fn(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                          const int32_t *chunks, int64_t n, int64_t bytes, void *stream);
lsa_gather_fn lsa_gather_cpu, lsa_gather_cuda;

#endif
