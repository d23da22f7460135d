/* Owns products of bytes that bound index scores from above.
 *
 * A key's numbers are rounded to whole steps of 448 / 63, a head's query to whole steps of its own, and the product of such bytes is
 * exact. What rounding took from it is bounded by the query alone, since a number of a key is half a step off at most, and is added
 * before the ReLU, so that a head whose product is far below zero costs the bound nothing. The key's scale multiplies the finished
 * bound as it multiplies the score, and rounds both alike: what is larger before stays so.
 *
 * Keys lie by tiles of 16, a word of each of them side by side, with four of its numbers. AVX2 multiplies positive bytes by signed
 * ones and has sums of 16 bits, one of a word's first two bytes and one of its last two, for 32 numbers at a time: keys' bytes are
 * kept as 0 .. 126, a sum starts with what that adds, and a query's step is so large that none overflows: 16 numbers round to a sum
 * of LANE + 8 steps at most, 63 times which are 31,752; half of what rounding takes of 32 numbers is at most 760. */
#include "kernels/index_bound.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "core/base/cpu.h"
#include "kernels/index_score.h"
#include "kernels/number_formats.h"

enum {
    TILE = 16, /* keys */
    ROWS = 4,  /* heads of a register tile */
    WORDS = 8, /* of a group: 32 numbers */
    GROUP = 4 * WORDS,
    MIDDLE = 63, /* a key's byte that is zero; half of the largest one */
    LANE = 496,  /* at most the sum of 16 of a query's numbers, in steps */
    MOST_DIM = 256,
    TILES = LSA_BOUND_KEYS / TILE
};

/* ROWS heads of a token; then, for each group of their numbers, `group`. */
typedef struct rows {
    int32_t start
        [ROWS]; /* at most what rounding took of a product, less what is added since keys' bytes are positive */
    float weight[ROWS]; /* a head's weight, times the step of its products */
} rows;

typedef struct group {
    uint32_t start[ROWS];        /* the group's share, 16 bits for either half of the words */
    uint32_t words[WORDS][ROWS]; /* of signed bytes */
} group;

static int64_t rows_bytes(int64_t dim)
{
    return (int64_t)sizeof(rows) + dim / GROUP * (int64_t)sizeof(group);
}

static int64_t blocks_of(int64_t heads) { return (heads + ROWS - 1) / ROWS; }
static int64_t slack_bytes(int64_t tokens) { return (tokens * 4 + 63) & ~63LL; }

static const uint8_t *rows_of(const lsa_index_bound *b, int64_t token)
{
    return b->packed + token * blocks_of(b->heads) * rows_bytes(b->dim);
}

int lsa_index_bound_has(int64_t heads, int64_t dim, int32_t key_format, int32_t scoring)
{
    return heads > 0 && dim >= GROUP && dim % GROUP == 0 && dim <= MOST_DIM &&
           key_format == LSA_KV_FP8 && scoring != LSA_SCORE_FP8;
}

int64_t lsa_index_bound_workspace(int64_t tokens, int64_t heads, int64_t dim)
{
    return slack_bytes(tokens) + tokens * blocks_of(heads) * rows_bytes(dim);
}

/* ---- queries ---- */

/* One head's query in steps of 1 / inverse. Returns the sum of the steps' sizes, and in *lost what rounding took, in steps. */
static double round_query(uint8_t *at, int64_t r, const float *x, int64_t dim, double inverse,
                          double *lost)
{
    double sizes = 0;
    int64_t added = 0;
    rows *head = (rows *)at;
    group *groups = (group *)(at + sizeof(rows));
    *lost = 0;
    for (int64_t d = 0; d < dim; d += 4) {
        group *g = &groups[d / GROUP];
        uint8_t *word = (uint8_t *)&g->words[d % GROUP / 4][r];
        uint16_t halves[2];
        memcpy(halves, &g->start[r], sizeof halves);
        for (int64_t i = 0; i < 4; i++) {
            double steps = (double)x[d + i] * inverse, step = rint(steps);
            sizes += fabs(step);
            *lost += fabs(steps - step);
            word[i] = (uint8_t)(int8_t)step;
            halves[i / 2] = (uint16_t)(halves[i / 2] - MIDDLE * (int)step);
            added += MIDDLE * (int64_t)step;
        }
        memcpy(&g->start[r], halves, sizeof halves);
    }
    head->start[r] = (int32_t)-added;
    return sizes;
}

