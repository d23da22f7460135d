/* Index scoring on the CPU. Owns the blocked product with its ReLU-and-weight epilogue.
 *
 * Queries are rows (token, head), packed by blocks of 8 as [depth][8]; keys are packed by tiles,
 * the keys of a tile side by side in the lanes of a few vectors. A block times a tile is a
 * register tile, and a tile once packed serves all rows of the call. Each product is one chain
 * of multiply-adds over the depth, each score one chain over the heads, so a score's bits depend
 * on its query and key alone. */
#include "kernels/index_score.h"

#include <stddef.h>

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/kv_record_private.h"
#include "kernels/linear.h"

enum {
    BLOCK = 8, /* rows of a register tile */
    TILE = 48, /* keys of a register tile: three AVX-512 vectors */
    TILE_AVX2 = 24,
    MOST_DIM = LSA_INDEX_MOST_DIM, /* a packed tile lies on the stack */
    PART = 64 /* tokens of a task, a multiple of BLOCK: a block never straddles two tasks */
};

typedef struct job {
    float *scores;
    const float *q, *w;
    const uint8_t *keys;
    int64_t tokens, n, heads, dim, key_stride, score_stride;
    int32_t format, compute;
    void *packed;  /* queries */
    int64_t depth; /* steps of the product: numbers, or pairs of them */
} job;

/* Packs the keys from .. from + count - 1 and scores them with the tokens t0 .. t1 - 1. */
typedef void tile_fn(const job *s, int64_t from, int64_t count, int64_t t0, int64_t t1);

static int64_t number_bytes(int32_t format)
{
    return format == LSA_KV_F32 ? 4 : format == LSA_KV_BF16 ? 2 : 1;
}

/* The scale that multiplies key i's finished sum. */
static inline LSA_BODY float scale_of_key(const job *s, int64_t i)
{
    float scale = 1.0f;
    if (s->format == LSA_KV_FP8) memcpy(&scale, s->keys + i * s->key_stride + s->dim, sizeof scale);
    return scale;
}

static inline LSA_BODY float bf16_rounded(float x) { return bf16_to_f32(f32_to_bf16(x)); }

/* Number d of a key, as the product takes it. */
static inline LSA_BODY float key_number(const uint8_t *key, int64_t d, int32_t format,
                                        int32_t compute)
{
    if (format == LSA_KV_FP8) return e4m3_to_f32(key[d]);
    if (format == LSA_KV_BF16) {
        uint16_t h;
        memcpy(&h, key + 2 * d, sizeof h);
        return bf16_to_f32(h);
    }
    float x;
    memcpy(&x, key + 4 * d, sizeof x);
    return compute == LSA_COMPUTE_BF16 ? bf16_rounded(x) : x;
}

/* Queries for the f32 paths: [block][dim][8]. Rows past the last one are zero and never looked
 * at. */
static void pack_queries_f32(const job *s, int64_t block)
{
    float *out = (float *)s->packed + block * s->dim * BLOCK;
    int64_t rows = s->tokens * s->heads - block * BLOCK;
    for (int64_t r = 0; r < BLOCK; r++) {
        const float *q = s->q + (block * BLOCK + r) * s->dim;
        for (int64_t d = 0; d < s->dim; d++) {
            float x = r < rows ? q[d] : 0.0f;
            out[d * BLOCK + r] = s->compute == LSA_COMPUTE_BF16 ? bf16_rounded(x) : x;
        }
    }
}

/* ---- plain C ---- */

static void tile_generic(const job *s, int64_t from, int64_t count, int64_t t0, int64_t t1)
{
    float keys[MOST_DIM * TILE], scale[TILE] = {0}, sum[TILE];
    for (int64_t j = 0; j < TILE; j++) {
        const uint8_t *key = s->keys + (from + j) * s->key_stride;
        for (int64_t d = 0; d < s->dim; d++)
            keys[d * TILE + j] = j < count ? key_number(key, d, s->format, s->compute) : 0.0f;
        if (j < count) scale[j] = scale_of_key(s, from + j);
    }
    for (int64_t t = t0; t < t1; t++) {
        memset(sum, 0, sizeof sum);
        for (int64_t row = t * s->heads; row < (t + 1) * s->heads; row++) {
            const float *q = (const float *)s->packed + row / BLOCK * s->dim * BLOCK + row % BLOCK;
            f32x16 a[3] = {{0}};
            for (int64_t d = 0; d < s->dim; d++)
                for (int v = 0; v < 3; v++)
                    a[v] += q[d * BLOCK] * f32x16_load(keys + d * TILE + 16 * v);
            for (int j = 0; j < TILE; j++) {
                float x = a[j / 16][j % 16];
                sum[j] += s->w[row] * (x <= 0 ? 0 : x);
            }
        }
        float *out = s->scores + t * s->score_stride + from;
        for (int64_t j = 0; j < count; j++) out[j] = sum[j] * scale[j];
    }
}

