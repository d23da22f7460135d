/* Private: what a session keeps, shared by the files of this folder. Its numbers lie in two arenas, laid out by one table of
 * fields (state.c); fork, save, restore, views and accounting follow from the table. Records, keys and tokens, which grow
 * with the context, are in copy-on-write blocks. Everything counts only below progress.tokens: a step that fails is
 * undone by not counting it. */
#ifndef LSA_SESSION_STATE_H
#define LSA_SESSION_STATE_H
#include "core/pool/cow_blocks.h"
#include "core/pool/on_demand.h"
#include "core/session/activations.h"
#include "core/session/session.h"
#include "kernels/span.h"

enum {
    LSA_RECENT = 64, /* tokens whose hidden states and index queries are kept */
    LSA_ENTRY_SHIFT = 6,
    LSA_TOKEN_SHIFT = 12
};

/* How many rows a field has: of rings, room for what a pass of `piece` rows adds to what it still needs. */
typedef enum lsa_field_rows {
    LSA_ROWS_ONE,       /* one */
    LSA_ROWS_TWO,       /* one of the last pass, and one that the pass under way writes */
    LSA_ROWS_WINDOW,    /* ring: the window before a pass */
    LSA_ROWS_WINDOWS,   /* ring: a compressor's unfinished and previous windows */
    LSA_ROWS_RECENT,    /* ring: the last LSA_RECENT tokens */
    LSA_ROWS_RESIDENTS, /* by place among the residents */
    LSA_ROWS_OBSERVED   /* by chunk, or by place among the residents */
} lsa_field_rows;

typedef enum lsa_field_id {
    LSA_FIELD_LOGITS,
    LSA_FIELD_RESIDENTS,
    LSA_FIELD_WINDOW,
    LSA_FIELD_KV,
    LSA_FIELD_GATE,
    LSA_FIELD_INDEX_KV,
    LSA_FIELD_INDEX_GATE,
    LSA_FIELD_QUERIES,
    LSA_FIELD_QUERY_WEIGHTS,
    LSA_FIELD_HIDDEN,
    LSA_FIELD_PICKED,
    LSA_FIELD_PICKED_MASS,
    LSA_FIELD_PICKED_COUNT,
    LSA_FIELD_USED,
    LSA_FIELD_MASS,
    LSA_FIELD_RESIDENT_KEYS,
    LSA_FIELDS
} lsa_field_id;

/* What a part of a session's file is (session_fields.h): a field by its number, or one of these. */
typedef enum lsa_part_kind {
    LSA_PART_TOKENS = LSA_FIELDS,
    LSA_PART_ENTRIES,
    LSA_PART_UNIT_IN,
    LSA_PART_FREE_CELLS,
    LSA_PART_BY_USE,
    LSA_PART_MOVING,
    LSA_PART_MOVING_MESSAGE
} lsa_part_kind;

typedef struct lsa_field {
    const char *name; /* in files; NULL: it follows from others, and is not saved */
    int32_t dtype;
    lsa_field_rows rows;
} lsa_field;

/* What the sizes of the arenas follow from, beside the model and the record format. */
typedef struct lsa_state_room {
    int64_t piece;     /* rows of a pass */
    int64_t residents; /* that there is room for, those to be born included */
    int64_t observed;
} lsa_state_room;

/* Of rings and what else has as many rows whatever is resident; of what grows with the residents. */
typedef enum lsa_arena_id { LSA_ARENA_RINGS, LSA_ARENA_RESIDENTS, LSA_ARENAS } lsa_arena_id;

typedef struct lsa_arena {
    uint8_t *data;
    int64_t bytes;
} lsa_arena;

