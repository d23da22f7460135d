/* Decoding: steps of one or many sessions in one call, from token to token without a word from outside. Dense products take
 * the rows of all sessions together, so that weights are read once for all; what each session keeps and attends to stays
 * its own. */
#ifndef LSA_RUN_H
#define LSA_RUN_H
#include "core/model/indexer.h"
#include "core/session/session.h"

/* What ends a generation: ids, and texts in the bytes of what was generated, over the borders of tokens. */
typedef struct lsa_stop {
    const int32_t *ids;
    int64_t id_count;
    const uint8_t *texts; /* one behind the other: text i ends before text_ends[i] */
    const int64_t *text_ends;
    int64_t text_count;
    const uint8_t
        *token_bytes; /* of all tokens, one behind the other: token t ends before token_ends[t] */
    const int64_t *token_ends;
    uint8_t *
        tail; /* the last bytes generated, of which a text may be the beginning; [tail_room], at least the longest text
                      and the longest token */
    int64_t tail_bytes, tail_room;
} lsa_stop;

/* What a recording has of steps: row i of every array is of the i-th step. Arrays of CSA layers are [csa_layers] pointers. */
typedef struct lsa_step_log {
    int64_t rows, room;
    int64_t *positions;         /* [room]: of the token */
    float *entropy;             /* [room]: of the distribution after it */
    float **hidden;             /* [room, hidden] */
    float **queries, **weights; /* [room, index_heads * index_dim], [room, index_heads] */
    int32_t **native, **picked; /* [room, index_topk]: ascending, then -1 */
    float **mass;               /* [room, index_topk] */
    int64_t targets;            /* layers of a Memory Indexer: [targets] each of the following */
    const int32_t *target;      /* CSA ordinals */
    const lsa_indexer_layer *const *indexer;
    float **memory_queries, **memory_weights; /* [room, heads * dim], [room, heads] of its own */
} lsa_step_log;

/* Adds a row about the last token run. LSA_ESTATE where there is no room. */
int lsa_session_log(const lsa_session *session, lsa_step_log *log);

/* A token drawn from the last logits (kernels/sample.h). LSA_ESTATE where they have a NaN, or no finite largest. */
int lsa_session_draw(const lsa_session *session, double temperature, uint64_t *generator,
                     int32_t *token);

enum { LSA_RUN_STEPS = 0, LSA_RUN_STOPPED = 1, LSA_RUN_CONTEXT = 2, LSA_RUN_FAILED = 3 };

/* One session's part of a run. */
typedef struct lsa_run {
    lsa_session *session;
    int64_t steps; /* at most so many tokens */
    const int32_t
        *given; /* [given_count]: the first tokens; those after them are drawn from the logits */
    int64_t given_count;
    double temperature;
    uint64_t *
        generator; /* kernels/sample.h; not moved by a token that was not taken; may be NULL where all are given */
    lsa_stop *stop;    /* NULL: nothing stops */
    lsa_step_log *log; /* NULL, or gets a row a step */
    int32_t *out;      /* [steps]: the tokens */
    int64_t count;     /* out: how many there are */
    int32_t
        ended; /* out: LSA_RUN_STEPS; _STOPPED: by the last token, which is not decoded; _CONTEXT: the last token is
                             drawn, and not decoded since the context is full; _FAILED: */
    int32_t code;      /* out: why, or 0; the session is as after the token before */
    char message[256]; /* out: and in words */
} lsa_run;

/* Takes up to `steps` of each session, all side by side, those of one record format in one pass. Sessions are of one model, activations
 * and compute, and none is there twice: LSA_EARG otherwise; at most as many as a piece has tokens. A session that fails (a bad token, a chunk
 * that cannot be fetched) leaves the others alone. A failure of a step as a whole (LSA_EINTR) is the result; `count` then says
 * how far each has come. Memory is taken before the first step (lsa_session_reserve_steps), never by one. Logits are
 * lsa_session_logits; those of sessions side by side are those of each alone up to the rounding of products with
 * another number of rows (linear.h). */
int lsa_session_run(lsa_run *runs, int64_t n);

/* Runs of one model. */
typedef struct lsa_run_group {
    lsa_run *runs;
    int64_t n;
    int32_t rc;        /* out: as lsa_session_run gives it */
    char message[512]; /* out: and in words */
} lsa_run_group;

/* lsa_session_run of each group, at the same time, each on the GPU of its model; no two models are on one, nor is there one of a CPU
 * beside another group. */
void lsa_session_run_groups(lsa_run_group *groups, int64_t count);

#endif