#if defined(__x86_64__)

/* ---- AVX2 ---- */

/* Eight numbers of a key. */
LSA_TARGET_AVX2
static inline LSA_BODY __m256 key_numbers_avx2(const uint8_t *key, int64_t d, const job *s)
{
    if (s->format == LSA_KV_FP8)
        return e4m3x8_to_f32_avx2(_mm_loadl_epi64((const void *)(key + d)));
    if (s->format == LSA_KV_BF16)
        return bf16x8_to_f32_avx2(_mm_loadu_si128((const void *)(key + 2 * d)));
    __m256 x = _mm256_loadu_ps((const void *)(key + 4 * d));
    return s->compute == LSA_COMPUTE_BF16 ? bf16x8_to_f32_avx2(f32x8_to_bf16_avx2(x)) : x;
}

/* out: [dim][TILE_AVX2] */
LSA_TARGET_AVX2
static void pack_keys_avx2(float *out, float *scale, const job *s, int64_t from, int64_t count)
{
    for (int64_t j = 0; j < TILE_AVX2; j++) scale[j] = j < count ? scale_of_key(s, from + j) : 0;
    for (int64_t j = 0; j < TILE_AVX2; j += 8) {
        const uint8_t *key[8];
        for (int i = 0; i < 8; i++) {
            int64_t k = j + i < count ? j + i : count - 1; /* any key serves in an unused lane */
            key[i] = s->keys + (from + k) * s->key_stride;
        }
        int64_t d = 0;
        for (; d + 8 <= s->dim; d += 8) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) r[i] = key_numbers_avx2(key[i], d, s);
            lsa_transpose8_avx2(r);
            for (int i = 0; i < 8; i++) _mm256_storeu_ps(out + (d + i) * TILE_AVX2 + j, r[i]);
        }
        for (; d < s->dim; d++)
            for (int i = 0; i < 8; i++)
                out[d * TILE_AVX2 + j + i] = key_number(key[i], d, s->format, s->compute);
    }
}