/* The least step of a query that keeps its bytes and their sums small enough; its sum of sizes. */
static double step_of(const float *x, int64_t dim, double *all)
{
    double largest = 0, lane = 0;
    *all = 0;
    for (int64_t from = 0; from < dim; from += GROUP) {
        double sums[2] = {0, 0};
        for (int64_t d = 0; d < GROUP; d++) {
            double size = fabs((double)x[from + d]);
            if (!(size <= largest)) largest = size;
            sums[d / 2 % 2] += size;
        }
        for (int i = 0; i < 2; i++)
            if (sums[i] > lane) lane = sums[i];
        *all += sums[0] + sums[1];
    }
    return fmax(largest / 127, lane / LANE);
}

/* Adds what rounding can have taken, `off` steps or some more, in equal parts: how many they are. It is taken off where the head's
 * weight is negative. */
static double add_lost(uint8_t *at, int64_t r, int64_t dim, double off, int is_negative)
{
    int64_t count = dim / GROUP;
    int part = (int)ceil(off / (double)(2 * count));
    group *groups = (group *)(at + sizeof(rows));
    for (int64_t i = 0; i < count; i++) {
        uint16_t halves[2];
        memcpy(halves, &groups[i].start[r], sizeof halves);
        for (int j = 0; j < 2; j++)
            halves[j] = (uint16_t)(is_negative ? halves[j] - part : halves[j] + part);
        memcpy(&groups[i].start[r], halves, sizeof halves);
    }
    int32_t all = (int32_t)(2 * count * part);
    ((rows *)at)->start[r] += is_negative ? -all : all;
    return all;
}

/* A head of a token. Returns what is to be added to the token's bounds, since sums of floats round; not finite where a sum could
 * overflow. */
static double pack_head(uint8_t *at, int64_t r, const float *x, float w, int64_t heads, int64_t dim)
{
    const double round_off = 0x1p-23, most = 448;
    double all, lost, weight = fabs((double)w), step = step_of(x, dim, &all);
    /* What is too small to be normal may be lost of any product. */
    double tiny = (double)dim * (1 + weight) * most * 0x1p-120;
    if (!(all * most * (1 + weight) * (double)heads < 1e30)) return INFINITY;
    if (step < 1e-30) return weight * all * most * 1.001 + tiny;
    double sizes = round_query(at, r, x, dim, 1 / step, &lost), unit = step * most / MIDDLE;
    double sums = (double)(2 * dim + 8) * round_off * all / step * MIDDLE;
    double off = ceil((0.5 * sizes + MIDDLE * lost + sums) * 1.001) + 1;
    rows *head = (rows *)at;
    off = add_lost(at, r, dim, off, w < 0);
    head->weight[r] = (float)((double)w * unit);
    double largest = most * all + unit * (MIDDLE * sizes + off);
    return (double)(2 * heads + 8) * round_off * weight * largest + tiny;
}

void lsa_index_bound_begin(lsa_index_bound *b, const float *q, const float *w, int64_t tokens,
                           int64_t heads, int64_t dim, int32_t scoring, void *workspace)
{
    float *slack = workspace, x[MOST_DIM];
    uint8_t *packed = (uint8_t *)workspace + slack_bytes(tokens);
    *b = (lsa_index_bound){packed, slack, tokens, heads, dim};
    memset(packed, 0, (size_t)(tokens * blocks_of(heads) * rows_bytes(dim)));
    for (int64_t t = 0; t < tokens; t++) {
        double all = 0;
        for (int64_t h = 0; h < heads; h++, q += dim) {
            for (int64_t d = 0; d < dim; d++)
                x[d] = scoring == LSA_SCORE_BF16 ? bf16_to_f32(f32_to_bf16(q[d])) : q[d];
            all += pack_head(packed + h / ROWS * rows_bytes(dim), h % ROWS, x, *w++, heads, dim);
        }
        slack[t] = nextafterf((float)all, INFINITY);
        packed += blocks_of(heads) * rows_bytes(dim);
    }
}

/* ---- keys ---- */

/* Whole steps nearest to the numbers 0x40 .. 0x7f of e4m3; those of less are 0. */
static const uint8_t steps_of_codes[64] __attribute__((aligned(64))) = {
    0,  0,  0,  0,  0,  0,  0,  1,  1,  1,  1,  1,  1,  1,  1,  1,  1,  1,  1,  2,  2,  2,
    2,  2,  2,  3,  3,  3,  3,  4,  4,  4,  5,  5,  6,  6,  7,  7,  8,  8,  9,  10, 11, 12,
    14, 15, 16, 17, 18, 20, 23, 25, 27, 29, 32, 34, 36, 41, 45, 50, 54, 59, 63, 63};