struct lsa_session {
    const lsa_model *model;
    lsa_activations *activations;
    int32_t kv_format, compute, scoring, tiered;
    int32_t memory_kind; /* LSA_MEMORY_*: of arenas and blocks */
    lsa_progress progress;
    lsa_cow_blocks token_ids; /* [tokens]: 1, 2 or 4 bytes each, as the vocabulary needs */
    lsa_pool *pool;        /* records and index keys of the CSA layers; NULL where there are none */
    lsa_on_demand *demand; /* on demand: cells by last use; else NULL */
    lsa_cow_blocks *entries; /* [layers]: HCA records by entry; empty elsewhere */
    lsa_arena arenas[LSA_ARENAS];
    lsa_state_room room;
    lsa_layer_store *layers; /* [layer_count]: where everything of a layer lies */
    lsa_layer_store
        *layers_there; /* the same where a GPU reads it, and what was last put there; else NULL */
    lsa_layer_store *layers_sent;
    int64_t layer_count;      /* the model's, which may end before the session is freed */
    float *logits;            /* [vocab], in the host */
    int32_t *residents;       /* [room.residents]: ascending chunk ids, in the host */
    int32_t *slots;           /* [room.residents], behind them: their slots in the hot tier */
    int32_t *residents_there; /* both where kernels read them: the same, or on the GPU */
    int32_t *born_slots; /* of the chunks born in a pass, or in steps, under way among all chunks */
    int32_t *born_slots_there; /* where kernels read them */
    int64_t resident_count;
    int observed_by_chunk; /* how used and mass are indexed: by chunk after a prefill */
    int64_t reserved;      /* tokens up to which steps take no memory */
    lsa_session_counters counters;
};

static inline int64_t lsa_session_position(const lsa_session *s) { return s->progress.tokens; }

/* ---- state.c ---- */

extern const lsa_field lsa_fields[LSA_FIELDS];

/* Whether a layer (-1: the session itself) has a field; rows that it has room for, elements a row. */
int lsa_field_in_layer(const lsa_session *s, lsa_field_id field, int64_t layer);
int64_t lsa_field_room(const lsa_session *s, lsa_field_id field, int64_t layer);
int64_t lsa_field_width(const lsa_session *s, lsa_field_id field, int64_t layer);

/* Rows that count: oldest first of rings, of `two` the last pass's. */
int64_t lsa_field_count(const lsa_session *s, lsa_field_id field, int64_t layer);

/* Row i of those that count. Rows of a ring are one behind the other but where it ends: run by run. */
uint8_t *lsa_field_row(const lsa_session *s, lsa_field_id field, int64_t layer, int64_t i);
int64_t lsa_field_run(const lsa_session *s, lsa_field_id field, int64_t layer, int64_t i,
                      int64_t n);

/* Arenas with such rooms; what counts is copied. On failure nothing changes. */
int lsa_state_resize(lsa_session *s, const lsa_state_room *room);

/* A copy of another session's arenas. */
int lsa_state_copy(lsa_session *s, const lsa_session *from);
void lsa_state_free(lsa_session *s);

/* Residents from place `from` on, n of them, and their slots go to where kernels read them. */
int lsa_state_send_residents(lsa_session *s, int64_t from, int64_t n);
int32_t *lsa_state_slots_there(const lsa_session *s);

/* Where the layers' records and keys lie, after blocks were added. */
void lsa_state_bind_blocks(lsa_session *s);

/* Where kernels read the layers' stores, up to date. */
int lsa_state_layers(lsa_session *s, const lsa_layer_store **layers);

/* The layer of a CSA ordinal, -1 with a message for none; the ordinal of a layer, -1 for none. */
int64_t lsa_csa_layer(const lsa_session *s, int64_t csa);
int64_t lsa_csa_ordinal(const lsa_config *c, int64_t layer);

/* ---- reserve.c ---- */

/* Memory for a piece of a prefill: one pass of `rows` rows. */
int lsa_session_reserve_rows(lsa_session *s, int64_t rows);

/* Prefill looks at all chunks, so what is observed from here on is counted by chunk. */
int lsa_session_observe_by_chunk(lsa_session *s);

/* ---- session.c ---- */

/* LSA_ESTATE where the hot pool has fewer cells than a step at so many tokens can pick chunks. */
int lsa_session_check_demand(const lsa_session *s, int64_t tokens);
int lsa_session_forget_observed(lsa_session *s);

/* The first n of the list of residents are where kernels read them, with their slots and keys; nothing is observed in the first
 * `observed` places. */
int lsa_session_reside(lsa_session *s, int64_t n, int64_t observed);

/* ---- query.c ---- */

/* Index scores against the first `chunks` keys, which a layer has before its piece is committed. */
int lsa_session_scores_of(const lsa_session *s, int64_t csa, const float *q, const float *w,
                          int64_t rows, int64_t heads, int64_t chunks, float *scores);

#endif
