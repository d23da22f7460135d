/* Mixture of experts: routing and the gated activation. */
#ifndef LSA_KERNELS_MOE_H
#define LSA_KERNELS_MOE_H
#include <stdint.h>

enum { LSA_SCORING_SQRTSOFTPLUS = 0, LSA_SCORING_SIGMOID = 1 };

/* Picks k experts a token.
 *
 * logits [tokens, experts]: gate . x. score = sqrt(softplus(logit)) or sigmoid(logit).
 * fixed: NULL, or [tokens, k]: the experts given (hash routing). Otherwise the k largest of
 *   score + bias (bias [experts] or NULL), ties to the lower expert, in descending order of
 *   score + bias; NaN counts as -inf there.
 * ids [tokens, k]; weights [tokens, k] = score / (sum of the k scores + 1e-20) * scaling. The bias
 *   takes no part; a NaN among the picked scores makes all of the token's weights NaN.
 * k > experts: LSA_ESHAPE; a fixed id out of range: LSA_EARG. */
typedef int lsa_moe_route_fn(int32_t *ids, float *weights, const float *logits, const float *bias,
                             const int32_t *fixed, int64_t tokens, int64_t experts, int64_t k,
                             int32_t scoring, float scaling, void *stream);
lsa_moe_route_fn lsa_moe_route_cpu;

/* out[i] = silu(min(gate[i], limit)) * clamp(up[i], -limit, limit), n values. out may be gate
 * or up. limit >= 0, infinity included. NaN stays NaN. */
typedef int lsa_swiglu_fn(float *out, const float *gate, const float *up, int64_t n, float limit,
                          void *stream);
lsa_swiglu_fn lsa_swiglu_cpu;

#endif
