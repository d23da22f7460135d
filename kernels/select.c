/* Owns selection of ids by score.
 *
 * A selection ends in a threshold T and a number of ties: scores above T are in, and of those
 * equal to T the first `ties`; one pass of compares, at the speed of memory, writes that (mark).
 * Top-k and top-p find T first. A sorted sample brackets it between two pivots, one pass (scan)
 * counts what lies above the bracket and collects the few scores inside, and a search over those
 * is exact: by bits for top-k (kth), by radix for top-p (resolve). Where the bracket misses, or
 * the row is short, the search runs over the whole row: the sample decides the time, never the
 * result. */
#include "kernels/select.h"

#include <float.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum { SAMPLES = 4096, BINS = 2048, SHORT = 16384, BOUNDS = 3 };

/* Weights: 1 for every candidate (top-k), or its score (top-p). What does not count weighs 0 and
 * is never taken. */
enum { COUNT = 0, MASS = 1 };

typedef struct workspace {
    double *bins;           /* [BINS] */
    uint32_t *keys, *spare; /* [SAMPLES] each */
    float *inside;          /* [capacity + 64] */
    int64_t capacity;
} workspace;

typedef struct threshold {
    float value;
    int64_t ties;
} threshold;

/* What a scan found around the bracket lo..hi. */
typedef struct scan {
    int64_t above, at_hi, at_lo, inside; /* scores > hi, == hi, == lo, between */
    double mass_above;
} scan;

static int64_t capacity_of(int64_t n) { return n < SHORT ? 0 : n / 8; }

int64_t lsa_select_workspace(int64_t n)
{
    return BINS * 8 + 2 * SAMPLES * 4 + (capacity_of(n) + 64) * 4;
}

static workspace carve(void *memory, int64_t n)
{
    char *p = memory;
    workspace w = {.capacity = capacity_of(n)};
    w.bins = (double *)p;
    w.keys = (uint32_t *)(p += BINS * 8);
    w.spare = w.keys + SAMPLES;
    w.inside = (float *)(p + 2 * SAMPLES * 4);
    return w;
}

/* ---- compares of 16 scores to a bit mask, for each code path ---- */

static inline uint64_t gt16_generic(const float *x, float t)
{
    uint64_t m = 0;
    for (int i = 0; i < 16; i++) m |= (uint64_t)(x[i] > t) << i;
    return m;
}

static inline uint64_t eq16_generic(const float *x, float t)
{
    uint64_t m = 0;
    for (int i = 0; i < 16; i++) m |= (uint64_t)(x[i] == t) << i;
    return m;
}

static inline float *append_generic(float *out, const float *x, uint64_t mask)
{
    for (; mask; mask &= mask - 1) *out++ = x[__builtin_ctzll(mask)];
    return out;
}

#if defined(__x86_64__)
#define AVX2_COMPARE(x, t, how)                                                                    \
    ((uint64_t)(unsigned)_mm256_movemask_ps(                                                       \
         _mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(t), how)) |                              \
     (uint64_t)(unsigned)_mm256_movemask_ps(                                                       \
         _mm256_cmp_ps(_mm256_loadu_ps((x) + 8), _mm256_set1_ps(t), how))                          \
         << 8)

LSA_TARGET_AVX2 static inline uint64_t gt16_avx2(const float *x, float t)
{
    return AVX2_COMPARE(x, t, _CMP_GT_OQ);
}
LSA_TARGET_AVX2 static inline uint64_t eq16_avx2(const float *x, float t)
{
    return AVX2_COMPARE(x, t, _CMP_EQ_OQ);
}
LSA_TARGET_AVX2 static inline float *append_avx2(float *out, const float *x, uint64_t mask)
{
    for (; mask; mask &= mask - 1) *out++ = x[__builtin_ctzll(mask)];
    return out;
}

LSA_TARGET_AVX512 static inline uint64_t gt16_avx512(const float *x, float t)
{
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(t), _CMP_GT_OQ);
}

LSA_TARGET_AVX512 static inline uint64_t eq16_avx512(const float *x, float t)
{
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(t), _CMP_EQ_OQ);
}

/* Whole vectors are stored, hence the 64 floats of slack behind `inside`; branches would be
 * mispredicted. */
LSA_TARGET_AVX512 static inline float *append_avx512(float *out, const float *x, uint64_t mask)
{
    for (int part = 0; part < 4; part++, x += 16, mask >>= 16) {
        _mm512_storeu_ps(out, _mm512_maskz_compress_ps((__mmask16)mask, _mm512_loadu_ps(x)));
        out += __builtin_popcount((uint16_t)mask);
    }
    return out;
}
#endif

