/* Owns Level 2: the native Lightning Indexer's top-k for each query, among residents or among all. */
#include <omp.h>
#include <stddef.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/session/activations.h"
#include "core/session/session_state.h"
#include "kernels/index_score.h"
#include "kernels/topk.h"

enum {
    KEYS =
        LSA_POOL_KEY_RUN, /* keys scored at a time: with the scores of QUERIES queries they stay in L2 */
    ROW = 64 * KEYS       /* scores of one query at a time, in decode */
};

/* Scores of n candidates from `from` (not crossing a block) for `rows` queries. */
static int score_block(const lsa_session *s, const lsa_layer_state *l, int among_residents,
                       int64_t from, int64_t n, const float *q, const float *w, int64_t rows,
                       float *scores, int64_t stride, void *workspace)
{
    const lsa_config *c = &s->model->config;
    int64_t key = lsa_pool_key_bytes(s->pool);
    const uint8_t *keys =
        among_residents ? l->resident_keys + from * key : lsa_pool_keys(s->pool, l->csa, from);
    return lsa_index_score_cpu(scores, q, w, keys, rows, n, c->index_heads, c->index_dim, key,
                               stride, s->kv_format, s->compute, workspace, NULL);
}

/* One query: its candidates' scores in parallel (alone when the caller is of a team), then one selection. */
static int pick_one(const lsa_session *s, lsa_activations *scratch, const lsa_layer_state *l,
                    const float *q, const float *w, int64_t candidates, int among_residents,
                    int32_t *ids, float *values, int32_t *count)
{
    lsa_topk_state state;
    lsa_level2_scratch *own = &scratch->level2[omp_get_thread_num()];
    lsa_topk_begin(&state, (int32_t)s->model->config.index_topk, own->values, own->ids);
    int64_t work = s->model->config.index_heads * s->model->config.index_dim / 16;
    int64_t room = omp_in_parallel() ? LSA_LEVEL2_QUERIES * KEYS : ROW;
    float *row = omp_in_parallel() ? own->scores : scratch->row;
    for (int64_t from = 0; from < candidates; from += room) {
        int64_t n = candidates - from < room ? candidates - from : room;
        int64_t blocks = (n + KEYS - 1) / KEYS;
        int failed = LSA_OK;
        int threads = lsa_threads_for(n * work / 4);
        if (threads > scratch->threads) threads = scratch->threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t at = b * KEYS, m = n - at < KEYS ? n - at : KEYS;
            void *workspace =
                threads > 1 ? scratch->level2[omp_get_thread_num()].workspace : own->workspace;
            int rc =
                score_block(s, l, among_residents, from + at, m, q, w, 1, row + at, m, workspace);
            if (rc) failed = rc;
        }
        if (failed) return failed;
        lsa_topk_push(&state, row, n, (int32_t)from);
    }
    *count = lsa_topk_finish(&state, ids, values);
    return LSA_OK;
}

/* Up to LSA_LEVEL2_QUERIES queries at consecutive positions, each seeing floor((t + 1) / m) chunks. */
static int pick_group(const lsa_session *s, lsa_level2_scratch *own, const lsa_layer_state *l,
                      const float *q, const float *w, int64_t n, int64_t position, int32_t *ids,
                      float *values, int32_t *counts)
{
    const lsa_config *c = &s->model->config;
    int32_t k = (int32_t)c->index_topk, capacity = lsa_topk_capacity(k);
    lsa_topk_state state[LSA_LEVEL2_QUERIES];
    for (int64_t i = 0; i < n; i++)
        lsa_topk_begin(&state[i], k, own->values + i * capacity, own->ids + i * capacity);
    int64_t most = (position + n) / c->csa_rate;
    for (int64_t from = 0; from < most; from += KEYS) {
        int64_t m = most - from < KEYS ? most - from : KEYS;
        int rc = score_block(s, l, 0, from, m, q, w, n, own->scores, KEYS, own->workspace);
        if (rc) return rc;
        for (int64_t i = 0; i < n; i++) {
            int64_t visible = (position + i + 1) / c->csa_rate - from;
            if (visible > m) visible = m;
            if (visible > 0)
                lsa_topk_push(&state[i], own->scores + i * KEYS, visible, (int32_t)from);
        }
    }
    for (int64_t i = 0; i < n; i++)
        counts[i] = lsa_topk_finish(&state[i], ids + i * k, values ? values + i * k : NULL);
    return LSA_OK;
}

