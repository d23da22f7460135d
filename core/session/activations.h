/* Private: the working memory of a forward pass, for pieces of up to `piece` tokens. */
#ifndef LSA_ACTIVATIONS_H
#define LSA_ACTIVATIONS_H
#include <stdatomic.h>

#include "core/model/model.h"

enum { LSA_LEVEL2_QUERIES = 32 };

/* One thread's share of Level 2. */
typedef struct lsa_level2_scratch {
    float *scores, *values;
    int32_t *ids;
    void *workspace;
} lsa_level2_scratch;

/* One thread's memory for whichever kernel runs. */
typedef struct lsa_workspace {
    void *data;
    int64_t bytes;
} lsa_workspace;

/* P tokens, D hidden, H heads, Dh head_dim, R rope_dim, E experts, I the widest expert. */
typedef struct lsa_activations {
    atomic_int references;
    const lsa_model *model;
    int64_t piece, bytes;
    int threads;
    float *streams;               /* [P, hc, D] */
    float *x, *y;                 /* [P, D] */
    float *mix, *post, *comb;     /* [P, (2 + hc) hc], [P, hc], [P, hc, hc] */
    float *q_low;                 /* [P, q_rank] */
    float *q, *attended;          /* [P, H, Dh] */
    float *o_low;                 /* [P, o_groups, o_rank] */
    int32_t *tokens;              /* [P] */
    float *window_kv;             /* [P, Dh] */
    float *kv, *kv_gate;          /* [P, 2 Dh]: what compressors take; HCA: [P, Dh] */
    float *index_kv, *index_gate; /* [P, 2 index_dim] */
    float *entries;               /* [P, entry_dim]: entry_dim is max(Dh, index_dim) */
    uint8_t *records;             /* the same, encoded: [P, record] bytes */
    int64_t entry_dim, record;
    float *index_q, *index_w; /* [P, index_heads, index_dim], [P, index_heads] */
    float *main_table, *compress_table, *entry_table; /* [P, R] */
    int32_t *positions, *entry_positions;             /* [P]: those of the tables' rows */
    int32_t *ids, *counts;                            /* [P, index_topk], [P] */
    int32_t *places;                                  /* [P, index_topk] */
    float *mass;                                      /* [P, index_topk] */
    float *router, *expert_weights;                   /* [P, E], [P, experts_per_token] */
    int32_t *expert_ids, *fixed;                      /* [P, experts_per_token] */
    int32_t *members;                                 /* [P]: tokens of one expert */
    float *gathered;                                  /* [P, D] */
    float *gate, *up;                                 /* [P, I] */
    float *down;                                      /* [P, D] */
    float *logits; /* [., vocab]: of a batch, as many rows as the largest had */
    int64_t logit_rows;
    lsa_workspace *workspaces;  /* [threads] */
    lsa_level2_scratch *level2; /* [threads] */
    float *row;                 /* scores of one query */
} lsa_activations;

int lsa_level2_scratch_new(lsa_activations *scratch);
void lsa_level2_scratch_free(lsa_activations *scratch);

/* At least `bytes` of workspace for the calling thread of a team (or for the one outside of teams), or NULL. */
void *lsa_activations_workspace(lsa_activations *scratch, int64_t bytes);

/* [rows, vocab], or NULL. */
float *lsa_activations_logits(lsa_activations *scratch, int64_t rows);

#endif
