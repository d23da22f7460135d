/* Sparse multi-query attention over a sliding window and selected records, with a sink. */
#ifndef LSA_KERNELS_ATTENTION_H
#define LSA_KERNELS_ATTENTION_H
#include "kernels/linear.h"
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
 * On a GPU: dim is at most 512; `records` itself is read by the caller's processor, counts are at most id_stride, unless
 * that is 0.
 * workspace: lsa_attention_workspace bytes, 64-byte aligned. */
typedef int lsa_attention_fn(float *out, float *mass, const float *q, const float *window,
                             const float *sinks, const lsa_records *records, const int32_t *ids,
                             const int32_t *counts, int64_t tokens, int64_t heads, int64_t dim,
                             int64_t rope_dim, int64_t room, int64_t own, int64_t window_size,
                             int64_t id_stride, float scale, void *workspace, void *stream);
lsa_attention_fn lsa_attention_cpu, lsa_attention_cuda;

/* The sizes, as both check them. */
int lsa_attention_check(const lsa_records *records, int64_t tokens, int64_t heads, int64_t dim,
                        int64_t rope_dim, int64_t room, int64_t own, int64_t window_size);

/* For calls of at most these sizes, on at most the threads that lsa_threads() gives now;
 * most_records is the largest count of any query, most_masses the largest id_stride of a call with masses. */
typedef int64_t lsa_attention_workspace_fn(int64_t tokens, int64_t heads, int64_t dim,
                                           int64_t window_size, int64_t most_records,
                                           int64_t most_masses);
lsa_attention_workspace_fn lsa_attention_workspace, lsa_attention_workspace_cuda;

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
    int64_t rows; /* of the pass */
    int64_t most; /* at least the entries that any row sees */
    float scale;
    int32_t
        compute; /* LSA_COMPUTE_BF16: queries, keys and what keys weigh may be rounded to bf16; sums are f32 */
    const float *table; /* NULL, or what out is rotated back by, by row (kernels/rope.h) */
} lsa_attending;

/* out [rows of the pass, heads, dim] and mass (NULL, or [rows of the pass, k]) as lsa_attention gives them for each span.
 * workspace: lsa_attention_workspace of the pass's rows, of at most k, or `most`, records, and of k masses. */
typedef int lsa_attend_fn(float *out, float *mass, const lsa_span *spans, int64_t count,
                          int64_t layer, const lsa_attending *attending, void *workspace,
                          void *stream);
lsa_attend_fn lsa_attend_cpu, lsa_attend_cuda;

#endif
