/* Top-k selection. Owns the running selection: a buffer that takes whatever exceeds the
 * threshold, and is cut back to the k best when full. Candidates stay in ascending order of id
 * throughout, so a tie goes to the lower id by position alone. */
#include "kernels/topk.h"

#include <math.h>
#include <stddef.h>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"

enum {
    LEAST_SLACK =
        1024, /* room beyond k: a cut is some 20 passes over the buffer, so must be rare */
    MOST_SLACK = 65536, /* beyond the cache, room no longer helps */
    VECTOR = 16,        /* a push may write a whole vector past the last candidate */
    LEAST_ROOM = 128,   /* pushes into less room would be too short to be fast */
    MOST_THREADS = 64,  /* each has its own buffer in the workspace */
    MOST_K = 1 << 30
};

int32_t lsa_topk_capacity(int32_t k)
{
    if (k < 0) k = 0;
    return k + (k < LEAST_SLACK ? LEAST_SLACK : k > MOST_SLACK ? MOST_SLACK : k) + VECTOR;
}

void lsa_topk_begin(lsa_topk_state *state, int32_t k, float *values, int32_t *ids)
{
    *state = (lsa_topk_state){.values = values,
                              .ids = ids,
                              .k = k < 0 ? 0 : k,
                              .capacity = lsa_topk_capacity(k),
                              .threshold = k > 0 ? -INFINITY : INFINITY};
}

/* Order-preserving map between floats and integers; -0 lies one below +0. */
static int32_t key_of(float x)
{
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >= 0 ? bits : (int32_t)(0x80000000u - (uint32_t)bits) - 1;
}

static float value_of(int32_t key)
{
    int32_t bits = key >= 0 ? key : (int32_t)(0x80000000u - (uint32_t)(key + 1));
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int32_t count_from_generic(const float *v, int32_t n, float least)
{
    int32_t count = 0;
    for (int32_t i = 0; i < n; i++) count += v[i] >= least;
    return count;
}

static inline LSA_BODY void count_above_body(const float *v, int32_t n, float most, int32_t *count)
{
    int32_t total = 0;
    for (int32_t i = 0; i < n; i++) total += v[i] > most;
    *count = total;
}
LSA_PATHS(count_above, (const float *v, int32_t n, float most, int32_t *count), (v, n, most, count))

static void bounds_generic(const float *v, int32_t n, float *least, float *most)
{
    *least = INFINITY;
    *most = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        *least = v[i] < *least ? v[i] : *least;
        *most = v[i] > *most ? v[i] : *most;
    }
}

#if defined(__x86_64__)

LSA_TARGET_AVX2
static int32_t count_from_avx2(const float *v, int32_t n, float least)
{
    __m256 bar = _mm256_set1_ps(least);
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                       _mm256_setzero_si256()};
    int32_t i = 0, lanes[8], count = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++) {
            __m256 reached = _mm256_cmp_ps(_mm256_loadu_ps(v + i + 8 * j), bar, _CMP_GE_OQ);
            sums[j] = _mm256_sub_epi32(sums[j], _mm256_castps_si256(reached));
        }
    sums[0] =
        _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
    _mm256_storeu_si256((void *)lanes, sums[0]);
    for (int j = 0; j < 8; j++) count += lanes[j];
    return count + count_from_generic(v + i, n - i, least);
}

LSA_TARGET_AVX512
static int32_t count_from_avx512(const float *v, int32_t n, float least)
{
    __m512 bar = _mm512_set1_ps(least);
    int32_t i = 0, count = 0;
    for (; i + 16 <= n; i += 16)
        count += __builtin_popcount(_mm512_cmp_ps_mask(_mm512_loadu_ps(v + i), bar, _CMP_GE_OQ));
    return count + count_from_generic(v + i, n - i, least);
}

