/* Private: what a session is made of, shared by session.c (its life, its questions) and forward.c and segment.c
 * (the mathematics). Everything is appended under the number of committed tokens; a step that fails is undone by
 * cutting back to that number at the start of the next. */
#ifndef LSA_SESSION_STATE_H
#define LSA_SESSION_STATE_H
#include "core/pool/cow_blocks.h"
#include "core/pool/on_demand.h"
#include "core/session/session.h"

/* Rows by absolute position, of which only the newest are kept. */
typedef struct lsa_row_history {
    float *data; /* [room, width] */
    int64_t width, room;
    int64_t first; /* position of data's first row */
} lsa_row_history;

enum { LSA_RECENT = 64, LSA_ENTRY_SHIFT = 6, LSA_TOKEN_SHIFT = 12 };

typedef struct lsa_layer_state {
    lsa_row_history window;   /* [., head_dim]: kv after norm and rope */
    lsa_row_history kv, gate; /* compressor projections of unfinished and previous windows */
    lsa_row_history index_kv, index_gate;   /* the same for index keys */
    lsa_row_history queries, query_weights; /* CSA: the last LSA_RECENT tokens' */
    lsa_cow_blocks entries;                 /* HCA: [entries] records */
    float *hidden, *next_hidden;            /* CSA: [hidden]; of the step under way */
    int64_t csa;                            /* CSA ordinal, -1 elsewhere */
    uint8_t *resident_keys;                 /* CSA, tiered: [residents] index keys, packed */
    int32_t *last_ids;  /* CSA: [index_topk] chunks that the last token attended to, */
    float *last_mass;   /* the mass each got, */
    int32_t last_count; /* and how many they were */
    int32_t
        *next_places; /* the same of the step under way, by chunk or by place among the residents */
    float *next_mass;
    int32_t next_count;
    int32_t *used; /* CSA: picks by chunk, or by place among the residents */
    float *mass;
} lsa_layer_state;

struct lsa_session {
    const lsa_model *model;
    lsa_activations *scratch;
    int32_t kv_format, compute, tiered;
    int64_t tokens;           /* committed */
    lsa_cow_blocks token_ids; /* [tokens]: 1, 2 or 4 bytes each, as the vocabulary needs */
    lsa_pool *pool;        /* records and index keys of the CSA layers; NULL where there are none */
    lsa_on_demand *demand; /* on demand: cells by last use; else NULL */
    lsa_layer_state *
        layers; /* [layer_count]: as many as the model's, which may end before the session is freed */
    int64_t layer_count;
    float *logits;      /* [vocab] */
    int32_t *residents; /* ascending chunk ids */
    int64_t resident_count;
    int64_t resident_room; /* elements of residents, keys of resident_keys */
    int64_t observed_room; /* elements of used, mass */
    int observed_by_chunk; /* how used and mass are indexed: by chunk after a prefill */
    lsa_session_counters counters;
};

/* rows.c */
int lsa_row_history_new(lsa_row_history *rows, int64_t width, int64_t keep, int64_t piece);
int lsa_row_history_copy(lsa_row_history *out, const lsa_row_history *rows);
void lsa_row_history_free(lsa_row_history *rows);
/* Room for rows keep_from .. end-1, of which keep_from .. have-1 are kept. */
int lsa_row_history_make_room(lsa_row_history *rows, int64_t keep_from, int64_t have, int64_t end);
float *lsa_row_history_at(const lsa_row_history *rows, int64_t position);

/* session_query.c: index scores against the first `chunks` keys, which a layer has before its piece is committed. */
int lsa_session_scores_of(const lsa_session *s, int64_t csa, const float *q, const float *w,
                          int64_t rows, int64_t heads, int64_t chunks, float *scores);

/* session.c: room for n elements; what is there stays, new counts are zero. */
int lsa_session_resident_room(lsa_session *s, int64_t n);
int lsa_session_observed_room(lsa_session *s, int64_t n);

/* session.c: before a decode step, whether the session can take it; after it, the books. */
int lsa_session_check_step(lsa_session *s, int32_t token);
void lsa_session_count_step(lsa_session *s, int64_t attention_bytes, int64_t ns);

/* scratch.c */
void lsa_activations_retain(lsa_activations *scratch);

/* level2.c: Level 2. The picks of n queries at positions from `position`, into ids [n, k] and counts [n]; their logits
 * into values [n, k], which may be NULL. */
int lsa_level2(const lsa_session *s, lsa_activations *scratch, int64_t layer, const float *q,
               const float *w, int64_t n, int64_t position, int among_residents, int32_t *ids,
               float *values, int32_t *counts);

#endif
