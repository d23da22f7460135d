/* Sparse multi-query attention over a sliding window and selected records, with a sink. */
#ifndef LSA_KERNELS_ATTENTION_H
#define LSA_KERNELS_ATTENTION_H
#include "kernels/span.h"

/* out[t, h] = sum_j p_j v_j over the keys of query t, K = V, p = softmax of q[t, h] . k_j * scale with
 * one more logit, sinks[h], in the denominator (it contributes no value).
 *
 * out, q: [tokens, heads, dim] f32; sinks: [heads].
 * Window: a ring of `room` rows of dim floats, the row of position p at p % room; query t is at position own + t and sees
 *   the last `window_size` positions up to its own (fewer at the start: position 0 is the oldest there is). Tiles count from
 *   the oldest row that it sees, so where the ring begins changes no bit.
 * Records: query t sees ids[t * id_stride + j], j < counts[t], or records 0 .. counts[t]-1 where ids is NULL.
 *   records may be NULL (no records; ids, counts are then ignored).
 * mass: NULL, or row t at mass + t * id_stride: the mean over heads of p_j for each record; beyond counts[t] untouched.
 * The result of a query depends on its own keys, in their order, alone: to the last bit, whatever
 * else is in the call or where the records lie. out does not overlap q.
 * workspace: lsa_attention_workspace bytes, 64-byte aligned. */
typedef int lsa_attention_fn(float *out, float *mass, const float *q, const float *window,
                             const float *sinks, const lsa_records *records, const int32_t *ids,
                             const int32_t *counts, int64_t tokens, int64_t heads, int64_t dim,
                             int64_t rope_dim, int64_t room, int64_t own, int64_t window_size,
                             int64_t id_stride, float scale, void *workspace, void *stream);
lsa_attention_fn lsa_attention_cpu;

/* For calls of at most these sizes, on at most the threads that lsa_threads() gives now;
 * most_records is the largest count of any query. */
typedef int64_t lsa_attention_workspace_fn(int64_t tokens, int64_t heads, int64_t dim,
                                           int64_t window_size, int64_t most_records);
lsa_attention_workspace_fn lsa_attention_workspace;

/* Attention of a pass: every span over its own window and, by `source`, records of its layer's store. */
enum {
    LSA_ATTEND_WINDOW = 0, /* none */
    LSA_ATTEND_PICKED = 1, /* ids [rows, k] as lsa_locate gave them, counts [rows] */
    LSA_ATTEND_ENTRIES = 2 /* all: floor((position + 1) / rate), written to counts */
};

typedef struct lsa_attending {
    int32_t source;
    const float *q;     /* [rows of the pass, heads, dim] */
    const float *sinks; /* [heads] */
    const int32_t *ids;
    int32_t *counts;
    int64_t heads, dim, rope_dim, window_size, k, rate;
    float scale;
} lsa_attending;

/* out [rows of the pass, heads, dim] and mass (NULL, or [rows of the pass, k]) as lsa_attention gives them for each span.
 * workspace: lsa_attention_workspace of the longest span, and of at most k, or the most entries, records. */
typedef int lsa_attend_fn(float *out, float *mass, const lsa_span *spans, int64_t count,
                          int64_t layer, const lsa_attending *attending, void *workspace,
                          void *stream);
lsa_attend_fn lsa_attend_cpu;

#endif
