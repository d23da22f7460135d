/* Normalised Walsh-Hadamard transform. */
#ifndef LSA_KERNELS_HADAMARD_H
#define LSA_KERNELS_HADAMARD_H
#include <stdint.h>

/* x[r] = H x[r] / sqrt(dim), H the natural-order (Sylvester) Hadamard matrix, in place, for `rows`
 * contiguous rows. LSA_ESHAPE unless dim is a power of two. Its own inverse. */
typedef int lsa_hadamard_fn(float *x, int64_t rows, int64_t dim, void *stream);
lsa_hadamard_fn lsa_hadamard_cpu, lsa_hadamard_cuda;

/* The arguments, as both check them. */
int lsa_hadamard_check(int64_t rows, int64_t dim);

#endif
