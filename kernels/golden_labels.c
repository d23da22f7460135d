/* Golden labels on the CPU. A row is cut without sorting it: the weight of all values from t on falls as t rises, so the
 * cut is closed in on from both sides, and only what is left between is sorted. Steps are shared out among threads. */
#include "kernels/golden_labels.h"

#include <math.h>
#include <stddef.h>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/golden_labels_private.h"

enum {
    MOST_THREADS = 64,
    MOST_LAYERS = 255, /* votes are bytes */
    ONE_BITS = LSA_GOLDEN_ONE_BITS,
    FLUSH = 512,             /* so many weights make less than 2^32 */
    BOUNDS = 4,              /* tried at a time */
    PASSES = 4,              /* before a look at what is left */
    LOOKS = 8,               /* by then only equals are left, or nearly so */
    SHARE = 32,              /* of the weight: less than that is few entries */
    FEW = 24,                /* are sorted */
    SLACK = LSA_GOLDEN_SLACK /* what collect may write past its end */
};

/* The payloads (the places themselves where payload is NULL) of places from .. to-1 with low <= value <= high, in order;
 * returns how many. May write SLACK elements from the last on. */
typedef int64_t collect_fn(int32_t *out, const int32_t *payload, const float *values, int64_t from,
                           int64_t to, float low, float high);

/* What is to be mined, as the header names it. */
typedef struct batch {
    const int32_t *ids;
    const float *logits;
    int64_t layers, k, step_stride, layer_stride, n;
    double top_p;
    int32_t extra, min_layers;
    collect_fn *collect;
} batch;

/* One thread's share of the workspace. k16: k rounded up. */
typedef struct miner {
    float *values;             /* [k16 + SLACK]: a row's logits, -inf where there is no entry */
    int32_t *weights;          /* [k16 + SLACK] */
    int32_t *near;             /* [k16 + SLACK]: places of entries around the cut */
    int32_t *kept;             /* [layers * k + SLACK]: ids */
    int32_t *candidates;       /* [layers * k + SLACK]: ids with votes enough */
    lsa_golden_guess *guesses; /* [layers] */
    uint64_t *golden;          /* [words]: bits of ids, zero between steps */
    uint64_t *any;             /* [words of words]: which words of golden are not zero */
    uint8_t *votes;            /* [n], zero between steps */
} miner;

/* What is kept of a row: values above `value`, and those equal to it up to place `last`. */
typedef struct cut {
    float value;
    int32_t last;
} cut;

static int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

static int64_t word_count(int64_t n) { return round_up((n + 63) / 64, 8); }

static int64_t kept_room(int64_t layers, int64_t k) { return round_up(layers * k, 16) + SLACK; }

static int64_t thread_bytes(int64_t layers, int64_t k, int64_t n)
{
    int64_t k16 = round_up(k, 16);
    int64_t words = word_count(n) + word_count(word_count(n));
    int64_t guesses = layers * (int64_t)sizeof(lsa_golden_guess);
    return round_up(
        (3 * (k16 + SLACK) + 2 * kept_room(layers, k)) * 4 + guesses + words * 8 + n + 8, 64);
}

int64_t lsa_golden_labels_workspace(int64_t layers, int64_t k, int64_t n)
{
    int threads = lsa_threads();
    return (threads < MOST_THREADS ? threads : MOST_THREADS) * thread_bytes(layers, k, n);
}

int64_t lsa_golden_labels_room(int64_t steps, int64_t layers, int64_t k, int32_t min_layers)
{
    return min_layers < 1 ? 0 : steps * (layers * k / min_layers);
}

static miner share_of(void *workspace, int64_t part, int64_t layers, int64_t k, int64_t n)
{
    int64_t k16 = round_up(k, 16);
    miner m;
    m.golden = (uint64_t *)(void *)((char *)workspace + part * thread_bytes(layers, k, n));
    m.any = m.golden + word_count(n);
    m.values = (float *)(void *)(m.any + word_count(word_count(n)));
    m.weights = (int32_t *)(void *)(m.values + k16 + SLACK);
    m.near = m.weights + k16 + SLACK;
    m.kept = m.near + k16 + SLACK;
    m.candidates = m.kept + kept_room(layers, k);
    m.guesses = (lsa_golden_guess *)(void *)(m.candidates + kept_room(layers, k));
    m.votes = (uint8_t *)(m.guesses + layers);
    return m;
}

