/* Owns the loops that reach the processor's limits. */
#define _DEFAULT_SOURCE
#include "core/base/roofline.h"

#include <unistd.h>

#include "core/base/parallel.h"
#include "core/base/simd.h"

enum {
    LINE = 64,         /* bytes */
    BYTES_PER_NS = 16, /* what few threads move while others wake */
    CHAINS = 24,       /* independent sums: what two pipes of this latency need, and more */
    FLOPS_F32 = 2 * 16 * CHAINS,
    FLOPS_BF16 = 4 * 16 * CHAINS
};

/* What a loop computed, so that it is not left out. */
static volatile float sink;

static inline LSA_BODY void chains_f32_body(int64_t rounds)
{
    f32x16 sum[CHAINS], a = f32x16_set(1.0f + (float)rounds * 1e-20f), b = f32x16_set(1e-6f);
    for (int i = 0; i < CHAINS; i++) sum[i] = f32x16_set((float)i);
    for (int64_t n = 0; n < rounds; n++)
        for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * a + b;
    for (int i = 1; i < CHAINS; i++) sum[0] += sum[i];
    sink = f32x16_sum(sum[0]);
}

static void chains_f32_generic(int64_t rounds) { chains_f32_body(rounds); }

#if defined(__x86_64__)

/* Eight lanes, and as many registers as there are. */
LSA_TARGET_AVX2
static void chains_f32_avx2(int64_t rounds)
{
    enum { N = 12 };
    __m256 sum[N], a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-6f);
    for (int i = 0; i < N; i++) sum[i] = _mm256_set1_ps((float)i);
    for (int64_t n = 0; n < rounds * (2 * CHAINS / N); n++) {
#pragma GCC unroll 12
        for (int i = 0; i < N; i++) sum[i] = _mm256_fmadd_ps(a, b, sum[i]);
        __asm__ volatile("" : "+x"(a), "+x"(b));
    }
    for (int i = 1; i < N; i++) sum[0] = _mm256_add_ps(sum[0], sum[i]);
    sink = _mm256_cvtss_f32(sum[0]);
}

LSA_TARGET_AVX512
static void chains_f32_avx512(int64_t rounds)
{
    __m512 sum[CHAINS], a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-6f);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (int64_t n = 0; n < rounds; n++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_fmadd_ps(a, b, sum[i]);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    sink = _mm512_reduce_add_ps(sum[0]);
}

LSA_TARGET_AVX512_BF16
static void chains_bf16(int64_t rounds)
{
    __m512 sum[CHAINS];
    __m512i a = _mm512_set1_epi16(0x3f80), b = _mm512_set1_epi16(0x3586);
    for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_set1_ps((float)i);
    for (int64_t n = 0; n < rounds; n++) {
#pragma GCC unroll 24
        for (int i = 0; i < CHAINS; i++)
            sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b);
        __asm__ volatile("" : "+v"(a), "+v"(b));
    }
    for (int i = 1; i < CHAINS; i++) sum[0] = _mm512_add_ps(sum[0], sum[i]);
    sink = _mm512_reduce_add_ps(sum[0]);
}

#endif

typedef struct chains {
    void (*run)(int64_t rounds);
} chains;

static void run_chains(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const chains *c = context;
    c->run(to - from);
}

static int64_t in_all_threads(void (*run)(int64_t), int64_t rounds, int64_t flops)
{
    int threads = lsa_threads();
    lsa_parallel(threads, threads * rounds, run_chains, &(chains){run});
    return threads * rounds * flops;
}

int64_t lsa_roofline_f32(int64_t rounds)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512) return in_all_threads(chains_f32_avx512, rounds, FLOPS_F32);
    if (level == LSA_CPU_AVX2) return in_all_threads(chains_f32_avx2, rounds, FLOPS_F32);
#endif
    return in_all_threads(chains_f32_generic, rounds, FLOPS_F32);
}

int64_t lsa_roofline_bf16(int64_t rounds)
{
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX512_BF16)
        return in_all_threads(chains_bf16, rounds, FLOPS_BF16);
#endif
    return (void)rounds, 0;
}

typedef struct moving {
    void *to;
    const void *from;
    int64_t bytes;
    int32_t past_caches;
} moving;

/* Lines first .. end - 1; the last one may be short. */
static int64_t bytes_of(const moving *m, int64_t first, int64_t end)
{
    return (end * LINE < m->bytes ? end * LINE : m->bytes) - first * LINE;
}