LSA_TARGET_AVX2
static void bounds_avx2(const float *v, int32_t n, float *least, float *most)
{
    __m256 lows[2], highs[2];
    float lanes[16];
    int32_t i = 0;
    for (int j = 0; j < 2; j++) {
        lows[j] = _mm256_set1_ps(INFINITY);
        highs[j] = _mm256_set1_ps(-INFINITY);
    }
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 2; j++) {
            __m256 x =
                _mm256_loadu_ps(v + i + 8 * j); /* where it is NaN, the second one is taken */
            lows[j] = _mm256_min_ps(x, lows[j]);
            highs[j] = _mm256_max_ps(x, highs[j]);
        }
    float low, high, unused;
    bounds_generic(v + i, n - i, &low, &high);
    _mm256_storeu_ps(lanes, _mm256_min_ps(lows[0], lows[1]));
    _mm256_storeu_ps(lanes + 8, _mm256_max_ps(highs[0], highs[1]));
    bounds_generic(lanes, 8, least, &unused);
    bounds_generic(lanes + 8, 8, &unused, most);
    if (low < *least) *least = low;
    if (high > *most) *most = high;
}

#endif

/* Scores that are `least` or more. */
static int32_t count_from(const float *v, int32_t n, float least)
{
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX512) return count_from_avx512(v, n, least);
    if (lsa_cpu_level() == LSA_CPU_AVX2) return count_from_avx2(v, n, least);
#endif
    return count_from_generic(v, n, least);
}

static void bounds(const float *v, int32_t n, float *least, float *most)
{
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX2) {
        bounds_avx2(v, n, least, most);
        return;
    }
#endif
    bounds_generic(v, n, least, most);
}

/* A value that at least k of the n > k candidates reach, and at most k exceed. */
static float kth_largest(const float *v, int32_t n, int32_t k)
{
    float least, most;
    bounds(v, n, &least, &most);
    int64_t low = key_of(least), high = (int64_t)key_of(most) + 1; /* reached by >= k; by < k */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        int32_t reached = count_from(v, n, value_of((int32_t)middle));
        if (reached == k) return value_of((int32_t)middle);
        if (reached > k)
            low = middle;
        else
            high = middle;
    }
    return value_of((int32_t)low);
}

/* Keeps the candidates above `cut` and the first `equal` of those at it, in order; returns how
 * many. */
static int32_t keep_generic(float *values, int32_t *ids, int32_t n, float cut, int32_t equal)
{
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i++) {
        float v = values[i];
        int32_t id = ids[i];
        int take = v > cut || (v == cut && equal-- > 0);
        values[kept] = v;
        ids[kept] = id;
        kept += take;
    }
    return kept;
}

static int32_t push_generic(lsa_topk_state *s, const float *scores, int32_t n, int32_t first_id)
{
    int32_t count = s->count;
    for (int32_t i = 0; i < n; i++) {
        s->values[count] = scores[i];
        s->ids[count] = first_id + i;
        count += scores[i] > s->threshold;
    }
    return count;
}

#if defined(__x86_64__)

LSA_TARGET_AVX2
static int32_t push_avx2(lsa_topk_state *s, const float *scores, int32_t n, int32_t first_id)
{
    __m256 threshold = _mm256_set1_ps(s->threshold);
    int32_t count = s->count, i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 above = _mm256_cmp_ps(_mm256_loadu_ps(scores + i), threshold, _CMP_GT_OQ);
        for (unsigned hits = (unsigned)_mm256_movemask_ps(above); hits; hits &= hits - 1) {
            int32_t j = i + __builtin_ctz(hits);
            s->values[count] = scores[j];
            s->ids[count++] = first_id + j;
        }
    }
    s->count = count;
    return push_generic(s, scores + i, n - i, first_id + i);
}

LSA_TARGET_AVX512
static inline LSA_BODY int32_t take_avx512(lsa_topk_state *s, int32_t count, __m512 v,
                                           __mmask16 hits, int32_t id)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i ids = _mm512_add_epi32(_mm512_set1_epi32(id), lane);
    /* Compressed in a register and stored whole: a compressing store is many times slower. */
    _mm512_storeu_ps(s->values + count, _mm512_maskz_compress_ps(hits, v));
    _mm512_storeu_si512(s->ids + count, _mm512_maskz_compress_epi32(hits, ids));
    return count + __builtin_popcount(hits);
}

