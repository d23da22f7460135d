/* A row of golden labels by AVX-512. The weights of all entries are summed, and of those above a few bounds besides; entries above
 * the bracket that this leaves are kept, those inside are compressed and bracketed anew, until they are few enough to compare
 * each with each. Only where the bracket's entries are all equal, places decide. */
#include "kernels/golden_labels_private.h"

#include <math.h>

#include "core/base/simd.h"

#if defined(__x86_64__)

enum {
    BOUNDS = 4,
    FEW = 16,       /* a vector */
    MOST_K = 8192,  /* sums of weights in 32 bits a lane */
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

LSA_TARGET_AVX512 static inline LSA_BODY __mmask16 first(int64_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/* round(2^22 e^x), x <= 0; 0 of NaN: golden_labels.c's weight_of, operation by operation. */
LSA_TARGET_AVX512 static inline LSA_BODY __m512i weights_of(__m512 x)
{
    const __m512 rounder = _mm512_set1_ps(12582912.0f),
                 log2_e = _mm512_set1_ps(1.44269504088896341f);
    x = _mm512_max_ps(x, _mm512_set1_ps(-20.0f));
    __m512 whole = _mm512_sub_ps(_mm512_fmadd_ps(x, log2_e, rounder), rounder),
           f = _mm512_fmsub_ps(x, log2_e, whole);
    __m512 p =
        _mm512_fmadd_ps(f, _mm512_set1_ps(1.5594677825e-4f), _mm512_set1_ps(1.3406643411e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6176927909e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503103882e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022652209e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314724207e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_cvtps_epi32(
        _mm512_scalef_ps(p, _mm512_add_ps(whole, _mm512_set1_ps((float)LSA_GOLDEN_ONE_BITS))));
}

/* Sixteen values from place j on, -inf past the end. */
LSA_TARGET_AVX512 static inline LSA_BODY __m512 values_at(const row *x, int64_t j)
{
    if (x->k - j >= 16) return _mm512_loadu_ps(x->logits + j);
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), first(x->k - j), x->logits + j);
}

LSA_TARGET_AVX512 static inline LSA_BODY __m512i ids_at(const row *x, int64_t j)
{
    return x->k - j >= 16 ? _mm512_loadu_si512(x->ids + j)
                          : _mm512_maskz_loadu_epi32(first(x->k - j), x->ids + j);
}

/* The largest value, NaN left out; *negative: whether there are ids < 0. */
LSA_TARGET_AVX512 static inline LSA_BODY float largest(const row *x, int *negative)
{
    __m512 best = _mm512_set1_ps(-INFINITY), other = best;
    __m512i ids = _mm512_setzero_si512();
    int64_t j = 0;
    for (; j + 32 <= x->k; j += 32) {
        best = _mm512_max_ps(_mm512_loadu_ps(x->logits + j), best);
        other = _mm512_max_ps(_mm512_loadu_ps(x->logits + j + 16), other);
        ids = _mm512_or_si512(ids, _mm512_or_si512(_mm512_loadu_si512(x->ids + j),
                                                   _mm512_loadu_si512(x->ids + j + 16)));
    }
    for (; j < x->k; j += 16) {
        best = _mm512_max_ps(values_at(x, j), best);
        ids = _mm512_or_si512(ids, ids_at(x, j));
    }
    *negative = _mm512_movepi32_mask(ids) != 0;
    return _mm512_reduce_max_ps(_mm512_max_ps(best, other));
}

/* The row's values, -inf where an id is < 0. */
LSA_TARGET_AVX512 static void only_entries(float *values, const row *x)
{
    for (int64_t j = 0; j < x->k; j += 16) {
        __mmask16 in = _mm512_cmpge_epi32_mask(ids_at(x, j), _mm512_setzero_si512());
        _mm512_storeu_ps(values + j,
                         _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), in, values_at(x, j)));
    }
}