LSA_TARGET_AVX2
static void tile_avx2(const job *s, int64_t from, int64_t count, int64_t t0, int64_t t1)
{
    float keys[MOST_DIM * TILE_AVX2], scale[TILE_AVX2];
    pack_keys_avx2(keys, scale, s, from, count);
    int64_t token = t0, head = 0, end = t1 * s->heads;
    const __m256 zero = _mm256_setzero_ps();
    __m256 sum[3] = {zero, zero, zero};
    for (int64_t row = t0 * s->heads; row < end; row += 4) {
        const float *q = (const float *)s->packed + row / BLOCK * s->dim * BLOCK + row % BLOCK;
        const float *k = keys;
        __m256 a[4][3] = {{zero}};
        for (int64_t d = 0; d < s->dim; d++, q += BLOCK, k += TILE_AVX2) {
            __m256 k0 = _mm256_loadu_ps(k), k1 = _mm256_loadu_ps(k + 8),
                   k2 = _mm256_loadu_ps(k + 16);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) {
                __m256 b = _mm256_broadcast_ss(q + r);
                a[r][0] = _mm256_fmadd_ps(b, k0, a[r][0]);
                a[r][1] = _mm256_fmadd_ps(b, k1, a[r][1]);
                a[r][2] = _mm256_fmadd_ps(b, k2, a[r][2]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            if (row + r >= end) break;
            __m256 w = _mm256_broadcast_ss(s->w + row + r);
            for (int v = 0; v < 3; v++)
                sum[v] = _mm256_fmadd_ps(w, _mm256_max_ps(zero, a[r][v]), sum[v]);
            if (++head < s->heads) continue;
            float out[TILE_AVX2];
            for (int v = 0; v < 3; v++) {
                _mm256_storeu_ps(out + 8 * v,
                                 _mm256_mul_ps(sum[v], _mm256_loadu_ps(scale + 8 * v)));
                sum[v] = zero;
            }
            memcpy(s->scores + token * s->score_stride + from, out, (size_t)count * sizeof(float));
            head = 0;
            token++;
        }
    }
}

/* ---- AVX-512 ---- */

/* Bytes at .. at + bytes - 1 (64 at most) of 16 keys from `from` on, of which `count` exist:
 * word w of each key in x[w]; zero where there is nothing. */
LSA_TARGET_AVX512
static inline LSA_BODY void load_words(__m512i x[16], const job *s, int64_t from, int64_t count,
                                       int64_t at, int64_t bytes)
{
    const uint8_t *key = s->keys + from * s->key_stride + at;
    __mmask64 there = bytes >= 64 ? ~0ULL : (1ULL << bytes) - 1;
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        x[i] = i < count ? _mm512_maskz_loadu_epi8(there, key + i * s->key_stride)
                         : _mm512_setzero_si512();
    lsa_transpose16_avx512(x);
}

LSA_TARGET_AVX512
static inline LSA_BODY void load_scales(float *scale, const job *s, int64_t from, int64_t count)
{
    for (int64_t j = 0; j < TILE; j++) scale[j] = j < count ? scale_of_key(s, from + j) : 0;
}

/* The word's numbers of 16 keys as f32, one vector a number; returns how many there are. */
LSA_TARGET_AVX512
static inline LSA_BODY int widen(__m512 out[4], __m512i word, const job *s)
{
    if (s->format == LSA_KV_FP8) {
        for (int i = 0; i < 4; i++)
            out[i] = e4m3x16_to_f32_avx512(_mm512_cvtepi32_epi8(_mm512_srli_epi32(word, 8 * i)));
        return 4;
    }
    if (s->format == LSA_KV_BF16) {
        out[0] = _mm512_castsi512_ps(_mm512_slli_epi32(word, 16));
        out[1] = _mm512_castsi512_ps(_mm512_and_si512(word, _mm512_set1_epi32((int)0xffff0000)));
        return 2;
    }
    out[0] = _mm512_castsi512_ps(word);
    if (s->compute == LSA_COMPUTE_BF16)
        out[0] = bf16x16_to_f32_avx512(f32x16_to_bf16_avx512(out[0]));
    return 1;
}

/* out: [dim][TILE] */
LSA_TARGET_AVX512
static void pack_keys_avx512(float *out, float *scale, const job *s, int64_t from, int64_t count)
{
    int64_t bytes = s->dim * number_bytes(s->format);
    load_scales(scale, s, from, count);
    for (int64_t j = 0; j < TILE; j += 16) {
        int64_t d = 0;
        for (int64_t at = 0; at < bytes; at += 64) {
            __m512i x[16];
            load_words(x, s, from + j, count - j, at, bytes - at);
            for (int i = 0; i < 16; i++) {
                __m512 v[4];
                int numbers = widen(v, x[i], s);
                for (int k = 0; k < numbers && d < s->dim; k++, d++)
                    _mm512_storeu_ps(out + d * TILE + j, v[k]);
            }
        }
    }
}

LSA_TARGET_AVX512
static inline LSA_BODY void store_scores(const job *s, int64_t token, int64_t from, int64_t count,
                                         const __m512 sum[3], const float *scale)
{
    float *out = s->scores + token * s->score_stride + from;
    for (int v = 0; v < 3; v++) {
        __m512 x = _mm512_mul_ps(sum[v], _mm512_loadu_ps(scale + 16 * v));
        int64_t left = count - 16 * v;
        if (left >= 16)
            _mm512_storeu_ps(out + 16 * v, x);
        else if (left > 0)
            _mm512_mask_storeu_ps(out + 16 * v, (__mmask16)((1u << left) - 1), x);
    }
}

/* One step of the depth: rows' numbers q[0 .. rows-1] against the vectors k[0 .. 47]. */
LSA_TARGET_AVX512
static inline LSA_BODY void step_f32(__m512 a[BLOCK][3], const uint32_t *q, const uint32_t *k,
                                     int rows)
{
    __m512 k0 = _mm512_loadu_ps(k), k1 = _mm512_loadu_ps(k + 16), k2 = _mm512_loadu_ps(k + 32);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        __m512 b = _mm512_castsi512_ps(_mm512_set1_epi32((int)q[r]));
        a[r][0] = _mm512_fmadd_ps(b, k0, a[r][0]);
        a[r][1] = _mm512_fmadd_ps(b, k1, a[r][1]);
        a[r][2] = _mm512_fmadd_ps(b, k2, a[r][2]);
    }
}

