/* Level 1 on the CPU: each kernel in turn, request by request; each of them has all threads. */
#include "kernels/lookahead.h"

#include <stddef.h>

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/ensemble.h"
#include "kernels/index_score.h"
#include "kernels/select.h"

static int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }

int lsa_lookahead_check(const lsa_lookahead *l)
{
    if (l->layers < 1 || l->layers > LSA_LOOKAHEAD_MOST_LAYERS)
        return lsa_fail(LSA_ESHAPE, "lookahead: %lld layers, 1 .. %d are possible",
                        (long long)l->layers, LSA_LOOKAHEAD_MOST_LAYERS);
    if (l->count < 0) return lsa_fail(LSA_ESHAPE, "lookahead: %lld requests", (long long)l->count);
    LSA_TRY(lsa_ensemble_check(l->layers, l->ensemble));
    return lsa_index_score_check(1, l->most, l->heads, l->dim,
                                 lsa_index_key_bytes(l->key_format, l->dim), l->most, l->key_format,
                                 l->scoring);
}

/* Bits, logits by layer, scores, then what index_score takes. */
int64_t lsa_lookahead_workspace(const lsa_lookahead *l)
{
    return (l->layers + 1) * round_up(l->most * (int64_t)sizeof(float)) +
           round_up(l->most / 8 + 8) +
           lsa_index_score_workspace(1, l->most, l->heads, l->dim, l->key_format, l->scoring);
}

/* A layer's logits, run by run of keys that lie together. */
static int score_layer(const lsa_lookahead *l, const lsa_lookahead_request *r, int64_t layer,
                       float *logits, void *workspace)
{
    const lsa_records *keys = r->keys + layer;
    const float *q = r->q + layer * l->heads * l->dim, *w = r->w + layer * l->heads;
    int64_t run = (int64_t)1 << keys->block_shift;
    for (int64_t from = 0; from < r->n; from += run) {
        const uint8_t *at = keys->blocks[from >> keys->block_shift] + keys->offset;
        int64_t n = r->n - from < run ? r->n - from : run;
        LSA_TRY(lsa_index_score_cpu(logits + from, q, w, at, 1, n, l->heads, l->dim, keys->stride,
                                    n, l->key_format, l->scoring, workspace, NULL));
    }
    return LSA_OK;
}

/* What a set has, as ids and by 64s. */
static void unpack(const lsa_lookahead_request *r, const uint64_t *bits)
{
    int32_t count = 0;
    for (int64_t word = 0; word < (r->n + 63) / 64; word++) {
        if (r->pages) r->pages[word] = __builtin_popcountll(bits[word]);
        for (uint64_t left = bits[word]; left && r->ids; left &= left - 1)
            r->ids[count++] = (int32_t)(word * 64 + __builtin_ctzll(left));
    }
    if (r->ids) *r->count = count;
}

int lsa_lookahead_cpu(const lsa_lookahead *l, void *workspace, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_lookahead_check(l));
    uint8_t *at = workspace;
    uint64_t *own_bits = (uint64_t *)at;
    at += round_up(l->most / 8 + 8);
    float *own_scores = (float *)at;
    at += round_up(l->most * (int64_t)sizeof(float));
    float *logits = (float *)at;
    at += l->layers * round_up(l->most * (int64_t)sizeof(float));
    for (int64_t i = 0; i < l->count; i++) {
        const lsa_lookahead_request *r = l->requests + i;
        float *scores = r->scores ? r->scores : own_scores;
        uint64_t *bits = r->bits ? r->bits : own_bits;
        for (int64_t layer = 0; layer < l->layers; layer++)
            LSA_TRY(score_layer(l, r, layer, logits + layer * r->n, at));
        LSA_TRY(lsa_ensemble_cpu(scores, logits, l->layers, r->n, l->ensemble, NULL));
        LSA_TRY(lsa_select_above_cpu(bits, scores, r->n, l->theta, l->strict, NULL));
        if (l->lists) unpack(r, bits);
    }
    return LSA_OK;
}
