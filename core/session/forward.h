/* Private: a forward pass over rows of several segments. A segment is a run of one session's tokens: a piece of a prompt, or
 * the one token of a decode step. The pass is one list of contract calls (forward.c), each on the rows of all segments at once;
 * what a segment does to its session before and after it is segment.c's. */
#ifndef LSA_FORWARD_H
#define LSA_FORWARD_H
#include "core/session/state.h"
#include "kernels/table.h"

typedef struct lsa_pass {
    const lsa_kernels *k;
    const lsa_model *model;
    const lsa_config *c;
    lsa_activations *w;
    lsa_pass_rows rows; /* as kernels read them */
    int32_t compute, scoring, kv_format;
    int decoding, on_demand; /* on_demand: some segment is */
    int64_t
        steps; /* of decoding, 1 .. LSA_STEPS_AHEAD: passes that follow one another; over 1 on a GPU alone */
    lsa_segment *segments;
    int64_t count, n; /* segments; rows in all */
    int64_t
        candidates;   /* that Level 2 has at most: a power of two, so that graphs serve for long */
    lsa_trace *trace; /* NULL, or of a pass of one segment */
    void *stream;
    lsa_stage stages[LSA_CHAIN_MOST]; /* not yet called */
    int64_t staged, staged_rows;
} lsa_pass;

/* segment.c: before the layers, places for the segment's tokens and chunks, and what kernels know of it; after them the segment
 * joins its session for good, or leaves no trace. A session that failed is as it was before the segment, but for observations of
 * a prefill. Takes no memory where it was reserved (state.h). */
int lsa_segment_begin(lsa_segment *g, int decoding, lsa_span *span);
void lsa_segment_commit(lsa_segment *g, const lsa_steps *steps); /* steps: NULL but of decoding */
void lsa_segment_undo(lsa_segment *g);

/* On demand: fetches what the segment's row picked and has no cell, and turns chunks into slots, in ids [k]. */
int lsa_segment_fetch(lsa_segment *g, int32_t *ids, int64_t count);

/* forward.c: runs the segments (session, tokens, n are given), commits them, and leaves a code and a message in those that
 * fail; those that cannot begin move behind the others, of which p->count are left. rows: logits [rows, vocab] of the last rows
 * of the pass go to `logits`; -1: of all. A failure that is no segment's own is the result, and leaves all sessions
 * as they were. */
int lsa_forward(lsa_pass *p, int64_t rows, float *logits);

#endif
