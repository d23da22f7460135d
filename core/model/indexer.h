/* The Memory Indexer (LSA paper, Eq. 1-5): queries from the hidden state, per target layer. Its logits are
 * index scores (kernels/index_score.h) of these queries; kernels/ensemble.h joins the layers. */
#ifndef LSA_INDEXER_H
#define LSA_INDEXER_H
#include "core/model/config.h"
#include "kernels/linear.h"

/* One target layer. The native indexer is one: q_a, q_a_norm, index_q_b, index_weights of its layer. */
typedef struct lsa_indexer_layer {
    lsa_weight a;      /* Wqa [rank, hidden] */
    const float *norm; /* [rank] */
    lsa_weight b;      /* Wqb [heads * dim, rank] */
    lsa_weight w;      /* Ww [heads, hidden] */
    int64_t heads, dim;
} lsa_indexer_layer;

/* LSA_ESHAPE when the layer's parts do not fit together or with the sizes; names the parts as checkpoints do. */
int lsa_indexer_check(const lsa_indexer_layer *layer, int64_t hidden_size, int64_t rope_dim);

/* q [n, heads, dim], w [n, heads] of n hidden states [n, hidden] at the given positions [n]:
 *   c = rmsnorm(Wqa h); q = Wqb c, compress-rope on the trailing rope dims (inv_freq [rope_dim / 2]), Hadamard-rotated
 *   when `rotate` is not 0 (fp8 keys); w = Ww h * dim^-0.5 * heads^-0.5.
 * LSA_ESHAPE as lsa_indexer_check. */
int lsa_indexer_queries(float *q, float *w, const lsa_indexer_layer *layer, const float *hidden,
                        const int32_t *positions, int64_t n, int64_t hidden_size,
                        const float *inv_freq, int64_t rope_dim, float norm_eps, int32_t rotate,
                        int32_t compute);

/* The same by a device's kernels, launched one after the other: everything lies where they read it, table is rope_table's of the
 * positions, low is [n, rank], and workspace as large as linear's of each weight. The arguments are checked by who calls. */
struct lsa_kernels;
int lsa_indexer_queries_on(const struct lsa_kernels *kernels, float *q, float *w,
                           const lsa_indexer_layer *layer, const float *hidden, const float *table,
                           int64_t n, int64_t hidden_size, int64_t rope_dim, float norm_eps,
                           int32_t rotate, int32_t compute, float *low, void *workspace);

#endif