#if defined(__x86_64__)
/* Lines that are written are not read first. */
LSA_TARGET_AVX2
static void stream_lines(const moving *m, int64_t first, int64_t end)
{
    char *to = (char *)m->to + first * LINE;
    const char *from = (const char *)m->from + first * LINE;
    for (int64_t i = 0; i < (end - first) * LINE; i += LINE) {
        __m256i a = _mm256_loadu_si256((const void *)(from + i));
        __m256i b = _mm256_loadu_si256((const void *)(from + i + 32));
        _mm256_stream_si256((void *)(to + i), a);
        _mm256_stream_si256((void *)(to + i + 32), b);
    }
    _mm_sfence();
}
#endif

static void copy_lines(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const moving *m = context;
#if defined(__x86_64__)
    if (m->past_caches && m->bytes % LINE == 0 && (uintptr_t)m->to % LINE == 0 &&
        lsa_cpu_level() >= LSA_CPU_AVX2) {
        stream_lines(m, first, end);
        return;
    }
#endif
    memcpy((char *)m->to + first * LINE, (const char *)m->from + first * LINE,
           (size_t)bytes_of(m, first, end));
}

void lsa_roofline_copy(void *to, const void *from, int64_t bytes, int32_t past_caches)
{
    lsa_parallel(lsa_threads_for(bytes / BYTES_PER_NS), (bytes + LINE - 1) / LINE, copy_lines,
                 &(moving){to, from, bytes, past_caches});
}

static inline LSA_BODY void update_body(uint64_t *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) x[i] = ~x[i];
}
LSA_PATHS(update, (uint64_t * x, int64_t n), (x, n))

static void update_lines(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const moving *m = context;
    update((uint64_t *)(void *)((char *)m->to + first * LINE), bytes_of(m, first, end) / 8);
}

void lsa_roofline_update(void *data, int64_t bytes)
{
    lsa_parallel(lsa_threads_for(2 * bytes / BYTES_PER_NS), (bytes + LINE - 1) / LINE, update_lines,
                 &(moving){data, NULL, bytes, 0});
}

/* Vectors of both halves side by side: a processor fetches ahead within a page, and two pages keep memory busier than one. What a
 * loop sums is in registers, vector by vector: vectors of sixteen lanes live on the stack where registers have eight. */
#define READ_ALL(name, target, vector, zero, load, or, store, bytes_of_vector)                     \
    target static void name(const char *p, int64_t bytes)                                          \
    {                                                                                              \
        enum { V = bytes_of_vector };                                                              \
        vector a = zero(), b = a, c = a, d = a;                                                    \
        const char *q = p + bytes / 256 * 128;                                                     \
        for (const char *end = q; p < end; p += 4 * V, q += 4 * V) {                               \
            a = or (a, or (load((const void *)p), load((const void *)(p + V))));                   \
            b = or (b, or (load((const void *)(p + 2 * V)), load((const void *)(p + 3 * V))));     \
            c = or (c, or (load((const void *)q), load((const void *)(q + V))));                   \
            d = or (d, or (load((const void *)(q + 2 * V)), load((const void *)(q + 3 * V))));     \
        }                                                                                          \
        unsigned char seen[V];                                                                     \
        store((void *)seen, or (or (a, b), or (c, d)));                                            \
        sink = seen[0];                                                                            \
    }

static inline uint64_t no_word(void) { return 0; }
static inline uint64_t word_of(const void *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
static inline uint64_t either(uint64_t a, uint64_t b) { return a | b; }
static inline void store_word(void *p, uint64_t v) { memcpy(p, &v, sizeof v); }

READ_ALL(read_all_generic, , uint64_t, no_word, word_of, either, store_word, 8)
#if defined(__x86_64__)
READ_ALL(read_all_avx2, LSA_TARGET_AVX2, __m256i, _mm256_setzero_si256, _mm256_loadu_si256,
         _mm256_or_si256, _mm256_storeu_si256, 32)
READ_ALL(read_all_avx512, LSA_TARGET_AVX512, __m512i, _mm512_setzero_si512, _mm512_loadu_si512,
         _mm512_or_si512, _mm512_storeu_si512, 64)
#endif

static void read_all(const char *p, int64_t bytes)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512) {
        read_all_avx512(p, bytes);
        return;
    }
    if (level == LSA_CPU_AVX2) {
        read_all_avx2(p, bytes);
        return;
    }
#endif
    read_all_generic(p, bytes);
}

static void read_lines(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const moving *m = context;
    read_all((const char *)m->from + first * LINE, bytes_of(m, first, end));
}

void lsa_roofline_read(const void *from, int64_t bytes)
{
    lsa_parallel(lsa_threads_for(bytes / BYTES_PER_NS), (bytes + LINE - 1) / LINE, read_lines,
                 &(moving){NULL, from, bytes, 0});
}

int64_t lsa_cache_bytes(void)
{
#if defined(_SC_LEVEL3_CACHE_SIZE)
    long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0) return bytes;
#endif
    return 32 << 20;
}
