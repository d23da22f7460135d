/* Owns sets of ids: bitmaps of 64-bit words whose bits past n stay zero. */
#include "core/set.h"

#include <string.h>

#include "core/error.h"
#include "core/memory.h"
#include "core/simd.h"

typedef long long ll; /* what %lld prints */

static int64_t words_of(int64_t n) { return (n + 63) / 64; }

/* Bits from..63 of a word; bits 0..to-1 of it (1 <= to <= 64). */
static uint64_t high_bits(int64_t from) { return ~0ull << from; }
static uint64_t low_bits(int64_t to) { return ~0ull >> (64 - to); }

static void clear_past_end(lsa_set *set)
{
    if (set->n % 64) set->bits[set->n / 64] &= low_bits(set->n % 64);
}

int lsa_set_new(lsa_set **out, int64_t n)
{
    if (n < 0 || n > INT32_MAX)
        return lsa_fail(LSA_EARG, "set: %lld ids, from 0 to %d are possible", (ll)n, INT32_MAX);
    lsa_set *set = lsa_alloc(sizeof *set);
    if (!set) return LSA_ENOMEM;
    set->n = n;
    set->bits = lsa_alloc_zero(words_of(n) * 8);
    if (!set->bits) {
        lsa_free(set);
        return LSA_ENOMEM;
    }
    *out = set;
    return LSA_OK;
}

void lsa_set_free(lsa_set *set)
{
    if (!set) return;
    lsa_free(set->bits);
    lsa_free(set);
}

static int out_of_range(const lsa_set *set, int64_t id)
{
    return lsa_fail(LSA_EARG, "set: id %lld is outside 0..%lld", (ll)id, (ll)set->n - 1);
}

int lsa_set_add(lsa_set *set, int64_t id)
{
    if (id < 0 || id >= set->n) return out_of_range(set, id);
    set->bits[id / 64] |= 1ull << (id % 64);
    return LSA_OK;
}

int lsa_set_remove(lsa_set *set, int64_t id)
{
    if (id < 0 || id >= set->n) return out_of_range(set, id);
    set->bits[id / 64] &= ~(1ull << (id % 64));
    return LSA_OK;
}

int lsa_set_has(const lsa_set *set, int64_t id)
{
    return id >= 0 && id < set->n && (set->bits[id / 64] >> (id % 64) & 1);
}

/* from < to, both inside. */
static void fill(lsa_set *set, int64_t from, int64_t to)
{
    int64_t first = from / 64, last = (to - 1) / 64;
    uint64_t head = high_bits(from % 64), tail = low_bits((to - 1) % 64 + 1);
    if (first == last) {
        set->bits[first] |= head & tail;
        return;
    }
    set->bits[first] |= head;
    memset(set->bits + first + 1, 0xff, (size_t)(last - first - 1) * 8);
    set->bits[last] |= tail;
}

int lsa_set_add_range(lsa_set *set, int64_t from, int64_t to)
{
    if (from < 0 || to < from || to > set->n)
        return lsa_fail(LSA_EARG, "set: range %lld..%lld (end excluded) is outside 0..%lld",
                        (ll)from, (ll)to, (ll)set->n);
    if (from < to) fill(set, from, to);
    return LSA_OK;
}

/* All ids are looked at first, so that a failure adds none. */
int lsa_set_add_ids(lsa_set *set, const int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= set->n) return out_of_range(set, ids[i]);
    for (int64_t i = 0; i < n; i++) set->bits[ids[i] / 64] |= 1ull << (ids[i] % 64);
    return LSA_OK;
}

static inline LSA_BODY void count_body(const uint64_t *bits, int64_t words, int64_t *count)
{
    int64_t n = 0;
    for (int64_t i = 0; i < words; i++) n += __builtin_popcountll(bits[i]);
    *count = n;
}
LSA_PATHS(count, (const uint64_t *bits, int64_t words, int64_t *count), (bits, words, count))

int64_t lsa_set_count(const lsa_set *set)
{
    int64_t n;
    count(set->bits, words_of(set->n), &n);
    return n;
}

static inline LSA_BODY void count_both_body(const uint64_t *a, const uint64_t *b, int64_t words,
                                            int64_t *count)
{
    int64_t n = 0;
    for (int64_t i = 0; i < words; i++) n += __builtin_popcountll(a[i] & b[i]);
    *count = n;
}
LSA_PATHS(count_both, (const uint64_t *a, const uint64_t *b, int64_t words, int64_t *count),
          (a, b, words, count))

