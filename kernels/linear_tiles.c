/* Owns what a code path brings to the many-token path: panels packed from stored weights, and
 * tiles of tokens multiplied by them with every sum in a register. */
#include "core/cpu.h"
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

enum { WIDTH = LSA_LINEAR_WIDTH, DEPTH = LSA_LINEAR_DEPTH };

/* ---- Vectors that every processor has ---- */

typedef float f32x4 __attribute__((vector_size(16), aligned(4), may_alias));

/* 8 rows of the panel for 2 tokens, or 1. */
static inline LSA_BODY void tile_plain_part(float *y, int64_t y_stride, const float *x,
                                            int64_t x_step, const float *panel, int64_t depth,
                                            const int tokens, int64_t n, int add)
{
    f32x4 sum[2][2] = {{{0}}};
    for (int t = 0; add && t < tokens; t++) memcpy(sum[t], y + t * y_stride, (size_t)n * sizeof *y);
    for (int64_t k = 0; k < depth; k++) {
        const f32x4 *p = (const f32x4 *)(panel + k * WIDTH);
        for (int t = 0; t < tokens; t++) {
            sum[t][0] += p[0] * x[t * x_step + k];
            sum[t][1] += p[1] * x[t * x_step + k];
        }
    }
    for (int t = 0; t < tokens; t++) memcpy(y + t * y_stride, sum[t], (size_t)n * sizeof *y);
}

static void tile_plain(float *y, int64_t y_stride, const float *x, int64_t x_step,
                       const float *panel, int64_t depth, int64_t tokens, int64_t n, int add)
{
    for (int64_t from = 0; from < n; from += 8) {
        int64_t width = n - from < 8 ? n - from : 8, t = 0;
        for (; t + 2 <= tokens; t += 2)
            tile_plain_part(y + t * y_stride + from, y_stride, x + t * x_step, x_step, panel + from,
                            depth, 2, width, add);
        if (t < tokens)
            tile_plain_part(y + t * y_stride + from, y_stride, x + t * x_step, x_step, panel + from,
                            depth, 1, width, add);
    }
}

static void pack_plain(float *panel, const lsa_weight *w, int64_t row, int64_t n, int64_t col,
                       int64_t depth, int round)
{
    float line[DEPTH];
    for (int64_t r = 0; r < WIDTH; r++) {
        if (r < n)
            lsa_linear_decode(line, w, row + r, col, depth, round);
        else
            memset(line, 0, (size_t)depth * sizeof *line);
        for (int64_t k = 0; k < depth; k++) panel[k * WIDTH + r] = line[k];
    }
}

static inline LSA_BODY void round_plain_body(void *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) ((float *)out)[i] = bf16_to_f32(f32_to_bf16(x[i]));
}

LSA_PATHS(round_plain, (void *out, const float *x, int64_t n), (out, x, n))

#if defined(__x86_64__)

/* ---- AVX2 ---- */

/* 16 rows of the panel for up to 6 tokens; y has room for all 16, or is a copy that has. */
static inline LSA_TARGET_AVX2 LSA_BODY void tile_avx2_rows(float *y, int64_t y_stride,
                                                           const float *x, int64_t x_step,
                                                           const float *panel, int64_t depth,
                                                           const int tokens, int add)
{
    __m256 a[6], b[6];
    for (int t = 0; t < tokens; t++) {
        a[t] = add ? _mm256_loadu_ps(y + t * y_stride) : _mm256_setzero_ps();
        b[t] = add ? _mm256_loadu_ps(y + t * y_stride + 8) : _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k++, x++, panel += WIDTH) {
        __m256 p = _mm256_loadu_ps(panel), q = _mm256_loadu_ps(panel + 8);
        _Pragma("GCC unroll 6") for (int t = 0; t < tokens; t++)
        {
            __m256 v = _mm256_set1_ps(x[t * x_step]);
            a[t] = _mm256_fmadd_ps(v, p, a[t]);
            b[t] = _mm256_fmadd_ps(v, q, b[t]);
        }
    }
    for (int t = 0; t < tokens; t++) {
        _mm256_storeu_ps(y + t * y_stride, a[t]);
        _mm256_storeu_ps(y + t * y_stride + 8, b[t]);
    }
}

LSA_TARGET_AVX2 static void tile_avx2_any(float *y, int64_t y_stride, const float *x,
                                          int64_t x_step, const float *panel, int64_t depth,
                                          int64_t tokens, int add)
{
    switch (tokens) {
    case 1:
        tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 1, add);
        break;
    case 2:
        tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 2, add);
        break;
    case 3:
        tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 3, add);
        break;
    case 4:
        tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 4, add);
        break;
    case 5:
        tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 5, add);
        break;
    default:
        tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 6, add);
    }
}

