/* A row of golden labels by AVX-512. The weights of all entries are summed, and of those above a few bounds besides; entries above
 * the bracket that this leaves are kept, those inside are compressed and bracketed anew, until they are few enough to compare
 * each with each. Only where the bracket's entries are all equal, places decide. */
#include "kernels/golden_labels_private.h"

#include <math.h>

#include "core/simd.h"

#if defined(__x86_64__)

enum {
    BOUNDS = 4,
    FEW = 16,      /* a vector */
    MOST_K = 8192, /* sums of weights in 32 bits a lane */
    WEIGHTLESS = 18 /* below the largest by that much, a weight is 0 */
};

/* The cut lies in low <= value < high: the weight from low exceeds the limit, that from high, `above`, does not. */
typedef struct bracket {
    float low, high;
    int64_t above;
} bracket;

/* k entries. */
typedef struct row {
    const int32_t *ids;
    const float *logits;
    int64_t k;
} row;

typedef struct sums {
    __m512i total, from[BOUNDS];
} sums;

LSA_TARGET_AVX512 static inline LSA_BODY __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1); }

/* round(2^22 e^x), x in -18 .. 0: golden_labels.c's weight_of, operation by operation. */
LSA_TARGET_AVX512 static inline LSA_BODY __m512i weights_of(__m512 x)
{
    const __m512 rounder = _mm512_set1_ps(12582912.0f);
    __m512 shifted = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504088896341f), rounder);
    __m512 whole = _mm512_sub_ps(shifted, rounder);
    __m512 r = _mm512_fmadd_ps(whole, _mm512_set1_ps(2.12194440e-4f),
                               _mm512_fmadd_ps(whole, _mm512_set1_ps(-0.693359375f), x));
    __m512 p = _mm512_fmadd_ps(r, _mm512_set1_ps(1.9875691500e-4f), _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    __m512i n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000 - LSA_GOLDEN_ONE_BITS));
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(n, 23)));
    return _mm512_cvttps_epi32(_mm512_add_ps(p, _mm512_set1_ps(0.5f)));
}

/* Sixteen entries from place j on, and which of them exist and are >= low: no NaN is. */
LSA_TARGET_AVX512 static inline LSA_BODY __mmask16 load(__m512 *v, __m512i *id, const row *x, int64_t j, __m512 low)
{
    if (x->k - j >= 16) {
        *id = _mm512_loadu_si512(x->ids + j);
        *v = _mm512_loadu_ps(x->logits + j);
        return _mm512_mask_cmpge_epi32_mask(_mm512_cmp_ps_mask(*v, low, _CMP_GE_OQ), *id, _mm512_setzero_si512());
    }
    __mmask16 there = first(x->k - j);
    *id = _mm512_maskz_loadu_epi32(there, x->ids + j);
    *v = _mm512_maskz_loadu_ps(there, x->logits + j);
    return _mm512_mask_cmpge_epi32_mask(_mm512_mask_cmp_ps_mask(there, *v, low, _CMP_GE_OQ), *id, _mm512_setzero_si512());
}

LSA_TARGET_AVX512 static inline LSA_BODY float largest(const row *x)
{
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __m512 best[2] = {lowest, lowest}, v;
    __m512i id;
    for (int64_t j = 0; j < x->k; j += 16) {
        __mmask16 in = load(&v, &id, x, j, lowest);
        best[j / 16 & 1] = _mm512_mask_max_ps(best[j / 16 & 1], in, best[j / 16 & 1], v);
    }
    return _mm512_reduce_max_ps(_mm512_max_ps(best[0], best[1]));
}

LSA_TARGET_AVX512 static inline LSA_BODY int64_t sum_of(__m512i v)
{
    return _mm512_reduce_add_epi64(_mm512_add_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(v)),
                                                    _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(v, 1))));
}

LSA_TARGET_AVX512 static inline LSA_BODY void add(sums *s, __mmask16 in, __m512 v, __m512i w, const __m512 *bounds)
{
    s->total = _mm512_mask_add_epi32(s->total, in, s->total, w);
    for (int i = 0; i < BOUNDS; i++)
        s->from[i] = _mm512_mask_add_epi32(s->from[i], _mm512_mask_cmp_ps_mask(in, v, bounds[i], _CMP_GE_OQ), s->from[i], w);
}