int64_t lsa_set_intersect_count(const lsa_set *a, const lsa_set *b)
{
    int64_t n;
    count_both(a->bits, b->bits, words_of(a->n < b->n ? a->n : b->n), &n);
    return n;
}

static int32_t *word_ids(int32_t *ids, uint64_t word, int32_t base)
{
    for (; word; word &= word - 1) *ids++ = base + __builtin_ctzll(word);
    return ids;
}

#if defined(__x86_64__)
/* Sixteen bits at a time, where a word has enough of them to be worth it. */
LSA_TARGET_AVX512 static int32_t *ids_avx512(int32_t *ids, const uint64_t *bits, int64_t words)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t w = 0; w < words; w++) {
        uint64_t word = bits[w];
        if (__builtin_popcountll(word) < 8) {
            ids = word_ids(ids, word, (int32_t)(w * 64));
            continue;
        }
        for (int part = 0; part < 4; part++, word >>= 16) {
            __mmask16 mask = (__mmask16)word;
            int n = __builtin_popcount(mask);
            __m512i id = _mm512_add_epi32(lane, _mm512_set1_epi32((int32_t)(w * 64 + part * 16)));
            _mm512_mask_storeu_epi32(ids, (__mmask16)((1u << n) - 1),
                                     _mm512_maskz_compress_epi32(mask, id));
            ids += n;
        }
    }
    return ids;
}
#endif

int64_t lsa_set_ids(const lsa_set *set, int32_t *ids)
{
    int64_t words = words_of(set->n);
    int32_t *end = ids;
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX512) return ids_avx512(ids, set->bits, words) - ids;
#endif
    for (int64_t w = 0; w < words; w++) end = word_ids(end, set->bits[w], (int32_t)(w * 64));
    return end - ids;
}

void lsa_set_clear(lsa_set *set) { memset(set->bits, 0, (size_t)words_of(set->n) * 8); }

enum { UNION, INTERSECT, MINUS };

static inline LSA_BODY void combine_body(uint64_t *out, const uint64_t *a, const uint64_t *b,
                                         int64_t words, int how)
{
    if (how == UNION)
        for (int64_t i = 0; i < words; i++) out[i] = a[i] | b[i];
    else if (how == INTERSECT)
        for (int64_t i = 0; i < words; i++) out[i] = a[i] & b[i];
    else
        for (int64_t i = 0; i < words; i++) out[i] = a[i] & ~b[i];
}
LSA_PATHS(combine, (uint64_t * out, const uint64_t *a, const uint64_t *b, int64_t words, int how),
          (out, a, b, words, how))

static int checked_combine(const char *op, lsa_set *out, const lsa_set *a, const lsa_set *b,
                           int how)
{
    if (a->n != b->n)
        return lsa_fail(LSA_ESHAPE, "set %s: one set is of %lld ids, the other of %lld", op,
                        (ll)a->n, (ll)b->n);
    if (out->n != a->n)
        return lsa_fail(LSA_ESHAPE, "set %s: the sets are of %lld ids, the result of %lld", op,
                        (ll)a->n, (ll)out->n);
    combine(out->bits, a->bits, b->bits, words_of(a->n), how);
    return LSA_OK;
}

int lsa_set_union(lsa_set *out, const lsa_set *a, const lsa_set *b)
{
    return checked_combine("union", out, a, b, UNION);
}

int lsa_set_intersect(lsa_set *out, const lsa_set *a, const lsa_set *b)
{
    return checked_combine("intersect", out, a, b, INTERSECT);
}

int lsa_set_minus(lsa_set *out, const lsa_set *a, const lsa_set *b)
{
    return checked_combine("minus", out, a, b, MINUS);
}

void lsa_set_invert(lsa_set *set)
{
    int64_t words = words_of(set->n);
    for (int64_t i = 0; i < words; i++) set->bits[i] = ~set->bits[i];
    clear_past_end(set);
}

int lsa_set_copy(lsa_set *out, const lsa_set *in)
{
    if (out->n < in->n)
        return lsa_fail(LSA_ESHAPE, "set copy: %lld ids do not fit a set of %lld", (ll)in->n,
                        (ll)out->n);
    int64_t words = words_of(in->n);
    memmove(out->bits, in->bits, (size_t)words * 8);
    memset(out->bits + words, 0, (size_t)(words_of(out->n) - words) * 8);
    return LSA_OK;
}

