/* Owns how golden labels become training samples. */
#include "core/train/sampling.h"

#include <math.h>
#include <string.h>

#include "core/base/error.h"
#include "kernels/xorshift.h"

/* ---- labels ---- */

int lsa_golden_check(const lsa_golden *g)
{
    if (g->pointers[0] != 0 || g->pointers[g->steps] != g->entries)
        return lsa_fail(LSA_EFORMAT, "labels: pointers go from %d to %d, there are %lld entries",
                        g->pointers[0], g->pointers[g->steps], (long long)g->entries);
    for (int64_t i = 0; i < g->steps; i++) {
        if (g->pointers[i + 1] < g->pointers[i])
            return lsa_fail(LSA_EFORMAT, "labels: pointers of step %lld go from %d to %d",
                            (long long)i, g->pointers[i], g->pointers[i + 1]);
        if (g->positions[i] < 0 || (i > 0 && g->positions[i] <= g->positions[i - 1]))
            return lsa_fail(LSA_EFORMAT, "labels: position %lld of step %lld does not ascend",
                            (long long)g->positions[i], (long long)i);
        if (g->positions[i] > INT32_MAX)
            return lsa_fail(LSA_EFORMAT, "labels: position %lld of step %lld is above %d",
                            (long long)g->positions[i], (long long)i, INT32_MAX);
    }
    for (int64_t i = 0; i < g->entries; i++)
        if (g->indices[i] < 0 || g->indices[i] >= g->chunks)
            return lsa_fail(LSA_EFORMAT, "labels: chunk %d of %lld", g->indices[i],
                            (long long)g->chunks);
    return LSA_OK;
}

int64_t lsa_golden_candidates(const lsa_golden *g, const lsa_horizon *h, int64_t step)
{
    int64_t whole = (g->positions[step] + 1) / h->rate;
    return whole < g->chunks ? whole : g->chunks;
}

/* The first step of a horizon; it ends where the position reaches first + span. */
static int64_t horizon_begin(const lsa_golden *g, const lsa_horizon *h, int64_t step)
{
    int64_t i = step;
    while (i < g->steps && g->positions[i] < g->positions[step] + h->first) i++;
    return i;
}

int64_t lsa_golden_positives(int32_t *ids, int32_t *votes, const lsa_golden *g,
                             const lsa_horizon *h, int64_t step, int32_t *seen)
{
    int64_t n = 0, candidates = lsa_golden_candidates(g, h, step),
            end = g->positions[step] + h->first + h->span;
    for (int64_t i = horizon_begin(g, h, step); i < g->steps && g->positions[i] < end; i++)
        for (int32_t at = g->pointers[i]; at < g->pointers[i + 1]; at++) {
            int32_t id = g->indices[at];
            if (id >= candidates) continue;
            if (!seen[id]) {
                ids[n] = id;
                votes[n] = g->votes[at];
                seen[id] = (int32_t)++n;
            } else if (g->votes[at] > votes[seen[id] - 1]) {
                votes[seen[id] - 1] = g->votes[at];
            }
        }
    for (int64_t i = 0; i < n; i++) seen[ids[i]] = 0;
    return n;
}

static int has_positive(const lsa_golden *g, const lsa_horizon *h, int64_t step)
{
    int64_t candidates = lsa_golden_candidates(g, h, step),
            end = g->positions[step] + h->first + h->span;
    for (int64_t i = horizon_begin(g, h, step); i < g->steps && g->positions[i] < end; i++)
        for (int32_t at = g->pointers[i]; at < g->pointers[i + 1]; at++)
            if (g->indices[at] < candidates) return 1;
    return 0;
}

int64_t lsa_golden_eligible(int32_t *out, const lsa_golden *g, const lsa_horizon *h)
{
    int64_t n = 0;
    for (int64_t step = 0; step < g->steps; step++)
        if (has_positive(g, h, step)) out[n++] = (int32_t)step;
    return n;
}

void lsa_golden_frequent(uint64_t *bits, const lsa_golden *g, double share, int32_t *count)
{
    memset(bits, 0, (size_t)((g->chunks + 63) / 64) * sizeof *bits);
    for (int64_t i = 0; i < g->entries; i++) count[g->indices[i]]++;
    for (int64_t i = 0; i < g->chunks; i++) {
        if (count[i] > share * (double)g->steps) bits[i / 64] |= 1ull << (i % 64);
        count[i] = 0;
    }
}

void lsa_golden_weights(float *weights, const int32_t *ids, const int32_t *votes, int64_t n,
                        int32_t least, int32_t layers, const uint64_t *frequent)
{
    float range = (float)(layers - least > 1 ? layers - least : 1);
    for (int64_t i = 0; i < n; i++) {
        int often = frequent && frequent[ids[i] / 64] >> (ids[i] % 64) & 1;
        weights[i] = often ? 0.5f : 0.5f + 1.5f * (float)(votes[i] - least) / range;
    }
}

/* ---- chance ---- */

uint64_t lsa_sample_seed(uint64_t seed, uint64_t step, uint64_t i)
{
    uint64_t numbers[] = {seed, step, i}, x = 0;
    for (int k = 0; k < 3; k++) { /* splitmix64 over each */
        x += numbers[k] + 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        x ^= x >> 31;
    }
    return x ? x : 1;
}

/* One of 0 .. n-1. */
static int64_t below(int64_t n, uint64_t *state)
{
    return (int64_t)(lsa_xorshift(state) * (double)n);
}

void lsa_sample_normals(float *out, int64_t n, float scale, uint64_t *state)
{
    for (int64_t i = 0; i < n; i++) { /* Box and Muller */
        double radius = sqrt(-2 * log(1 - lsa_xorshift(state))),
               angle = 2 * 3.14159265358979323846 * lsa_xorshift(state);
        out[i] = (float)(radius * cos(angle)) * scale;
    }
}

void lsa_sample_subset(int32_t *ids, int32_t *votes, int64_t n, int64_t keep, uint64_t *state)
{
    for (int64_t i = 0; i < keep && i < n - 1; i++) {
        int64_t j = i + below(n - i, state);
        int32_t id = ids[i], vote = votes[i];
        ids[i] = ids[j], votes[i] = votes[j];
        ids[j] = id, votes[j] = vote;
    }
}

static int has(const uint64_t *bits, int64_t i) { return (int)(bits[i / 64] >> (i % 64) & 1); }

static int64_t count_bits(const uint64_t *bits, int64_t n)
{
    int64_t count = 0;
    for (int64_t i = 0; i < n / 64; i++) count += __builtin_popcountll(bits[i]);
    if (n % 64) count += __builtin_popcountll(bits[n / 64] & ((1ull << (n % 64)) - 1));
    return count;
}

int64_t lsa_sample_others(int32_t *ids, int64_t want, int64_t n, uint64_t *excluded,
                          uint64_t *state)
{
    int64_t left = n - count_bits(excluded, n), count = 0;
    if (want > left) want = left;
    if (want * 2 > left ||
        left * 8 < n) { /* few to choose from: each in turn is in or out (Knuth's S) */
        for (int64_t i = 0; i < n && count < want; i++) {
            if (has(excluded, i)) continue;
            if (below(left--, state) < want - count) ids[count++] = (int32_t)i;
        }
        return count;
    }
    while (count < want) {
        int64_t i = below(n, state);
        if (has(excluded, i)) continue;
        ids[count++] = (int32_t)i;
        excluded[i / 64] |= 1ull << (i % 64);
    }
    for (int64_t i = 0; i < count; i++) excluded[ids[i] / 64] &= ~(1ull << (ids[i] % 64));
    return count;
}