/* ---- passes over a row: plain loops, which the compiler makes vectors of, for each code path its own ---- */

static inline LSA_BODY float entry_at(const int32_t *ids, const float *logits, int64_t j)
{
    return ids[j] >= 0 && logits[j] == logits[j] ? logits[j] : -INFINITY;
}

static inline LSA_BODY void largest_body(const int32_t *ids, const float *logits, int64_t k,
                                         float *most)
{
    enum { LANES = 32 };
    float lanes[LANES], best = -INFINITY;
    for (int i = 0; i < LANES; i++) lanes[i] = -INFINITY;
    int64_t j = 0;
    for (; j + LANES <= k; j += LANES)
        for (int i = 0; i < LANES; i++) {
            float v = entry_at(ids, logits, j + i);
            lanes[i] = v > lanes[i] ? v : lanes[i];
        }
    for (int i = 0; i < LANES; i++) best = lanes[i] > best ? lanes[i] : best;
    for (; j < k; j++) best = entry_at(ids, logits, j) > best ? logits[j] : best;
    *most = best;
}
LSA_PATHS(largest, (const int32_t *ids, const float *logits, int64_t k, float *most),
          (ids, logits, k, most))

/* round(2^22 e^x), x <= 0: 2^n 2^f with a polynomial for 2^f, f in -1/2 .. 1/2, of relative error 3e-9. Fused, each path gives
 * the same bits. */
static inline LSA_BODY int32_t weight_of(float x)
{
    const float log2_e = 1.44269504088896341f,
                rounder = 12582912.0f; /* adding it rounds, and the low bits hold what it gives */
    x = x > -20.0f ? x : -20.0f;       /* gives 0 */
    float shifted = fmaf(x, log2_e, rounder), f = fmaf(x, log2_e, -(shifted - rounder));
    float p = fmaf(f, 1.5594677825e-4f, 1.3406643411e-3f);
    p = fmaf(p, f, 9.6176927909e-3f);
    p = fmaf(p, f, 5.5503103882e-2f);
    p = fmaf(p, f, 2.4022652209e-1f);
    p = fmaf(p, f, 6.9314724207e-1f);
    p = fmaf(p, f, 1.0f);
    int32_t n, bits;
    memcpy(&n, &shifted, sizeof n);
    memcpy(&bits, &p, sizeof bits);
    bits += (int32_t)((uint32_t)(n - 0x4b400000 + ONE_BITS) << 23); /* p 2^(n + 22) */
    memcpy(&p, &bits, sizeof p);
    p += rounder;
    memcpy(&bits, &p, sizeof bits);
    return bits - 0x4b400000;
}

/* Entries and their weights, relative to most; *total the weights' sum. Where most is +inf, it alone has weight.
 * Meanwhile the row that is `ahead` elements further is fetched: rows are too short for the processor to foresee them. */
static inline LSA_BODY void weigh_body(float *values, int32_t *weights, const int32_t *ids,
                                       const float *logits, int64_t k, int64_t ahead, float most,
                                       int64_t *total)
{
    for (int64_t j = 0; j < k; j += 16) {
        __builtin_prefetch(ids + j + ahead);
        __builtin_prefetch(logits + j + ahead);
    }
    *total = 0;
    for (int64_t from = 0; from < k; from += FLUSH) {
        int64_t end = k - from < FLUSH ? k : from + FLUSH;
        uint32_t sum = 0;
        for (int64_t j = from; j < end; j++) {
            float v = entry_at(ids, logits, j), x = v - most;
            values[j] = v;
            weights[j] = weight_of(v == most ? 0.0f : x); /* not +inf - +inf */
            sum += (uint32_t)weights[j];
        }
        *total += sum;
    }
}
LSA_PATHS(weigh,
          (float *values, int32_t *weights, const int32_t *ids, const float *logits, int64_t k,
           int64_t ahead, float most, int64_t *total),
          (values, weights, ids, logits, k, ahead, most, total))