/* x with every bit also at the r places above it (r <= 63); smear_down: below it. */
static inline LSA_BODY uint64_t smear_up(uint64_t x, int64_t r)
{
    for (int64_t reach = 0, step; reach < r; reach += step) {
        step = reach + 1 < r - reach ? reach + 1 : r - reach;
        x |= x << step;
    }
    return x;
}

static inline LSA_BODY uint64_t smear_down(uint64_t x, int64_t r)
{
    for (int64_t reach = 0, step; reach < r; reach += step) {
        step = reach + 1 < r - reach ? reach + 1 : r - reach;
        x |= x >> step;
    }
    return x;
}

static inline LSA_BODY uint64_t dilate_word(uint64_t before, uint64_t x, uint64_t after, int64_t r)
{
    return smear_up(x, r) | smear_down(x, r) | smear_down(before >> (64 - r), r - 1) |
           smear_up(after << (64 - r), r - 1);
}

/* 1 <= r <= 63: a word sees itself and its neighbours. Words go eight at a time, which the compiler
 * makes vectors of; all of them take the same steps. */
static inline LSA_BODY void dilate_near_body(uint64_t *out, const uint64_t *in, int64_t words,
                                             int64_t r)
{
    int64_t w = 1;
    if (words == 0) return;
    out[0] = dilate_word(0, in[0], words > 1 ? in[1] : 0, r);
    for (; w + 8 < words; w += 8) {
        uint64_t up[8], down[8], low[8], high[8];
        for (int i = 0; i < 8; i++) {
            up[i] = down[i] = in[w + i];
            low[i] = in[w + i - 1] >> (64 - r);
            high[i] = in[w + i + 1] << (64 - r);
        }
        for (int64_t reach = 0, step; reach < r; reach += step) {
            step = reach + 1 < r - reach ? reach + 1 : r - reach;
            for (int i = 0; i < 8; i++) up[i] |= up[i] << step;
            for (int i = 0; i < 8; i++) down[i] |= down[i] >> step;
        }
        for (int64_t reach = 0, step; reach < r - 1; reach += step) {
            step = reach + 1 < r - 1 - reach ? reach + 1 : r - 1 - reach;
            for (int i = 0; i < 8; i++) low[i] |= low[i] >> step;
            for (int i = 0; i < 8; i++) high[i] |= high[i] << step;
        }
        for (int i = 0; i < 8; i++) out[w + i] = up[i] | down[i] | low[i] | high[i];
    }
    for (; w < words; w++) out[w] = dilate_word(in[w - 1], in[w], w + 1 < words ? in[w + 1] : 0, r);
}
LSA_PATHS(dilate_near, (uint64_t * out, const uint64_t *in, int64_t words, int64_t r),
          (out, in, words, r))

/* r >= 64: the members of one word melt into one run. `out` is empty. */
static void dilate_far(lsa_set *out, const lsa_set *in, int64_t r)
{
    int64_t words = words_of(in->n), from = 0, to = 0;
    for (int64_t w = 0; w < words; w++) {
        if (!in->bits[w]) continue;
        int64_t lo = w * 64 + __builtin_ctzll(in->bits[w]),
                hi = w * 64 + 64 - __builtin_clzll(in->bits[w]);
        lo = lo > r ? lo - r : 0;
        hi = hi < in->n - r ? hi + r : in->n;
        if (lo > to) {
            if (from < to) fill(out, from, to);
            from = lo;
        }
        to = hi;
    }
    if (from < to) fill(out, from, to);
}

int lsa_set_dilate(lsa_set *out, const lsa_set *in, int64_t radius)
{
    if (radius < 0) return lsa_fail(LSA_EARG, "set dilate: radius is %lld", (ll)radius);
    if (out->n != in->n)
        return lsa_fail(LSA_ESHAPE, "set dilate: the set is of %lld ids, the result of %lld",
                        (ll)in->n, (ll)out->n);
    if (out == in) return lsa_fail(LSA_EARG, "set dilate: the result may not be the set itself");
    if (radius == 0) return lsa_set_copy(out, in);
    if (radius < 64) {
        dilate_near(out->bits, in->bits, words_of(in->n), radius);
        clear_past_end(out);
    } else {
        lsa_set_clear(out);
        dilate_far(out, in, radius);
    }
    return LSA_OK;
}

