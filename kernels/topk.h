/* Top-k of rows of scores, streamed in blocks so that memory does not grow with the row. */
#ifndef LSA_KERNELS_TOPK_H
#define LSA_KERNELS_TOPK_H
#include <stdint.h>

/* One row's running selection. The caller owns `values` and `ids`, of `capacity` elements each. */
typedef struct lsa_topk_state {
    float *values;
    int32_t *ids;
    int32_t k, capacity, count;
    float threshold; /* once k are held, a candidate must exceed this */
} lsa_topk_state;

/* Elements of values and ids that a k needs. */
int32_t lsa_topk_capacity(int32_t k);

void lsa_topk_begin(lsa_topk_state *state, int32_t k, float *values, int32_t *ids);

/* At least k of all that will be offered are `least` or more. */
void lsa_topk_expect(lsa_topk_state *state, float least);

/* What at least k of n scores are, and at most k exceed; -inf where there is nothing such. */
float lsa_topk_least(const float *scores, int32_t n, int32_t k);

/* Offers scores[i] for id first_id + i, i < n. Ids come in ascending order over all calls. */
void lsa_topk_push(lsa_topk_state *state, const float *scores, int64_t n, int32_t first_id);

/* Offers scores[i] for ids[i], ascending and above all that came before; raises the threshold where it can. */
void lsa_topk_offer(lsa_topk_state *state, const float *scores, const int32_t *ids, int32_t n);

/* Writes the selected ids in ascending order, and their scores where `values` is not NULL; returns
 * how many. More may be pushed after it. */
int32_t lsa_topk_finish(lsa_topk_state *state, int32_t *ids, float *values);

/* The k largest of each row, as ids in ascending order: ids [rows, k] (-1 beyond counts[row]),
 * values [rows, k] or NULL (-inf there), counts [rows] or NULL. scores: row r at scores +
 * r * score_stride, n floats. Ties: the lower id. -inf and NaN are never selected; fewer than k
 * candidates, or none, is legal. workspace: lsa_topk_workspace(rows, k) bytes. */
typedef int lsa_topk_fn(int32_t *ids, float *values, int32_t *counts, const float *scores,
                        int64_t rows, int64_t n, int64_t score_stride, int32_t k, void *workspace,
                        void *stream);
lsa_topk_fn lsa_topk_cpu, lsa_topk_cuda;

/* The sizes, as both check them. */
int lsa_topk_check(int64_t rows, int64_t n, int32_t k);

typedef int64_t lsa_topk_workspace_fn(int64_t rows, int32_t k);
lsa_topk_workspace_fn lsa_topk_workspace;

#endif