LSA_TARGET_AVX512 static inline LSA_BODY int64_t sum_of(__m512i v)
{
    return _mm512_reduce_add_epi64(
        _mm512_add_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(v)),
                         _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(v, 1))));
}

/* The weights of m values: of all of them, and of those from each bound on. weights: NULL where they are to be computed, relative
 * to `most`; meanwhile what is `ahead` elements further, in ids and values, is fetched. A sum is a register. */
LSA_TARGET_AVX512 static inline LSA_BODY sums add_up(const float *values, const int32_t *weights,
                                                     int64_t m, float most, const __m512 *bounds,
                                                     const int32_t *ids, int64_t ahead)
{
    const __m512 top = _mm512_set1_ps(most), b0 = bounds[0], b1 = bounds[1], b2 = bounds[2],
                 b3 = bounds[3];
    __m512i total = _mm512_setzero_si512(), s0 = total, s1 = total, s2 = total, s3 = total;
    for (int64_t j = 0; j < m; j += 16) {
        __mmask16 there = first(m - j);
        __m512 v = _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), there, values + j);
        __m512i w;
        if (weights) {
            w = _mm512_maskz_loadu_epi32(there, weights + j);
        } else {
            __builtin_prefetch(ids + j + ahead); /* while arithmetic is what takes time */
            __builtin_prefetch(values + j + ahead);
            w = weights_of(_mm512_sub_ps(v, top));
        }
        total = _mm512_add_epi32(total, w);
        s0 = _mm512_mask_add_epi32(s0, _mm512_cmp_ps_mask(v, b0, _CMP_GE_OQ), s0, w);
        s1 = _mm512_mask_add_epi32(s1, _mm512_cmp_ps_mask(v, b1, _CMP_GE_OQ), s1, w);
        s2 = _mm512_mask_add_epi32(s2, _mm512_cmp_ps_mask(v, b2, _CMP_GE_OQ), s2, w);
        s3 = _mm512_mask_add_epi32(s3, _mm512_cmp_ps_mask(v, b3, _CMP_GE_OQ), s3, w);
    }
    return (sums){total, {s0, s1, s2, s3}};
}

/* Takes the bounds, in rising order, that are inside the bracket; base: the weight above what was summed. */
LSA_TARGET_AVX512 static inline LSA_BODY void narrow(bracket *r, const sums *s,
                                                     const __m512 *bounds, int64_t base,
                                                     int64_t limit)
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
LSA_TARGET_AVX512 static inline LSA_BODY int64_t divide(int32_t *kept, int64_t *count,
                                                        const lsa_golden_near *near, const row *x,
                                                        const bracket *r, float most)
{
    const __m512 low = _mm512_set1_ps(r->low), high = _mm512_set1_ps(r->high),
                 top = _mm512_set1_ps(most);
    const lsa_golden_near to = *near;
    int64_t m = 0, kept_count = 0;
    for (int64_t j = 0; j < x->k; j += 16) {
        __m512 v = values_at(x, j);
        __m512i id = ids_at(x, j);
        __mmask16 in = _mm512_cmp_ps_mask(v, low, _CMP_GE_OQ);
        __mmask16 above = _mm512_mask_cmp_ps_mask(in, v, high, _CMP_GE_OQ);
        in = (__mmask16)(in & ~above);
        _mm512_storeu_si512(kept + kept_count, _mm512_maskz_compress_epi32(above, id));
        _mm512_storeu_ps(to.values + m, _mm512_maskz_compress_ps(in, v));
        _mm512_storeu_si512(to.ids + m, _mm512_maskz_compress_epi32(in, id));
        kept_count += __builtin_popcount(above);
        m += __builtin_popcount(in);
    }
    for (int64_t j = 0; j < m; j += 16)
        _mm512_storeu_si512(to.weights + j,
                            weights_of(_mm512_sub_ps(_mm512_loadu_ps(to.values + j), top)));
    *count = kept_count;
    return m;
}

