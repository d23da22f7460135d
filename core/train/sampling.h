/* Training samples from golden labels: which chunks a decode step's coming steps need, and which to set against them. */
#ifndef LSA_SAMPLING_H
#define LSA_SAMPLING_H
#include <stdint.h>

/* A document's golden labels: step i, at token positions[i], needs the chunks indices[pointers[i] .. pointers[i + 1] - 1],
 * each golden in votes[...] layers. */
typedef struct lsa_golden {
    const int32_t *pointers, *indices, *votes;
    const int64_t *positions;
    int64_t steps, entries, chunks;
} lsa_golden;

/* Which positives a step has: the chunks golden at positions first .. first + span - 1 after its own, of those that are
 * whole at its own: floor((position + 1) / rate). first is 1 for a set that serves the steps to come (0: from the step itself). */
typedef struct lsa_horizon {
    int64_t first, span, rate;
} lsa_horizon;

/* LSA_EFORMAT where pointers do not ascend from 0 to `entries`, a chunk is out of range, or positions do not ascend below 2^31. */
int lsa_golden_check(const lsa_golden *golden);

/* Candidates of a step: min(chunks, floor((position + 1) / rate)). */
int64_t lsa_golden_candidates(const lsa_golden *golden, const lsa_horizon *horizon, int64_t step);

/* The positives of a step, each once, in the order in which coming steps first have them, with the most votes that any of
 * these steps gives. ids, votes: room for the candidates; returns how many. seen: [chunks], all 0, and left so. */
int64_t lsa_golden_positives(int32_t *ids, int32_t *votes, const lsa_golden *golden,
                             const lsa_horizon *horizon, int64_t step, int32_t *seen);

/* The steps that have a positive, ascending; returns how many. out: [steps]. */
int64_t lsa_golden_eligible(int32_t *out, const lsa_golden *golden, const lsa_horizon *horizon);

/* The set (core/base/set.h) of chunks that are golden in more than `share` of all steps. count: [chunks], all 0, and left so. */
void lsa_golden_frequent(uint64_t *bits, const lsa_golden *golden, double share, int32_t *count);

/* weights[i] of n positives: 0.5 + 1.5 (votes - least) / max(1, layers - least), but 0.5 for those in `frequent` (may be
 * NULL). */
void lsa_golden_weights(float *weights, const int32_t *ids, const int32_t *votes, int64_t n,
                        int32_t least, int32_t layers, const uint64_t *frequent);

/* Random numbers: xorshift64*, as lua/lsa/cycle/rng.lua. A state of sample i of a step: the same for the same three numbers. */
uint64_t lsa_sample_seed(uint64_t seed, uint64_t step, uint64_t i);

/* n numbers of a normal distribution times `scale`. */
void lsa_sample_normals(float *out, int64_t n, float scale, uint64_t *state);

/* Leaves `keep` of n ids, each subset as likely, at the front; their votes move with them. */
void lsa_sample_subset(int32_t *ids, int32_t *votes, int64_t n, int64_t keep, uint64_t *state);

/* `want` different ids of 0 .. n-1, or as many as there are, none of them in `excluded`, a set of n ids that is changed
 * meanwhile. Returns how many. */
int64_t lsa_sample_others(int32_t *ids, int64_t want, int64_t n, uint64_t *excluded,
                          uint64_t *state);

#endif
