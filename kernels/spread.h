/* The highest value near each element: votes that count for what surrounds them, too. */
#ifndef LSA_KERNELS_SPREAD_H
#define LSA_KERNELS_SPREAD_H
#include <stdint.h>

enum { LSA_SPREAD_MOST = 512 };

/* out[i] = max of x[j] over |i - j| <= radius; NaN where one of them is.
 * x, out: [n] f32, apart. n = 0 is legal. LSA_EARG: radius outside 0..LSA_SPREAD_MOST; twice a
 * radius is that radius twice. */
typedef int lsa_spread_fn(float *out, const float *x, int64_t n, int64_t radius, void *stream);
lsa_spread_fn lsa_spread_cpu, lsa_spread_cuda;

/* The arguments, as both check them. */
int lsa_spread_check(int64_t n, int64_t radius);

#endif