LSA_TARGET_AVX512_BF16
static inline LSA_BODY void step_bf16(__m512 a[BLOCK][3], const uint32_t *q, const uint32_t *k,
                                      int rows)
{
    __m512bh k0 = (__m512bh)_mm512_loadu_si512(k), k1 = (__m512bh)_mm512_loadu_si512(k + 16);
    __m512bh k2 = (__m512bh)_mm512_loadu_si512(k + 32);
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        __m512bh b = (__m512bh)_mm512_set1_epi32((int)q[r]);
        a[r][0] = _mm512_dpbf16_ps(a[r][0], b, k0);
        a[r][1] = _mm512_dpbf16_ps(a[r][1], b, k1);
        a[r][2] = _mm512_dpbf16_ps(a[r][2], b, k2);
    }
}

/* The keys of the next tile, fetched a share at a time while this one is scored: from memory, a tile
 * is scored about as fast as it arrives. */
typedef struct fetch {
    const char *next, *end;
    int64_t share; /* bytes with each block of rows */
} fetch;

static inline LSA_BODY fetch fetch_after(const job *s, int64_t from, int64_t count, int64_t rows)
{
    int64_t left = s->n - from - count, blocks = (rows + BLOCK - 1) / BLOCK;
    int64_t bytes = (left < TILE ? left : TILE) * s->key_stride;
    const char *next = (const char *)s->keys + (from + count) * s->key_stride;
    return (fetch){next, next + bytes, ((bytes + blocks - 1) / blocks + 63) & ~63LL};
}

static inline LSA_BODY void fetch_some(fetch *f)
{
    const char *end = f->end - f->next < f->share ? f->end : f->next + f->share;
    for (; f->next < end; f->next += 64) __builtin_prefetch(f->next);
}

/* All rows of the tokens against one packed tile. The register tile is 24 sums, 3 keys, 1 query and
 * the 3 scores under way: 31 of the 32 registers. */
#define SCORE_TILE(step)                                                                           \
    const uint32_t *packed = (const uint32_t *)s->packed;                                          \
    const __m512 zero = _mm512_setzero_ps();                                                       \
    __m512 sum[3] = {zero, zero, zero};                                                            \
    int64_t token = t0, head = 0, end = t1 * s->heads;                                             \
    fetch ahead = fetch_after(s, from, count, end - t0 * s->heads);                                \
    for (int64_t row = t0 * s->heads; row < end; row += BLOCK) {                                   \
        fetch_some(&ahead);                                                                        \
        const uint32_t *q = packed + row * s->depth, *k = keys;                                    \
        __m512 a[BLOCK][3];                                                                        \
        _Pragma("GCC unroll 8") for (int r = 0; r < BLOCK; r++) a[r][0] = a[r][1] = a[r][2] =      \
            zero;                                                                                  \
        if (end - row > BLOCK / 2)                                                                 \
            for (int64_t d = 0; d < s->depth; d++, q += BLOCK, k += TILE) step(a, q, k, BLOCK);    \
        else                                                                                       \
            for (int64_t d = 0; d < s->depth; d++, q += BLOCK, k += TILE)                          \
                step(a, q, k, BLOCK / 2);                                                          \
        _Pragma("GCC unroll 8") for (int r = 0; r < BLOCK; r++)                                    \
        {                                                                                          \
            if (row + r >= end) break;                                                             \
            __m512 w = _mm512_set1_ps(s->w[row + r]);                                              \
            for (int v = 0; v < 3; v++)                                                            \
                sum[v] = _mm512_fmadd_ps(w, _mm512_max_ps(zero, a[r][v]), sum[v]);                 \
            if (++head < s->heads) continue;                                                       \
            store_scores(s, token++, from, count, sum, scale);                                     \
            sum[0] = sum[1] = sum[2] = zero;                                                       \
            head = 0;                                                                              \
        }                                                                                          \
    }

