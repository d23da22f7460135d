// Private to CUDA files: routing of a token by a warp.
#ifndef LSA_MOE_ROUTE_CUDA_H
#define LSA_MOE_ROUTE_CUDA_H
#include "kernels/cuda_launch.h"
#include "kernels/cuda_select.h"
#include "kernels/moe_cuda.h"

extern "C" {
#include "kernels/moe.h"
}

enum { HELD_KEYS = 8 }; // that a lane keeps at most

struct routing {
    int32_t *ids;
    float *weights;
    const float *logits, *bias;
    const int32_t *token_experts, *tokens;
    int64_t n, experts, k;
    int32_t scoring;
    float scaling;
};

__device__ static float score_of(float logit, int32_t scoring)
{
    if (scoring == LSA_SCORING_SIGMOID) return f32x16_sigmoid(logit).lane;
    return sqrtf(f32x16_softplus(logit).lane);
}

static inline bool is_short_route(const routing &r)
{
    return r.experts <= HELD_KEYS * LSA_WARP && r.k <= LSA_WARP;
}

// Lane j's expert, the j-th of the best; *score: its score. KEYS: as many a lane as there are for 32 of them.
template <int KEYS>
__device__ static int32_t best_expert(const routing &r, const float *logits, float *score)
{
    int lane = threadIdx.x % LSA_WARP;
    float scores[KEYS];
    uint32_t keys[KEYS], taken = 0;
    int32_t id = 0;
#pragma unroll
    for (int i = 0; i < KEYS; i++) {
        int64_t e = i * LSA_WARP + lane;
        keys[i] = 0, scores[i] = 0;
        if (e >= r.experts) {
            taken |= 1u << i;
            continue;
        }
        scores[i] = score_of(logits[e], r.scoring);
        keys[i] = lsa_score_key(r.bias ? __fadd_rn(scores[i], r.bias[e]) : scores[i]);
    }
    for (int j = 0; j < r.k; j++) {
        uint32_t best = 0, at = UINT32_MAX;
#pragma unroll
        for (int i = 0; i < KEYS; i++)
            if (!(taken >> i & 1)) best = max(best, keys[i]);
        best = __reduce_max_sync(0xffffffff, best);
#pragma unroll
        for (int i = KEYS - 1; i >= 0; i--)
            if (!(taken >> i & 1) && keys[i] == best) at = i * LSA_WARP + lane;
        at = __reduce_min_sync(0xffffffff, at);
        float found = 0;
#pragma unroll
        for (int i = 0; i < KEYS; i++)
            if (at == (uint32_t)(i * LSA_WARP + lane)) taken |= 1u << i, found = scores[i];
        found = __shfl_sync(0xffffffff, found, at % LSA_WARP);
        if (lane == j) id = (int32_t)at, *score = found;
    }
    return id;
}

// Row t's experts and their weights. ids, weights: [k].
template <int KEYS>
__device__ static void route_by_warp(const routing &r, const float *logits, int64_t t, int32_t *ids,
                                     float *weights)
{
    int lane = threadIdx.x % LSA_WARP;
    float score = 0, sum = 0;
    int32_t id = 0;
    if (!r.token_experts) {
        id = best_expert<KEYS>(r, logits, &score);
    } else if (lane < r.k) {
        id = r.token_experts[r.tokens[t] * r.k + lane];
        score = score_of(logits[id], r.scoring);
    }
    for (int j = 0; j < r.k; j++) sum = __fadd_rn(sum, __shfl_sync(0xffffffff, score, j));
    if (lane >= r.k) return;
    ids[lane] = id;
    weights[lane] = score / (sum + 1e-20f) * r.scaling;
}

#endif