/* What multiplies a key's bound: NaN, so that it is always reached, where bounds of products are none. */
static inline LSA_BODY float scale_of_key(const uint8_t *key, int64_t dim)
{
    float scale;
    memcpy(&scale, key + dim, sizeof scale);
    return scale < 0 ? NAN : scale;
}

static void load_scales(float scale[LSA_BOUND_KEYS], const uint8_t *keys, int64_t n, int64_t stride,
                        int64_t dim)
{
    for (int64_t i = 0; i < LSA_BOUND_KEYS; i++)
        scale[i] = i < n ? scale_of_key(keys + i * stride, dim) : 0;
}

typedef struct packed_keys {
    uint32_t words[LSA_BOUND_KEYS * MOST_DIM / 4]; /* [tile][dim / 4][TILE] */
    float scale[LSA_BOUND_KEYS];
} packed_keys;

typedef void pack_fn(uint32_t *words, const uint8_t *keys, int64_t n, int64_t stride, int64_t dim);
typedef void reach_fn(uint64_t *reached, const lsa_index_bound *b, const float *least,
                      const packed_keys *keys, int64_t tiles);

/* ---- plain C ---- */

static void pack_generic(uint32_t *words, const uint8_t *keys, int64_t n, int64_t stride,
                         int64_t dim)
{
    for (int64_t j = 0; j < TILE; j++) {
        const uint8_t *key = keys + (j < n ? j : n - 1) * stride;
        for (int64_t d = 0; d < dim; d++) {
            int code = key[d] & 0x7f, steps = code < 0x40 ? 0 : steps_of_codes[code - 0x40];
            uint8_t *word = (uint8_t *)&words[d / 4 * TILE + j];
            word[d % 4] = (uint8_t)(MIDDLE + (key[d] & 0x80 ? -steps : steps));
        }
    }
}

static void reach_generic(uint64_t *reached, const lsa_index_bound *b, const float *least,
                          const packed_keys *keys, int64_t tiles)
{
    int64_t words = b->dim / 4;
    for (int64_t t = 0; t < b->tokens; t++) {
        reached[t] = 0;
        for (int64_t j = 0; j < tiles * TILE; j++) {
            const uint8_t *at = rows_of(b, t);
            const uint32_t *key = keys->words + j / TILE * words * TILE + j % TILE;
            float sum = b->slack[t];
            for (int64_t h = 0; h < b->heads; h++) {
                const rows *head = (const rows *)(at + h / ROWS * rows_bytes(b->dim));
                const group *groups = (const group *)(head + 1);
                int32_t product = head->start[h % ROWS];
                for (int64_t i = 0; i < words; i++) {
                    const int8_t *q = (const int8_t *)&groups[i / WORDS].words[i % WORDS][h % ROWS];
                    const uint8_t *k = (const uint8_t *)&key[i * TILE];
                    for (int d = 0; d < 4; d++) product += q[d] * k[d];
                }
                sum += head->weight[h % ROWS] * (float)(product > 0 ? product : 0);
            }
            reached[t] |= (uint64_t) !(sum * keys->scale[j] <= least[t]) << j;
        }
    }
}

#if defined(__x86_64__)

/* ---- AVX2 ---- */

/* The bytes of 32 numbers of a key. */
LSA_TARGET_AVX2
static inline LSA_BODY __m256i steps_avx2(const uint8_t *key)
{
    __m256i code = _mm256_loadu_si256((const void *)key);
    __m256i size = _mm256_and_si256(code, _mm256_set1_epi8(0x7f)), steps = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        /* An index above 15 becomes one with the top bit, for which a shuffle gives zero. */
        __m256i at = _mm256_xor_si256(size, _mm256_set1_epi8((char)(0x40 + 16 * i)));
        at = _mm256_adds_epu8(at, _mm256_set1_epi8(0x70));
        __m256i table =
            _mm256_broadcastsi128_si256(_mm_load_si128((const void *)(steps_of_codes + 16 * i)));
        steps = _mm256_or_si256(steps, _mm256_shuffle_epi8(table, at));
    }
    return _mm256_add_epi8(_mm256_sign_epi8(steps, code), _mm256_set1_epi8(MIDDLE));
}

