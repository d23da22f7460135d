/* What the Memory Indexer's training minimises, over the logits of one decode step. */
#ifndef LSA_KERNELS_INDEX_LOSS_H
#define LSA_KERNELS_INDEX_LOSS_H
#include <stdint.h>

enum { LSA_POINTWISE_NONE = 0, LSA_POINTWISE_BCE = 1, LSA_POINTWISE_FOCAL = 2 };
enum { LSA_PAIRWISE_NONE = 0, LSA_PAIRWISE_HINGE = 1, LSA_PAIRWISE_BPR = 2 };

typedef struct lsa_index_loss {
    int32_t pointwise, pairwise;
    float pairwise_factor, margin;
} lsa_index_loss;

/* loss of logits z [positives + negatives], the positives first, and slope[i] = d loss / d z[i].
 *
 * With y = 1 for a positive and 0 for a negative, p = sigmoid(z), p_t = p where y is 1, else 1 - p:
 *   BCE    mean over all i of weights[i] * -log p_t
 *   focal  mean over all i of weights[i] * (1 - p_t)^2 * -log p_t      (Lin et al., 2017, gamma 2)
 * plus pairwise_factor times the mean over pairs of a positive i and a negative j of weights[i] times
 *   hinge  max(0, margin - (z[i] - z[j]))        slope 0 at the kink
 *   BPR    -log sigmoid(z[i] - z[j])             (Rendle et al., 2009)
 * Finite as long as differences of logits are; NaN gives NaN. No logits, or for pairs none on one side, give 0. weights: [positives +
 * negatives]. logits, weights and slope do not overlap. LSA_EARG names an unknown loss. */
typedef int lsa_index_loss_fn(double *loss, float *slope, const float *logits, const float *weights,
                              int64_t positives, int64_t negatives, const lsa_index_loss *how,
                              void *stream);
lsa_index_loss_fn lsa_index_loss_cpu;

#endif
