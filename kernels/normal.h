/* Random numbers of the normal distribution, each from its place alone. */
#ifndef LSA_KERNELS_NORMAL_H
#define LSA_KERNELS_NORMAL_H
#include <stdint.h>

/* out[i] = a number of the standard normal distribution, from seed and i alone, by Box and Muller: with u and v in (0, 1] and
 * [0, 1), 53 bits of outputs 2p and 2p + 1 of SplitMix64 started at `seed`, and p = i / 2 rounded down, it is sqrt(-2 log u) times
 * cos(2 pi v) where i is even, sin(2 pi v) where it is odd. out: [n] f32. n = 0 is legal. */
typedef int lsa_normal_fn(float *out, int64_t n, uint64_t seed, void *stream);
lsa_normal_fn lsa_normal_cpu;

#endif
