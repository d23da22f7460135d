/* Losses of the Memory Indexer's training on the CPU, and their derivatives by the logits. */
#include "kernels/index_loss.h"

#include "core/base/error.h"
#include "kernels/vector_math.h"

/* sigmoid(-u) and -log sigmoid(u) = softplus(-u) from one exponential. */
static inline LSA_BODY void miss(f32x16 *probability, f32x16 *cost, f32x16 u)
{
    f32x16 e = f32x16_exp(-f32x16_abs(u)), one = f32x16_set(1.0f);
    *probability = f32x16_select(u < 0.0f, one, e) / (e + 1.0f);
    *cost = f32x16_log1p_unit(e) + f32x16_at_least(-u, 0.0f);
}

/* n (<= 16) logits of one kind; sign is 1 for positives, -1 for negatives. Adds to slope; gives the sum of the costs. */
static inline LSA_BODY float pointwise(float *slope, const float *z, const float *w, int64_t n,
                                       float sign, float scale, int32_t kind)
{
    f32x16 q, cost, weight = f32x16_load_n(w, n);
    miss(&q, &cost, f32x16_load_n(z, n) * sign);
    f32x16 d = -q; /* of cost by u = sign * z */
    if (kind == LSA_POINTWISE_FOCAL) {
        d = -(q * q) * (2.0f * (1.0f - q) * cost + q);
        cost *= q * q;
    }
    f32x16_store_n(slope, f32x16_load_n(slope, n) + d * weight * (sign * scale), n);
    float lanes[16] = {0};
    f32x16_store_n(lanes, cost * weight, n);
    return f32x16_sum(f32x16_load(lanes));
}

static inline LSA_BODY void pointwise_part_body(double *sum, float *slope, const float *z,
                                                const float *w, int64_t n, float sign, float scale,
                                                int32_t kind)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) *sum += pointwise(slope + i, z + i, w + i, 16, sign, scale, kind);
    if (i < n) *sum += pointwise(slope + i, z + i, w + i, n - i, sign, scale, kind);
}

LSA_PATHS(pointwise_part,
          (double *sum, float *slope, const float *z, const float *w, int64_t n, float sign,
           float scale, int32_t kind),
          (sum, slope, z, w, n, sign, scale, kind))

/* One positive against n (<= 16) negatives: adds to the negatives' slope; cost and slope of the positive in lanes. */
static inline LSA_BODY void pairs(f32x16 *costs, f32x16 *slopes, float *slope, float z,
                                  const float *negatives, int64_t n, float scale,
                                  const lsa_index_loss *how)
{
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32x16 u = z - f32x16_load_n(negatives, n), q, cost, zero = f32x16_set(0.0f);
    if (how->pairwise == LSA_PAIRWISE_BPR) {
        miss(&q, &cost, u);
    } else {
        cost = how->margin - u;
        q = f32x16_select(cost <= 0.0f, zero, f32x16_set(1.0f));
        cost = f32x16_select(cost <= 0.0f, zero, cost);
        q = f32x16_select(cost != cost, cost, q);
    }
    i32x16 live = lane < (int32_t)n;
    *costs += f32x16_select(live, cost, zero);
    *slopes -= f32x16_select(live, q, zero);
    f32x16_store_n(slope, f32x16_load_n(slope, n) + q * scale, n);
}

static inline LSA_BODY void pairwise_part_body(double *sum, float *slope, const float *z,
                                               const float *w, int64_t positives, int64_t negatives,
                                               const lsa_index_loss *how)
{
    float factor = how->pairwise_factor / ((float)positives * (float)negatives);
    for (int64_t i = 0; i < positives; i++) {
        f32x16 costs = f32x16_set(0.0f), slopes = costs;
        int64_t j = positives;
        for (; j + 16 <= positives + negatives; j += 16)
            pairs(&costs, &slopes, slope + j, z[i], z + j, 16, w[i] * factor, how);
        if (j < positives + negatives)
            pairs(&costs, &slopes, slope + j, z[i], z + j, positives + negatives - j, w[i] * factor,
                  how);
        *sum += (double)f32x16_sum(costs) * w[i];
        slope[i] += f32x16_sum(slopes) * w[i] * factor;
    }
}

LSA_PATHS(pairwise_part,
          (double *sum, float *slope, const float *z, const float *w, int64_t positives,
           int64_t negatives, const lsa_index_loss *how),
          (sum, slope, z, w, positives, negatives, how))

int lsa_index_loss_cpu(double *loss, float *slope, const float *logits, const float *weights,
                       int64_t positives, int64_t negatives, const lsa_index_loss *how,
                       void *stream)
{
    (void)stream;
    int64_t n = positives + negatives;
    if (positives < 0 || negatives < 0)
        return lsa_fail(LSA_ESHAPE, "index_loss: %lld positives, %lld negatives",
                        (long long)positives, (long long)negatives);
    if (how->pointwise < LSA_POINTWISE_NONE || how->pointwise > LSA_POINTWISE_FOCAL)
        return lsa_fail(LSA_EARG, "index_loss: pointwise loss %d is not none, BCE or focal",
                        how->pointwise);
    if (how->pairwise < LSA_PAIRWISE_NONE || how->pairwise > LSA_PAIRWISE_BPR)
        return lsa_fail(LSA_EARG, "index_loss: pairwise loss %d is not none, hinge or BPR",
                        how->pairwise);
    for (int64_t i = 0; i < n; i++) slope[i] = 0;
    double points = 0, over_pairs = 0;
    if (how->pointwise && n) {
        float scale = 1.0f / (float)n;
        pointwise_part(&points, slope, logits, weights, positives, 1.0f, scale, how->pointwise);
        pointwise_part(&points, slope + positives, logits + positives, weights + positives,
                       negatives, -1.0f, scale, how->pointwise);
        points /= (double)n;
    }
    if (how->pairwise && positives && negatives) {
        pairwise_part(&over_pairs, slope, logits, weights, positives, negatives, how);
        over_pairs *= how->pairwise_factor / ((double)positives * (double)negatives);
    }
    *loss = points + over_pairs;
    return LSA_OK;
}
