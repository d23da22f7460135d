/* Owns pages and their chunks. One word of pages is `page` words of chunks, whatever the size of a
 * page: that is the unit of work here, and each unit has its pages at the same bits. */
#include "core/base/error.h"
#include "core/base/set_words.h"

typedef long long ll; /* what %lld prints */

enum { MEDIUM = 512 }; /* chunks: larger pages are runs of many words */

typedef struct paging {
    const uint64_t *in;
    int64_t words, page;    /* words of in */
    uint64_t starts[64];    /* page < 64: bits of a unit's words where pages start */
    int8_t at[64];          /* the bit at which page p starts, in its word */
    uint8_t before[MEDIUM]; /* page < 64: how many pages start before a word; to MEDIUM: the page of
                               its first bit */
    uint64_t low[MEDIUM];   /* 64 to MEDIUM: a word's bits that are of that page, not of the next */
} paging;

/* `words`: how many there are of chunks. */
static void set_paging(paging *g, const lsa_set *in, int64_t page, int64_t words)
{
    g->in = in->bits;
    g->words = lsa_set_words(in->n);
    g->page = page;
    if (page < 64) {
        memset(g->starts, 0, sizeof g->starts);
        for (int64_t p = 0; p < 64; p++) {
            g->at[p] = (int8_t)(p * page % 64);
            g->starts[p * page / 64] |= 1ull << g->at[p];
        }
        g->before[0] = 0;
        for (int64_t j = 1; j < page; j++)
            g->before[j] = (uint8_t)(g->before[j - 1] + __builtin_popcountll(g->starts[j - 1]));
    } else if (page <= MEDIUM) {
        for (int64_t j = 0; j < page && j < words; j++) {
            g->before[j] = (uint8_t)(j * 64 / page);
            int64_t left = (g->before[j] + 1) * page - j * 64;
            g->low[j] = lsa_set_low_bits(left < 64 ? left : 64);
        }
    }
}

/* The bits of x at the starts of a unit's word j, together; and apart again. */
typedef uint64_t move_fn(const paging *g, int64_t j, uint64_t x);

static inline LSA_BODY uint64_t gather(const paging *g, int64_t j, uint64_t x)
{
    uint64_t y = 0;
    const int8_t *at = g->at + g->before[j];
    for (int64_t i = 0, n = __builtin_popcountll(g->starts[j]); i < n; i++)
        y |= (x >> at[i] & 1) << i;
    return y;
}

static inline LSA_BODY uint64_t scatter(const paging *g, int64_t j, uint64_t x)
{
    uint64_t y = 0;
    const int8_t *at = g->at + g->before[j];
    for (int64_t i = 0, n = __builtin_popcountll(g->starts[j]); i < n; i++)
        y |= (x >> i & 1) << at[i];
    return y;
}

/* ---- pages ---- */

/* page < 64: all bits of a page are smeared to its start. */
static inline LSA_BODY void small_pages(uint64_t *to, int64_t from, int64_t end, const paging *g,
                                        move_fn *move)
{
    const int64_t page = g->page, units = LSA_SET_BLOCK / page;
    uint64_t y[LSA_SET_SMEAR_ROOM(LSA_SET_BLOCK)];
    for (int64_t v = from; v < end; v += units) {
        int64_t m = end - v < units ? end - v : units, first = v * page;
        int64_t there = g->words - first < m * page ? g->words - first : m * page;
        memcpy(y, g->in + first, (size_t)there * 8);
        memset(y + there, 0, (size_t)(m * page - there) * 8);
        lsa_set_smear(y, m * page, page - 1);
        for (int64_t u = 0; u < m; u++) {
            uint64_t pages = 0;
#pragma GCC unroll 4
            for (int64_t j = 0; j < page; j++) pages |= move(g, j, y[u * page + j]) << g->before[j];
            to[v - from + u] = pages;
        }
    }
}

/* Whether any bit of from .. end-1 is set; from < end. */
static inline LSA_BODY int any(const uint64_t *bits, int64_t from, int64_t end)
{
    int64_t first = from / 64, last = (end - 1) / 64, w = first + 1;
    uint64_t head = lsa_set_high_bits(from % 64), tail = lsa_set_low_bits((end - 1) % 64 + 1);
    if (first == last) return (bits[first] & head & tail) != 0;
    uint64_t x = (bits[first] & head) | (bits[last] & tail);
    for (; w + 8 <= last && !x; w += 8)
        for (int i = 0; i < 8; i++) x |= bits[w + i];
    for (; w < last; w++) x |= bits[w];
    return x != 0;
}

static inline LSA_BODY void large_pages(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    const int64_t page = g->page, n = g->words * 64;
    for (int64_t v = from; v < end; v++) {
        uint64_t pages = 0;
        for (int64_t p = 0; p < 64; p++) {
            int64_t first = (v * 64 + p) * page;
            if (first >= n) break;
            pages |= (uint64_t)any(g->in, first, n - first < page ? n : first + page) << p;
        }
        to[v - from] = pages;
    }
}

