/* Sparse multi-query attention over a sliding window and selected records, with a sink. */
#ifndef LSA_KERNELS_ATTENTION_H
#define LSA_KERNELS_ATTENTION_H
#include "kernels/kv_record.h"

/* out[t, h] = sum_j p_j v_j over the keys of query t, K = V, p = softmax of q[t, h] . k_j * scale with
 * one more logit, sinks[h], in the denominator (it contributes no value).
 *
 * out, q: [tokens, heads, dim] f32; sinks: [heads].
 * Window: rows of dim floats; query t's own row is window[own + t], and it sees the last `window_size` rows
 *   up to its own (fewer at the start: row 0 is the oldest there is).
 * Records: query t sees ids[t * id_stride + j], j < counts[t], or records 0 .. counts[t]-1 where ids is NULL.
 *   records may be NULL (no records; ids, counts are then ignored).
 * mass: NULL, or row t at mass + t * id_stride: the mean over heads of p_j for each record; beyond counts[t] untouched.
 * The result of a query depends on its own keys, in their order, alone: to the last bit, whatever
 * else is in the call or where the records lie. out does not overlap q.
 * workspace: lsa_attention_workspace bytes, 64-byte aligned. */
typedef int lsa_attention_fn(float *out, float *mass, const float *q, const float *window,
                             const float *sinks, const lsa_records *records, const int32_t *ids,
                             const int32_t *counts, int64_t tokens, int64_t heads, int64_t dim,
                             int64_t rope_dim, int64_t own, int64_t window_size, int64_t id_stride,
                             float scale, void *workspace, void *stream);
lsa_attention_fn lsa_attention_cpu;

/* For calls of at most these sizes, on at most the threads that lsa_threads() gives now;
 * most_records is the largest count of any query. */
typedef int64_t lsa_attention_workspace_fn(int64_t tokens, int64_t heads, int64_t dim,
                                           int64_t window_size, int64_t most_records);
lsa_attention_workspace_fn lsa_attention_workspace;

#endif
