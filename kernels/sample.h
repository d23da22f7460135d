/* Drawing tokens from logits. */
#ifndef LSA_KERNELS_SAMPLE_H
#define LSA_KERNELS_SAMPLE_H
#include <stdint.h>

/* tokens[r] = an id drawn from row r of logits [n, vocab] at temperatures[r], finite and >= 0.
 *
 * Temperature 0: the largest logit, ties to the lower id. Otherwise id i has the probability
 *   e_i / (e_0 + e_1 + ...), e_i = exp((logit_i - largest) / temperature): a number u in [0, 1)
 *   comes from the row's generator, and the token is the first i where u * sum - e_0 - ... - e_i,
 *   taken off one by one, is below 0; the last id where none is. All of it in f64, sums in
 *   ascending order of i.
 * states [n]: the generators' (xorshift64*, as lua/lsa/cycle/rng.lua), not 0. One step is taken for
 *   a row that draws; at temperature 0 none is.
 * The GPU's order: e of 32 neighbours are summed in a tree, those sums of each of 32 parts of
 *   ceil(vocab / 1024) * 32 ids in ascending order, the parts in ascending order. A token is found the same way: the part,
 *   then the neighbours, then the id where the remainder falls below 0, at each step the last with a
 *   positive sum where none is.
 * -1 for a row that has a NaN, or whose largest logit is not finite; its generator is left alone.
 * vocab < 1: LSA_ESHAPE. */
typedef int lsa_sample_fn(int32_t *tokens, const float *logits, uint64_t *states,
                          const double *temperatures, int64_t n, int64_t vocab, void *stream);
lsa_sample_fn lsa_sample_cpu, lsa_sample_cuda;

/* The arguments, as both halves check them. */
int lsa_sample_check(int64_t n, int64_t vocab);

#endif
