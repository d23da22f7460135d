/* Owns the router's choice of experts and the gated activation. */
#include "kernels/moe.h"

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/vector_math.h"

/* Rough cost of an expert's score, of a gated value. A team of one costs more than small calls
 * do. */
enum { ROUTE_NS = 40, SWIGLU_NS = 1 };

/* Whole vectors without a call of memcpy. */
static inline LSA_BODY f32x16 load_some(const float *p, int64_t n)
{
    return n == 16 ? f32x16_load(p) : f32x16_load_n(p, n);
}

static inline LSA_BODY f32x16 scores_of(f32x16 logits, int32_t scoring)
{
    if (scoring == LSA_SCORING_SIGMOID) return f32x16_sigmoid(logits);
    float s[16];
    f32x16_store(s, f32x16_softplus(logits));
    for (int i = 0; i < 16; i++) s[i] = sqrtf(s[i]);
    return f32x16_load(s);
}

/* ids and keys hold the `count` best so far, best first; experts come in ascending order. */
static inline LSA_BODY int64_t offer(int32_t *ids, float *keys, int64_t count, int64_t k, float key,
                                     int32_t expert)
{
    if (key != key) key = -INFINITY;
    if (count == k && !(key > keys[k - 1])) return count;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && key > keys[at - 1]; at--) {
        keys[at] = keys[at - 1];
        ids[at] = ids[at - 1];
    }
    keys[at] = key;
    ids[at] = expert;
    return count;
}

static inline LSA_BODY void best_experts(int32_t *ids, float *keys, const float *logits,
                                         const float *bias, int64_t experts, int64_t k,
                                         int32_t scoring)
{
    int64_t count = 0;
    for (int64_t e = 0; e < experts; e += 16) {
        int64_t n = experts - e < 16 ? experts - e : 16;
        float key[16];
        f32x16 s = scores_of(load_some(logits + e, n), scoring);
        if (bias) s += load_some(bias + e, n);
        f32x16_store(key, s);
        for (int64_t i = 0; i < n; i++)
            count = offer(ids, keys, count, k, key[i], (int32_t)(e + i));
    }
}

static inline LSA_BODY void route_token(int32_t *ids, float *weights, const float *logits,
                                        const float *bias, const int32_t *fixed, int64_t experts,
                                        int64_t k, int32_t scoring, float scaling)
{
    if (fixed)
        memcpy(ids, fixed, (size_t)k * sizeof *ids);
    else
        best_experts(ids, weights, logits, bias, experts, k, scoring); /* weights holds the keys */

    float sum = 0;
    for (int64_t from = 0; from < k; from += 16) {
        int64_t n = k - from < 16 ? k - from : 16;
        float score[16] = {0};
        for (int64_t i = 0; i < n; i++) score[i] = logits[ids[from + i]];
        f32x16_store(score, scores_of(f32x16_load(score), scoring));
        for (int64_t i = 0; i < n; i++) sum += weights[from + i] = score[i];
    }
    for (int64_t i = 0; i < k; i++) weights[i] = weights[i] / (sum + 1e-20f) * scaling;
}

typedef struct route_call {
    int32_t *ids;
    float *weights;
    const float *logits, *bias;
    const int32_t *token_experts, *tokens;
    int64_t experts, k;
    int32_t scoring;
    float scaling;
} route_call;

static inline LSA_BODY void route_body(const route_call *c, int64_t from, int64_t to)
{
    for (int64_t t = from; t < to; t++)
        route_token(c->ids + t * c->k, c->weights + t * c->k, c->logits + t * c->experts, c->bias,
                    c->token_experts ? c->token_experts + c->tokens[t] * c->k : NULL, c->experts,
                    c->k, c->scoring, c->scaling);
}

LSA_PATHS(route, (const route_call *c, int64_t from, int64_t to), (c, from, to))

int lsa_moe_route_check(int64_t n, int64_t experts, int64_t k, int32_t scoring)
{
    if (scoring != LSA_SCORING_SQRTSOFTPLUS && scoring != LSA_SCORING_SIGMOID)
        return lsa_fail(LSA_EARG, "moe_route: scoring %d is not sqrtsoftplus or sigmoid", scoring);
    if (n < 0 || k < 0 || k > experts || experts > INT32_MAX)
        return lsa_fail(LSA_ESHAPE, "moe_route: %lld tokens, the best %lld of %lld experts",
                        (long long)n, (long long)k, (long long)experts);
    return LSA_OK;
}

int lsa_swiglu_check(int64_t n, float limit)
{
    if (n >= 0 && limit >= 0) return LSA_OK;
    return lsa_fail(LSA_EARG, "swiglu: %lld values, limit %g", (long long)n, (double)limit);
}

static void route_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    route(context, from, to);
}

int lsa_moe_route_cpu(int32_t *ids, float *weights, const float *logits, const float *bias,
                      const int32_t *token_experts, const int32_t *tokens, int64_t n,
                      int64_t experts, int64_t k, int32_t scoring, float scaling, void *stream)
{
    (void)stream;
    int rc = lsa_moe_route_check(n, experts, k, scoring);
    if (rc || k == 0) return rc;
    route_call call = {ids,    weights, logits, bias,    token_experts,
                       tokens, experts, k,      scoring, scaling};
    lsa_parallel(lsa_threads_for(n * (token_experts ? k : experts) * ROUTE_NS), n, route_part,
                 &call);
    return LSA_OK;
}

static inline LSA_BODY f32x16 gated(f32x16 gate, f32x16 up, float limit)
{
    f32x16 g = f32x16_at_most(gate, limit);
    return g * f32x16_sigmoid(g) * f32x16_at_least(f32x16_at_most(up, limit), -limit);
}

static inline LSA_BODY void swiglu_body(float *out, const float *gate, const float *up, int64_t n,
                                        float limit)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        f32x16_store(out + i, gated(f32x16_load(gate + i), f32x16_load(up + i), limit));
    if (i < n)
        f32x16_store_n(out + i,
                       gated(f32x16_load_n(gate + i, n - i), f32x16_load_n(up + i, n - i), limit),
                       n - i);
}

LSA_PATHS(swiglu, (float *out, const float *gate, const float *up, int64_t n, float limit),
          (out, gate, up, n, limit))

typedef struct swiglu_call {
    float *out;
    const float *gate, *up;
    int64_t n;
    float limit;
} swiglu_call;

/* Parts are whole vectors, so that any split gives the same bits. */
static void swiglu_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const swiglu_call *c = context;
    from *= 16;
    to = 16 * to < c->n ? 16 * to : c->n;
    swiglu(c->out + from, c->gate + from, c->up + from, to - from, c->limit);
}

int lsa_swiglu_cpu(float *out, const float *gate, const float *up, int64_t n, float limit,
                   void *stream)
{
    (void)stream;
    int rc = lsa_swiglu_check(n, limit);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n * SWIGLU_NS), (n + 15) / 16, swiglu_part,
                 &(swiglu_call){out, gate, up, n, limit});
    return 0;
}
