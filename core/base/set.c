/* Owns sets of ids: bitmaps of 64-bit words whose bits past n stay zero. */
#include "core/base/set.h"

#include <stdatomic.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/parallel.h"
#include "core/base/set_words.h"
#include "core/base/simd.h"
#include "core/base/try.h"

typedef long long ll; /* what %lld prints */

static int make(lsa_set **out, int64_t n, void *alloc(int64_t bytes))
{
    if (n < 0 || n > INT32_MAX)
        return lsa_fail(LSA_EARG, "set: %lld ids, from 0 to %d are possible", (ll)n, INT32_MAX);
    lsa_set *set = lsa_alloc(sizeof *set);
    if (!set) return LSA_ENOMEM;
    set->n = n;
    set->bits = alloc(lsa_set_words(n) * 8);
    if (!set->bits) {
        lsa_free(set);
        return LSA_ENOMEM;
    }
    *out = set;
    return LSA_OK;
}

int lsa_set_new(lsa_set **out, int64_t n) { return make(out, n, lsa_alloc_zero); }

int lsa_set_make(lsa_set **out, int64_t n) { return make(out, n, lsa_alloc); }

void lsa_set_free(lsa_set *set)
{
    if (!set) return;
    lsa_free(set->bits);
    lsa_free(set);
}

void lsa_set_drop(lsa_set **set)
{
    lsa_set_free(*set);
    *set = NULL;
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
    uint64_t head = lsa_set_high_bits(from % 64), tail = lsa_set_low_bits((to - 1) % 64 + 1);
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

int lsa_set_add_every(lsa_set *set, int64_t step)
{
    if (step < 1)
        return lsa_fail(LSA_EARG, "set: every %lld-th id, at least 1 is wanted", (ll)step);
    for (int64_t id = 0; id < set->n; id += step) set->bits[id / 64] |= 1ull << (id % 64);
    return LSA_OK;
}

/* All ids are looked at first, so that a failure adds none. */
static int check_ids(const lsa_set *set, const int32_t *ids, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= set->n) return out_of_range(set, ids[i]);
    return LSA_OK;
}

int lsa_set_add_ids(lsa_set *set, const int32_t *ids, int64_t n)
{
    LSA_TRY(check_ids(set, ids, n));
    for (int64_t i = 0; i < n; i++) set->bits[ids[i] / 64] |= 1ull << (ids[i] % 64);
    return LSA_OK;
}

int lsa_set_add_in_turn(lsa_set *set, const int32_t *const *lists, const int64_t *lengths,
                        int64_t count, int64_t most, const lsa_set *without)
{
    if (without->n != set->n)
        return lsa_fail(LSA_ESHAPE, "set: ids of %lld, without some of %lld", (ll)set->n,
                        (ll)without->n);
    for (int64_t i = 0; i < count; i++) LSA_TRY(check_ids(set, lists[i], lengths[i]));
    int64_t *at = lsa_alloc_zero(count * (int64_t)sizeof *at);
    if (!at) return LSA_ENOMEM;
    for (int64_t left = count; left && most > 0;) {
        left = 0;
        for (int64_t i = 0; i < count && most > 0; i++) {
            while (at[i] < lengths[i] && lsa_set_has(without, lists[i][at[i]])) at[i]++;
            if (at[i] == lengths[i]) continue;
            int64_t id = lists[i][at[i]++];
            uint64_t bit = 1ull << (id % 64), *word = &set->bits[id / 64];
            most -= !(*word & bit);
            *word |= bit;
            left++;
        }
    }
    lsa_free(at);
    return LSA_OK;
}

static inline LSA_BODY void count_body(const uint64_t *bits, int64_t words, int64_t *count)
{
    int64_t n = 0;
    for (int64_t i = 0; i < words; i++) n += __builtin_popcountll(bits[i]);
    *count = n;
}
LSA_PATHS(count, (const uint64_t *bits, int64_t words, int64_t *count), (bits, words, count))

static inline LSA_BODY void count_both_body(const uint64_t *a, const uint64_t *b, int64_t words,
                                            int64_t *count)
{
    int64_t n = 0;
    for (int64_t i = 0; i < words; i++) n += __builtin_popcountll(a[i] & b[i]);
    *count = n;
}
LSA_PATHS(count_both, (const uint64_t *a, const uint64_t *b, int64_t words, int64_t *count),
          (a, b, words, count))

typedef struct counting {
    const uint64_t *a, *b;
    atomic_int_fast64_t sum;
} counting;

static void count_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    counting *c = context;
    int64_t part;
    if (c->b)
        count_both(c->a + from, c->b + from, to - from, &part);
    else
        count(c->a + from, to - from, &part);
    c->sum += part;
}

/* Of a, or of what a and b have in common; by several threads where that is worth it. */
static int64_t count_words(const uint64_t *a, const uint64_t *b, int64_t words)
{
    counting c = {a, b, 0};
    lsa_parallel(lsa_threads_for(words), words, count_part, &c);
    return c.sum;
}

int64_t lsa_set_count(const lsa_set *set)
{
    return count_words(set->bits, NULL, lsa_set_words(set->n));
}

int64_t lsa_set_intersect_count(const lsa_set *a, const lsa_set *b)
{
    return count_words(a->bits, b->bits, lsa_set_words(a->n < b->n ? a->n : b->n));
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
    int64_t words = lsa_set_words(set->n);
    int32_t *end = ids;
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX512) return ids_avx512(ids, set->bits, words) - ids;
#endif
    for (int64_t w = 0; w < words; w++) end = word_ids(end, set->bits[w], (int32_t)(w * 64));
    return end - ids;
}

void lsa_set_clear(lsa_set *set) { memset(set->bits, 0, (size_t)lsa_set_words(set->n) * 8); }

enum { UNION, INTERSECT, MINUS };

typedef struct combination {
    const uint64_t *a, *b;
    int how;
} combination;

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

static void fill_combined(uint64_t *to, int64_t from, int64_t end, const void *how, int64_t *state)
{
    const combination *c = how;
    (void)state;
    combine(to, c->a + from, c->b + from, end - from, c->how);
}

static int checked_combine(const char *op, lsa_set *out, const lsa_set *a, const lsa_set *b,
                           int how)
{
    if (a->n != b->n)
        return lsa_fail(LSA_ESHAPE, "set %s: one set is of %lld ids, the other of %lld", op,
                        (ll)a->n, (ll)b->n);
    if (out->n != a->n)
        return lsa_fail(LSA_ESHAPE, "set %s: the sets are of %lld ids, the result of %lld", op,
                        (ll)a->n, (ll)out->n);
    const combination c = {a->bits, b->bits, how};
    int64_t words = lsa_set_words(a->n);
    lsa_set_write(out->bits, words, 1, words, fill_combined, &c);
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
    int64_t words = lsa_set_words(set->n);
    for (int64_t i = 0; i < words; i++) set->bits[i] = ~set->bits[i];
    lsa_set_clear_past_end(set);
}

int lsa_set_copy(lsa_set *out, const lsa_set *in)
{
    if (out->n < in->n)
        return lsa_fail(LSA_ESHAPE, "set copy: %lld ids do not fit a set of %lld", (ll)in->n,
                        (ll)out->n);
    int64_t words = lsa_set_words(in->n);
    memmove(out->bits, in->bits, (size_t)words * 8);
    memset(out->bits + words, 0, (size_t)(lsa_set_words(out->n) - words) * 8);
    return LSA_OK;
}