/* 64 <= page <= MEDIUM: a word is of one page, or of two. */
static inline LSA_BODY void medium_pages(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    const int64_t page = g->page;
    for (int64_t v = from; v < end; v++) {
        const uint64_t *in = g->in + v * page;
        int64_t there = g->words - v * page < page ? g->words - v * page : page;
        uint64_t pages = 0, next = 0;
        for (int64_t j = 0; j < there; j++) {
            pages |= (uint64_t)((in[j] & g->low[j]) != 0) << g->before[j];
            next |= (uint64_t)((in[j] & ~g->low[j]) != 0) << g->before[j];
        }
        to[v - from] = pages | next << 1;
    }
}

static inline LSA_BODY void other_pages(uint64_t *to, int64_t from, int64_t end, const paging *g,
                                        move_fn *move)
{
    if (g->page < 64)
        small_pages(to, from, end, g, move);
    else if (g->page <= MEDIUM)
        medium_pages(to, from, end, g);
    else
        large_pages(to, from, end, g);
}

static void pages_generic(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    other_pages(to, from, end, g, gather);
}

/* ---- chunks ---- */

/* page < 64: a page's start times 2^page - 1 is all of its bits; those beyond the word go to the
 * next one. */
static inline LSA_BODY void small_chunks(uint64_t *to, int64_t from, int64_t end, const paging *g,
                                         move_fn *move)
{
    const uint64_t ones = lsa_set_low_bits(g->page);
    for (int64_t unit = from / g->page, w = from; w < end; unit++) {
        uint64_t carry = 0;
        int64_t words = end - w < g->page ? end - w : g->page;
#pragma GCC unroll 4
        for (int64_t j = 0; j < words; j++, w++) {
            __extension__ unsigned __int128 bits =
                (unsigned __int128)move(g, j, g->in[unit] >> g->before[j]) * ones;
            to[w - from] = (uint64_t)bits | carry;
            carry = (uint64_t)(bits >> 64);
        }
    }
}

static inline LSA_BODY uint64_t has_page(const paging *g, int64_t p)
{
    return p < g->words * 64 ? -(g->in[p / 64] >> p % 64 & 1) : 0;
}

/* 64 <= page <= MEDIUM. */
static inline LSA_BODY void medium_chunks(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    int64_t unit = from / g->page, j = from % g->page;
    for (int64_t w = from; w < end; unit++, j = 0) {
        const uint64_t here = g->in[unit], next = here >> 1;
        int64_t stop = end - w < g->page - j ? j + end - w : g->page;
        for (; j < stop; j++, w++)
            to[w - from] = (-(here >> g->before[j] & 1) & g->low[j]) |
                           (-(next >> g->before[j] & 1) & ~g->low[j]);
    }
}

/* Pages of many words. */
static inline LSA_BODY void large_chunks(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    int64_t p = from * 64 / g->page,
            left = (p + 1) * g->page - from * 64; /* bits of page p from here on */
    for (int64_t w = from; w < end;) {
        uint64_t here = has_page(g, p);
        int64_t whole = left / 64 < end - w ? left / 64 : end - w;
        for (int64_t i = 0; i < whole; i++) to[w - from + i] = here;
        w += whole;
        left -= whole * 64;
        if (w == end) break;
        uint64_t next = has_page(g, ++p);
        if (left)
            to[w++ - from] = (here & lsa_set_low_bits(left)) | (next & lsa_set_high_bits(left));
        left = g->page - (left ? 64 - left : 0);
    }
}

static inline LSA_BODY void other_chunks(uint64_t *to, int64_t from, int64_t end, const paging *g,
                                         move_fn *move)
{
    if (g->page < 64)
        small_chunks(to, from, end, g, move);
    else if (g->page <= MEDIUM)
        medium_chunks(to, from, end, g);
    else
        large_chunks(to, from, end, g);
}

static void chunks_generic(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    other_chunks(to, from, end, g, scatter);
}

/* ---- by what the processor has for it ---- */

#if defined(__x86_64__)
LSA_TARGET_AVX2 static inline LSA_BODY uint64_t gather_bmi2(const paging *g, int64_t j, uint64_t x)
{
    return _pext_u64(x, g->starts[j]);
}

LSA_TARGET_AVX2 static inline LSA_BODY uint64_t scatter_bmi2(const paging *g, int64_t j, uint64_t x)
{
    return _pdep_u64(x, g->starts[j]);
}

LSA_TARGET_AVX2 static void pages_avx2(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    other_pages(to, from, end, g, gather_bmi2);
}

LSA_TARGET_AVX2 static void chunks_avx2(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    other_chunks(to, from, end, g, scatter_bmi2);
}

/* Pages of 8, 16, 32, 64 are elements of a vector: 512 / page bits of pages for each. */
LSA_TARGET_AVX512 static inline LSA_BODY uint64_t elements_used(const uint64_t *in, int64_t page)
{
    __m512i x = _mm512_loadu_si512(in);
    if (page == 8) return _mm512_test_epi8_mask(x, x);
    if (page == 16) return _mm512_test_epi16_mask(x, x);
    return page == 32 ? _mm512_test_epi32_mask(x, x) : _mm512_test_epi64_mask(x, x);
}

