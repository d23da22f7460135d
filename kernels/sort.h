/* Sorting of rows. */
#ifndef LSA_KERNELS_SORT_H
#define LSA_KERNELS_SORT_H
#include "core/base/tensor.h"

/* Each row of in [rows, n], of `dtype` (LSA_F32, LSA_F64, LSA_I64), ascending, or descending where that is not 0: its values in
 * `values`, of the same shape and dtype, and where each was in `ids`, i32; one of the two may be NULL. Ties keep their order,
 * -0 and 0 are equal (values has 0 for both), NaN comes last either way. n < 2^31. values may be in. LSA_EINTR where Ctrl-C
 * comes in long rows.
 *
 * workspace: lsa_sort_workspace(rows, n, ids wanted, dtype) bytes, 64-byte aligned; lsa_threads_set comes before both or after. */
typedef int lsa_sort_fn(void *values, int32_t *ids, const void *in, int64_t rows, int64_t n,
                        int32_t dtype, int32_t descending, void *workspace, void *stream);
lsa_sort_fn lsa_sort_cpu;

typedef int64_t lsa_sort_workspace_fn(int64_t rows, int64_t n, int32_t with_ids, int32_t dtype);
lsa_sort_workspace_fn lsa_sort_workspace;

#endif
