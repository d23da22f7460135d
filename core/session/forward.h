/* Private: a forward pass over rows of several segments. A segment is a run of one session's
 * tokens: a piece of a prompt, or the one token of a decode step. Dense products take the rows
 * of all segments at once (forward.c); what a session keeps, and attention over it, is each
 * segment's own affair (segment.c). */
#ifndef LSA_FORWARD_H
#define LSA_FORWARD_H
#include "core/base/try.h"
#include "core/session/activations.h"
#include "core/session/session_state.h"

enum { LSA_SEGMENT_MESSAGE = 256 };

typedef struct lsa_segment {
    lsa_session *s;
    const int32_t *tokens; /* [n] */
    int64_t n, row;        /* its rows in the pass: row .. row + n - 1 */
    int64_t from, end;     /* positions from .. end-1 */
    int among_residents;   /* Level 2 chooses among residents */
    int64_t attention_bytes;
    int64_t hits; /* on demand: picks that had a cell */
    int code;     /* of its own failure: the other segments go on without it */
    char message[LSA_SEGMENT_MESSAGE];
} lsa_segment;

typedef struct lsa_pass {
    const lsa_model *model;
    const lsa_config *c;
    lsa_activations *w;
    int32_t compute;
    int decoding;
    lsa_segment *segments;
    int64_t count, n; /* segments; rows in all */
    lsa_trace *trace; /* NULL, or of a pass of one segment */
} lsa_pass;

int lsa_traced(const lsa_pass *p, int64_t layer, const char *name, const float *data, int64_t rows,
               int64_t cols);

/* segment.c: before the layers, places for the segment's tokens and chunks; in a layer, what is
 * left of attention after the projections of all rows (x: the rows of the pass); after the
 * layers, the segment joins its session for good, or leaves no trace. A session that failed is
 * as it was before the segment, but for observations of a prefill. */
int lsa_segment_begin(lsa_segment *g);
int lsa_segment_attend(lsa_pass *p, lsa_segment *g, int64_t layer, const float *x);
void lsa_segment_commit(lsa_segment *g);
void lsa_segment_undo(lsa_segment *g);

/* forward.c: runs the segments that have no code yet (session, tokens, n are given), commits
 * them, and leaves a code and a message in those that fail. rows: logits [rows, vocab] of the
 * last rows of the pass go to `logits`. A failure that is no segment's own is the result, and
 * leaves all sessions as they were. */
int lsa_forward(lsa_pass *p, int64_t rows, float *logits);

#endif
