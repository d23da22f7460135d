/* Mixture of experts: routing and the gated activation. */
#ifndef LSA_KERNELS_MOE_H
#define LSA_KERNELS_MOE_H
#include <stdint.h>

enum { LSA_SCORING_SQRTSOFTPLUS = 0, LSA_SCORING_SIGMOID = 1 };

/* Picks k experts for each of n tokens.
 *
 * logits [n, experts]: gate . x. score = sqrt(softplus(logit)) or sigmoid(logit).
 * token_experts: NULL, or [vocab, k] in 0 .. experts-1: the experts of every token id (hash
 *   routing); tokens [n] are the ids, rows of the table, and NULL where there is no table.
 *   Otherwise the k largest of score + bias (bias [experts] or NULL), ties to the lower expert, in
 *   descending order of score + bias; NaN counts as -inf there.
 * ids [n, k]; weights [n, k] = score / (sum of the k scores + 1e-20) * scaling. The bias takes no
 *   part; a NaN among the picked scores makes all of the token's weights NaN.
 * k > experts: LSA_ESHAPE. */
typedef int lsa_moe_route_fn(int32_t *ids, float *weights, const float *logits, const float *bias,
                             const int32_t *token_experts, const int32_t *tokens, int64_t n,
                             int64_t experts, int64_t k, int32_t scoring, float scaling,
                             void *stream);
lsa_moe_route_fn lsa_moe_route_cpu, lsa_moe_route_cuda;

/* out[i] = silu(min(gate[i], limit)) * clamp(up[i], -limit, limit), n values. out may be gate
 * or up. limit >= 0, infinity included. NaN stays NaN. */
typedef int lsa_swiglu_fn(float *out, const float *gate, const float *up, int64_t n, float limit,
                          void *stream);
lsa_swiglu_fn lsa_swiglu_cpu, lsa_swiglu_cuda;

/* The arguments, as both halves check them. */
int lsa_moe_route_check(int64_t n, int64_t experts, int64_t k, int32_t scoring);
int lsa_swiglu_check(int64_t n, float limit);

#endif