/* sums[i]: the weight of values >= bounds[i]. */
static inline LSA_BODY void weights_from_body(const float *values, const int32_t *weights,
                                              int64_t k, const float *bounds, int64_t *sums)
{
    float b0 = bounds[0], b1 = bounds[1], b2 = bounds[2], b3 = bounds[3];
    memset(sums, 0, BOUNDS * sizeof *sums);
    for (int64_t from = 0; from < k; from += FLUSH) {
        int64_t end = k - from < FLUSH ? k : from + FLUSH;
        uint32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        for (int64_t j = from; j < end; j++) {
            uint32_t w = (uint32_t)weights[j];
            s0 += values[j] >= b0 ? w : 0;
            s1 += values[j] >= b1 ? w : 0;
            s2 += values[j] >= b2 ? w : 0;
            s3 += values[j] >= b3 ? w : 0;
        }
        sums[0] += s0;
        sums[1] += s1;
        sums[2] += s2;
        sums[3] += s3;
    }
}
LSA_PATHS(weights_from,
          (const float *values, const int32_t *weights, int64_t k, const float *bounds,
           int64_t *sums),
          (values, weights, k, bounds, sums))

static int64_t collect_generic(int32_t *out, const int32_t *payload, const float *values,
                               int64_t from, int64_t to, float low, float high)
{
    int64_t count = 0;
    for (int64_t j = from; j < to; j++) {
        out[count] = payload ? payload[j] : (int32_t)j;
        count += values[j] >= low && values[j] <= high;
    }
    return count;
}

#if defined(__x86_64__)
LSA_TARGET_AVX2 static int64_t collect_avx2(int32_t *out, const int32_t *payload,
                                            const float *values, int64_t from, int64_t to,
                                            float low, float high)
{
    __m256 least = _mm256_set1_ps(low), most = _mm256_set1_ps(high);
    int64_t count = 0, j = from;
    for (; j + 8 <= to; j += 8) {
        __m256 v = _mm256_loadu_ps(values + j);
        __m256 in =
            _mm256_and_ps(_mm256_cmp_ps(v, least, _CMP_GE_OQ), _mm256_cmp_ps(v, most, _CMP_LE_OQ));
        for (int bits = _mm256_movemask_ps(in); bits; bits &= bits - 1) {
            int64_t place = j + __builtin_ctz((unsigned)bits);
            out[count++] = payload ? payload[place] : (int32_t)place;
        }
    }
    return count + collect_generic(out + count, payload, values, j, to, low, high);
}