LSA_TARGET_AVX2
static void pack_avx2(uint32_t *words, const uint8_t *keys, int64_t n, int64_t stride, int64_t dim)
{
    for (int64_t j = 0; j < TILE; j += 8) {
        for (int64_t d = 0; d < dim; d += GROUP) {
            __m256 r[8];
            for (int i = 0; i < 8; i++) {
                const uint8_t *key = keys + (j + i < n ? j + i : n - 1) * stride;
                r[i] = _mm256_castsi256_ps(steps_avx2(key + d));
            }
            lsa_transpose8_avx2(r);
            for (int i = 0; i < 8; i++)
                _mm256_storeu_ps((float *)words + (d / 4 + i) * TILE + j, r[i]);
        }
    }
}

/* One after the other: GCC would multiply all words first, and has no registers for so many products. */
LSA_TARGET_AVX2
static inline LSA_BODY __m256i added(__m256i sum, __m256i x)
{
    sum = _mm256_add_epi16(sum, x);
    __asm__("" : "+x"(sum));
    return sum;
}

LSA_TARGET_AVX2
static inline LSA_BODY void products_avx2(__m256i out[ROWS][2], const rows *head,
                                          const uint32_t *key, int64_t groups)
{
    const group *g = (const group *)(head + 1);
    __asm__(
        ""
        : "+r"(
            key)); /* read anew for each token: GCC would read all words before, and spill them */
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) out[r][0] = out[r][1] = _mm256_setzero_si256();
    for (int64_t i = 0; i < groups; i++, g++) {
        __m256i sum[ROWS][2];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm256_set1_epi32((int)g->start[r]);
#pragma GCC unroll 8
        for (int w = 0; w < WORDS; w++, key += TILE) {
            __m256i k0 = _mm256_loadu_si256((const void *)key);
            __m256i k1 = _mm256_loadu_si256((const void *)(key + 8));
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                __m256i q = _mm256_set1_epi32((int)g->words[w][r]);
                sum[r][0] = added(sum[r][0], _mm256_maddubs_epi16(k0, q));
                sum[r][1] = added(sum[r][1], _mm256_maddubs_epi16(k1, q));
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2; v++)
                out[r][v] = _mm256_add_epi32(out[r][v], _mm256_madd_epi16(sum[r][v], ones));
    }
}

LSA_TARGET_AVX2
static inline LSA_BODY void reach_tile_avx2(uint64_t *reached, const lsa_index_bound *b,
                                            const float *least, const uint32_t *words,
                                            const float *scale, int tile, int64_t groups)
{
    const __m256 s0 = _mm256_loadu_ps(scale), s1 = _mm256_loadu_ps(scale + 8);
    const __m256i zero = _mm256_setzero_si256();
    const uint8_t *at = rows_of(b, 0);
    int64_t blocks = blocks_of(b->heads),
            bytes = (int64_t)sizeof(rows) + groups * (int64_t)sizeof(group);
    for (int64_t t = 0; t < b->tokens; t++) {
        __m256 sum0 = _mm256_broadcast_ss(b->slack + t), sum1 = sum0;
        for (int64_t i = 0; i < blocks; i++, at += bytes) {
            const rows *head = (const rows *)at;
            __m256i a[ROWS][2];
            products_avx2(a, head, words, groups);
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                __m256 w = _mm256_broadcast_ss(head->weight + r);
                sum0 =
                    _mm256_fmadd_ps(w, _mm256_cvtepi32_ps(_mm256_max_epi32(a[r][0], zero)), sum0);
                sum1 =
                    _mm256_fmadd_ps(w, _mm256_cvtepi32_ps(_mm256_max_epi32(a[r][1], zero)), sum1);
            }
        }
        __m256 bar = _mm256_broadcast_ss(least + t);
        unsigned low =
            (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_mul_ps(sum0, s0), bar, _CMP_NLE_UQ));
        unsigned high =
            (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(_mm256_mul_ps(sum1, s1), bar, _CMP_NLE_UQ));
        reached[t] |= (uint64_t)(low | high << 8) << (TILE * tile);
    }
}

