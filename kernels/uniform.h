/* Random numbers, each from its place alone. */
#ifndef LSA_KERNELS_UNIFORM_H
#define LSA_KERNELS_UNIFORM_H
#include <stdint.h>

/* out[i] = a number of [0, 1) with 24 bits, from seed and i alone: the top bits of the i-th
 * output of SplitMix64 started at `seed` (G. L. Steele et al., "Fast splittable pseudorandom number
 * generators", 2014).
 * out: [n] f32. n = 0 is legal. */
typedef int lsa_uniform_fn(float *out, int64_t n, uint64_t seed, void *stream);
lsa_uniform_fn lsa_uniform_cpu, lsa_uniform_cuda;

/* n, as both check it. */
int lsa_uniform_check(int64_t n);

#endif