LSA_TARGET_AVX512 static int64_t collect_avx512(int32_t *out, const int32_t *payload,
                                                const float *values, int64_t from, int64_t to,
                                                float low, float high)
{
    __m512 least = _mm512_set1_ps(low), most = _mm512_set1_ps(high);
    __m512i place =
        _mm512_add_epi32(_mm512_set1_epi32((int32_t)from),
                         _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    int64_t count = 0;
    for (int64_t j = from; j < to; j += 16) {
        __mmask16 there = to - j < 16 ? (__mmask16)((1u << (to - j)) - 1) : (__mmask16)0xffff;
        __m512 v = _mm512_maskz_loadu_ps(there, values + j);
        __mmask16 in = _mm512_mask_cmp_ps_mask(there, v, least, _CMP_GE_OQ);
        in = _mm512_mask_cmp_ps_mask(in, v, most, _CMP_LE_OQ);
        __m512i what = payload ? _mm512_maskz_loadu_epi32(there, payload + j) : place;
        _mm512_storeu_si512(out + count, _mm512_maskz_compress_epi32(in, what));
        count += __builtin_popcount(in);
        place = _mm512_add_epi32(place, _mm512_set1_epi32(16));
    }
    return count;
}
#endif

static collect_fn *collect_for(int level)
{
#if defined(__x86_64__)
    if (level >= LSA_CPU_AVX512) return collect_avx512;
    if (level == LSA_CPU_AVX2) return collect_avx2;
#else
    (void)level;
#endif
    return collect_generic;
}

/* ---- one row ---- */

/* The cut lies in low <= value < high: the weight from low exceeds the limit, the weight from high does not. */
typedef struct bracket {
    float low, high;
    int64_t from_low, from_high;
} bracket;

/* Tries bounds inside the bracket, in rising order. */
static void narrow(const miner *m, const batch *b, bracket *r, const float *bounds, int64_t limit)
{
    int64_t sums[BOUNDS];
    weights_from(m->values, m->weights, b->k, bounds, sums);
    for (int i = 0; i < BOUNDS; i++) {
        if (!(bounds[i] > r->low && bounds[i] < r->high)) continue;
        if (sums[i] > limit) {
            r->low = bounds[i];
            r->from_low = sums[i];
        } else {
            r->high = bounds[i];
            r->from_high = sums[i];
        }
    }
}

static void narrow_evenly(const miner *m, const batch *b, bracket *r, int64_t limit)
{
    float bounds[BOUNDS], width = (r->high - r->low) / (BOUNDS + 1);
    for (int i = 0; i < BOUNDS; i++) bounds[i] = r->low + width * (float)(i + 1);
    narrow(m, b, r, bounds, limit);
}

/* Falling values; equal ones stay in order. */
static void sort_places(int32_t *places, int64_t n, const float *values)
{
    for (int64_t i = 1; i < n; i++) {
        int32_t place = places[i];
        int64_t at = i;
        for (; at > 0 && values[places[at - 1]] < values[place]; at--) places[at] = places[at - 1];
        places[at] = place;
    }
}

/* Leaves the places of the bracket's entries in m->near, sorted, once it has few; returns how many. */
static int64_t close_in(const miner *m, const batch *b, bracket *r, int64_t total, int64_t limit,
                        const lsa_golden_guess *g)
{
    int64_t count = b->k;
    if (count > FEW && g->value > r->low && g->value < r->high) {
        float d = g->spread, bounds[BOUNDS] = {g->value - d, g->value - 0.25f * d,
                                               g->value + 0.25f * d, g->value + d};
        narrow(m, b, r, bounds, limit);
    }
    for (int look = 0; look < LOOKS && (look == 0 || count > FEW); look++) {
        for (int i = 0; i < PASSES && count > FEW && r->from_low - r->from_high > total / SHARE;
             i++)
            narrow_evenly(m, b, r, limit);
        count =
            b->collect(m->near, NULL, m->values, 0, b->k, r->low, nextafterf(r->high, -INFINITY));
        total = 0; /* few by weight, but not by number: now halve to the end */
    }
    sort_places(m->near, count, m->values);
    return count;
}

/* The entry that follows a cut in descending order joins what is kept. */
static cut one_more(const miner *m, int64_t k, cut c)
{
    float best = -INFINITY;
    int64_t place = -1;
    for (int64_t j = 0; j < k; j++) {
        float v = m->values[j];
        if (v == c.value && j > c.last) return (cut){v, (int32_t)j};
        if (v < c.value && v > best) {
            best = v;
            place = j;
        }
    }
    return place < 0 ? c : (cut){best, (int32_t)place};
}

/* Where the row that weigh has prepared is cut; the weight up to there exceeds the limit, which is below the total. */
static cut cut_row(const miner *m, const batch *b, float most, int64_t total, int64_t limit,
                   lsa_golden_guess *g)
{
    int64_t count, i = 0, weight;
    if (most == INFINITY) {
        count = b->collect(m->near, NULL, m->values, 0, b->k, most, most);
        weight = 0;
    } else {
        bracket r = {most - 18.0f, nextafterf(most, INFINITY), total,
                     0}; /* 18 below the largest, weights are 0 */
        count = close_in(m, b, &r, total, limit, g);
        weight = r.from_high;
    }
    for (; i < count - 1; i++) {
        weight += m->weights[m->near[i]];
        if (weight > limit) break;
    }
    cut c = {m->values[m->near[i]], m->near[i]};
    g->spread = 0.5f * g->spread + fabsf(c.value - g->value);
    g->value = c.value;
    return c;
}

/* Writes a row's kept ids; returns how many. */
static int64_t keep_row(const miner *m, const batch *b, int32_t *kept, const int32_t *ids,
                        const float *logits, lsa_golden_guess *g)
{
    float most, lowest = -3.402823466e38f;
    int64_t total;
#if defined(__x86_64__)
    if (b->collect == collect_avx512 && !b->extra) {
        lsa_golden_near near = {m->values, m->weights, m->near};
        int64_t count =
            lsa_golden_row_avx512(kept, &near, ids, logits, b->k, b->top_p, g, b->layer_stride);
        if (count >= 0) return count;
    }
#endif
    largest(ids, logits, b->k, &most);
    if (most == -INFINITY) return 0;
    weigh(m->values, m->weights, ids, logits, b->k, b->layer_stride, most, &total);
    double bound = floor(b->top_p * (double)total);
    if (!(bound < (double)total))
        return b->collect(kept, ids, m->values, 0, b->k, lowest, INFINITY);
    cut c = cut_row(m, b, most, total, (int64_t)bound, g);
    if (b->extra) c = one_more(m, b->k, c);
    int64_t count = b->collect(kept, ids, m->values, 0, c.last + 1, c.value, INFINITY);
    if (c.value == INFINITY) return count;
    return count + b->collect(kept + count, ids, m->values, c.last + 1, b->k,
                              nextafterf(c.value, INFINITY), INFINITY);
}

/* ---- one step ---- */

/* Writes the golden ids among the `count` kept ones, ascending, and their votes; clears votes and bits. Returns how many.
 * No branch depends on a vote: they are hard to foresee. */
static int64_t vote(const miner *m, int64_t count, int32_t min_layers, int64_t n, int32_t *indices,
                    int32_t *scores)
{
    int64_t found = 0, enough = 0, words = word_count(word_count(n));
    for (int64_t i = 0; i < count; i++) {
        int32_t id = m->kept[i];
        m->candidates[enough] = id;
        enough += ++m->votes[id] == min_layers;
    }
    for (int64_t i = 0; i < enough; i++) {
        int32_t word = m->candidates[i] >> 6;
        m->golden[word] |= 1ull << (m->candidates[i] & 63);
        m->any[word >> 6] |= 1ull << (word & 63);
    }
    for (int64_t i = 0; i < words; i++) {
        for (uint64_t any = m->any[i]; any; any &= any - 1) {
            int64_t word = i * 64 + __builtin_ctzll(any);
            for (uint64_t bits = m->golden[word]; bits; bits &= bits - 1) {
                int64_t id = word * 64 + __builtin_ctzll(bits);
                indices[found] = (int32_t)id;
                scores[found++] = m->votes[id];
            }
            m->golden[word] = 0;
        }
        m->any[i] = 0;
    }
    if (count > n / 64)
        memset(m->votes, 0, (size_t)n); /* no fewer lines than all of them */
    else
        for (int64_t i = 0; i < count; i++) m->votes[m->kept[i]] = 0;
    return found;
}

/* -1, or the largest of the ids where it is >= n. */
static int32_t beyond(const int32_t *ids, int64_t count, int64_t n)
{
    int32_t largest_id = -1;
    for (int64_t i = 0; i < count; i++) largest_id = ids[i] > largest_id ? ids[i] : largest_id;
    return largest_id >= n ? largest_id : -1;
}

/* Steps from .. to-1: labels to indices and scores, their number by step to counts. Returns how many labels, or
 * -1 - id where an id is >= n. */
static int64_t mine(const miner *m, const batch *b, int64_t from, int64_t to, int32_t *counts,
                    int32_t *indices, int32_t *scores)
{
    int64_t found = 0;
    memset(m->golden, 0, (size_t)(word_count(b->n) + word_count(word_count(b->n))) * 8);
    memset(m->votes, 0, (size_t)b->n);
    memset(m->guesses, 0, (size_t)b->layers * sizeof *m->guesses);
    for (int64_t t = from; t < to; t++) {
        int64_t count = 0;
        for (int64_t l = 0; l < b->layers; l++) {
            int64_t at = t * b->step_stride + l * b->layer_stride;
            count += keep_row(m, b, m->kept + count, b->ids + at, b->logits + at, &m->guesses[l]);
        }
        int32_t id = beyond(m->kept, count, b->n);
        if (id >= 0) return -1 - (int64_t)id;
        int64_t golden = vote(m, count, b->min_layers, b->n, indices + found, scores + found);
        counts[t] = (int32_t)golden;
        found += golden;
    }
    return found;
}

static int check(const batch *b, int64_t steps)
{
    if (!(b->top_p >= 0))
        return lsa_fail(LSA_EARG, "golden_labels: top_p is %g, at least 0 is wanted", b->top_p);
    if (b->min_layers < 1)
        return lsa_fail(LSA_EARG, "golden_labels: min_layers is %d, at least 1 is wanted",
                        b->min_layers);
    if (b->layers > MOST_LAYERS)
        return lsa_fail(LSA_EARG, "golden_labels: %lld layers, at most %d are possible",
                        (long long)b->layers, MOST_LAYERS);
    if (steps < 0 || b->layers < 0 || b->k < 0 || b->n < 0 || b->n > INT32_MAX ||
        b->k > INT32_MAX / 2)
        return lsa_fail(LSA_ESHAPE,
                        "golden_labels: %lld steps, %lld layers, k is %lld, %lld chunks",
                        (long long)steps, (long long)b->layers, (long long)b->k, (long long)b->n);
    return LSA_OK;
}

/* Parts of a call's steps. */
typedef struct mining {
    const batch *b;
    void *workspace;
    int64_t steps, parts, each;
    int32_t *pointers, *indices, *scores;
    int64_t found[MOST_THREADS];
} mining;

static void mine_parts(void *context, int64_t first, int64_t end, int thread)
{
    mining *c = context;
    const batch *b = c->b;
    for (int64_t i = first; i < end; i++) {
        int64_t from = c->steps * i / c->parts, to = c->steps * (i + 1) / c->parts;
        miner m = share_of(c->workspace, thread, b->layers, b->k, b->n);
        c->found[i] = mine(&m, b, from, to, c->pointers + 1, c->indices + from * c->each,
                           c->scores + from * c->each);
    }
}

int lsa_golden_labels_cpu(int32_t *pointers, int32_t *indices, int32_t *scores, const int32_t *ids,
                          const float *logits, int64_t steps, int64_t layers, int64_t k,
                          int64_t step_stride, int64_t layer_stride, int64_t n, double top_p,
                          int32_t extra, int32_t min_layers, void *workspace, void *stream)
{
    (void)stream;
    const batch b = {ids,
                     logits,
                     layers,
                     k,
                     step_stride,
                     layer_stride,
                     n,
                     top_p,
                     extra,
                     min_layers,
                     collect_for(lsa_cpu_level())};
    int rc = check(&b, steps);
    if (rc) return rc;
    int64_t parts = lsa_threads_for(steps * layers * k),
            each = lsa_golden_labels_room(1, layers, k, min_layers);
    if (parts > MOST_THREADS) parts = MOST_THREADS;
    if (parts > steps) parts = steps > 0 ? steps : 1;
    int64_t at = 0;

    /* Every part of the steps leaves its labels where there is room for them in any case; then the gaps are closed. */
    mining mined = {&b, workspace, steps, parts, each, pointers, indices, scores, {0}};
    const int64_t *found = mined.found;
    lsa_parallel((int)parts, parts, mine_parts, &mined);
    for (int64_t i = 0; i < parts; i++) {
        if (found[i] < 0)
            return lsa_fail(LSA_EARG, "golden_labels: an id is %lld, there are %lld chunks",
                            (long long)(-1 - found[i]), (long long)n);
        int64_t from = steps * i / parts * each;
        memmove(indices + at, indices + from, (size_t)found[i] * sizeof *indices);
        memmove(scores + at, scores + from, (size_t)found[i] * sizeof *scores);
        at += found[i];
    }
    if (at > INT32_MAX)
        return lsa_fail(LSA_EARG, "golden_labels: %lld labels; take fewer steps", (long long)at);
    pointers[0] = 0;
    for (int64_t t = 0; t < steps; t++) pointers[t + 1] += pointers[t];
    return LSA_OK;
}
