/* A session: one request's cache and the forward pass over it. Prefill is native full attention over
 * everything in memory; decode is too, until the session is tiered: then Level 2 chooses among residents. */
#ifndef LSA_SESSION_H
#define LSA_SESSION_H
#include "core/model/indexer.h"
#include "core/model/model.h"
#include "core/pool/pool.h"
#include "core/session/trace.h"

typedef struct lsa_session lsa_session;
typedef struct lsa_activations lsa_activations;

/* Working memory for pieces of up to `piece` tokens: bounded, whatever the context. Sessions of one model share
 * it as long as they run on one thread. Reference counted: starts with one, each session takes one. */
int lsa_activations_new(lsa_activations **out, const lsa_model *model, int64_t piece);
void lsa_activations_release(lsa_activations *scratch);
int64_t lsa_activations_bytes(const lsa_activations *scratch);
int64_t lsa_activations_piece(const lsa_activations *scratch);

/* An empty session. kv_format: LSA_KV_*; compute: LSA_COMPUTE_*; unit: chunks a cell of the hot tier (1, or
 * chunks a page). `model` must outlive it. */
int lsa_session_new(lsa_session **out, const lsa_model *model, lsa_activations *scratch,
                    int32_t kv_format, int32_t compute, int64_t unit);

/* An equal session that shares what is cached until either side writes. Counters start at zero. */
int lsa_session_fork(lsa_session **out, lsa_session *session);
void lsa_session_free(lsa_session *session);

/* Runs n tokens in pieces. logits: NULL, or [vocab] of the last token, or [n, vocab] when `all` is not 0. trace: NULL, or
 * collects intermediates. On failure the pieces before the failing one are kept and *done (may be NULL) tells how many
 * tokens that is; everything else is as before. LSA_EARG for token ids out of range, n < 1, or
 * contexts past max_position_embeddings: nothing is run then. LSA_EINTR between layers. */
int lsa_session_prefill(lsa_session *session, const int32_t *tokens, int64_t n, int32_t all,
                        float *logits, lsa_trace *trace, int64_t *done);

/* Memory for `steps` decode steps: until a fork, or until residents or the way of decoding change, as many steps of
 * lsa_session_run (core/session/run.h) take none, and so cannot fail for want of it. */
int lsa_session_reserve_steps(lsa_session *session, int64_t steps);

/* The cold tier on disk, in a file in `directory`: see lsa_pool_set_disk. Keys of the n target layers (CSA ordinals) stay
 * in memory. lsa_pool_spill moves the rest there; prefill and decode among all chunks have it back first. Questions
 * about layers whose keys are on disk read them there. */
int lsa_session_set_disk(lsa_session *session, const char *directory, const int32_t *targets,
                         int64_t n);

/* Level 2 sees all chunks (0, the start) or residents only (1). Going tiered starts with no residents, and ends on_demand. */
int lsa_session_set_tiered(lsa_session *session, int32_t tiered);

/* On demand (1) or not (0, the start): an untiered session whose attention reads picked chunks from the hot pool, where those
 * without a cell are fetched at once and the least recently used leave. A step wants as many cells as it can pick
 * chunks (lsa_session_demand_cells), else LSA_ESTATE naming both. LSA_ESTATE where index keys can leave memory, or cells hold pages. */
int lsa_session_set_on_demand(lsa_session *session, int32_t on);

/* On demand among others in a common hot tier: it has so many cells at most, which the others leave free. */
int lsa_session_share_demand(lsa_session *session, int64_t cells);
int64_t lsa_session_demand_cells(const lsa_session *session, int64_t chunks);

/* On demand: has n chunks (ascending) in cells before a step asks for them, as if they were used now; they leave like any other.
 * *hits gains the number of those that had one. Resets what is observed. LSA_ESTATE where the session is not on demand, and, with
 * nothing moved, where less cells would be left than a step can pick chunks. A failed transfer loses no chunk. */
int lsa_session_prefetch(lsa_session *session, const int32_t *chunks, int64_t n, int64_t *hits);

/* The resident set, for the steps to come: n chunk ids, ascending, each with a cell in the pool (LSA_ESTATE names the
 * first that has none; the old set then stays). Chunks born later join by themselves, as long as the pool has
 * free cells. Resets what is observed. */
int lsa_session_set_residents(lsa_session *session, const int32_t *chunks, int64_t n);

/* Residents that have no cell any more, after transfers that failed, leave the set; where some do, what is observed is reset.
 * Allocates nothing. Where a GPU fails, here and above, no resident is left. */
int lsa_session_drop_absent(lsa_session *session);
int64_t lsa_session_residents(const lsa_session *session,
                              int32_t *chunks); /* chunks may be NULL: counts */

const lsa_model *lsa_session_model(const lsa_session *session);
lsa_pool *lsa_session_pool(lsa_session *session); /* NULL without CSA layers */
int64_t lsa_session_tokens(const lsa_session *session);
int64_t lsa_session_chunks(const lsa_session *session);
void lsa_session_token_ids(const lsa_session *session, int64_t from, int64_t n, int32_t *ids);

