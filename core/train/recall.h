/* How well scores tell golden chunks from others: counts, from which precision, recall and calibration follow. */
#ifndef LSA_RECALL_H
#define LSA_RECALL_H
#include "core/train/sampling.h"

enum { LSA_RECALL_BINS = 15 };

/* Sums over steps. */
typedef struct lsa_recall_counts {
    int64_t steps, golden_steps; /* those with candidates; of these, those with a golden one */
    int64_t candidates, golden, selected, right; /* right: golden and selected */
    double
        recall_at_k; /* golden ones among the k first of a step / golden ones; over golden_steps */
    int64_t bin_count[15],
        bin_golden[15]; /* LSA_RECALL_BINS equal parts of 0..1, by score; 1 is in the last */
    double bin_score[15];
} lsa_recall_counts;

/* Adds `rows` steps of a document to *counts. Row r looks at the chunks 0 .. limits[r]-1 of steps[r]; golden ones are the
 * step's positives (samples.h). scores: row r at scores + r * stride, in 0..1; selected are those >= theta, or > theta
 * where strict is not 0. ranks: as scores, what orders the first k (scores themselves round to 1 where logits still
 * differ); ties go to the lower chunk. A NaN score is not selected and in no bin. LSA_EARG names a limit beyond the candidates
 * or the stride. */
int lsa_recall_add(lsa_recall_counts *counts, const float *scores, const float *ranks,
                   const lsa_golden *golden, const lsa_horizon *horizon, const int64_t *steps,
                   const int64_t *limits, int64_t rows, int64_t stride, double theta,
                   int32_t strict, int64_t k);

/* Whether `rows` rows of k ids are what lsa_recall_covered takes: in row r, ascending ids of chunks that are whole at
 * positions[r], chunks of `rate` tokens, and behind them only -1. LSA_EFORMAT names the first that is not. */
int lsa_recall_check(const int32_t *ids, int64_t rows, int64_t k, const int64_t *positions,
                     int64_t rate);

/* How many of `rows` rows of k ids, one after the other and each ending at its first id < 0, are in the bitmap; *total gets how
 * many ids there are. Every id has its bit. */
int64_t lsa_recall_covered(const uint64_t *bits, const int32_t *ids, int64_t rows, int64_t k,
                           int64_t *total);

#endif
