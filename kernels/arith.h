/* Arithmetic, functions and comparisons of elements of f32, f64, i32 and i64. */
#ifndef LSA_KERNELS_ARITH_H
#define LSA_KERNELS_ARITH_H
#include "core/base/tensor.h"
#include "kernels/elementwise.h"

enum { LSA_POW = 6 }; /* after LSA_ADD .. LSA_MAX */

/* out[i] = a's element i op b's, for i < n, where a period says which number that is: number i mod p for a period p of 1 or more,
 * which divides n; number i / m for a period of -m, where m divides n: each number m times. All three are of `dtype`: LSA_F32,
 * LSA_F64, LSA_I32 or LSA_I64. LSA_MIN and LSA_MAX are NaN where either side is.
 *
 * Integers are exact: LSA_EARG, with the first such element in the message, where a result does not fit, and for a negative exponent
 * of LSA_POW. They have no LSA_DIV (LSA_EDTYPE). out may be a or b where that period is n and the dtype a float; otherwise they do
 * not overlap. n = 0 is legal. */
typedef int lsa_arith_fn(void *out, const void *a, const void *b, int64_t n, int64_t a_period,
                         int64_t b_period, int32_t op, int32_t dtype, void *stream);
lsa_arith_fn lsa_arith_cpu;

enum {
    LSA_MAP_ABS = 0,
    LSA_MAP_NEG = 1,
    LSA_MAP_ROUND = 2, /* halves to even */
    LSA_MAP_FLOOR = 3,
    LSA_MAP_CEIL = 4,
    LSA_MAP_SQRT = 5,
    LSA_MAP_TANH = 6,
    LSA_MAP_EXP = 7,
    LSA_MAP_LOG = 8,
    LSA_MAP_SIGMOID = 9
};

/* out[i] = op(a[i]), for i < n, both of `dtype` (f32, f64, i64). Of f32, tanh is within 3 ulp, exp, log and sigmoid are those of
 * lsa_unary, the others exact; f64 is as the C library's. NaN gives NaN. i64 has abs and neg (LSA_EARG where the result does not
 * fit), round, floor and ceil; LSA_EDTYPE for the others. out may be a. */
typedef int lsa_map_fn(void *out, const void *a, int64_t n, int32_t op, int32_t dtype,
                       void *stream);
lsa_map_fn lsa_map_cpu;

enum { LSA_LT = 0, LSA_LE = 1, LSA_EQ = 2, LSA_NE = 3, LSA_GT = 4, LSA_GE = 5 };

/* out[i] = 1 where a's element i op b's, else 0, for i < n, with periods as above; a and b of `dtype` (f32, f64, i32, i64). NaN is
 * unequal to everything, and neither less nor greater. n = 0 is legal. */
typedef int lsa_compare_fn(uint8_t *out, const void *a, const void *b, int64_t n, int64_t a_period,
                           int64_t b_period, int32_t op, int32_t dtype, void *stream);
lsa_compare_fn lsa_compare_cpu;

/* out[i] = from + step * i in f64, as `dtype`: f32 and f64 rounded to nearest, i32 and i64 truncated; the caller answers for their
 * range. n = 0 is legal. */
typedef int lsa_sequence_fn(void *out, int64_t n, double from, double step, int32_t dtype,
                            void *stream);
lsa_sequence_fn lsa_sequence_cpu;

/* Writes the set `bits` (core/base/set.h) of n ids whole: those i where mask[i] is not 0. */
typedef int lsa_mark_fn(uint64_t *bits, const uint8_t *mask, int64_t n, void *stream);
lsa_mark_fn lsa_mark_cpu;

#endif
