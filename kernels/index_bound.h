/* Upper bounds of index scores: by them, most keys are seen not to be among a query's best without being scored. */
#ifndef LSA_KERNELS_INDEX_BOUND_H
#define LSA_KERNELS_INDEX_BOUND_H
#include <stdint.h>

enum {
    LSA_BOUND_KEYS = 64,       /* looked at by one call */
    LSA_BOUND_MOST_TOKENS = 32 /* of a batch of queries */
};

/* Queries as the products take them, in the workspace of lsa_index_bound_begin. */
typedef struct lsa_index_bound {
    const uint8_t *packed;
    const float *slack; /* [tokens]: added to a bound, since sums round */
    int64_t tokens, heads, dim;
} lsa_index_bound;

/* Whether there are bounds of scores of so many heads: of keys of fp8 (kv_record.h) whose dim is a multiple of 32, by products of f32
 * or bf16 (index_score.h). */
int lsa_index_bound_has(int64_t heads, int64_t dim, int32_t key_format, int32_t scoring);

/* Takes the queries of at most LSA_BOUND_MOST_TOKENS tokens: q [tokens, heads, dim], w [tokens, heads], as index_score.h has them.
 * workspace: lsa_index_bound_workspace bytes, 64-byte aligned. */
void lsa_index_bound_begin(lsa_index_bound *b, const float *q, const float *w, int64_t tokens,
                           int64_t heads, int64_t dim, int32_t scoring, void *workspace);
int64_t lsa_index_bound_workspace(int64_t tokens, int64_t heads, int64_t dim);

/* Which of n <= LSA_BOUND_KEYS keys, key_stride bytes apart, can have a score above least[t]: bit i of reached[t] is set where key i
 * can, and nothing is said where it is not: its score, as lsa_index_score_cpu has it, is least[t] or less, or NaN. */
void lsa_index_bound_reach(uint64_t *reached, const lsa_index_bound *b, const float *least,
                           const void *keys, int64_t n, int64_t key_stride);

#endif
