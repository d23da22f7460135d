/* Private: the working memory of a forward pass, for up to `piece` rows: activations, the spans of the pass, and the workspace
 * of whichever kernel runs. Grows only when it is told for what. */
#ifndef LSA_ACTIVATIONS_H
#define LSA_ACTIVATIONS_H
#include <stdatomic.h>

#include "core/model/model.h"
#include "kernels/advance.h"

enum { LSA_SEGMENT_MESSAGE = 256 };

typedef struct lsa_segment {
    struct lsa_session *s;
    const int32_t *tokens; /* [n]; of decoding, [given] */
    int64_t n, row;        /* its rows in the pass: row .. row + n - 1 */
    int64_t from, end;     /* positions from .. end-1; of all steps */
    /* Of decoding: passes of one row that follow one another (kernels/advance.h). */
    int64_t given;
    double temperature;
    uint64_t generator; /* moved by the tokens drawn */
    const int32_t *stop_ids;
    int64_t stop_count;
    int64_t taken;       /* steps, afterwards */
    int32_t ended;       /* LSA_STEPS_*, afterwards */
    int among_residents; /* Level 2 chooses among residents */
    int64_t of;          /* which of the caller's sessions it is */
    int64_t hits;        /* on demand: picks that had a cell */
    int code;            /* of its own failure: the other segments go on without it */
    char message[LSA_SEGMENT_MESSAGE];
} lsa_segment;

/* A decode step as it was captured: what it was captured with, and the graph; NULL: none. */
typedef struct lsa_graph {
    int64_t count, candidates;
    int32_t kv_format, compute, scoring, on_demand;
    void *graph;
} lsa_graph;

/* P rows, D hidden, H heads, Dh head_dim, R rope_dim, E experts. */
typedef struct lsa_activations {
    atomic_int references;
    const lsa_model *model;
    int32_t memory_kind; /* the model's */
    int64_t piece, bytes;
    lsa_segment *segments;       /* [P] */
    lsa_span *spans;             /* [P] */
    lsa_steps *steps;            /* [P] */
    uint64_t *generators;        /* [P]: of rows that drew a token, until it is taken */
    int32_t *tokens, *positions; /* [P] */
    uint8_t *control,
        *control_there; /* spans, steps and rows of a pass for a GPU: in the host, and there */
    float *streams;     /* [P, hc, D] */
    float *x, *y;       /* [P, D] */
    float *mix, *post, *comb;           /* [P, (2 + hc) hc], [P, hc], [P, hc, hc] */
    float *q_low;                       /* [P, q_rank] */
    float *q, *attended;                /* [P, H, Dh] */
    float *o_low;                       /* [P, o_groups, o_rank] */
    float *window_kv;                   /* [P, Dh] */
    float *kv, *kv_gate;                /* [P, 2 Dh]: what compressors take; HCA: [P, Dh] */
    float *index_kv, *index_gate;       /* [P, 2 index_dim] */
    float *entries, *key_entries;       /* [P, Dh], [P, index_dim] */
    float *index_q, *index_w;           /* [P, index_heads, index_dim], [P, index_heads] */
    float *main_table, *compress_table; /* [P, R] */
    int32_t *ids, *places, *counts;     /* [P, index_topk] twice, [P] */
    float *mass;                        /* [P, index_topk] */
    float *router, *expert_weights;     /* [P, E], [P, experts_per_token] */
    int32_t *expert_ids;                /* [P, experts_per_token] */
    float *
        logits; /* [logit_rows, vocab]; on a GPU again as many rows, of sessions that ended before */
    float *host_logits; /* the same in the host, for a GPU; else NULL */
    int64_t logit_rows;
    lsa_graph graphs[8]; /* on a GPU: decode steps, the one used last at [0] */
    int64_t captures;    /* graphs that were made */
    void *workspace;
    int64_t workspace_bytes;
    int64_t rows, records,
        chunks; /* what the workspace is for: rows of a pass, records that a query attends to, chunks */
    int threads;   /* that Level 2 picks among, and threads */
    void *scratch; /* of what is asked between passes; grows as it is wanted */
    int64_t scratch_bytes;
} lsa_activations;

/* Takes a reference. */
void lsa_activations_retain(lsa_activations *activations);

/* What kernels read of a pass: on a GPU copies there, else the arrays themselves. layers of the spans are there already;
 * progress of span i is that of steps[i]. */
typedef struct lsa_pass_rows {
    lsa_span *spans;
    lsa_steps *steps;
    int32_t *tokens, *positions;
} lsa_pass_rows;

int lsa_activations_upload(lsa_activations *activations, int64_t count, int64_t rows,
                           lsa_pass_rows *out);

/* What became of the steps, as lsa_advance left it: back in the host. */
int lsa_activations_download(lsa_activations *activations, int64_t count,
                             const lsa_pass_rows *from);

/* Workspace for passes of `rows` rows whose queries attend to at most `records` records, picked among at most `chunks` chunks,
 * and logits [logit_rows, vocab]. */
int lsa_activations_reserve(lsa_activations *activations, int64_t rows, int64_t records,
                            int64_t chunks, int64_t logit_rows);

/* Memory of the activations' kind for one question, with undefined contents; NULL with an error. */
void *lsa_activations_scratch(lsa_activations *activations, int64_t bytes);

#endif