LSA_TARGET_AVX512
static void tile_avx512(const job *s, int64_t from, int64_t count, int64_t t0, int64_t t1)
{
    uint32_t keys[MOST_DIM * TILE] __attribute__((aligned(64)));
    float scale[TILE];
    pack_keys_avx512((float *)keys, scale, s, from, count);
    SCORE_TILE(step_f32)
}

/* ---- AVX-512 BF16: the depth is in pairs of numbers ---- */

/* Which numbers pair p holds: of a word's four fp8, 0 with 2 and 1 with 3, since that takes no
 * shuffle. */
static inline LSA_BODY int64_t pair_first(int64_t p, int32_t format)
{
    return format == LSA_KV_FP8 ? p / 2 * 4 + p % 2 : 2 * p;
}

static int64_t pairs(int64_t dim, int32_t format)
{
    return format == LSA_KV_FP8 ? (dim + 3) / 4 * 2 : (dim + 1) / 2;
}

/* [block][pairs][8], zero beyond dim */
static void pack_queries_bf16(const job *s, int64_t block)
{
    uint32_t *out = (uint32_t *)s->packed + block * s->depth * BLOCK;
    int64_t rows = s->tokens * s->heads - block * BLOCK, apart = s->format == LSA_KV_FP8 ? 2 : 1;
    for (int64_t r = 0; r < BLOCK; r++) {
        const float *q = s->q + (block * BLOCK + r) * s->dim;
        for (int64_t p = 0; p < s->depth; p++) {
            int64_t d = pair_first(p, s->format);
            uint32_t low = r < rows && d < s->dim ? f32_to_bf16(q[d]) : 0;
            uint32_t high = r < rows && d + apart < s->dim ? f32_to_bf16(q[d + apart]) : 0;
            out[p * BLOCK + r] = low | high << 16;
        }
    }
}

LSA_TARGET_AVX512_BF16
static inline LSA_BODY __m512i rounded_bits(__m512i x)
{
    return _mm512_cvtepu16_epi32(f32x16_to_bf16_avx512(_mm512_castsi512_ps(x)));
}

/* out: [pairs][TILE] */
LSA_TARGET_AVX512_BF16
static void pack_keys_bf16(uint32_t *out, float *scale, const job *s, int64_t from, int64_t count)
{
    int64_t bytes = s->dim * number_bytes(s->format);
    const __m512i low_byte = _mm512_set1_epi16(0xff);
    load_scales(scale, s, from, count);
    for (int64_t j = 0; j < TILE; j += 16) {
        uint32_t *to = out + j;
        for (int64_t at = 0; at < bytes; at += 64) {
            int64_t words = bytes - at >= 64 ? 16 : (bytes - at + 3) / 4;
            __m512i x[16];
            load_words(x, s, from + j, count - j, at, bytes - at);
            if (s->format == LSA_KV_BF16) {
                for (int i = 0; i < words; i++, to += TILE) _mm512_storeu_si512(to, x[i]);
            } else if (s->format == LSA_KV_FP8) {
                for (int i = 0; i < words; i++, to += 2 * TILE) {
                    __m512i high =
                        _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_bf16_high), x[i],
                                                 _mm512_loadu_si512(e4m3_bf16_high + 64));
                    __m512i low = _mm512_permutex2var_epi8(_mm512_loadu_si512(e4m3_bf16_low), x[i],
                                                           _mm512_loadu_si512(e4m3_bf16_low + 64));
                    high = _mm512_ternarylogic_epi32(high, x[i], _mm512_set1_epi8(INT8_MIN), 0xf8);
                    __m512i even =
                        _mm512_ternarylogic_epi32(_mm512_slli_epi16(high, 8), low, low_byte, 0xf8);
                    __m512i odd =
                        _mm512_ternarylogic_epi32(low_byte, high, _mm512_srli_epi16(low, 8), 0xae);
                    _mm512_storeu_si512(to, even);
                    _mm512_storeu_si512(to + TILE, odd);
                }
            } else {
                for (int i = 0; i < words; i += 2, to += TILE) {
                    __m512i second = _mm512_slli_epi32(rounded_bits(x[i + 1]), 16);
                    _mm512_storeu_si512(to, _mm512_or_si512(rounded_bits(x[i]), second));
                }
            }
        }
    }
}

