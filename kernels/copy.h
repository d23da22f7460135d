/* Copies between views of any strides. */
#ifndef LSA_KERNELS_COPY_H
#define LSA_KERNELS_COPY_H
#include <stdint.h>

/* out and in: first elements of views of `shape` [rank], rank 0..6, their strides in elements,
 * elements of `size` bytes (1, 2, 4 or 8). They do not overlap. LSA_EARG for other sizes. */
typedef int lsa_copy_fn(void *out, const void *in, int64_t size, int32_t rank, const int64_t *shape,
                        const int64_t *out_stride, const int64_t *in_stride, void *stream);
lsa_copy_fn lsa_copy_cpu, lsa_copy_cuda;

#endif