LSA_TARGET_AVX512
static int32_t push_avx512(lsa_topk_state *s, const float *scores, int32_t n, int32_t first_id)
{
    __m512 threshold = _mm512_set1_ps(s->threshold);
    int32_t count = s->count, i = 0;
    for (; i + 64 <= n; i += 64) {
        __m512 v[4];
        __mmask16 hits[4];
        for (int j = 0; j < 4; j++) {
            v[j] = _mm512_loadu_ps(scores + i + 16 * j);
            hits[j] = _mm512_cmp_ps_mask(v[j], threshold, _CMP_GT_OQ);
        }
        if (!(hits[0] | hits[1] | hits[2] | hits[3])) continue;
        for (int j = 0; j < 4; j++)
            if (hits[j]) count = take_avx512(s, count, v[j], hits[j], first_id + i + 16 * j);
    }
    for (; i < n; i += 16) {
        __mmask16 there = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 v = _mm512_maskz_loadu_ps(there, scores + i);
        __mmask16 hits = _mm512_mask_cmp_ps_mask(there, v, threshold, _CMP_GT_OQ);
        if (hits) count = take_avx512(s, count, v, hits, first_id + i);
    }
    return count;
}

LSA_TARGET_AVX512
static int32_t keep_avx512(float *values, int32_t *ids, int32_t n, float cut, int32_t equal)
{
    __m512 at = _mm512_set1_ps(cut);
    int32_t kept = 0;
    for (int32_t i = 0; i < n; i += 16) {
        __mmask16 there = n - i >= 16 ? 0xffff : (__mmask16)((1u << (n - i)) - 1);
        __m512 v = _mm512_maskz_loadu_ps(there, values + i);
        __m512i id = _mm512_maskz_loadu_epi32(there, ids + i);
        unsigned above = _mm512_mask_cmp_ps_mask(there, v, at, _CMP_GT_OQ);
        unsigned tied = _mm512_mask_cmp_ps_mask(there, v, at, _CMP_EQ_OQ);
        int32_t ties = __builtin_popcount(tied);
        if (ties > equal) tied = _pdep_u32((1u << equal) - 1, tied);
        equal -= ties < equal ? ties : equal;
        __mmask16 take = (__mmask16)(above | tied);
        /* kept <= i, so this overwrites nothing unread: the whole vector is in registers
         * already. */
        _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(take, v));
        _mm512_storeu_si512(ids + kept, _mm512_maskz_compress_epi32(take, id));
        kept += __builtin_popcount(take);
    }
    return kept;
}

#endif

/* Room for n more is the caller's to see to. */
static void push_some(lsa_topk_state *s, const float *scores, int32_t n, int32_t first_id)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512)
        s->count = push_avx512(s, scores, n, first_id);
    else if (level == LSA_CPU_AVX2)
        s->count = push_avx2(s, scores, n, first_id);
    else
#endif
        s->count = push_generic(s, scores, n, first_id);
}

/* Cuts back to the k best, and raises the threshold to the least of them. */
static void cut(lsa_topk_state *s)
{
    if (s->count <= s->k) return;
    float at = kth_largest(s->values, s->count, s->k), most;
    int32_t above;
    count_above(s->values, s->count, at, &above);
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX512)
        s->count = keep_avx512(s->values, s->ids, s->count, at, s->k - above);
    else
#endif
        s->count = keep_generic(s->values, s->ids, s->count, at, s->k - above);
    bounds(s->values, s->count, &s->threshold, &most);
}

