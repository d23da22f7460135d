/* Owns dilation: a few doubling shifts of all words for radii below a word, and counting of words
 * beyond. */
#include "core/base/error.h"
#include "core/base/set_words.h"

typedef long long ll; /* what %lld prints */

typedef struct dilation {
    const uint64_t *in;
    int64_t words, r;
} dilation;

static inline uint64_t word_at(const dilation *d, int64_t w)
{
    return (uint64_t)w < (uint64_t)d->words ? d->in[w] : 0;
}

/* 1 <= r <= 63: an id is within r of a member where the id r below it has a member up to 2 r
 * above. */
static inline LSA_BODY void near_body(uint64_t *to, int64_t from, int64_t end, const dilation *d)
{
    enum { AHEAD = 2 }; /* words: 2 r is less */
    uint64_t y[LSA_SET_SMEAR_ROOM(LSA_SET_BLOCK + AHEAD)];
    const int64_t n = end - from, r = d->r;
    int64_t inside = d->words - from < n + AHEAD ? d->words - from : n + AHEAD;
    const uint64_t *in = d->in + from;
    y[0] = word_at(d, from - 1) >> (64 - r) | in[0] << r;
    for (int64_t i = 1; i < inside; i++) y[i] = in[i - 1] >> (64 - r) | in[i] << r;
    for (int64_t i = inside; i < n + AHEAD; i++)
        y[i] = word_at(d, from + i - 1) >> (64 - r) | word_at(d, from + i) << r;
    lsa_set_smear(y, n + AHEAD, 2 * r);
    memcpy(to, y, (size_t)n * 8);
}
LSA_PATHS(near, (uint64_t * to, int64_t from, int64_t end, const dilation *d), (to, from, end, d))

#if defined(__x86_64__)
/* Eight words from w on, all of which have neighbours: each word by itself, the highest member of
 * the word below, the lowest of the one above. */
LSA_TARGET_AVX512 static inline LSA_BODY __m512i near_vector(const uint64_t *in, int64_t w,
                                                             int64_t r)
{
    const __m128i rest = _mm_cvtsi64_si128(64 - r);
    __m512i x = _mm512_loadu_si512(in + w), below = _mm512_loadu_si512(in + w - 1),
            above = _mm512_loadu_si512(in + w + 1);
    __m512i up =
        _mm512_srlv_epi64(_mm512_set1_epi64(-1),
                          _mm512_add_epi64(_mm512_lzcnt_epi64(below), _mm512_set1_epi64(64 - r)));
    __m512i down = _mm512_sll_epi64(
        _mm512_or_si512(above, _mm512_sub_epi64(_mm512_setzero_si512(), above)), rest);
    for (int64_t done = 0, step; done < r; done += step) {
        step = done + 1 < r - done ? done + 1 : r - done;
        const __m128i by = _mm_cvtsi64_si128(step);
        x = _mm512_or_si512(x, _mm512_or_si512(_mm512_sll_epi64(x, by), _mm512_srl_epi64(x, by)));
    }
    return _mm512_or_si512(x, _mm512_or_si512(up, down));
}

LSA_TARGET_AVX512 static void near_by_vectors(uint64_t *to, int64_t from, int64_t end,
                                              const dilation *d)
{
    int64_t w = from, last = end < d->words ? end : d->words - 1;
    if (w == 0) near(to, 0, w = end < 8 ? end : 8, d);
    for (; w + 8 <= last; w += 8) _mm512_storeu_si512(to + w - from, near_vector(d->in, w, d->r));
    if (w < end) near(to + w - from, w, end, d);
}
#endif

static void fill_near(uint64_t *to, int64_t from, int64_t end, const void *how, int64_t *state)
{
    (void)state;
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX512) {
        near_by_vectors(to, from, end, how);
        return;
    }
#endif
    near(to, from, end, how);
}

/* Word v where no word less than q = r / 64 words away has a member: what words q and q + 1 away
 * reach. */
static uint64_t edge(const dilation *d, int64_t v)
{
    const int64_t q = d->r / 64, e = d->r % 64;
    uint64_t below = word_at(d, v - q), below2 = word_at(d, v - q - 1), above = word_at(d, v + q),
             above2 = word_at(d, v + q + 1);
    uint64_t covered = 0;
    int64_t end = 0, start = 64; /* bits 0 .. end-1 and start .. 63 */
    if (below)
        end = 64 - __builtin_clzll(below) + e;
    else if (below2)
        end = e - __builtin_clzll(below2);
    if (above)
        start = __builtin_ctzll(above) - e;
    else if (above2)
        start = 64 + __builtin_ctzll(above2) - e;
    if (end > 0) covered |= lsa_set_low_bits(end < 64 ? end : 64);
    if (start < 64) covered |= lsa_set_high_bits(start > 0 ? start : 0);
    return covered;
}

/* r >= 64: a word less than q words away from one with members is whole. *state: how many such
 * words the last one had near. */
static void fill_far(uint64_t *to, int64_t from, int64_t end, const void *how, int64_t *state)
{
    const dilation *d = how;
    const int64_t q = d->r / 64;
    int64_t near_by = *state;
    if (near_by < 0) {
        near_by = 0;
        for (int64_t w = from > q ? from - q : 0; w < d->words && w < from + q - 1; w++)
            near_by += d->in[w] != 0;
    }
    const int64_t head = from < q ? (end < q ? end : q) : from,
                  inner = end < d->words - q + 1 ? end : d->words - q + 1;
    int64_t v = from;
    for (; v < head; v++) {
        near_by += word_at(d, v + q - 1) != 0;
        to[v - from] = near_by ? ~0ull : edge(d, v);
    }
    for (; v < inner; v++) {
        near_by += (d->in[v + q - 1] != 0) - (d->in[v - q] != 0);
        to[v - from] = near_by ? ~0ull : edge(d, v);
    }
    for (; v < end; v++) {
        near_by -= word_at(d, v - q) != 0;
        to[v - from] = near_by ? ~0ull : edge(d, v);
    }
    *state = near_by;
}

int lsa_set_dilate(lsa_set *out, const lsa_set *in, int64_t radius)
{
    if (radius < 0) return lsa_fail(LSA_EARG, "set dilate: radius is %lld", (ll)radius);
    if (out->n != in->n)
        return lsa_fail(LSA_ESHAPE, "set dilate: the set is of %lld ids, the result of %lld",
                        (ll)in->n, (ll)out->n);
    if (out == in) return lsa_fail(LSA_EARG, "set dilate: the result may not be the set itself");
    if (radius == 0) return lsa_set_copy(out, in);
    const int64_t most = in->n + 64;
    const dilation d = {in->bits, lsa_set_words(in->n), radius < most ? radius : most};
    lsa_set_write(out->bits, d.words, 1, d.words, d.r < 64 ? fill_near : fill_far, &d);
    lsa_set_clear_past_end(out);
    return LSA_OK;
}
