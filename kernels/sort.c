/* Owns sorting: numbers become unsigned keys in their order, which a radix sort orders by eight bits at a time, or by eleven where
 * the row is long enough for their counts. */
#include "kernels/sort.h"

#include <math.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"

enum { NARROW = 8, WIDE = 11, BINS = 1 << WIDE, MOST_PASSES = 6, LONG = 768, SLOW = 1 << 20 };
/* Rows that upper digits nearly sort: by the narrow ones up to UPPER_NARROW items, by the wide ones up to UPPER_WIDE. MOVES: of an
 * item, on the mean, until all digits are cheaper. */
enum { UPPER_NARROW = 4096, UPPER_WIDE = 16384, MOVES = 4 };

/* Where ids are wanted of 64-bit keys. Those of 32-bit keys are the low half of a 64-bit item. */
typedef struct pair {
    uint64_t key;
    int64_t id;
} pair;

/* ---- keys: ascending, as unsigned integers; NaN is the largest in either order ---- */

static inline uint32_t key_f32(float x, int descending)
{
    uint32_t u;
    if (x != x) return UINT32_MAX;
    x += 0.0f; /* -0 becomes 0 */
    memcpy(&u, &x, sizeof u);
    u = u >> 31 ? ~u : u | 0x80000000u;
    return descending ? ~u : u;
}

