/* What follows a layer's projections and precedes its attention, in one call. */
#ifndef LSA_KERNELS_SETTLE_H
#define LSA_KERNELS_SETTLE_H
#include "kernels/extend.h"

typedef struct lsa_settling {
    float *q;                 /* [rows, heads, dim] */
    float *window;            /* [rows, dim]: the tokens' own keys */
    const float *window_norm; /* [dim] */
    const float *table;       /* rope of both, by row (kernels/rope.h) */
    int64_t heads, dim, rope_dim;
    float norm_eps;
    const lsa_extension *records, *keys; /* NULL: the layer has none */
    float *entries, *key_entries;        /* of lsa_extend */
    /* The indexer; index_q NULL: the layer has none. */
    float *index_q, *index_w; /* [rows, index_heads, index_dim], [rows, index_heads] */
    float *index_seen;        /* NULL, or the queries before they are transformed */
    const float *index_table;
    int64_t index_heads, index_dim;
    float index_scale; /* of the weights */
    int32_t
        transformed; /* queries take the Hadamard transform, as keys have it (kernels/hadamard.h) */
    const float *hidden; /* [rows, width]: the block's input */
    int64_t hidden_width;
} lsa_settling;

/* Queries are normed without a weight and rotated; window keys are normed, rotated and kept; records and keys are extended
 * (lsa_extend); index queries are rotated and transformed, their weights scaled, both kept, and hidden, too
 * (lsa_keep_rows). rows: of the pass. workspace: what lsa_extend wants most. What the contracts named fail with. */
typedef int lsa_settle_fn(const lsa_span *spans, int64_t count, int64_t layer,
                          const lsa_settling *settling, int64_t rows, void *workspace,
                          void *stream);
lsa_settle_fn lsa_settle_cpu, lsa_settle_cuda;

/* The same with the kernels of each part, of one device. */
struct lsa_kernels;
int lsa_settle_by(const struct lsa_kernels *k, const lsa_span *spans, int64_t count, int64_t layer,
                  const lsa_settling *settling, int64_t rows, void *workspace, void *stream);

#endif
