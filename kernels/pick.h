/* Level 2: the native Lightning Indexer's picks for each query of a pass, among residents or among all chunks. */
#ifndef LSA_KERNELS_PICK_H
#define LSA_KERNELS_PICK_H
#include "kernels/span.h"

/* What a call is about. */
typedef struct lsa_picking {
    const float *queries,
        *weights; /* [rows of the pass, heads, dim], [rows of the pass, heads] as index_score.h has them */
    int64_t heads, dim, k, rate; /* rate: tokens a chunk */
    int64_t rows;                /* of the pass */
    int64_t most;                /* at least the candidates of any row */
    int32_t key_format, compute; /* LSA_KV_*; LSA_SCORE_* */
} lsa_picking;

/* The k best candidates of every row, scored as index_score.h says, ties to the lower place; -inf and NaN are never picked;
 * fewer than k candidates, or none, is legal.
 * Candidates of a row at position t: the first floor((t + 1) / rate) chunks, by their number, with keys of the layer's store; or
 * among residents these and what was born since, by their place, with its resident_keys.
 * places: [rows of the pass, k], ascending, undefined past counts[row]. values: NULL, or their scores [rows, k].
 * A row's picks depend on its own query and candidates alone. workspace: lsa_pick_workspace bytes. */
typedef int lsa_pick_fn(int32_t *places, float *values, int32_t *counts, const lsa_span *spans,
                        int64_t count, int64_t layer, const lsa_picking *picking, void *workspace,
                        void *stream);
lsa_pick_fn lsa_pick_cpu, lsa_pick_cuda;

/* For passes of at most so many rows of at most so many candidates. */
typedef int64_t lsa_pick_workspace_fn(int64_t rows, int64_t most, int64_t k, int64_t heads,
                                      int64_t dim, int32_t key_format, int32_t compute);
lsa_pick_workspace_fn lsa_pick_workspace, lsa_pick_workspace_cuda;

/* Where attention finds what was picked among residents: slots of the hot tier; what was picked among all chunks: chunks.
 * ids, places: [rows of the pass, k]. */
typedef int lsa_locate_fn(int32_t *ids, const int32_t *places, const int32_t *counts,
                          const lsa_span *spans, int64_t count, int64_t k, void *stream);
lsa_locate_fn lsa_locate_cpu, lsa_locate_cuda;

#endif