LSA_TARGET_AVX512 static inline LSA_BODY __m512i elements_whole(uint64_t bits, int64_t page)
{
    if (page == 8) return _mm512_movm_epi8(bits);
    if (page == 16) return _mm512_movm_epi16((__mmask32)bits);
    return page == 32 ? _mm512_movm_epi32((__mmask16)bits) : _mm512_movm_epi64((__mmask8)bits);
}

LSA_TARGET_AVX512 static inline LSA_BODY void element_pages(uint64_t *to, int64_t from, int64_t end,
                                                            const paging *g, int64_t page)
{
    int64_t v = from;
    for (; v < end && (v + 1) * page <= g->words; v++) {
        uint64_t pages = 0;
        for (int64_t j = 0; j < page; j += 8)
            pages |= elements_used(g->in + v * page + j, page) << j * 64 / page;
        to[v - from] = pages;
    }
    if (v < end) other_pages(to + v - from, v, end, g, gather_bmi2);
}

LSA_TARGET_AVX512 static inline LSA_BODY void element_chunks(uint64_t *to, int64_t from,
                                                             int64_t end, const paging *g,
                                                             int64_t page)
{
    int64_t w = from;
    for (; w + 8 <= end; w += 8)
        _mm512_storeu_si512(to + w - from,
                            elements_whole(g->in[w / page] >> w % page * 64 / page, page));
    for (; w < end; w++) {
        uint64_t bits = g->in[w / page] >> w % page * 64 / page;
        __m512i whole = elements_whole(bits, page);
        to[w - from] = (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(whole));
    }
}

LSA_TARGET_AVX512 static void pages_avx512(uint64_t *to, int64_t from, int64_t end, const paging *g)
{
    if (g->page == 8)
        element_pages(to, from, end, g, 8);
    else if (g->page == 16)
        element_pages(to, from, end, g, 16);
    else if (g->page == 32)
        element_pages(to, from, end, g, 32);
    else if (g->page == 64)
        element_pages(to, from, end, g, 64);
    else
        other_pages(to, from, end, g, gather_bmi2);
}

LSA_TARGET_AVX512 static void chunks_avx512(uint64_t *to, int64_t from, int64_t end,
                                            const paging *g)
{
    if (g->page == 8)
        element_chunks(to, from, end, g, 8);
    else if (g->page == 16)
        element_chunks(to, from, end, g, 16);
    else if (g->page == 32)
        element_chunks(to, from, end, g, 32);
    else if (g->page == 64)
        element_chunks(to, from, end, g, 64);
    else
        other_chunks(to, from, end, g, scatter_bmi2);
}
#else
#define pages_avx2 pages_generic
#define pages_avx512 pages_generic
#define chunks_avx2 chunks_generic
#define chunks_avx512 chunks_generic
#endif

static void fill_pages(uint64_t *to, int64_t from, int64_t end, const void *how, int64_t *state)
{
    int level = lsa_cpu_level();
    (void)state;
    (level >= LSA_CPU_AVX512 ? pages_avx512
     : level == LSA_CPU_AVX2 ? pages_avx2
                             : pages_generic)(to, from, end, how);
}

static void fill_chunks(uint64_t *to, int64_t from, int64_t end, const void *how, int64_t *state)
{
    int level = lsa_cpu_level();
    (void)state;
    (level >= LSA_CPU_AVX512 ? chunks_avx512
     : level == LSA_CPU_AVX2 ? chunks_avx2
                             : chunks_generic)(to, from, end, how);
}

static int check_pages(const char *op, int64_t pages, int64_t n, int64_t page)
{
    if (page < 1) return lsa_fail(LSA_EARG, "set %s: page is %lld", op, (ll)page);
    int64_t want = n / page + (n % page != 0);
    if (pages != want)
        return lsa_fail(LSA_ESHAPE,
                        "set %s: %lld ids are %lld pages of %lld, the set of pages has %lld", op,
                        (ll)n, (ll)want, (ll)page, (ll)pages);
    return LSA_OK;
}

/* More chunks than there are make a page no different. */
static int64_t page_within(int64_t n, int64_t page) { return page <= n ? page : n > 0 ? n : 1; }

int lsa_set_pages(lsa_set *out, const lsa_set *in, int64_t page)
{
    int rc = check_pages("pages", out->n, in->n, page);
    if (rc) return rc;
    paging g;
    set_paging(&g, in, page_within(in->n, page), lsa_set_words(in->n));
    lsa_set_write(out->bits, lsa_set_words(out->n), 1, g.words, fill_pages, &g);
    return LSA_OK;
}

int lsa_set_chunks(lsa_set *out, const lsa_set *in, int64_t page)
{
    int rc = check_pages("chunks", in->n, out->n, page);
    if (rc) return rc;
    paging g;
    int64_t words = lsa_set_words(out->n);
    set_paging(&g, in, page_within(out->n, page), words);
    lsa_set_write(out->bits, words, g.page < 64 ? g.page : 1, words, fill_chunks, &g);
    lsa_set_clear_past_end(out);
    return LSA_OK;
}