/* As divide, of m entries that are in `near`. */
LSA_TARGET_AVX512 static inline LSA_BODY int64_t divide_near(int32_t *kept, int64_t *count,
                                                             const lsa_golden_near *near, int64_t m,
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
LSA_TARGET_AVX512 static inline LSA_BODY void range_of(const float *values, int64_t m, float *least,
                                                       float *most)
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
LSA_TARGET_AVX512 static inline LSA_BODY int64_t keep_few(int32_t *kept,
                                                          const lsa_golden_near *near, int64_t m,
                                                          int64_t left)
{
    __m512 v = _mm512_loadu_ps(near->values);
    __m512i before = _mm512_setzero_si512();
    for (int64_t j = 0; j < m; j++) {
        __m512 one = _mm512_set1_ps(near->values[j]);
        unsigned later = 0xfffeu << j & 0xffff, tied = _mm512_cmp_ps_mask(one, v, _CMP_EQ_OQ);
        unsigned sooner = _mm512_cmp_ps_mask(one, v, _CMP_GT_OQ) | (tied & later);
        before = _mm512_mask_add_epi32(before, (__mmask16)sooner, before,
                                       _mm512_set1_epi32(near->weights[j]));
    }
    __mmask16 in = _mm512_mask_cmple_epi32_mask(first(m), before, _mm512_set1_epi32((int32_t)left));
    _mm512_storeu_si512(kept, _mm512_maskz_compress_epi32(in, _mm512_loadu_si512(near->ids)));
    return __builtin_popcount(in);
}

/* Closes in on the cut among m entries; returns how many of them are kept, to `kept`. */
LSA_TARGET_AVX512 static int64_t close_in(int32_t *kept, const lsa_golden_near *near, int64_t m,
                                          bracket *r, int64_t limit)
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
        const __m512 bounds[BOUNDS] = {_mm512_set1_ps(least + 0.25f * width),
                                       _mm512_set1_ps(least + 0.5f * width),
                                       _mm512_set1_ps(least + 0.75f * width), _mm512_set1_ps(most)};
        sums s = add_up(near->values, near->weights, m, most, bounds, NULL, 0);
        narrow(r, &s, bounds, r->above, limit);
        m = divide_near(kept, &count, near, m, r);
    }
    return count + keep_few(kept + count, near, m, limit - r->above);
}

LSA_TARGET_AVX512
int64_t lsa_golden_row_avx512(int32_t *kept, const lsa_golden_near *near, const int32_t *ids,
                              const float *logits, int64_t k, double top_p, lsa_golden_guess *guess,
                              int64_t ahead)
{
    row here = {ids, logits, k}, *x = &here;
    int negative;
    if (k > MOST_K) return -1;
    float most = largest(x, &negative);
    if (negative) {
        only_entries(near->values, x);
        here.logits = near->values;
        most = largest(x, &negative);
    }
    if (most == -INFINITY) return 0;
    if (most == INFINITY) return -1;
    bracket r = {most - WEIGHTLESS, nextafterf(most, INFINITY), 0};
    const float at = guess->spread > 0 ? guess->value : most - 2,
                d = guess->spread > 0 ? guess->spread : 2;
    const __m512 bounds[BOUNDS] = {_mm512_set1_ps(at - d), _mm512_set1_ps(at - 0.25f * d),
                                   _mm512_set1_ps(at + 0.25f * d), _mm512_set1_ps(at + d)};
    sums s = add_up(x->logits, NULL, k, most, bounds, ids, ahead);
    int64_t total = sum_of(s.total), count;
    double bound = floor(top_p * (double)total);
    if (!(bound < (double)total)) return -1;
    narrow(&r, &s, bounds, 0, (int64_t)bound);
    int64_t m = divide(kept, &count, near, x, &r, most);
    count += close_in(kept + count, near, m, &r, (int64_t)bound);
    guess->spread = 0.75f * d + 0.5f * fabsf(r.low - at);
    guess->value = at + 0.25f * (r.low - at);
    return count;
}

#endif
