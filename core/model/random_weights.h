/* Private: what a model of random weights has in place of a checkpoint's tensors. */
#ifndef LSA_RANDOM_WEIGHTS_H
#define LSA_RANDOM_WEIGHTS_H
#include "core/base/tensor.h"
#include "core/model/model.h"

/* A weight [.., rows, cols] by its name in transformers' scheme: normal numbers with a standard deviation of cols^-0.5, of experts in
 * fp4 uniform ones. `released`: in the dtype that the released checkpoint has it in; fp8 and fp4 want lsa_random_scale beside it. */
int lsa_random_weight(lsa_tensor **out, const lsa_random *random, const char *name, int32_t rank,
                      const int64_t *shape);

/* The scale grid of such a weight, f8_e8m0, by blocks of 128 x 128 (fp8) or 1 x 32 (packed fp4) of `shape`. */
int lsa_random_scale(lsa_tensor **out, const lsa_tensor *weight, int32_t rank,
                     const int64_t *shape);

/* Norms around 1, other small vectors around 0. */
int lsa_random_vector(float *out, const lsa_random *random, const char *name, int64_t n);

/* The table of hash routing [tokens, each]: experts that differ within a row. */
void lsa_random_experts(int32_t *table, const lsa_random *random, const char *name, int64_t tokens,
                        int64_t each, int64_t experts);

#endif
