/* From one step of decoding to the next, without a word from outside. */
#ifndef LSA_KERNELS_ADVANCE_H
#define LSA_KERNELS_ADVANCE_H
#include "kernels/span.h"

enum {
    LSA_STEPS_AHEAD = 64, /* steps that are planned at once */
    LSA_STEP_STOPS = 8    /* ids that end a session's steps */
};

/* Why a session takes no further step. */
enum { LSA_STEPS_GO_ON = 0, LSA_STEPS_STOPPED = 1, LSA_STEPS_NOTHING_TO_DRAW = 2 };

/* One session's steps. */
typedef struct lsa_steps {
    lsa_progress progress; /* the span's */
    uint64_t generator;    /* kernels/sample.h */
    double temperature;
    int32_t given; /* so many of the tokens are known; the others are drawn */
    int32_t begun; /* steps that were begun */
    int32_t ended; /* LSA_STEPS_* */
    int32_t stops; /* how many stop_ids there are */
    int32_t stop_ids[LSA_STEP_STOPS];
    int32_t
        tokens[LSA_STEPS_AHEAD]; /* of the steps; tokens[begun] is the stop id that ended them */
} lsa_steps;

/* Begins the next step of `count` sessions: span i, of one row, has steps[i].progress. Where a step was begun before, it is over:
 * progress moves on by a token and a pass. The step's token, given or drawn from the row's logits (kernels/sample.h), and its
 * position go to tokens[row] and positions[row].
 *
 * A session ends where the token drawn is one of its stop_ids, or where none can be drawn; no row of it counts from there on:
 * its span is `unobserved`, and the passes that follow run token 0 at the place after its last step, which leaves nothing that
 * counts. kept[row] is then the row's logits.
 * logits, kept [rows, vocab]: logits are read only where a token is drawn, kept may be NULL where none is. A session takes
 * at most LSA_STEPS_AHEAD steps. vocab < 1: LSA_ESHAPE. */
typedef int lsa_advance_fn(lsa_span *spans, lsa_steps *steps, int32_t *tokens, int32_t *positions,
                           const float *logits, float *kept, int64_t count, int64_t vocab,
                           void *stream);
lsa_advance_fn lsa_advance_cpu, lsa_advance_cuda;

#endif
