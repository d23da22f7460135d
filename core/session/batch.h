/* A decode step of many sessions at once: dense products take all rows together, so that weights
 * are read once for all; what each session keeps and attends to stays its own. */
#ifndef LSA_BATCH_H
#define LSA_BATCH_H
#include "core/session/session.h"

typedef struct lsa_batch_row {
    lsa_session *session;
    int32_t token;
    int32_t code;      /* out: 0, or why this session took no step, */
    char message[256]; /* out: and in words */
} lsa_batch_row;

/* One step of n sessions, each of another length and by its own token; at most as many as the
 * scratch's piece has tokens. All are of one model, one scratch and one compute, and none is
 * there twice: LSA_EARG otherwise. A row that fails (a bad token, no memory for what it keeps)
 * leaves its session as it was, and the others take their step. A failure of the step as a whole
 * is the result, and no session has moved. Logits are lsa_session_logits; they are those of
 * lsa_session_decode up to the rounding of products with another number of rows (linear.h). */
int lsa_batch_decode(lsa_batch_row *rows, int64_t n);

#endif
