/* Mixture of experts: what the experts that were picked for a token make of it. */
#ifndef LSA_KERNELS_EXPERTS_H
#define LSA_KERNELS_EXPERTS_H
#include "kernels/linear.h"

/* expert(x) = down(silu(gate x) * up x), with swiglu's limit (kernels/moe.h). */
typedef struct lsa_expert_weights {
    lsa_weight gate, up, down; /* [inner, hidden] twice, [hidden, inner] */
} lsa_expert_weights;

/* y[t] = shared(x[t]) + sum over j of weights[t, j] * experts[ids[t, j]](x[t]).
 *
 * x, y [tokens, hidden], apart. ids [tokens, k] in 0 .. count-1 and weights [tokens, k]: what
 *   lsa_moe_route gives. experts [count]; they and the shared one may differ in inner width and
 *   number format. shared NULL: zeros in its place.
 * The sum goes in the order of the experts' number, an expert that a token has twice in the order
 *   of j, in f32: first the product by the weight, then the addition. An expert takes all of its
 *   tokens in one product, in their order, so that how its sums go depends on how many they are, as
 *   for lsa_linear; experts that no token has are not read. On a GPU they go as few tokens of lsa_linear
 *   do, however many they are; `experts`, not what it points to, is read on both sides.
 * compute: of every product, as for lsa_linear. workspace: lsa_experts_workspace(...) bytes
 *   (on a GPU lsa_experts_workspace_cuda), 64-byte aligned. LSA_ESHAPE where an expert does not fit; what lsa_linear and lsa_swiglu fail
 *   with. */
typedef int lsa_experts_fn(float *y, const float *x, const int32_t *ids, const float *weights,
                           const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                           int64_t tokens, int64_t hidden, int64_t count, int64_t k,
                           float swiglu_limit, int32_t compute, void *workspace, void *stream);
lsa_experts_fn lsa_experts_cpu, lsa_experts_cuda;

/* Bytes of workspace; enough for fewer tokens. */
typedef int64_t lsa_experts_workspace_fn(const lsa_expert_weights *experts,
                                         const lsa_expert_weights *shared, int64_t tokens,
                                         int64_t hidden, int64_t count, int64_t k, int32_t compute);
lsa_experts_workspace_fn lsa_experts_workspace, lsa_experts_workspace_cuda;

/* The arguments, as both halves check them; and the widest expert. */
int lsa_experts_check(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                      int64_t tokens, int64_t hidden, int64_t count, int64_t k);
int64_t lsa_experts_widest(const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                           int64_t count);

#endif
