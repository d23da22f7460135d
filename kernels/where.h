/* Choice between two rows by a set. */
#ifndef LSA_KERNELS_WHERE_H
#define LSA_KERNELS_WHERE_H
#include <stdint.h>

/* out[i] = a[i] where the set `bits` (core/base/set.h) of n ids has i, else b[i * b_step], to the
 * bit. a, out: [n] f32; b: [n] with b_step 1, one number with b_step 0. out may be a, or b with b_step
 * 1. n = 0 is legal. */
typedef int lsa_where_fn(float *out, const uint64_t *bits, const float *a, const float *b,
                         int64_t n, int32_t b_step, void *stream);
lsa_where_fn lsa_where_cpu, lsa_where_cuda;

/* The arguments, as both check them. */
int lsa_where_check(int64_t n, int32_t b_step);

#endif