#define MASK64(path, op, x, t)                                                                     \
    (op##16_##path(x, t) | op##16_##path((x) + 16, t) << 16 | op##16_##path((x) + 32, t) << 32 |   \
     op##16_##path((x) + 48, t) << 48)

/* The last scores of a row, padded to 64 with NaN, which is never selected. */
static void pad(float *out, const float *x, int64_t n)
{
    for (int i = 0; i < 64; i++) out[i] = i < n ? x[i] : NAN;
}

/* ---- the two passes ---- */

#define DEFINE_MARK(path, target)                                                                  \
    target static void mark_##path(uint64_t *bits, const float *scores, int64_t n, threshold t)    \
    {                                                                                              \
        float last[64];                                                                            \
        for (int64_t i = 0; i < n; i += 64) {                                                      \
            const float *x = scores + i;                                                           \
            if (n - i < 64) {                                                                      \
                pad(last, x, n - i);                                                               \
                x = last;                                                                          \
            }                                                                                      \
            uint64_t in = MASK64(path, gt, x, t.value), ties = MASK64(path, eq, x, t.value);       \
            if (ties && t.ties) {                                                                  \
                int64_t many = __builtin_popcountll(ties);                                         \
                for (; many > t.ties; many--) ties ^= 1ull << (63 - __builtin_clzll(ties));        \
                t.ties -= many;                                                                    \
                in |= ties;                                                                        \
            }                                                                                      \
            bits[i / 64] = in;                                                                     \
        }                                                                                          \
    }

/* Gives up (inside = -1) when `room` does not hold what lies between the pivots. */
#define DEFINE_SCAN(path, target)                                                                  \
    target static scan scan_##path(float *room, int64_t capacity, const float *scores, int64_t n,  \
                                   float lo, float hi, int how)                                    \
    {                                                                                              \
        scan s = {0};                                                                              \
        float last[64], *out = room;                                                               \
        f64x8 sum[2] = {{0}, {0}};                                                                 \
        for (int64_t i = 0; i < n; i += 64) {                                                      \
            const float *x = scores + i;                                                           \
            if (n - i < 64) {                                                                      \
                pad(last, x, n - i);                                                               \
                x = last;                                                                          \
            }                                                                                      \
            uint64_t above = MASK64(path, gt, x, hi), at_hi = MASK64(path, eq, x, hi);             \
            uint64_t over_lo = MASK64(path, gt, x, lo), at_lo = MASK64(path, eq, x, lo);           \
            s.above += __builtin_popcountll(above);                                                \
            s.at_hi += __builtin_popcountll(at_hi);                                                \
            s.at_lo += __builtin_popcountll(at_lo);                                                \
            if (how == MASS && above) add_above(sum, x, hi);                                       \
            if (out - room > capacity - 64) {                                                      \
                s.inside = -1;                                                                     \
                return s;                                                                          \
            }                                                                                      \
            out = append_##path(out, x, over_lo & ~above & ~at_hi);                                \
        }                                                                                          \
        s.inside = out - room;                                                                     \
        s.mass_above = sum_of(sum);                                                                \
        return s;                                                                                  \
    }

typedef double f64x8 __attribute__((vector_size(64), aligned(8), may_alias));
typedef float f32x8 __attribute__((vector_size(32), aligned(4), may_alias));

/* Sixteen partial sums: score i adds to number i mod 16, in every code path. */
static inline LSA_BODY void add_f64(f64x8 sum[2], f32x16 v)
{
    f32x8 half[2];
    memcpy(half, &v, sizeof v);
    sum[0] += __builtin_convertvector(half[0], f64x8);
    sum[1] += __builtin_convertvector(half[1], f64x8);
}

static inline LSA_BODY void add_above(f64x8 sum[2], const float *x, float t)
{
    for (int i = 0; i < 64; i += 16) {
        f32x16 v = f32x16_load(x + i);
        add_f64(sum, f32x16_select(v > t, v, f32x16_set(0.0f)));
    }
}

static inline LSA_BODY double sum_of(const f64x8 sum[2])
{
    f64x8 s = sum[0] + sum[1];
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

DEFINE_MARK(generic, )
DEFINE_SCAN(generic, )
#if defined(__x86_64__)
DEFINE_MARK(avx2, LSA_TARGET_AVX2)
DEFINE_SCAN(avx2, LSA_TARGET_AVX2)
DEFINE_MARK(avx512, LSA_TARGET_AVX512)
DEFINE_SCAN(avx512, LSA_TARGET_AVX512)
#endif

static void mark(uint64_t *bits, const float *scores, int64_t n, threshold t)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512) return mark_avx512(bits, scores, n, t);
    if (level == LSA_CPU_AVX2) return mark_avx2(bits, scores, n, t);
