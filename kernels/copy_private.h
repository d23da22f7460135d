/* Private to copy.c and copy.cu: the dimensions that are left to walk. */
#ifndef LSA_COPY_PRIVATE_H
#define LSA_COPY_PRIVATE_H
#include "core/base/tensor.h"
#include "kernels/copy.h"

typedef struct lsa_copy_dims {
    int32_t rank;
    int64_t n[LSA_MAX_RANK], out[LSA_MAX_RANK], in[LSA_MAX_RANK];
} lsa_copy_dims;

/* Checks the arguments of a copy, drops dimensions of 1 and joins what lies alike on both sides. 1; 0 when there is
 * nothing to copy; or an error's code. */
int lsa_copy_plan(lsa_copy_dims *d, int64_t size, int32_t rank, const int64_t *shape,
                  const int64_t *out_stride, const int64_t *in_stride);

#endif
