/* What a session is made of, as named parts for a file, and a session put together from them. A part is an array of rows
 * that is read and written some rows at a time, so that nobody has to have all of it twice. */
#ifndef LSA_SESSION_PARTS_H
#define LSA_SESSION_PARTS_H
#include "core/session/session.h"

/* The numbers from which the parts and their sizes follow: 8 bytes each, so that a file has them as i64. */
typedef struct lsa_session_head {
    int64_t tokens, kv_format, compute, unit, tiered;
    int64_t used_cells; /* on demand: how many have been used; else -1 */
    int64_t residents, observed,
        observed_by_chunk; /* counts of rows; by chunk, or by place among the residents */
    int64_t cells, free_cells, spilled;
    int64_t moving, moving_code; /* a transfer under way: units, and how it ended */
    lsa_session_counters counters;
    lsa_pool_counters moved;
} lsa_session_head;

enum {
    LSA_SESSION_MOVING = 3,
    LSA_SESSION_MESSAGE = 1024
}; /* columns of pool.moving, bytes of pool.moving_message */

typedef struct lsa_session_part {
    char name[40];
    int32_t dtype, what;
    int64_t rows, columns;
    int64_t layer; /* of the model, -1 where it belongs to none; of the pool's keys: CSA ordinal */
} lsa_session_part;

/* Settles what is on its way in the background, without an effect on the session. */
int lsa_session_describe(const lsa_session *session, lsa_session_head *head);

/* The parts that are read and written by rows, in the order in which they are to be written: [*count]; the caller frees
 * them by lsa_free. Chunks (lsa_pool_read_chunks) are apart. */
int lsa_session_parts(const lsa_session *session, lsa_session_part **parts, int64_t *count);
int lsa_session_part_read(const lsa_session *session, const lsa_session_part *part, int64_t from,
                          int64_t n, void *rows);

/* Restoring: a new session is begun with a head (LSA_EFORMAT says which number it cannot have); chunks are grown, written by
 * lsa_pool_write_chunks and, where `spill` is not 0, sent to the cold file as whole segments of them are there; parts are
 * written; the end checks that they fit together. Until then, the session is only to be freed. */
int lsa_session_restore_begin(lsa_session *session, const lsa_session_head *head);
int lsa_session_restore_chunks(lsa_session *session, int64_t chunks, int32_t spill);
int lsa_session_part_write(lsa_session *session, const lsa_session_part *part, int64_t from,
                           int64_t n, const void *rows);
int lsa_session_restore_end(lsa_session *session, const lsa_session_head *head, int32_t spill);

/* After the end, where the head has used_cells: these cells, the latest used first. */
int lsa_session_restore_on_demand(lsa_session *session, const lsa_session_head *head,
                                  const int32_t *cells);

/* After the end, the transfer of the head: rows [moving, 3], and the message that it ended with. */
int lsa_session_restore_moving(lsa_session *session, const lsa_session_head *head,
                               const int32_t *rows, const char *message);

/* A new session becomes what a prefill of `tokens` tokens could have left: all that it keeps of them is random, drawn by `seed`
 * (normal numbers; tokens evenly from the vocabulary). spill: as lsa_session_restore_chunks. LSA_ESTATE where the session has tokens.
 * After a failure it is only to be freed. */
int lsa_session_fill(lsa_session *session, int64_t tokens, uint64_t seed, int32_t spill);

#endif