#endif
    mark_generic(bits, scores, n, t);
}

static scan scan_bracket(float *room, int64_t capacity, const float *scores, int64_t n, float lo,
                         float hi, int how)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512) return scan_avx512(room, capacity, scores, n, lo, hi, how);
    if (level == LSA_CPU_AVX2) return scan_avx2(room, capacity, scores, n, lo, hi, how);
#endif
    return scan_generic(room, capacity, scores, n, lo, hi, how);
}

/* ---- the threshold ---- */

/* Unsigned integers in the order of the floats; -0 becomes 0. */
static inline uint32_t key_of(float x)
{
    uint32_t u;
    x += 0.0f;
    memcpy(&u, &x, sizeof u);
    return u >> 31 ? ~u : u | 0x80000000u;
}

static inline float float_of(uint32_t key)
{
    uint32_t u = key >> 31 ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline double weight_of(float x, int how)
{
    if (how == MASS) return x > 0.0f ? (double)x : 0.0;
    return x > -INFINITY ? 1.0 : 0.0;
}

/* How many scores that weigh `each` bring the sum from `above` to `need`: at least one. */
static int64_t ties_for(double above, double need, double each)
{
    int64_t ties = (int64_t)ceil((need - above) / each);
    while (ties > 1 && above + (double)(ties - 1) * each >= need) ties--;
    return ties < 1 ? 1 : ties;
}

/* How many of the scores reach each of the bounds. */
static inline LSA_BODY void reaching_body(const float *x, int64_t n, const float *bounds,
                                          int64_t *counts)
{
    f32x16 b[BOUNDS];
    i32x16 sum[BOUNDS] = {{0}};
    int64_t i = 0;
    for (int j = 0; j < BOUNDS; j++) b[j] = f32x16_set(bounds[j]);
    for (; i + 16 <= n; i += 16) {
        f32x16 v = f32x16_load(x + i);
        for (int j = 0; j < BOUNDS; j++) sum[j] -= v >= b[j];
    }
    for (int j = 0; j < BOUNDS; j++) {
        counts[j] = 0;
        for (int lane = 0; lane < 16; lane++) counts[j] += sum[j][lane];
        for (int64_t rest = i; rest < n; rest++) counts[j] += x[rest] >= bounds[j];
    }
}
LSA_PATHS(reaching, (const float *x, int64_t n, const float *bounds, int64_t *counts),
          (x, n, bounds, counts))

/* Of the n scores, those above t->value and the first t->ties of those equal to it are the k
 * largest. 0 where there are fewer than k; *there is then how many. */
static int kth(threshold *t, const float *x, int64_t n, int64_t k, int64_t *there)
{
    /* Reached by k scores or more; reached by fewer, namely `more`. */
    int64_t low = key_of(-FLT_MAX), high = (int64_t)key_of(INFINITY) + 1, more = 0;
    int64_t keys[BOUNDS] = {low, key_of(0.0f), high - 1};
    for (int first = 1; high - low > 1; first = 0) {
        float bounds[BOUNDS];
        int64_t counts[BOUNDS];
        for (int j = 0; j < BOUNDS; j++) bounds[j] = float_of((uint32_t)keys[j]);
        reaching(x, n, bounds, counts);
        if (first && counts[0] < k) {
            *there = counts[0];
            return 0;
        }
        for (int j = 0; j < BOUNDS; j++) {
            if (counts[j] == k) {
                *t = (threshold){bounds[j], k};
                return 1;
            }
            if (counts[j] > k && keys[j] > low) low = keys[j];
            if (counts[j] < k && keys[j] < high) {
                high = keys[j];
                more = counts[j];
            }
        }
        for (int j = 0; j < BOUNDS; j++) keys[j] = low + (high - low) * (j + 1) / (BOUNDS + 1);
    }
    *t = (threshold){float_of((uint32_t)low), k - more};
    return 1;
}

/* Finds in x the largest T for which the scores >= T weigh `need` or more together, and how many
 * of those equal to T that takes. 0 when all together weigh less; *weighed is then their weight. */
static int resolve(threshold *t, const float *x, int64_t n, double need, double *bins,
                   double *weighed)
{
    static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    uint32_t prefix = 0;
    double above = 0;
    for (int level = 0; level < 3; level++) {
        int shift = shifts[level], known = shift + widths[level];
        uint32_t mask = (1u << widths[level]) - 1;
        memset(bins, 0, BINS * sizeof *bins);
        for (int64_t i = 0; i < n; i++) {
            double w = weight_of(x[i], MASS);
            uint32_t key = key_of(x[i]);
            if (w > 0 && (level == 0 || key >> known == prefix)) bins[key >> shift & mask] += w;
        }
        int64_t bin = mask, lowest = -1;
        double sum = above;
        for (; bin >= 0; bin--) {
            if (bins[bin] == 0) continue;
            lowest = bin;
            if (sum + bins[bin] >= need) break;
            sum += bins[bin];
        }
        if (bin < 0) {
            /* Below the first level that can only be a sum that rounds otherwise in parts: the
             * lowest bin it is. */
            if (level == 0) {
                *weighed = sum;
                return 0;
            }
            bin = lowest;
            sum -= bins[bin];
        }
        above = sum;
        prefix = prefix << widths[level] | (uint32_t)bin;
    }
    t->value = float_of(prefix);
    t->ties = ties_for(above, need, weight_of(t->value, MASS));
    return 1;
}

/* The threshold among x alone, by either weight. */
static int search(threshold *t, const float *x, int64_t n, double need, int how, double *bins,
                  double *weighed)
{
    if (how == MASS) return resolve(t, x, n, need, bins, weighed);
    int64_t there;
    int found = kth(t, x, n, (int64_t)need, &there);
    *weighed = (double)there;
    return found;
}

/* Sorts w->keys, largest first. */
static void sort_keys(workspace *w)
{
    uint32_t *from = w->keys, *to = w->spare, *at = (uint32_t *)w->bins;
    for (int shift = 0; shift < 32; shift += 11) {
        memset(at, 0, BINS * sizeof *at);
        for (int i = 0; i < SAMPLES; i++) at[~(from[i] >> shift) & (BINS - 1)]++;
        uint32_t start = 0;
        for (int b = 0; b < BINS; b++) {
            uint32_t count = at[b];
            at[b] = start;
            start += count;
        }
        for (int i = 0; i < SAMPLES; i++) to[at[~(from[i] >> shift) & (BINS - 1)]++] = from[i];
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    w->keys = from;
    w->spare = to;
}

/* One score out of each of SAMPLES equal parts, at a place that no period of the scores follows. */
static void sample(workspace *w, const float *scores, int64_t n)
{
    for (int64_t i = 0; i < SAMPLES; i++) {
        int64_t from = i * n / SAMPLES, to = (i + 1) * n / SAMPLES;
        uint32_t hash = (uint32_t)i * 2654435761u;
        float x = scores[from + (hash ^ hash >> 15) % (to - from)];
        w->keys[i] = key_of(x == x ? x : -INFINITY);
    }
    sort_keys(w);
}

/* Pivots between which the threshold lies almost surely: four standard deviations of the sampled
 * estimate around it. share: of the row's n scores (top-k) or of its mass (top-p), above the
 * threshold. */
static void bracket(float *lo, float *hi, const workspace *w, double share, int how)
{
    double total = 0, sum = 0, variance = 0;
    for (int i = 0; i < SAMPLES; i++)
        total += how == MASS ? weight_of(float_of(w->keys[i]), how) : 1.0;
    int at = 0;
    for (; at < SAMPLES && sum < share * total; at++)
        sum += how == MASS ? weight_of(float_of(w->keys[at]), how) : 1.0;
    for (int i = 0; i < SAMPLES; i++) {
        double v = (how == MASS ? weight_of(float_of(w->keys[i]), how) : 1.0) * ((i < at) - share);
        variance += v * v;
    }
    double each = at > 0 ? weight_of(float_of(w->keys[at - 1]), how) : 0;
    double spread = each > 0 ? 4 * sqrt(variance) / each + 4 : SAMPLES;
    int reach = spread < SAMPLES ? (int)spread : SAMPLES;
    float floor = how == MASS ? 0.0f : -INFINITY;
    *hi = at - reach >= 0 ? float_of(w->keys[at - reach]) : INFINITY;
    *lo = at + reach < SAMPLES ? float_of(w->keys[at + reach]) : floor;
    if (!(*lo > floor)) *lo = floor;
    if (*lo == floor && !(*hi > floor)) *hi = INFINITY;
}

/* 0 when the bracket does not hold the threshold. */
static int from_bracket(threshold *t, workspace *w, const float *scores, int64_t n, double need,
                        double share, int how)
{
    float lo, hi;
    sample(w, scores, n);
    bracket(&lo, &hi, w, share, how);
    scan s = scan_bracket(w->inside, w->capacity, scores, n, lo, hi, how);
    if (s.inside < 0) return 0;
    double above = how == MASS ? s.mass_above : (double)s.above;
    if (above >= need) return 0;

    double each = weight_of(hi, how), weighed = 0;
    if (above + (double)s.at_hi * each >= need) {
        *t = (threshold){hi, ties_for(above, need, each)};
        return 1;
    }
    if (lo == hi) return 0;
    if (s.at_hi) above += (double)s.at_hi * each;
    if (search(t, w->inside, s.inside, need - above, how, w->bins, &weighed)) return 1;
    above += weighed;

    each = weight_of(lo, how);
    if (each > 0 && above + (double)s.at_lo * each < need) return 0;
    /* Where lo weighs nothing, nothing below it does: everything above it is taken. */
    *t = (threshold){lo, each > 0 ? ties_for(above, need, each) : 0};
    return 1;
}

static threshold find(const float *scores, int64_t n, double need, double share, int how,
                      void *memory)
{
    workspace w = carve(memory, n);
    threshold t;
    double weighed;
    if (n >= SHORT && from_bracket(&t, &w, scores, n, need, share, how)) return t;
    if (search(&t, scores, n, need, how, w.bins, &weighed)) return t;
    return (threshold){how == MASS ? 0.0f : -INFINITY, 0};
}

/* ---- entry points ---- */

int lsa_select_above_check(int64_t n)
{
    return n < 0 ? lsa_fail(LSA_ESHAPE, "select_above: %lld scores", (long long)n) : LSA_OK;
}

int lsa_select_topk_check(int64_t n, int64_t k)
{
    if (n < 0) return lsa_fail(LSA_ESHAPE, "select_topk: %lld scores", (long long)n);
    if (k < 0) return lsa_fail(LSA_EARG, "select_topk: k is %lld", (long long)k);
    return LSA_OK;
}

int lsa_select_topp_check(int64_t n, double mass)
{
    if (n < 0) return lsa_fail(LSA_ESHAPE, "select_topp: %lld scores", (long long)n);
    if (!(mass >= 0 && mass <= 1))
        return lsa_fail(LSA_EARG, "select_topp: mass is %g, from 0 to 1 is wanted", mass);
    return LSA_OK;
}

int lsa_select_above_cpu(uint64_t *bits, const float *scores, int64_t n, float limit,
                         int32_t strict, void *stream)
{
    (void)stream;
    int rc = lsa_select_above_check(n);
    if (rc) return rc;
    mark(bits, scores, n, (threshold){limit, strict ? 0 : n});
    return LSA_OK;
}

int lsa_select_topk_cpu(uint64_t *bits, const float *scores, int64_t n, int64_t k, void *memory,
                        void *stream)
{
    (void)stream;
    int rc = lsa_select_topk_check(n, k);
    if (rc) return rc;
    threshold t = {k == 0 ? INFINITY : -INFINITY, 0};
    if (k > 0 && k < n) t = find(scores, n, (double)k, (double)k / (double)n, COUNT, memory);
    mark(bits, scores, n, t);
    return LSA_OK;
}

static inline LSA_BODY void positive_sum_body(const float *x, int64_t n, double *total)
{
    const f32x16 zero = {0};
    f64x8 sum[2] = {{0}, {0}};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        f32x16 v = f32x16_load(x + i);
        add_f64(sum, f32x16_select(v > zero, v, zero));
    }
    if (i < n) {
        f32x16 v = f32x16_load_n(x + i, n - i);
        add_f64(sum, f32x16_select(v > zero, v, zero));
    }
    *total = sum_of(sum);
}
LSA_PATHS(positive_sum, (const float *x, int64_t n, double *total), (x, n, total))

int lsa_select_topp_cpu(uint64_t *bits, const float *scores, int64_t n, double mass, void *memory,
                        void *stream)
{
    (void)stream;
    int rc = lsa_select_topp_check(n, mass);
    if (rc) return rc;
    double total;
    positive_sum(scores, n, &total);
    threshold t = {0, 0};
    if (mass == 0)
        t.value = INFINITY;
    else if (mass < 1 && total == INFINITY)
        t = (threshold){INFINITY, 1};
    else if (mass < 1 && total > 0)
        t = find(scores, n, mass * total, mass, MASS, memory);
    mark(bits, scores, n, t);
    return LSA_OK;
}