void lsa_topk_push(lsa_topk_state *s, const float *scores, int64_t n, int32_t first_id)
{
    if (s->k == 0) return;
    int32_t most = s->capacity - VECTOR;
    for (int64_t i = 0; i < n;) {
        if (most - s->count < LEAST_ROOM) cut(s);
        int32_t part = n - i < most - s->count ? (int32_t)(n - i) : most - s->count;
        push_some(s, scores + i, part, first_id + (int32_t)i);
        i += part;
    }
}

void lsa_topk_offer(lsa_topk_state *s, const float *scores, const int32_t *ids, int32_t n)
{
    if (s->k == 0) return;
    for (int32_t i = 0; i < n; i++) {
        if (s->count == s->capacity - VECTOR) cut(s);
        s->values[s->count] = scores[i];
        s->ids[s->count] = ids[i];
        s->count += scores[i] > s->threshold;
    }
    cut(s);
}

void lsa_topk_expect(lsa_topk_state *s, float least)
{
    float below = nextafterf(least, -INFINITY);
    if (below > s->threshold) s->threshold = below;
}

float lsa_topk_least(const float *scores, int32_t n, int32_t k)
{
    float at, most;
    if (k < 1 || n < k) return -INFINITY;
    if (n > k)
        at = kth_largest(scores, n, k);
    else
        bounds(scores, n, &at, &most);
    return count_from(scores, n, at) >= k ? at : -INFINITY;
}

int32_t lsa_topk_finish(lsa_topk_state *s, int32_t *ids, float *values)
{
    cut(s);
    memcpy(ids, s->ids, (size_t)s->count * sizeof *ids);
    if (values) memcpy(values, s->values, (size_t)s->count * sizeof *values);
    return s->count;
}

static int64_t state_elements(int32_t k) { return ((int64_t)lsa_topk_capacity(k) + 15) & ~15LL; }

int64_t lsa_topk_workspace(int64_t rows, int32_t k)
{
    int64_t buffers = rows < MOST_THREADS ? rows : MOST_THREADS;
    return k > MOST_K || buffers < 1 ? 0 : buffers * state_elements(k) * 8;
}

int lsa_topk_check(int64_t rows, int64_t n, int32_t k)
{
    if (rows < 0 || n < 0 || n > INT32_MAX)
        return lsa_fail(LSA_ESHAPE, "topk: %lld rows of %lld scores", (long long)rows,
                        (long long)n);
    if (k < 0 || k > MOST_K) return lsa_fail(LSA_EARG, "topk: k is %d, must be 0 .. %d", k, MOST_K);
    return LSA_OK;
}

typedef struct call {
    int32_t *ids, *counts;
    float *values, *buffers;
    const float *scores;
    int64_t n, stride;
    int32_t k;
} call;

static void choose_rows(void *context, int64_t from, int64_t to, int thread)
{
    const call *c = context;
    int64_t elements = state_elements(c->k);
    float *buffer = c->buffers + 2 * elements * thread;
    for (int64_t r = from; r < to; r++) {
        int32_t *ids = c->ids + r * c->k;
        float *values = c->values ? c->values + r * c->k : NULL;
        lsa_topk_state state;
        lsa_topk_begin(&state, c->k, buffer, (int32_t *)(buffer + elements));
        lsa_topk_push(&state, c->scores + r * c->stride, c->n, 0);
        int32_t count = lsa_topk_finish(&state, ids, values);
        for (int32_t i = count; i < c->k; i++) ids[i] = -1;
        if (values)
            for (int32_t i = count; i < c->k; i++) values[i] = -INFINITY;
        if (c->counts) c->counts[r] = count;
    }
}

int lsa_topk_cpu(int32_t *ids, float *values, int32_t *counts, const float *scores, int64_t rows,
                 int64_t n, int64_t score_stride, int32_t k, void *workspace, void *stream)
{
    (void)stream;
    int rc = lsa_topk_check(rows, n, k);
    if (rc) return rc;
    int threads = lsa_threads_for(rows * (n / 8 + 1000));
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    lsa_parallel(threads, rows, choose_rows,
                 &(call){ids, counts, values, workspace, scores, n, score_stride, k});
    return LSA_OK;
}