/* Takes the bounds, in rising order, that are inside the bracket; base: the weight above what was summed. */
LSA_TARGET_AVX512 static inline LSA_BODY void narrow(bracket *r, const sums *s, const __m512 *bounds, int64_t base, int64_t limit)
{
    for (int i = 0; i < BOUNDS; i++) {
        float bound = _mm512_cvtss_f32(bounds[i]);
        int64_t from = base + sum_of(s->from[i]);
        if (!(bound > r->low && bound < r->high)) continue;
        if (from > limit) {
            r->low = bound;
        } else {
            r->high = bound;
            r->above = from;
        }
    }
}

/* Keeps the row's entries above the bracket, leaves those inside in `near`, with weights. */
LSA_TARGET_AVX512 static inline LSA_BODY int64_t divide(int32_t *kept, int64_t *count, const lsa_golden_near *near, const row *x,
                                                        const bracket *r, float most)
{
    const __m512 low = _mm512_set1_ps(r->low), high = _mm512_set1_ps(r->high), top = _mm512_set1_ps(most);
    int64_t m = 0, kept_count = 0;
    __m512 v;
    __m512i id;
    for (int64_t j = 0; j < x->k; j += 16) {
        __mmask16 in = load(&v, &id, x, j, low);
        __mmask16 above = _mm512_mask_cmp_ps_mask(in, v, high, _CMP_GE_OQ);
        in = (__mmask16)(in & ~above);
        _mm512_storeu_si512(kept + kept_count, _mm512_maskz_compress_epi32(above, id));
        _mm512_storeu_ps(near->values + m, _mm512_maskz_compress_ps(in, v));
        _mm512_storeu_si512(near->ids + m, _mm512_maskz_compress_epi32(in, id));
        kept_count += __builtin_popcount(above);
        m += __builtin_popcount(in);
    }
    for (int64_t j = 0; j < m; j += 16)
        _mm512_storeu_si512(near->weights + j, weights_of(_mm512_sub_ps(_mm512_loadu_ps(near->values + j), top)));
    *count = kept_count;
    return m;
}

/* As divide, of m entries that are in `near`. */
LSA_TARGET_AVX512 static inline LSA_BODY int64_t divide_near(int32_t *kept, int64_t *count, const lsa_golden_near *near, int64_t m,
                                                             const bracket *r)
{
    const __m512 low = _mm512_set1_ps(r->low), high = _mm512_set1_ps(r->high);
    int64_t left = 0, kept_count = *count;
    for (int64_t j = 0; j < m; j += 16) {
        __m512 v = _mm512_loadu_ps(near->values + j);
        __m512i w = _mm512_loadu_si512(near->weights + j), id = _mm512_loadu_si512(near->ids + j);
        __mmask16 in = _mm512_mask_cmp_ps_mask(first(m - j), v, low, _CMP_GE_OQ);
        __mmask16 above = _mm512_mask_cmp_ps_mask(in, v, high, _CMP_GE_OQ);
        in = (__mmask16)(in & ~above);
        _mm512_storeu_si512(kept + kept_count, _mm512_maskz_compress_epi32(above, id));
        _mm512_storeu_ps(near->values + left, _mm512_maskz_compress_ps(in, v));
        _mm512_storeu_si512(near->weights + left, _mm512_maskz_compress_epi32(in, w));
        _mm512_storeu_si512(near->ids + left, _mm512_maskz_compress_epi32(in, id));
        kept_count += __builtin_popcount(above);
        left += __builtin_popcount(in);
    }
    *count = kept_count;
    return left;
}

/* The least and the largest of m values. */
LSA_TARGET_AVX512 static inline LSA_BODY void range_of(const float *values, int64_t m, float *least, float *most)
{
    __m512 low = _mm512_set1_ps(INFINITY), high = _mm512_set1_ps(-INFINITY);
    for (int64_t j = 0; j < m; j += 16) {
        __mmask16 there = first(m - j);
        __m512 v = _mm512_loadu_ps(values + j);
        low = _mm512_mask_min_ps(low, there, low, v);
        high = _mm512_mask_max_ps(high, there, high, v);
    }
    *least = _mm512_reduce_min_ps(low);
    *most = _mm512_reduce_max_ps(high);
}