static inline float f32_of(uint32_t u, int descending)
{
    float x;
    if (u == UINT32_MAX) return (float)NAN;
    if (descending) u = ~u;
    u = u >> 31 ? u & 0x7fffffffu : ~u;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline uint64_t key_64(const void *in, int64_t i, int32_t dtype, int descending)
{
    const uint64_t top = UINT64_C(1) << 63;
    uint64_t u;
    memcpy(&u, (const char *)in + 8 * i, sizeof u);
    if (dtype == LSA_I64) {
        u ^= top;
    } else {
        double x;
        memcpy(&x, &u, sizeof x);
        if (x != x) return UINT64_MAX;
        x += 0.0;
        memcpy(&u, &x, sizeof u);
        u = u & top ? ~u : u | top;
    }
    return descending ? ~u : u;
}

static inline void put_64(void *out, int64_t i, uint64_t u, int32_t dtype, int descending)
{
    const uint64_t top = UINT64_C(1) << 63;
    if (dtype != LSA_I64 && u == UINT64_MAX) {
        double nan = (double)NAN;
        memcpy((char *)out + 8 * i, &nan, 8);
        return;
    }
    if (descending) u = ~u;
    if (dtype == LSA_I64)
        u ^= top;
    else
        u = u & top ? u & ~top : ~u;
    memcpy((char *)out + 8 * i, &u, sizeof u);
}

/* ---- the sort ---- */

/* Sorts n items by `bits` bits of key(item) at a time, `width` in all; returns where they are, items or spare. Digits are all counted
 * in one pass, and those that all items share are skipped. */
#define RADIX_BY(name, type, key, width, bits)                                                     \
    static type *name(type *items, type *spare, int64_t n, uint32_t *counts)                       \
    {                                                                                              \
        enum { BINS_HERE = 1 << (bits), PASSES = ((width) + (bits)-1) / (bits) };                  \
        memset(counts, 0, (size_t)PASSES *BINS_HERE * sizeof *counts);                             \
        for (int64_t i = 0; i < n; i++)                                                            \
            for (int p = 0; p < PASSES; p++)                                                       \
                counts[p * BINS_HERE + (int)(key(items[i]) >> p * (bits) & (BINS_HERE - 1))]++;    \
        for (int p = 0; p < PASSES; p++) {                                                         \
            uint32_t *at = counts + p * BINS_HERE, start = 0;                                      \
            if (at[key(items[0]) >> p * (bits) & (BINS_HERE - 1)] == (uint32_t)n) continue;        \
            if (n >= SLOW && lsa_interrupted()) break;                                             \
            for (int b = 0; b < BINS_HERE; b++) {                                                  \
                uint32_t count = at[b];                                                            \
                at[b] = start;                                                                     \
                start += count;                                                                    \
            }                                                                                      \
            for (int64_t i = 0; i < n; i++)                                                        \
                spare[at[key(items[i]) >> p * (bits) & (BINS_HERE - 1)]++] = items[i];             \
            type *swap = items;                                                                    \
            items = spare;                                                                         \
            spare = swap;                                                                          \
        }                                                                                          \
        return items;                                                                              \
    }

#define RADIX(name, type, key, width)                                                              \
    RADIX_BY(name##_narrow, type, key, width, NARROW)                                              \
    RADIX_BY(name##_wide, type, key, width, WIDE)                                                  \
    static type *name(type *items, type *spare, int64_t n, uint32_t *counts)                       \
    {                                                                                              \
        return (n < LONG ? name##_narrow : name##_wide)(items, spare, n, counts);                  \
    }

#define WHOLE(item) (item)
#define UPPER(item) ((item) >> 32)
#define OF_PAIR(item) ((item).key)
#define UPPER_16(item) ((item) >> 16)
#define UPPER_22(item) ((item) >> 10)
RADIX(radix_32, uint32_t, WHOLE, 32)
RADIX_BY(radix_upper_16, uint32_t, UPPER_16, 16, NARROW)
RADIX_BY(radix_upper_22, uint32_t, UPPER_22, 22, WIDE)
RADIX(radix_32_with_ids, uint64_t, UPPER, 32)
RADIX(radix_64, uint64_t, WHOLE, 64)
RADIX(radix_64_with_ids, pair, OF_PAIR, 64)

/* Lets each item sink past the larger ones before it; 0 when that took too many moves, items are in some order then. */
static int settle(uint32_t *items, int64_t n)
{
    int64_t moves = MOVES * n;
    for (int64_t i = 1; i < n && moves >= 0; i++) {
        uint32_t item = items[i];
        int64_t at = i;
        for (; at > 0 && items[at - 1] > item; at--) items[at] = items[at - 1];
        items[at] = item;
        moves -= i - at;
    }
    return moves >= 0;
}

/* Short rows by the upper digits first, in two passes: few items share all of these, as a rule, and settle. */
static uint32_t *sort_32(uint32_t *items, uint32_t *spare, int64_t n, uint32_t *counts)
{
    if (n > UPPER_WIDE) return radix_32(items, spare, n, counts);
    uint32_t *sorted =
        (n <= UPPER_NARROW ? radix_upper_16 : radix_upper_22)(items, spare, n, counts);
    if (settle(sorted, n)) return sorted;
    return radix_32(sorted, sorted == items ? spare : items, n, counts);
}

static void row_f32(float *values, int32_t *ids, const float *in, int64_t n, int descending,
                    void *memory, uint32_t *counts)
{
    if (!ids) {
        uint32_t *items = memory;
        for (int64_t i = 0; i < n; i++) items[i] = key_f32(in[i], descending);
        items = sort_32(items, items + n, n, counts);
        for (int64_t i = 0; i < n; i++) values[i] = f32_of(items[i], descending);
        return;
    }
    uint64_t *items = memory;
    for (int64_t i = 0; i < n; i++)
        items[i] = (uint64_t)key_f32(in[i], descending) << 32 | (uint64_t)i;
    items = radix_32_with_ids(items, items + n, n, counts);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)items[i];
    if (values)
        for (int64_t i = 0; i < n; i++) values[i] = f32_of((uint32_t)(items[i] >> 32), descending);
}

static void row_64(void *values, int32_t *ids, const void *in, int64_t n, int32_t dtype,
                   int descending, void *memory, uint32_t *counts)
{
    if (!ids) {
        uint64_t *items = memory;
        for (int64_t i = 0; i < n; i++) items[i] = key_64(in, i, dtype, descending);
        items = radix_64(items, items + n, n, counts);
        for (int64_t i = 0; i < n; i++) put_64(values, i, items[i], dtype, descending);
        return;
    }
    pair *items = memory;
    for (int64_t i = 0; i < n; i++) items[i] = (pair){key_64(in, i, dtype, descending), i};
    items = radix_64_with_ids(items, items + n, n, counts);
    for (int64_t i = 0; i < n; i++) ids[i] = (int32_t)items[i].id;
    if (values)
        for (int64_t i = 0; i < n; i++) put_64(values, i, items[i].key, dtype, descending);
}

/* What one thread has: counts, and two arrays of items. */
static int64_t room_of(int64_t n, int with_ids, int32_t dtype)
{
    int64_t size = (dtype == LSA_F32 ? 4 : 8) * (with_ids ? 2 : 1);
    return (2 * n * size + MOST_PASSES * BINS * (int64_t)sizeof(uint32_t) + 63) / 64 * 64;
}

static int threads_of(int64_t rows, int64_t n)
{
    int threads = lsa_threads_for(rows * n * 16);
    return threads > rows ? rows > 0 ? (int)rows : 1 : threads;
}

int64_t lsa_sort_workspace(int64_t rows, int64_t n, int32_t with_ids, int32_t dtype)
{
    return threads_of(rows, n) * room_of(n, with_ids, dtype);
}

typedef struct sorting {
    void *values, *workspace;
    int32_t *ids;
    const void *in;
    int64_t n, room;
    int32_t dtype, descending;
    lsa_failure failure;
} sorting;

static void sort_rows(void *context, int64_t first, int64_t end, int thread)
{
    sorting *s = context;
    int64_t size = lsa_dtype_size(s->dtype), n = s->n;
    uint32_t *counts = (void *)((char *)s->workspace + thread * s->room);
    void *memory = counts + MOST_PASSES * BINS;
    for (int64_t r = first; r < end; r++) {
        const char *from = (const char *)s->in + r * n * size;
        char *to = s->values ? (char *)s->values + r * n * size : NULL;
        int32_t *places = s->ids ? s->ids + r * n : NULL;
        if (s->dtype == LSA_F32)
            row_f32((float *)to, places, (const float *)from, n, s->descending, memory, counts);
        else
            row_64(to, places, from, n, s->dtype, s->descending, memory, counts);
        if (n >= SLOW && lsa_interrupted())
            lsa_failure_note(&s->failure, lsa_fail(LSA_EINTR, "interrupted"));
    }
}

int lsa_sort_cpu(void *values, int32_t *ids, const void *in, int64_t rows, int64_t n, int32_t dtype,
                 int32_t descending, void *workspace, void *stream)
{
    (void)stream;
    if (dtype != LSA_F32 && dtype != LSA_F64 && dtype != LSA_I64)
        return lsa_fail(LSA_EDTYPE, "sort: there is none of %s", lsa_dtype_name(dtype));
    if (rows < 0 || n < 0 || n > INT32_MAX)
        return lsa_fail(LSA_ESHAPE, "sort: shape [%lld, %lld]", (long long)rows, (long long)n);
    if (n == 0 || rows == 0) return LSA_OK;
    sorting s = {values, workspace,  ids, in, n, room_of(n, ids != NULL, dtype),
                 dtype,  descending, {0}};
    lsa_parallel(threads_of(rows, n), rows, sort_rows, &s);
    return lsa_failure_raise(&s.failure);
}
