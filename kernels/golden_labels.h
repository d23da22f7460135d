/* Golden labels: the chunks that several layers' native indexers agree on (LSA paper, Sec. 3). */
#ifndef LSA_KERNELS_GOLDEN_LABELS_H
#define LSA_KERNELS_GOLDEN_LABELS_H
#include <stdint.h>

/* Each row is one layer's native top-k at one step. Its entries are weighted by the softmax of their logits; the smallest
 * prefix in descending order whose weight is > top_p of the whole is kept, and the next entry too when extra is not 0.
 * A chunk kept in at least min_layers of a step's rows is golden.
 *
 * ids, logits: entry j of step t's layer l at [t * step_stride + l * layer_stride + j], j < k. An id < 0, a NaN or -inf
 * logit is no entry. Ties go to the earlier entry: to the lower id where a row's ids ascend, as kernels/topk.h gives
 * them. A row has an id once; ids are < n.
 * Out, as CSR: step t's golden ids are indices[pointers[t]] .. indices[pointers[t + 1] - 1], ascending; scores has the
 * number of layers of each. pointers: [steps + 1]. indices, scores: [lsa_golden_labels_room(...)].
 * Weights are multiples of 2^-22 of the row's largest, so sums are exact, and +inf is a weight of 1 among zeros.
 * top_p >= 1 keeps all entries. No entries, no steps: no labels. LSA_EARG: top_p below 0 or NaN, more than 255 layers,
 * min_layers < 1, an id >= n, more than 2^31 - 1 labels.
 * workspace: lsa_golden_labels_workspace(...) bytes, 64-byte aligned. */
typedef int lsa_golden_labels_fn(int32_t *pointers, int32_t *indices, int32_t *scores,
                                 const int32_t *ids, const float *logits, int64_t steps,
                                 int64_t layers, int64_t k, int64_t step_stride,
                                 int64_t layer_stride, int64_t n, double top_p, int32_t extra,
                                 int32_t min_layers, void *workspace, void *stream);
lsa_golden_labels_fn lsa_golden_labels_cpu;

/* Elements that the labels of so many steps may take. */
int64_t lsa_golden_labels_room(int64_t steps, int64_t layers, int64_t k, int32_t min_layers);

typedef int64_t lsa_golden_labels_workspace_fn(int64_t layers, int64_t k, int64_t n);
lsa_golden_labels_workspace_fn lsa_golden_labels_workspace;

#endif