LSA_TARGET_AVX2 static void tile_avx2(float *y, int64_t y_stride, const float *x, int64_t x_step,
                                      const float *panel, int64_t depth, int64_t tokens, int64_t n,
                                      int add)
{
    for (int64_t tiles = (tokens + 5) / 6; tiles > 0; tiles--) {
        int64_t step = (tokens + tiles - 1) / tiles;
        for (int64_t from = 0; from < n; from += 16) {
            size_t width = (size_t)(n - from < 16 ? n - from : 16);
            float part[6 * 16] = {0};
            if (width == 16) {
                tile_avx2_any(y + from, y_stride, x, x_step, panel + from, depth, step, add);
                continue;
            }
            for (int64_t t = 0; t < step; t++)
                memcpy(part + t * 16, y + t * y_stride + from, width * sizeof *y);
            tile_avx2_any(part, 16, x, x_step, panel + from, depth, step, add);
            for (int64_t t = 0; t < step; t++)
                memcpy(y + t * y_stride + from, part + t * 16, width * sizeof *y);
        }
        y += step * y_stride, x += step * x_step, tokens -= step;
    }
}

/* ---- AVX-512 ---- */

/* The 16 x 16 words of v. */
static inline LSA_TARGET_AVX512 LSA_BODY void transpose(__m512i v[16])
{
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            b[i + 2 * j] = _mm512_unpacklo_epi64(a[i + j], a[i + j + 2]);
            b[i + 2 * j + 1] = _mm512_unpackhi_epi64(a[i + j], a[i + j + 2]);
        }
    for (int j = 0; j < 4; j++) {
        __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88),
                low2 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        __m512i high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        v[j] = _mm512_shuffle_i32x4(low, high, 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(low2, high2, 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
        v[12 + j] = _mm512_shuffle_i32x4(low2, high2, 0xdd);
    }
}

/* Up to 16 lines of `depth` words, `step` apart, into 16 columns of the panel; missing lines
 * are zero. */
static inline LSA_TARGET_AVX512 LSA_BODY void pack_lines(float *panel, const void *lines,
                                                         int64_t step, int64_t n, int64_t depth)
{
    for (int64_t k = 0; k < depth; k += 16) {
        __mmask16 some = (__mmask16)(depth - k < 16 ? (1u << (depth - k)) - 1 : 0xffff);
        __m512i v[16];
        /* The panel after this one. */
        for (int i = 0; i < n; i++)
            _mm_prefetch((const char *)lines + i * step + 4 * (k + DEPTH), _MM_HINT_T1);
        for (int i = 0; i < 16; i++)
            v[i] = i < n ? _mm512_maskz_loadu_epi32(some, (const char *)lines + i * step + 4 * k)
                         : _mm512_setzero_si512();
        transpose(v);
        for (int i = 0; i < 16 && k + i < depth; i++)
            _mm512_storeu_si512(panel + (k + i) * WIDTH, v[i]);
    }
}

LSA_TARGET_AVX512 static void pack_avx512(float *panel, const lsa_weight *w, int64_t row, int64_t n,
                                          int64_t col, int64_t depth, int round)
{
    float lines[16 * DEPTH];
    int plain = w->dtype == LSA_F32 && !w->scale && !round;
    for (int64_t half = 0; half < WIDTH; half += 16) {
        int64_t first = row + half, count = n - half < 16 ? n - half : 16;
        if (plain) {
            pack_lines(panel + half, (const float *)w->data + first * w->cols + col, w->cols * 4,
                       count, depth);
            continue;
        }
        for (int64_t r = 0; r < count; r++)
            lsa_linear_decode(lines + r * DEPTH, w, first + r, col, depth, round);
        pack_lines(panel + half, lines, DEPTH * 4, count, depth);
    }
}

#define TILE_CASE(name, n_tokens)                                                                  \
    case n_tokens:                                                                                 \
        name##_rows(y, y_stride, x, x_step, panel, depth, n_tokens, low, high, add);               \
        break;

/* Tiles of 12 tokens fill the registers; fewer tokens are divided evenly, as short tiles wait
 * for their sums. */