int lsa_level2(const lsa_session *s, lsa_activations *scratch, int64_t layer, const float *q,
               const float *w, int64_t n, int64_t position, int among_residents, int32_t *ids,
               float *values, int32_t *counts)
{
    const lsa_config *c = &s->model->config;
    const lsa_layer_state *l = &s->layers[layer];
    if (n == 1) {
        int64_t candidates = among_residents ? s->resident_count : (position + 1) / c->csa_rate;
        return pick_one(s, scratch, l, q, w, candidates, among_residents, ids, values, counts);
    }
    int64_t width = c->index_heads * c->index_dim, failed = LSA_OK;
    int64_t groups = (n + LSA_LEVEL2_QUERIES - 1) / LSA_LEVEL2_QUERIES;
#pragma omp parallel for num_threads(scratch->threads) schedule(dynamic, 1)
    for (int64_t g = 0; g < groups; g++) {
        int64_t from = g * LSA_LEVEL2_QUERIES;
        int64_t rows = n - from < LSA_LEVEL2_QUERIES ? n - from : LSA_LEVEL2_QUERIES;
        int rc =
            pick_group(s, &scratch->level2[omp_get_thread_num()], l, q + from * width,
                       w + from * c->index_heads, rows, position + from, ids + from * c->index_topk,
                       values ? values + from * c->index_topk : NULL, counts + from);
        if (rc) failed = rc;
    }
    return (int)failed;
}

int lsa_level2_scratch_new(lsa_activations *scratch)
{
    const lsa_config *c = &scratch->model->config;
    int64_t capacity = lsa_topk_capacity((int32_t)c->index_topk);
    int64_t workspace = 0;
    for (int32_t format = LSA_KV_F32; format <= LSA_KV_FP8; format++)
        for (int32_t compute = LSA_COMPUTE_F32; compute <= LSA_COMPUTE_BF16; compute++)
            for (int64_t rows = 1; rows <= LSA_LEVEL2_QUERIES; rows++) {
                int64_t bytes = lsa_index_score_workspace(rows, KEYS, c->index_heads, c->index_dim,
                                                          format, compute);
                if (bytes > workspace) workspace = bytes;
            }
    scratch->level2 = lsa_alloc_zero(scratch->threads * (int64_t)sizeof *scratch->level2);
    scratch->row = lsa_alloc(ROW * (int64_t)sizeof(float));
    if (!scratch->level2 || !scratch->row) return LSA_ENOMEM;
    for (int i = 0; i < scratch->threads; i++) {
        lsa_level2_scratch *own = &scratch->level2[i];
        own->scores = lsa_alloc(LSA_LEVEL2_QUERIES * KEYS * (int64_t)sizeof(float));
        own->values = lsa_alloc(LSA_LEVEL2_QUERIES * capacity * (int64_t)sizeof(float));
        own->ids = lsa_alloc(LSA_LEVEL2_QUERIES * capacity * (int64_t)sizeof(int32_t));
        own->workspace = lsa_alloc(workspace);
        if (!own->scores || !own->values || !own->ids || !own->workspace) return LSA_ENOMEM;
    }
    return LSA_OK;
}

void lsa_level2_scratch_free(lsa_activations *scratch)
{
    for (int i = 0; scratch->level2 && i < scratch->threads; i++) {
        lsa_level2_scratch *own = &scratch->level2[i];
        lsa_free(own->scores);
        lsa_free(own->values);
        lsa_free(own->ids);
        lsa_free(own->workspace);
    }
    lsa_free(scratch->level2);
    lsa_free(scratch->row);
}
