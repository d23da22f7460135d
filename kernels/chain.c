/* Owns lsa_chain_cpu: the kernels of the stages, one after the other. */
#include "kernels/chain.h"

#include <stddef.h>

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/table.h"

static int settle(const lsa_kernels *k, const lsa_stage *stage, int64_t tokens, void *workspace,
                  void *stream)
{
    lsa_settling s = stage->settle.of;
    if (s.records) s.records = &stage->settle.records;
    if (s.keys) s.keys = &stage->settle.keys;
    return k->settle(stage->settle.spans, stage->settle.count, stage->settle.layer, &s, tokens,
                     workspace, stream);
}

static int call(const lsa_kernels *k, const lsa_stage *stage, int64_t tokens, void *workspace,
                void *stream)
{
    const lsa_routing *r = &stage->route;
    const lsa_mixing *e = &stage->experts;
    switch (stage->kind) {
    case LSA_STAGE_LINEARS:
        return k->linears(stage->linears.products, stage->linears.count, tokens,
                          stage->linears.norm, stage->linears.norm_eps, stage->linears.compute,
                          workspace, stream);
    case LSA_STAGE_TURN:
        return k->hc_turn(&stage->turn, tokens, workspace, stream);
    case LSA_STAGE_ROUTE:
        return k->moe_route(r->ids, r->weights, r->logits, r->bias, r->token_experts, r->tokens,
                            tokens, r->experts, r->k, r->scoring, r->scaling, stream);
    case LSA_STAGE_EXPERTS:
        return k->experts(e->y, e->x, e->ids, e->weights, e->experts, e->shared, tokens, e->hidden,
                          e->count, e->k, e->limit, e->compute, workspace, stream);
    case LSA_STAGE_SETTLE:
        return settle(k, stage, tokens, workspace, stream);
    }
    return lsa_fail(LSA_EARG, "chain: stage of kind %d, 0 to %d are known", stage->kind,
                    LSA_STAGE_SETTLE);
}

int lsa_chain_by(const lsa_kernels *k, const lsa_stage *stages, int64_t count, int64_t tokens,
                 void *workspace, void *stream)
{
    if (count < 0 || count > LSA_CHAIN_MOST)
        return lsa_fail(LSA_EARG, "chain: %lld stages, 0 to %d are possible", (long long)count,
                        LSA_CHAIN_MOST);
    for (int64_t i = 0; i < count; i++) LSA_TRY(call(k, &stages[i], tokens, workspace, stream));
    return LSA_OK;
}

int lsa_chain_cpu(const lsa_stage *stages, int64_t count, int64_t tokens, void *workspace,
                  void *stream)
{
    return lsa_chain_by(&lsa_kernels_cpu, stages, count, tokens, workspace, stream);
}
