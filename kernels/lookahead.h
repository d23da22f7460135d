/* Level 1 of a cycle in one pass over the keys: the Memory Indexer's scores of all chunks, joined over its target layers, and
 * what reaches a threshold. */
#ifndef LSA_KERNELS_LOOKAHEAD_H
#define LSA_KERNELS_LOOKAHEAD_H
#include "kernels/kv_record.h"

/* A session whose cycle is due. Outputs may be NULL, except that ids go with a count. */
typedef struct lsa_lookahead_request {
    const float *q, *w;      /* [layers, heads, dim], [layers, heads] as index_score.h has them */
    const lsa_records *keys; /* [layers]: index keys by chunk */
    int64_t n;               /* chunks */
    float *scores;           /* [n]: as ensemble.h says */
    uint64_t *bits;          /* the set of n chunks (core/base/set.h) whose score reaches theta */
    int32_t *ids, *count;    /* [n], [1]: the same, ascending */
    int32_t *pages;          /* [ceil(n / 64)]: how many of each 64 chunks */
} lsa_lookahead_request;

typedef struct lsa_lookahead {
    const lsa_lookahead_request
        *requests; /* [count]; they and their list of keys are read by the host */
    int64_t count, layers, heads, dim;
    int64_t most;                          /* at least the chunks of any request */
    int32_t key_format, scoring, ensemble; /* LSA_KV_*, LSA_SCORE_*, LSA_ENSEMBLE_* */
    float theta;
    int32_t strict; /* 0: >= theta, else > theta */
    int32_t lists;  /* 0: ids, count and pages of requests are left alone */
} lsa_lookahead;

/* scores are lsa_ensemble's of lsa_index_score's logits: on a CPU to the bit, on a GPU in another order of sums; bits and ids are
 * lsa_select_above's of those scores. A request's results depend on it alone. A NaN is never selected. LSA_EARG, LSA_ESHAPE as those have them; layers 1 .. LSA_LOOKAHEAD_MOST_LAYERS.
 * workspace: lsa_lookahead_workspace bytes, 64-byte aligned. */
enum { LSA_LOOKAHEAD_MOST_LAYERS = 64 };
typedef int lsa_lookahead_fn(const lsa_lookahead *lookahead, void *workspace, void *stream);
lsa_lookahead_fn lsa_lookahead_cpu, lsa_lookahead_cuda;

/* The arguments, as both check them; requests are not looked at. */
int lsa_lookahead_check(const lsa_lookahead *lookahead);

/* For calls like this one. */
typedef int64_t lsa_lookahead_workspace_fn(const lsa_lookahead *lookahead);
lsa_lookahead_workspace_fn lsa_lookahead_workspace, lsa_lookahead_workspace_cuda;

#endif
