/* Elements and rows by their places. */
#ifndef LSA_KERNELS_TAKE_H
#define LSA_KERNELS_TAKE_H
#include <stdint.h>

/* out[o, j] = in[o, ids[o * id_stride + j]], each of `bytes` bytes. in: [outer, n], out: [outer, count]. ids: [count] with id_stride
 * 0, the same for every o, or [outer, count] with id_stride = count. A negative id counts from the end. LSA_EARG, with the id and its
 * place in the message, where one is not of -n .. n - 1. out and in do not overlap. */
typedef int lsa_take_fn(void *out, const void *in, const int32_t *ids, int64_t outer, int64_t n,
                        int64_t count, int64_t bytes, int64_t id_stride, void *stream);
lsa_take_fn lsa_take_cpu;

#endif