LSA_TARGET_AVX2
static void reach_avx2(uint64_t *reached, const lsa_index_bound *b, const float *least,
                       const packed_keys *keys, int64_t tiles)
{
    memset(reached, 0, (size_t)b->tokens * sizeof *reached);
    for (int i = 0; i < tiles; i++) {
        const uint32_t *words = keys->words + i * (b->dim / 4) * TILE;
        const float *scale = keys->scale + i * TILE;
        if (b->dim == GROUP)
            reach_tile_avx2(reached, b, least, words, scale, i, 1);
        else
            reach_tile_avx2(reached, b, least, words, scale, i, b->dim / GROUP);
    }
}

/* ---- AVX-512 VNNI, with AVX-512 BF16: sums have 32 bits ---- */

LSA_TARGET_AVX512_BF16
static void reach_vnni(uint64_t *reached, const lsa_index_bound *b, const float *least,
                       const packed_keys *keys, int64_t tiles)
{
    (void)tiles;
    const uint8_t *at = rows_of(b, 0);
    int64_t apart = b->dim / 4 * TILE, blocks = blocks_of(b->heads), bytes = rows_bytes(b->dim);
    const __m512i zero = _mm512_setzero_si512();
    for (int64_t t = 0; t < b->tokens; t++) {
        __m512 sum[TILES];
        for (int v = 0; v < TILES; v++) sum[v] = _mm512_set1_ps(b->slack[t]);
        for (int64_t i = 0; i < blocks; i++, at += bytes) {
            const rows *head = (const rows *)at;
            const group *g = (const group *)(head + 1);
            const uint32_t *key = keys->words;
            __m512i a[ROWS][TILES];
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < TILES; v++) a[r][v] = _mm512_set1_epi32(head->start[r]);
            for (int64_t d = 0; d < b->dim; d += GROUP, g++) {
                for (int w = 0; w < WORDS; w++, key += TILE) {
                    __m512i k[TILES];
#pragma GCC unroll 4
                    for (int v = 0; v < TILES; v++) k[v] = _mm512_loadu_si512(key + v * apart);
#pragma GCC unroll 4
                    for (int r = 0; r < ROWS; r++) {
                        __m512i q = _mm512_set1_epi32((int)g->words[w][r]);
#pragma GCC unroll 4
                        for (int v = 0; v < TILES; v++)
                            a[r][v] = _mm512_dpbusd_epi32(a[r][v], k[v], q);
                    }
                }
            }
#pragma GCC unroll 4
            for (int r = 0; r < ROWS; r++) {
                __m512 w = _mm512_set1_ps(head->weight[r]);
#pragma GCC unroll 4
                for (int v = 0; v < TILES; v++)
                    sum[v] = _mm512_fmadd_ps(w, _mm512_cvtepi32_ps(_mm512_max_epi32(a[r][v], zero)),
                                             sum[v]);
            }
        }
        __m512 bar = _mm512_set1_ps(least[t]);
        reached[t] = 0;
        for (int v = 0; v < TILES; v++) {
            __m512 bound = _mm512_mul_ps(sum[v], _mm512_loadu_ps(keys->scale + TILE * v));
            reached[t] |= (uint64_t)_mm512_cmp_ps_mask(bound, bar, _CMP_NLE_UQ) << (TILE * v);
        }
    }
}

#endif

void lsa_index_bound_reach(uint64_t *reached, const lsa_index_bound *b, const float *least,
                           const void *keys, int64_t n, int64_t key_stride)
{
    packed_keys packed;
    pack_fn *pack = pack_generic;
    reach_fn *reach = reach_generic;
    int64_t tiles = (n + TILE - 1) / TILE, packed_tiles = tiles;
#if defined(__x86_64__)
    if (lsa_cpu_level() >= LSA_CPU_AVX2) pack = pack_avx2, reach = reach_avx2;
    if (lsa_cpu_level() == LSA_CPU_AVX512_BF16) reach = reach_vnni, packed_tiles = TILES;
#endif
    for (int64_t i = 0; i < packed_tiles; i++) {
        int64_t from =
            i < tiles ? i * TILE : 0; /* any keys serve in tiles that are not looked at */
        pack(packed.words + i * (b->dim / 4) * TILE, (const uint8_t *)keys + from * key_stride,
             n - from, key_stride, b->dim);
    }
    load_scales(packed.scale, keys, n, key_stride, b->dim);
    reach(reached, b, least, &packed, tiles);
    for (int64_t t = 0; n < LSA_BOUND_KEYS && t < b->tokens; t++)
        reached[t] &= ((uint64_t)1 << n) - 1;
}
