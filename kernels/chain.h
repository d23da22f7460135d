/* Calls of other kernels that follow one another, in one: what stands between two attentions of a small model is a dozen products
 * that take less time than launching them. */
#ifndef LSA_KERNELS_CHAIN_H
#define LSA_KERNELS_CHAIN_H
#include "kernels/experts.h"
#include "kernels/hyper_connection.h"
#include "kernels/linears.h"
#include "kernels/moe.h"
#include "kernels/settle.h"

enum { LSA_CHAIN_MOST = 12 };

/* Which call a stage is. */
enum {
    LSA_STAGE_LINEARS = 0,
    LSA_STAGE_TURN = 1, /* lsa_hc_turn */
    LSA_STAGE_ROUTE = 2,
    LSA_STAGE_EXPERTS = 3,
    LSA_STAGE_SETTLE = 4
};

/* The arguments of lsa_moe_route. */
typedef struct lsa_routing {
    int32_t *ids;
    float *weights;
    const float *logits, *bias;
    const int32_t *token_experts, *tokens;
    int64_t experts, k;
    int32_t scoring;
    float scaling;
} lsa_routing;

/* The arguments of lsa_experts. */
typedef struct lsa_mixing {
    float *y;
    const float *x;
    const int32_t *ids;
    const float *weights;
    const lsa_expert_weights *experts, *shared;
    int64_t hidden, count, k;
    float limit;
    int32_t compute;
} lsa_mixing;

typedef struct lsa_stage {
    int32_t kind;
    union {
        struct {
            lsa_product products[LSA_LINEARS_MOST];
            int64_t count;
            const float *norm;
            float norm_eps;
            int32_t compute;
        } linears;
        lsa_hc_turning turn;
        lsa_routing route;
        lsa_mixing experts;
        struct {
            const lsa_span *spans; /* in decode, span i has row i */
            int64_t count, layer;
            lsa_settling of;
            lsa_extension records, keys; /* those that `of` points to, where it does */
        } settle;
    };
} lsa_stage;

/* The calls of `count` stages, at most LSA_CHAIN_MOST, one after the other, all on `tokens` rows; what they give is in memory, with
 * their own kernels' bits. mix of a turn and what `experts` has in between are not. workspace: as the stage that wants most. What
 * the stages fail with; LSA_EARG. */
typedef int lsa_chain_fn(const lsa_stage *stages, int64_t count, int64_t tokens, void *workspace,
                         void *stream);
lsa_chain_fn lsa_chain_cpu, lsa_chain_cuda;

/* The same with the kernels of each stage, of one device. */
struct lsa_kernels;
int lsa_chain_by(const struct lsa_kernels *k, const lsa_stage *stages, int64_t count,
                 int64_t tokens, void *workspace, void *stream);

#endif
