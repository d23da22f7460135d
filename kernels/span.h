/* What kernels know of a session in a forward pass. A span is a run of one session's tokens: a piece of a prompt, or the
 * one token of a decode step; a pass has an array of them. Everything that changes from step to step follows from
 * `progress`, which kernels read themselves, so that the same list of calls serves every step. */
#ifndef LSA_KERNELS_SPAN_H
#define LSA_KERNELS_SPAN_H
#include "kernels/kv_record.h"

typedef struct lsa_progress {
    int64_t tokens; /* known before the pass: the position of a span's first row */
    int64_t
        passes; /* that are over. Of what has two places, [passes & 1] holds what the last pass left, and the other
                       place takes what the pass under way leaves; it counts once the pass is over */
} lsa_progress;

/* Rows by position: the row of position p is at data + p % room * width. */
typedef struct lsa_ring {
    float *data;
    int64_t room, width;
} lsa_ring;

/* What a session keeps of one layer. CSA layers have all of it, HCA layers window, kv, gate and cold; others window. */
typedef struct lsa_layer_store {
    lsa_ring window;                 /* [., head_dim]: kv after norm and rope */
    lsa_ring kv, gate;               /* compressor projections of unfinished and previous windows */
    lsa_ring index_kv, index_gate;   /* the same for index keys */
    lsa_ring queries, query_weights; /* index queries and head weights */
    lsa_ring hidden;                 /* [., hidden]: the attention block's input */
    int32_t *picked[2];       /* [index_topk]: chunks that the last token attended to, ascending */
    float *picked_mass[2];    /* [index_topk]: the attention mass each got (mean over heads) */
    int32_t *picked_count[2]; /* [1] */
    lsa_records cold;         /* records by chunk; HCA: by entry */
    lsa_records mirror;       /* the same once more, near the GPU that reads them; else no blocks */
    lsa_records hot;          /* records by slot of the hot tier */
    lsa_records keys;         /* index keys by chunk */
    lsa_records hot_keys;     /* index keys by slot, where cells have them; else no blocks */
    uint8_t *resident_keys;   /* index keys by place among the residents, packed */
    int32_t
        *used; /* how often Level 2 picked each chunk: by chunk, or by place among the residents */
    float *mass; /* the mass that they got */
} lsa_layer_store;

typedef struct lsa_span {
    const lsa_progress *progress;
    const lsa_layer_store *layers; /* [model layers] */
    int64_t row, rows;             /* its rows of the pass: row .. row + rows - 1 */
    int32_t among_residents;       /* Level 2 picks among residents, else among all chunks */
    int32_t
        in_cells; /* what it picked is read from the hot tier, by slot; else from the mirror or the cold one, by chunk */
    int32_t observed_by_chunk; /* how used and mass are indexed */
    int32_t unobserved;        /* the pass under way will not count (kernels/advance.h) */
    int64_t residents,
        chunks; /* of how many chunks how many were resident when the set took over; chunks born since are
                                      residents: chunk `chunks + i` is at place `residents + i` */
    const int32_t *resident; /* chunk by place, those that can be born included */
    const int32_t *slot;     /* slot of the hot tier by place */
    int64_t born_from;       /* chunk of born_slot[0] */
    int32_t *born_slot; /* slot of chunk born_from + i, -1 where it has no cell; NULL: none has */
    struct lsa_demand
        *demand; /* where chunks are fetched on demand (kernels/demand.h); else NULL */
} lsa_span;

#endif