/* Keeps the entries before which the weight is `left` at most: those of one vector, best first, earlier first among equals. */
LSA_TARGET_AVX512 static inline LSA_BODY int64_t keep_few(int32_t *kept, const lsa_golden_near *near, int64_t m, int64_t left)
{
    __m512 v = _mm512_loadu_ps(near->values);
    __m512i before = _mm512_setzero_si512();
    for (int64_t j = 0; j < m; j++) {
        __m512 one = _mm512_set1_ps(near->values[j]);
        unsigned later = 0xfffeu << j & 0xffff, tied = _mm512_cmp_ps_mask(one, v, _CMP_EQ_OQ);
        unsigned sooner = _mm512_cmp_ps_mask(one, v, _CMP_GT_OQ) | (tied & later);
        before = _mm512_mask_add_epi32(before, (__mmask16)sooner, before, _mm512_set1_epi32(near->weights[j]));
    }
    __mmask16 in = _mm512_mask_cmple_epi32_mask(first(m), before, _mm512_set1_epi32((int32_t)left));
    _mm512_storeu_si512(kept, _mm512_maskz_compress_epi32(in, _mm512_loadu_si512(near->ids)));
    return __builtin_popcount(in);
}

/* Closes in on the cut among m entries; returns how many of them are kept, to `kept`. */
LSA_TARGET_AVX512 static int64_t close_in(int32_t *kept, const lsa_golden_near *near, int64_t m, bracket *r, int64_t limit)
{
    int64_t count = 0;
    while (m > FEW) {
        float least, most;
        range_of(near->values, m, &least, &most);
        if (least == most) {
            int64_t more = (limit - r->above) / near->weights[0] + 1;
            for (int64_t i = 0; i < more && i < m; i++) kept[count++] = near->ids[i];
            return count;
        }
        float width = most - least;
        const __m512 bounds[BOUNDS] = {_mm512_set1_ps(least + 0.25f * width), _mm512_set1_ps(least + 0.5f * width),
                                       _mm512_set1_ps(least + 0.75f * width), _mm512_set1_ps(most)};
        sums s = {_mm512_setzero_si512(), {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                                           _mm512_setzero_si512()}};
        for (int64_t j = 0; j < m; j += 16)
            add(&s, first(m - j), _mm512_loadu_ps(near->values + j), _mm512_loadu_si512(near->weights + j), bounds);
        narrow(r, &s, bounds, r->above, limit);
        m = divide_near(kept, &count, near, m, r);
    }
    return count + keep_few(kept + count, near, m, limit - r->above);
}

LSA_TARGET_AVX512
int64_t lsa_golden_row_avx512(int32_t *kept, const lsa_golden_near *near, const int32_t *ids, const float *logits, int64_t k,
                              double top_p, float *reach, int64_t ahead)
{
    const row here = {ids, logits, k}, *x = &here;
    if (k > MOST_K) return -1;
    float most = largest(x), d = *reach > 0 ? *reach : 2.0f;
    if (most == -INFINITY) return 0;
    if (most == INFINITY) return -1;
    bracket r = {most - WEIGHTLESS, nextafterf(most, INFINITY), 0};
    const __m512 bounds[BOUNDS] = {_mm512_set1_ps(most - 2 * d), _mm512_set1_ps(most - 1.25f * d),
                                   _mm512_set1_ps(most - 0.75f * d), _mm512_set1_ps(most - 0.35f * d)};
    const __m512 low = _mm512_set1_ps(r.low), top = _mm512_set1_ps(most);
    sums s = {_mm512_setzero_si512(), {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                                       _mm512_setzero_si512()}};
    __m512 v;
    __m512i id;
    for (int64_t j = 0; j < x->k; j += 16) {
        __builtin_prefetch(ids + j + ahead); /* while arithmetic is what takes time */
        __builtin_prefetch(logits + j + ahead);
        __mmask16 in = load(&v, &id, x, j, low);
        add(&s, in, v, weights_of(_mm512_sub_ps(v, top)), bounds);
    }
    int64_t total = sum_of(s.total), count;
    double bound = floor(top_p * (double)total);
    if (!(bound < (double)total)) return -1;
    narrow(&r, &s, bounds, 0, (int64_t)bound);
    int64_t m = divide(kept, &count, near, x, &r, most);
    count += close_in(kept + count, near, m, &r, (int64_t)bound);
    *reach = 0.5f * (d + most - r.low);
    return count;
}

#endif
