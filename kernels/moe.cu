// Routing and the gated activation on the GPU, with the CPU's bits.
#include "kernels/moe_route_cuda.h"

enum { ROUTE_THREADS = 128, SWIGLU_THREADS = 256 };

// An expert and what it is chosen by.
struct candidate {
    float key;
    int32_t expert;
};

// ---- helpers ----

// Whether a comes before b: the larger key, and of two alike the lower expert.
__device__ static bool before(candidate a, candidate b)
{
    return a.key > b.key || (a.key == b.key && a.expert < b.expert);
}

// The first in order of those after `last`.
__device__ static candidate next_expert(const routing &r, const float *logits, candidate last,
                                        candidate *shared)
{
    candidate best = {-INFINITY, INT32_MAX};
    for (int64_t e = threadIdx.x; e < r.experts; e += ROUTE_THREADS) {
        float key = score_of(logits[e], r.scoring);
        if (r.bias) key = __fadd_rn(key, r.bias[e]);
        candidate own = {key == key ? key : -INFINITY, (int32_t)e};
        if (before(last, own) && before(own, best)) best = own;
    }
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2) {
        candidate other = {__shfl_xor_sync(0xffffffff, best.key, step),
                           __shfl_xor_sync(0xffffffff, best.expert, step)};
        if (before(other, best)) best = other;
    }
    __syncthreads();
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = best;
    __syncthreads();
    for (int i = 0; i < ROUTE_THREADS / LSA_WARP; i++)
        if (before(shared[i], best)) best = shared[i];
    return best;
}

// ---- kernels ----

// Grid: (tokens), block: 128, shared: 32 B. As many rounds as experts are chosen.
__global__ static void moe_route_token(routing r)
{
    lsa_after_previous();
    __shared__ candidate shared[ROUTE_THREADS / LSA_WARP];
    for (int64_t t = blockIdx.x; t < r.n; t += gridDim.x) {
        const float *logits = r.logits + t * r.experts;
        int32_t *ids = r.ids + t * r.k;
        float *weights = r.weights + t * r.k;
        candidate last = {INFINITY, -1};
        for (int64_t i = 0; i < r.k && !r.token_experts; i++) {
            last = next_expert(r, logits, last, shared);
            if (threadIdx.x == 0) ids[i] = last.expert;
        }
        __syncthreads();
        for (int64_t i = threadIdx.x; i < r.k; i += ROUTE_THREADS) {
            int32_t id = r.token_experts ? r.token_experts[r.tokens[t] * r.k + i] : ids[i];
            ids[i] = id;
            weights[i] = score_of(logits[id], r.scoring);
        }
        __syncthreads();
        float sum = 0;
        for (int64_t i = 0; i < r.k; i++) sum = __fadd_rn(sum, weights[i]);
        __syncthreads();
        for (int64_t i = threadIdx.x; i < r.k; i += ROUTE_THREADS)
            weights[i] = weights[i] / (sum + 1e-20f) * r.scaling;
    }
}

// Few experts: a warp a token. Grid: (tokens), block: 32.
__global__ static void __launch_bounds__(LSA_WARP) moe_route_warp(routing r)
{
    lsa_after_previous();
    int64_t t = blockIdx.x;
    route_by_warp<HELD_KEYS>(r, r.logits + t * r.experts, t, r.ids + t * r.k, r.weights + t * r.k);
}

// Grid: (ceil(n / 256)), block: 256.
__global__ static void swiglu_each(float *out, const float *gate, const float *up, int64_t n,
                                   float limit)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads())
        out[i] = lsa_swiglu_of(gate[i], up[i], limit);
}

// ---- launchers ----

int lsa_moe_route_cuda(int32_t *ids, float *weights, const float *logits, const float *bias,
                       const int32_t *token_experts, const int32_t *tokens, int64_t n,
                       int64_t experts, int64_t k, int32_t scoring, float scaling, void *stream)
{
    int rc = lsa_moe_route_check(n, experts, k, scoring);
    if (rc || n == 0 || k == 0) return rc;
    routing r = {ids, weights, logits, bias,    token_experts, tokens,
                 n,   experts, k,      scoring, scaling};
    if (is_short_route(r)) {
        lsa_launch(moe_route_warp, dim3((unsigned)n), LSA_WARP, 0, (cudaStream_t)stream, r);
        return lsa_launched("moe_route", n, experts, k);
    }
    lsa_launch(moe_route_token, lsa_blocks(n, 1), ROUTE_THREADS, 0, (cudaStream_t)stream, r);
    return lsa_launched("moe_route", n, experts, k);
}

int lsa_swiglu_cuda(float *out, const float *gate, const float *up, int64_t n, float limit,
                    void *stream)
{
    int rc = lsa_swiglu_check(n, limit);
    if (rc || n == 0) return rc;
    swiglu_each<<<lsa_blocks(n, SWIGLU_THREADS), SWIGLU_THREADS, 0, (cudaStream_t)stream>>>(
        out, gate, up, n, limit);
    return lsa_launched("swiglu", n);
}
