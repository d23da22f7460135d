/* Private: the working memory of a forward pass, for up to `piece` rows: activations, the spans of the pass, and the workspace
 * of whichever kernel runs. Grows only when it is told for what. */
#ifndef LSA_ACTIVATIONS_H
#define LSA_ACTIVATIONS_H
#include <stdatomic.h>

#include "core/model/model.h"
#include "kernels/span.h"

enum { LSA_SEGMENT_MESSAGE = 256 };

typedef struct lsa_segment {
    struct lsa_session *s;
    const int32_t *tokens; /* [n] */
    int64_t n, row;        /* its rows in the pass: row .. row + n - 1 */
    int64_t from, end;     /* positions from .. end-1 */
    int among_residents;   /* Level 2 chooses among residents */
    int64_t of;            /* which of the caller's sessions it is */
    int64_t hits;          /* on demand: picks that had a cell */
    int code;              /* of its own failure: the other segments go on without it */
    char message[LSA_SEGMENT_MESSAGE];
} lsa_segment;

/* A decode step as it was captured: what it was captured with, and the graph; NULL: none. */
typedef struct lsa_graph {
    int64_t count;
    int32_t kv_format, compute;
    void *graph;
} lsa_graph;

/* P rows, D hidden, H heads, Dh head_dim, R rope_dim, E experts. */
typedef struct lsa_activations {
    atomic_int references;
    const lsa_model *model;
    int64_t piece, bytes;
    lsa_segment *segments;       /* [P] */
    lsa_span *spans;             /* [P] */
    uint64_t *generators;        /* [P]: of rows that drew a token, until it is taken */
    int32_t *tokens, *positions; /* [P] */
    uint8_t *control,
        *control_there;           /* spans and rows of a pass for a GPU: in the host, and there */
    float *streams;               /* [P, hc, D] */
    float *x, *y;                 /* [P, D] */
    float *mix, *post, *comb;     /* [P, (2 + hc) hc], [P, hc], [P, hc, hc] */
    float *q_low;                 /* [P, q_rank] */
    float *q, *attended;          /* [P, H, Dh] */
    float *o_low;                 /* [P, o_groups, o_rank] */
    float *window_kv;             /* [P, Dh] */
    float *kv, *kv_gate;          /* [P, 2 Dh]: what compressors take; HCA: [P, Dh] */
    float *index_kv, *index_gate; /* [P, 2 index_dim] */
    float *entries;               /* [P, max(Dh, index_dim)] */
    float *index_q, *index_w;     /* [P, index_heads, index_dim], [P, index_heads] */
    float *main_table, *compress_table; /* [P, R] */
    int32_t *ids, *places, *counts;     /* [P, index_topk] twice, [P] */
    float *mass;                        /* [P, index_topk] */
    float *router, *expert_weights;     /* [P, E], [P, experts_per_token] */
    int32_t *expert_ids;                /* [P, experts_per_token] */
    float *logits;                      /* [logit_rows, vocab] */
    int64_t logit_rows;
    lsa_graph graphs[8]; /* on a GPU: decode steps, the one used last at [0] */
    int64_t captures;    /* graphs that were made */
    void *workspace;
    int64_t workspace_bytes;
    int64_t rows, records,
        chunks; /* what the workspace is for: rows of a pass, records that a query attends to, chunks */
    int threads; /* that Level 2 picks among, and threads */
} lsa_activations;

/* Takes a reference. */
void lsa_activations_retain(lsa_activations *activations);

/* What kernels read of a pass: on a GPU copies there, else the arrays themselves. layers of the spans are there already. */
typedef struct lsa_pass_rows {
    const lsa_span *spans;
    const int32_t *tokens, *positions;
} lsa_pass_rows;

int lsa_activations_upload(lsa_activations *activations, int64_t count, int64_t rows,
                           lsa_pass_rows *out);

/* Workspace for passes of `rows` rows whose queries attend to at most `records` records, picked among at most `chunks` chunks,
 * and logits [logit_rows, vocab]. */
int lsa_activations_reserve(lsa_activations *activations, int64_t rows, int64_t records,
                            int64_t chunks, int64_t logit_rows);

#endif
