/* Tensors in device memory. */
#ifndef LSA_DEVICE_TENSOR_H
#define LSA_DEVICE_TENSOR_H
#include "core/base/tensor.h"

/* A new contiguous tensor on `device` (LSA_CPU, LSA_CUDA), contents undefined. */
int lsa_tensor_empty_on(lsa_tensor **out, int32_t device, int32_t dtype, int32_t rank,
                        const int64_t *shape);

/* A copy of the contiguous tensor `t` on `device`; LSA_ESHAPE when t is not contiguous. */
int lsa_tensor_transfer(lsa_tensor **out, const lsa_tensor *t, int32_t device);

#endif
