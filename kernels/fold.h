/* Reductions whose results keep every digit, and running sums. */
#ifndef LSA_KERNELS_FOLD_H
#define LSA_KERNELS_FOLD_H
#include "core/base/tensor.h"

enum {
    LSA_FOLD_SUM = 0,
    LSA_FOLD_MIN = 1,
    LSA_FOLD_MAX = 2,
    LSA_FOLD_SQUARES = 3,    /* the sum of squares */
    LSA_FOLD_DEVIATIONS = 4, /* the sum of squares of what is left without the mean */
    LSA_FOLD_NONZERO = 5,    /* how many are not 0; NaN is not */
    LSA_FOLD_ARGMIN =
        6, /* the lowest place of the least; NaN never wins; -1 where there is nothing else */
    LSA_FOLD_ARGMAX = 7
};

/* out[o, i] = op over j of in[o, j, i]. in: [outer, n, inner] of `dtype`, LSA_F32, LSA_F64 or LSA_I64. out: [outer, inner], i64 for
 * LSA_FOLD_NONZERO and later, and for the sum, minimum and maximum of i64; else f64.
 *
 * Sums of floats run in f64, in the order of lsa_reduce: sixteen partial sums added pairwise where inner is 1, j ascending
 * otherwise. Those of i64 are exact: LSA_EARG where one does not fit. NaN gives NaN. n = 0: sums are 0, LSA_ESHAPE for a minimum
 * or maximum, places -1. n < 2^31. */
typedef int lsa_fold_fn(void *out, const void *in, int64_t outer, int64_t n, int64_t inner,
                        int32_t op, int32_t dtype, void *stream);
lsa_fold_fn lsa_fold_cpu;

/* out[o, j, i] = the sum of in[o, 0 .. j, i]; both [outer, n, inner] of `dtype`. Floats are summed in f64, j ascending, and each
 * result rounded once; i64 is exact, LSA_EARG where a sum does not fit. out may be in. */
typedef int lsa_cumsum_fn(void *out, const void *in, int64_t outer, int64_t n, int64_t inner,
                          int32_t dtype, void *stream);
lsa_cumsum_fn lsa_cumsum_cpu;

/* out[0] = the sum of a[i] b[i] in f64, of n f32 each, in the order of lsa_fold. */
typedef int lsa_dot_fn(double *out, const float *a, const float *b, int64_t n, void *stream);
lsa_dot_fn lsa_dot_cpu;

#endif