#define TILE(name, TARGET, MULTIPLY)                                                               \
    static inline TARGET LSA_BODY void name##_rows(                                                \
        float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel,            \
        int64_t depth, const int tokens, __mmask16 low, __mmask16 high, int add)                   \
    {                                                                                              \
        __m512 a[12], b[12];                                                                       \
        for (int t = 0; t < tokens; t++) {                                                         \
            a[t] = add ? _mm512_maskz_loadu_ps(low, y + t * y_stride) : _mm512_setzero_ps();       \
            b[t] = add ? _mm512_maskz_loadu_ps(high, y + t * y_stride + 16) : _mm512_setzero_ps(); \
        }                                                                                          \
        for (int64_t k = 0; k < depth; k++, x++, panel += WIDTH) {                                 \
            __m512 p = _mm512_loadu_ps(panel), q = _mm512_loadu_ps(panel + 16);                    \
            _Pragma("GCC unroll 12") for (int t = 0; t < tokens; t++)                              \
            {                                                                                      \
                __m512 v = _mm512_set1_ps(x[t * x_step]);                                          \
                a[t] = MULTIPLY(a[t], v, p);                                                       \
                b[t] = MULTIPLY(b[t], v, q);                                                       \
            }                                                                                      \
        }                                                                                          \
        for (int t = 0; t < tokens; t++) {                                                         \
            _mm512_mask_storeu_ps(y + t * y_stride, low, a[t]);                                    \
            _mm512_mask_storeu_ps(y + t * y_stride + 16, high, b[t]);                              \
        }                                                                                          \
    }                                                                                              \
    TARGET static void name(float *y, int64_t y_stride, const float *x, int64_t x_step,            \
                            const float *panel, int64_t depth, int64_t tokens, int64_t n, int add) \
    {                                                                                              \
        __mmask16 low = (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);                             \
        __mmask16 high = (__mmask16)(n >= 16 ? (1u << (n - 16)) - 1 : 0);                          \
        for (int64_t tiles = (tokens + 11) / 12; tiles > 0; tiles--) {                             \
            int64_t step = (tokens + tiles - 1) / tiles;                                           \
            switch (step) {                                                                        \
                TILE_CASE(name, 1)                                                                 \
                TILE_CASE(name, 2) TILE_CASE(name, 3) TILE_CASE(name, 4) TILE_CASE(name, 5)        \
                    TILE_CASE(name, 6) TILE_CASE(name, 7) TILE_CASE(name, 8) TILE_CASE(name, 9)    \
                        TILE_CASE(name, 10) TILE_CASE(name, 11) TILE_CASE(name, 12)                \
            }                                                                                      \
            y += step * y_stride, x += step * x_step, tokens -= step;                              \
        }                                                                                          \
    }

#define MULTIPLY_F32(sum, x, w) _mm512_fmadd_ps(x, w, sum)
TILE(tile_avx512, LSA_TARGET_AVX512, MULTIPLY_F32)

/* ---- AVX-512 BF16 ---- */

#define MULTIPLY_BF16(sum, x, w) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(w))
TILE(tile_bf16, LSA_TARGET_AVX512_BF16, MULTIPLY_BF16)

/* `depth` pairs of bf16 from `count` columns of a row. */
static inline LSA_TARGET_AVX512_BF16 LSA_BODY void decode_pairs(uint32_t *out, const lsa_weight *w,
                                                                int64_t row, int64_t col,
                                                                int64_t count)
{
    float line[2 * DEPTH + 32];
    lsa_linear_decode(line, w, row, col, count, 0);
    _mm512_storeu_ps(line + count, _mm512_setzero_ps());
    for (int64_t i = 0; i < count; i += 32)
        _mm512_storeu_si512(out + i / 2,
                            (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(line + i + 16),
                                                         _mm512_loadu_ps(line + i)));
}

LSA_TARGET_AVX512_BF16 static void pack_bf16(float *panel, const lsa_weight *w, int64_t row,
                                             int64_t n, int64_t col, int64_t depth, int round)
{
    uint32_t lines[16 * (DEPTH + 16)];
    int64_t columns = w->cols - col < 2 * depth ? w->cols - col : 2 * depth;
    int plain = w->dtype == LSA_BF16 && !w->scale && columns == 2 * depth;
    (void)round;
    for (int64_t half = 0; half < WIDTH; half += 16) {
        int64_t first = row + half, count = n - half < 16 ? n - half : 16;
        if (plain) {
            pack_lines(panel + half, (const uint16_t *)w->data + first * w->cols + col, w->cols * 2,
                       count, depth);
            continue;
        }
        for (int64_t r = 0; r < count; r++)
            decode_pairs(lines + r * (DEPTH + 16), w, first + r, col, columns);
        pack_lines(panel + half, lines, (DEPTH + 16) * 4, count, depth);
    }
}

LSA_TARGET_AVX512_BF16 static void round_bf16(void *out, const float *x, int64_t n)
{
    uint16_t *h = out;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 some = (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
        __mmask16 words = (__mmask16)(n - i < 16 ? (1u << (n - i + (n & 1))) - 1 : 0xffff);
        _mm256_mask_storeu_epi16(h + i, words,
                                 (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, x + i)));
    }
}

#endif

lsa_linear_path lsa_linear_path_for(int32_t compute)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512_BF16 && compute == LSA_COMPUTE_BF16)
        return (lsa_linear_path){tile_bf16, pack_bf16, round_bf16, 1};
    if (level >= LSA_CPU_AVX512) return (lsa_linear_path){tile_avx512, pack_avx512, round_plain, 0};
    if (level >= LSA_CPU_AVX2) return (lsa_linear_path){tile_avx2, pack_plain, round_plain, 0};
#endif
    (void)compute;
    return (lsa_linear_path){tile_plain, pack_plain, round_plain, 0};
}
