/* Counts of numbers by where they lie. */
#ifndef LSA_KERNELS_HISTOGRAM_H
#define LSA_KERNELS_HISTOGRAM_H
#include <stdint.h>

/* counts[b] = how many of x [n], f64, lie in bin b of `bins` equal ones between low and high: edge(b) <= x < edge(b + 1), with
 * edge(b) = low + b * ((high - low) / bins); high itself belongs to the last bin. What lies outside, and NaN, is in none. LSA_EARG
 * unless low < high, both finite, and bins is at least 1. */
typedef int lsa_histogram_fn(int64_t *counts, const double *x, int64_t n, double low, double high,
                             int64_t bins, void *stream);
lsa_histogram_fn lsa_histogram_cpu;

/* counts[b] = how many of x [n] are b, for b < bins. LSA_EARG, with the number and its place in the message, where one is not of
 * 0 .. bins - 1. */
typedef int lsa_bincount_fn(int64_t *counts, const int64_t *x, int64_t n, int64_t bins,
                            void *stream);
lsa_bincount_fn lsa_bincount_cpu;

#endif