LSA_TARGET_AVX512_BF16
static void tile_bf16(const job *s, int64_t from, int64_t count, int64_t t0, int64_t t1)
{
    uint32_t keys[(MOST_DIM / 2 + 1) * TILE] __attribute__((aligned(64)));
    float scale[TILE];
    pack_keys_bf16(keys, scale, s, from, count);
    SCORE_TILE(step_bf16)
}

#endif

/* ---- launcher ---- */

static int64_t blocks_of(int64_t tokens, int64_t heads)
{
    return (tokens * heads + BLOCK - 1) / BLOCK;
}

static int64_t packed_bytes(int64_t tokens, int64_t heads, int64_t dim)
{
    return blocks_of(tokens, heads) * BLOCK * ((dim + 3) & ~3LL) * (int64_t)sizeof(float);
}

/* Rounded queries and their weights. */
static int64_t rounded_bytes(int64_t tokens, int64_t heads, int64_t dim, int32_t scoring)
{
    return scoring == LSA_SCORE_FP8 ? tokens * heads * (dim + 1) * (int64_t)sizeof(float) : 0;
}

int64_t lsa_index_score_workspace(int64_t tokens, int64_t n, int64_t heads, int64_t dim,
                                  int32_t key_format, int32_t scoring)
{
    (void)n, (void)key_format;
    if (tokens < 1 || heads < 1 || dim < 1) return 0;
    int64_t cpu = packed_bytes(tokens, heads, dim);
    /* The GPU's fragments: heads by 8, bf16, dim as 32, 64 or 128, and a weight. */
    int64_t depth = dim <= 32 ? 32 : dim <= 64 ? 64 : 128;
    int64_t gpu = dim <= 128 ? tokens * ((heads + 7) & ~7LL) * (2 * depth + 4) : 0;
    /* Or rows of its tensor cores: heads as 64 or 128, in one, two or six panels, and weights. */
    int64_t panels = scoring == LSA_SCORE_FP8 ? 1 : scoring == LSA_SCORE_BF16 ? 2 : 6;
    int64_t rows =
        dim == 128 && heads <= 128 ? tokens * ((heads <= 64 ? 64 : 128) * 128 * panels + 1024) : 0;
    int64_t most = cpu > gpu ? cpu : gpu;
    return (most > rows ? most : rows) + rounded_bytes(tokens, heads, dim, scoring);
}

int lsa_index_score_check(int64_t tokens, int64_t n, int64_t heads, int64_t dim, int64_t key_stride,
                          int64_t score_stride, int32_t key_format, int32_t scoring)
{
    if (key_format < LSA_KV_F32 || key_format > LSA_KV_FP8)
        return lsa_fail(LSA_EARG, "index_score: key format %d is unknown", key_format);
    if (scoring < LSA_SCORE_F32 || scoring > LSA_SCORE_FP8)
        return lsa_fail(LSA_EARG, "index_score: scoring %d is unknown", scoring);
    if (tokens < 0 || n < 0 || n > INT32_MAX || heads < 1 || heads > INT32_MAX)
        return lsa_fail(LSA_ESHAPE, "index_score: %lld tokens, %lld keys, %lld heads",
                        (long long)tokens, (long long)n, (long long)heads);
    if (dim < 1 || dim > MOST_DIM)
        return lsa_fail(LSA_ESHAPE, "index_score: dim is %lld, must be 1 .. %d", (long long)dim,
                        MOST_DIM);
    int64_t bytes = dim * number_bytes(key_format) + (key_format == LSA_KV_FP8 ? 4 : 0);
    if (key_stride < bytes)
        return lsa_fail(LSA_ESHAPE, "index_score: keys of %lld bytes are %lld apart",
                        (long long)bytes, (long long)key_stride);
    if (tokens > 1 && score_stride < n)
        return lsa_fail(LSA_ESHAPE, "index_score: rows of %lld scores are %lld apart", (long long)n,
                        (long long)score_stride);
    return LSA_OK;
}

