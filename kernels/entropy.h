/* Entropy of the distributions that logits give. */
#ifndef LSA_KERNELS_ENTROPY_H
#define LSA_KERNELS_ENTROPY_H
#include <stdint.h>

/* out[r], in nats, of the softmax of row r of logits [n, vocab]: log(s) - w / s, where d_i =
 * logit_i - largest, s = sum of exp(d_i), w = sum of exp(d_i) * d_i; a logit of -inf adds nothing.
 * All of it in f64, sums in ascending order of i; on a GPU in an order that vocab fixes. NaN for a row that has a NaN, or whose largest
 * logit is not finite. vocab < 1: LSA_ESHAPE. */
typedef int lsa_entropy_fn(double *out, const float *logits, int64_t n, int64_t vocab,
                           void *stream);
lsa_entropy_fn lsa_entropy_cpu, lsa_entropy_cuda;

/* The arguments, as both halves check them. */
int lsa_entropy_check(int64_t n, int64_t vocab);

#endif