/* Whether any of from .. to-1 is a member; from < to, both inside. */
static int any(const lsa_set *set, int64_t from, int64_t to)
{
    int64_t first = from / 64, last = (to - 1) / 64;
    uint64_t head = high_bits(from % 64), tail = low_bits((to - 1) % 64 + 1);
    if (first == last) return (set->bits[first] & head & tail) != 0;
    if ((set->bits[first] & head) || (set->bits[last] & tail)) return 1;
    for (int64_t w = first + 1; w < last; w++)
        if (set->bits[w]) return 1;
    return 0;
}

static int check_pages(const char *op, int64_t pages, int64_t n, int64_t page)
{
    if (page < 1) return lsa_fail(LSA_EARG, "set %s: page is %lld", op, (ll)page);
    if (pages != (n + page - 1) / page)
        return lsa_fail(LSA_ESHAPE,
                        "set %s: %lld ids are %lld pages of %lld, the set of pages has %lld", op,
                        (ll)n, (ll)((n + page - 1) / page), (ll)page, (ll)pages);
    return LSA_OK;
}

/* Pages of 1, 2, 4 .. 32 ids: how the bits at multiples of the page move together, or apart again,
 * in doubling groups. */
typedef struct moves {
    int n, shift[6];
    uint64_t mask[7]; /* where the bits are before step i */
} moves;

static moves moves_of(int64_t page)
{
    moves m = {0};
    for (int group = 1; group * page <= 64; group *= 2, m.n++) {
        m.mask[m.n] = 0;
        for (int64_t at = 0; at < 64; at += group * page) m.mask[m.n] |= low_bits(group) << at;
        if (group * page < 64) m.shift[m.n] = (int)(group * (page - 1));
    }
    m.n--;
    return m;
}

static void pages_in_words(lsa_set *out, const lsa_set *in, int64_t page)
{
    moves m = moves_of(page);
    int64_t each = 64 / page;
    for (int64_t w = 0; w < words_of(in->n); w++) {
        uint64_t x = smear_down(in->bits[w], page - 1) & m.mask[0];
        for (int i = 0; i < m.n; i++) x = (x | x >> m.shift[i]) & m.mask[i + 1];
        out->bits[w * each / 64] |= x << (w * each % 64);
    }
}

static void chunks_in_words(lsa_set *out, const lsa_set *in, int64_t page)
{
    moves m = moves_of(page);
    int64_t each = 64 / page;
    for (int64_t w = 0; w < words_of(out->n); w++) {
        uint64_t x = in->bits[w * each / 64] >> (w * each % 64) & m.mask[m.n];
        for (int i = m.n - 1; i >= 0; i--) x = (x | x << m.shift[i]) & m.mask[i];
        out->bits[w] = x * low_bits(page);
    }
    clear_past_end(out);
}

int lsa_set_pages(lsa_set *out, const lsa_set *in, int64_t page)
{
    int rc = check_pages("pages", out->n, in->n, page);
    if (rc) return rc;
    lsa_set_clear(out);
    if (page == 64) {
        for (int64_t p = 0; p < out->n; p++)
            out->bits[p / 64] |= (uint64_t)(in->bits[p] != 0) << (p % 64);
        return LSA_OK;
    }
    if (page < 64 && 64 % page == 0) {
        pages_in_words(out, in, page);
        return LSA_OK;
    }
    for (int64_t p = 0; p < out->n; p++) {
        int64_t from = p * page, to = in->n - from < page ? in->n : from + page;
        out->bits[p / 64] |= (uint64_t)any(in, from, to) << (p % 64);
    }
    return LSA_OK;
}

int lsa_set_chunks(lsa_set *out, const lsa_set *in, int64_t page)
{
    int rc = check_pages("chunks", in->n, out->n, page);
    if (rc) return rc;
    if (page < 64 && 64 % page == 0) {
        chunks_in_words(out, in, page);
        return LSA_OK;
    }
    lsa_set_clear(out);
    for (int64_t w = 0; w < words_of(in->n); w++) {
        for (uint64_t word = in->bits[w]; word;) {
            int start = __builtin_ctzll(word);
            uint64_t gaps = ~(word >> start); /* a run ends where the shifted word has a zero */
            int length = gaps ? __builtin_ctzll(gaps) : 64;
            int64_t from = (w * 64 + start) * page, to = from + length * page;
            fill(out, from, to < out->n ? to : out->n);
            word &= start + length < 64 ? high_bits(start + length) : 0;
        }
    }
    return LSA_OK;
}