/* How a call is shared out. */
typedef struct shared {
    const job *s;
    tile_fn *score_tile;
    void (*pack_queries)(const job *, int64_t);
    int64_t tile, parts, part; /* keys of a tile; parts of the tokens, and the tokens of one */
} shared;

static void pack_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const shared *c = context;
    for (int64_t b = from; b < to; b++) c->pack_queries(c->s, b);
}

static void score_part(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const shared *c = context;
    for (int64_t task = first; task < end; task++) {
        int64_t from = task / c->parts * c->tile, left = c->s->n - from;
        int64_t t0 = task % c->parts * c->part, tokens = c->s->tokens;
        c->score_tile(c->s, from, left < c->tile ? left : c->tile, t0,
                      t0 + c->part < tokens ? t0 + c->part : tokens);
    }
}

/* A query in e4m3 numbers, as fp8 keys are; returns what they are to be multiplied by. */
static float round_query(float *out, const float *q, int64_t dim)
{
    uint32_t amax = LSA_KV_LEAST_AMAX;
    for (int64_t d = 0; d < dim; d++) amax = larger_bits(amax, q[d]);
    float scale = key_scale(amax);
    for (int64_t d = 0; d < dim; d++) out[d] = e4m3_to_f32(key_code(q[d], scale));
    return scale;
}

int lsa_index_score_cpu(float *scores, const float *q, const float *w, const void *keys,
                        int64_t tokens, int64_t n, int64_t heads, int64_t dim, int64_t key_stride,
                        int64_t score_stride, int32_t key_format, int32_t scoring, void *workspace,
                        void *stream)
{
    (void)stream;
    int rc =
        lsa_index_score_check(tokens, n, heads, dim, key_stride, score_stride, key_format, scoring);
    if (rc || tokens == 0 || n == 0) return rc;
    int32_t compute = scoring == LSA_SCORE_F32 ? LSA_COMPUTE_F32 : LSA_COMPUTE_BF16;
    if (scoring == LSA_SCORE_FP8) {
        float *rounded = (float *)((uint8_t *)workspace + packed_bytes(tokens, heads, dim));
        float *weights = rounded + tokens * heads * dim;
        for (int64_t row = 0; row < tokens * heads; row++)
            weights[row] = w[row] * round_query(rounded + row * dim, q + row * dim, dim);
        q = rounded;
        w = weights;
    }
    job s = {.scores = scores,
             .q = q,
             .w = w,
             .keys = keys,
             .tokens = tokens,
             .n = n,
             .heads = heads,
             .dim = dim,
             .key_stride = key_stride,
             .score_stride = score_stride,
             .format = key_format,
             .compute = compute,
             .packed = workspace,
             .depth = dim};
    tile_fn *score_tile = tile_generic;
    void (*pack_queries)(const job *, int64_t) = pack_queries_f32;
    int64_t tile = TILE;
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level == LSA_CPU_AVX512_BF16 && compute == LSA_COMPUTE_BF16) {
        score_tile = tile_bf16;
        pack_queries = pack_queries_bf16;
        s.depth = pairs(dim, key_format);
    } else if (level >= LSA_CPU_AVX512) {
        score_tile = tile_avx512;
    } else if (level == LSA_CPU_AVX2) {
        score_tile = tile_avx2;
        tile = TILE_AVX2;
    }
#endif
    int threads = lsa_threads_for(tokens * heads * dim * n / 64 + n * dim / 16);
    int64_t blocks = blocks_of(tokens, heads), tiles = (n + tile - 1) / tile;
    /* Few tiles for the team: tokens are split as well, and each part packs its tile again. */
    int64_t parts = tiles < 4 * threads ? (tokens + PART - 1) / PART : 1;
    shared c = {&s, score_tile, pack_queries, tile, parts, parts > 1 ? PART : tokens};
    lsa_parallel(lsa_threads_for(blocks * BLOCK * dim / 4), blocks, pack_part, &c);
    lsa_parallel(threads, tiles * parts, score_part, &c);
    return LSA_OK;
}