/* [vocab], of the last token run. */
const float *lsa_session_logits(const lsa_session *session);

/* What is cached. `csa` is a CSA ordinal, 0 .. csa_layers-1; LSA_EARG names it otherwise.
 * hidden: [w, hidden], the attention block's input at the last w tokens; w <= lsa_session_recent. keys: [n, lsa_index_key_bytes]
 * records from chunk `from`. entries: decoded attention KV [n, head_dim] f32. */
int lsa_session_hidden(const lsa_session *session, int64_t csa, int64_t w, float *hidden);
int lsa_session_keys(const lsa_session *session, int64_t csa, int64_t from, int64_t n, void *keys);
int lsa_session_entries(const lsa_session *session, int64_t csa, int64_t from, int64_t n,
                        float *entries);

/* Index queries [w, index_heads * index_dim] (rotated when keys are fp8) and head weights [w, index_heads], all factors
 * in, of the last w tokens; w <= lsa_session_recent. */
int64_t lsa_session_recent(const lsa_session *session);
int lsa_session_queries(const lsa_session *session, int64_t csa, int64_t w, float *queries,
                        float *weights);

/* How index keys are scored from now on, by Level 2 and by lsa_session_index_scores: LSA_SCORE_*; at first the session's
 * compute. Forks have it, too. LSA_EARG. */
int lsa_session_set_scoring(lsa_session *s, int32_t scoring);

/* Index scores of `heads` query heads (see index_score.h) against all keys of a layer: scores [rows, chunks]. */
int lsa_session_index_scores(const lsa_session *session, int64_t csa, const float *q,
                             const float *w, int64_t rows, int64_t heads, float *scores);

/* What a Memory Indexer asks of one CSA layer: q [heads, index_dim], w [heads], as index_score.h has them. */
typedef struct lsa_index_queries {
    int64_t csa, heads;
    const float *q, *w;
} lsa_index_queries;

/* The ensemble (ensemble.h) of `count` layers' index scores: scores [chunks]; in one go over the keys. */
int lsa_session_ensemble(const lsa_session *session, const lsa_index_queries *layers, int64_t count,
                         int32_t how, float *scores);

/* What a Memory Indexer looks with: its layers' weights, where sessions' kernels read them, their CSA ordinals, how many of the
 * latest tokens ask, how answers are joined (ensemble.h), and the least score that is in a set. */
typedef struct lsa_look {
    const lsa_indexer_layer *layers; /* [count] */
    const int32_t *csa;              /* [count] */
    int64_t count, rows;
    int32_t how;
    float theta;
} lsa_look;

/* Level 1 of n sessions of one model, activations, format and scoring, where a GPU does it in one launch: *answered 1. Elsewhere
 * *answered is 0 and nothing is done: ask session by session. scores[i] [chunks of session i], the ensemble of all looks; bits[i]: the set of all its chunks
 * (core/base/set.h) that reach theta. Either may be NULL. A session's results depend on it alone. LSA_EARG, LSA_ESHAPE. */
int lsa_sessions_look(lsa_session *const *sessions, int64_t n, const lsa_look *look,
                      float *const *scores, uint64_t *const *bits, int32_t *answered);

/* Since the residents were set (or the session began): how often Level 2 picked each chunk, and the sum over steps of
 * the attention mass it got (mean over heads); [chunks] each, zero where not observed. */
int lsa_session_observed(const lsa_session *session, int64_t csa, int32_t *used, float *mass);

/* The chunks that the last token attended to, ascending, and the mass each got (mean over heads): [index_topk] each.
 * Returns how many. */
int64_t lsa_session_picks(const lsa_session *session, int64_t csa, int32_t *ids, float *mass);

/* The chunks that the native indexer picks at the last token among all, ascending: [index_topk]. Returns how many. */
int64_t lsa_session_native_topk(const lsa_session *session, int64_t csa, int32_t *ids);

/* Of the chunks that the native indexer would pick at the last token among all, how many are resident:
 * summed over the CSA layers whose keys are in memory. */
int lsa_session_coverage(const lsa_session *session, int64_t *covered, int64_t *total);

typedef struct lsa_session_counters {
    int64_t prefilled, steps; /* tokens run either way */
    int64_t prefill_ns, decode_ns;
    double resident_share; /* sum over steps of residents / chunks; 1 for an untiered step */
    int64_t resident_sum, chunk_sum; /* sums over steps, in chunks */
    int64_t attention_bytes;         /* records read by attention in decode */
    int64_t scored;                  /* (query, key) pairs scored by Level 2 in decode */
    int64_t hits;                    /* on demand: picks that had a cell */
} lsa_session_counters;

void lsa_session_count(const lsa_session *session, lsa_session_counters *out);

/* Bytes now held: records without padding. resident: residents (all chunks where untiered). */
typedef struct lsa_session_bytes {
    int64_t kv_resident, kv_total, index_keys, hca, window, hot_cells, mirror, cold, disk, tokens;
} lsa_session_bytes;

void lsa_session_memory(const lsa_session *session, lsa_session_bytes *out);

#endif
