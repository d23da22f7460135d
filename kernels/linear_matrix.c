/* Owns the many-token path: panels of weight rows, decoded and transposed, against all tokens.
 *
 * A panel holds DEPTH columns of WIDTH rows, column by column, in the first cache; a tile of tokens is multiplied by it
 * with every sum in a register. Each output is summed in order of its columns, DEPTH at a time, so it depends
 * neither on the number of threads nor on the other tokens and rows of the call.
 *
 * Why no library: on one core of an AMD EPYC of the Zen 5 family, 512 x [128, 128] runs at 232 GFLOP/s here, 235 in oneDNN
 * 2.6.3 and 113 in OpenBLAS 0.3.21 (which knows no such processor and takes Haswell's kernels); in bf16 at 409 with
 * x and W still f32, 467 in oneDNN with both bf16 beforehand, OpenBLAS has none (`lsa bench linear`,
 * experiments/peers/gemm_libraries.c). The libraries would need every weight dense first, oneDNN some
 * tenths of a millisecond for each new shape, and either would let the number of threads change the sums. */
#include "core/cpu.h"
#include "kernels/linear_private.h"
#include "kernels/number_formats.h"

enum {
    WIDTH = 32,                              /* rows of a panel */
    DEPTH = 256,                             /* columns, or pairs of them: 32 KiB of panel */
    LEAST_SHARE = 48,                        /* tokens for which a thread decodes a panel of its own */
    MOST_X = 1 << 22                         /* numbers of x that are held rounded */
};

/* How a code path multiplies: y [tokens, n] = (add ? y : 0) + x . panel, n <= WIDTH. depth counts columns, or pairs of
 * bf16 columns; so does x_step, in 4-byte words. */
typedef void tile_fn(float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel, int64_t depth,
                     int64_t tokens, int64_t n, int add);

/* The panel of rows row .. row + n - 1, columns col .. col + depth * (1 or 2) - 1; rows past n are zero. */
typedef void pack_fn(float *panel, const lsa_weight *w, int64_t row, int64_t n, int64_t col, int64_t depth, int round);

/* x rounded to bf16: f32, or pairs, the last one filled with zero. */
typedef void round_fn(void *out, const float *x, int64_t n);

typedef struct matrix_path {
    tile_fn *tile;
    pack_fn *pack;
    round_fn *round;
    int pairs;                               /* two bf16 in a word */
} matrix_path;

/* ---- Vectors that every processor has ---- */

typedef float f32x4 __attribute__((vector_size(16), aligned(4), may_alias));

/* 8 rows of the panel for 2 tokens, or 1. */
static inline LSA_BODY void tile_plain_part(float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel,
                                            int64_t depth, const int tokens, int64_t n, int add)
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

static void tile_plain(float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel, int64_t depth,
                       int64_t tokens, int64_t n, int add)
{
    for (int64_t from = 0; from < n; from += 8) {
        int64_t width = n - from < 8 ? n - from : 8, t = 0;
        for (; t + 2 <= tokens; t += 2)
            tile_plain_part(y + t * y_stride + from, y_stride, x + t * x_step, x_step, panel + from, depth, 2, width, add);
        if (t < tokens)
            tile_plain_part(y + t * y_stride + from, y_stride, x + t * x_step, x_step, panel + from, depth, 1, width, add);
    }
}

static void pack_plain(float *panel, const lsa_weight *w, int64_t row, int64_t n, int64_t col, int64_t depth, int round)
{
    float line[DEPTH];
    for (int64_t r = 0; r < WIDTH; r++) {
        if (r < n) lsa_linear_decode(line, w, row + r, col, depth, round);
        else memset(line, 0, (size_t)depth * sizeof *line);
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
static inline LSA_TARGET_AVX2 LSA_BODY void tile_avx2_rows(float *y, int64_t y_stride, const float *x, int64_t x_step,
                                                           const float *panel, int64_t depth, const int tokens, int add)
{
    __m256 a[6], b[6];
    for (int t = 0; t < tokens; t++) {
        a[t] = add ? _mm256_loadu_ps(y + t * y_stride) : _mm256_setzero_ps();
        b[t] = add ? _mm256_loadu_ps(y + t * y_stride + 8) : _mm256_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k++, x++, panel += WIDTH) {
        __m256 p = _mm256_loadu_ps(panel), q = _mm256_loadu_ps(panel + 8);
        _Pragma("GCC unroll 6") for (int t = 0; t < tokens; t++) {
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

LSA_TARGET_AVX2 static void tile_avx2_any(float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel,
                                          int64_t depth, int64_t tokens, int add)
{
    switch (tokens) {
    case 1: tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 1, add); break;
    case 2: tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 2, add); break;
    case 3: tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 3, add); break;
    case 4: tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 4, add); break;
    case 5: tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 5, add); break;
    default: tile_avx2_rows(y, y_stride, x, x_step, panel, depth, 6, add);
    }
}

LSA_TARGET_AVX2 static void tile_avx2(float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel,
                                      int64_t depth, int64_t tokens, int64_t n, int add)
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
            for (int64_t t = 0; t < step; t++) memcpy(part + t * 16, y + t * y_stride + from, width * sizeof *y);
            tile_avx2_any(part, 16, x, x_step, panel + from, depth, step, add);
            for (int64_t t = 0; t < step; t++) memcpy(y + t * y_stride + from, part + t * 16, width * sizeof *y);
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
        __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), low2 = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
        __m512i high = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
        __m512i high2 = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
        v[j] = _mm512_shuffle_i32x4(low, high, 0x88);
        v[4 + j] = _mm512_shuffle_i32x4(low2, high2, 0x88);
        v[8 + j] = _mm512_shuffle_i32x4(low, high, 0xdd);
        v[12 + j] = _mm512_shuffle_i32x4(low2, high2, 0xdd);
    }
}

/* Up to 16 lines of `depth` words, `step` apart, into 16 columns of the panel; missing lines are zero. */
static inline LSA_TARGET_AVX512 LSA_BODY void pack_lines(float *panel, const void *lines, int64_t step, int64_t n,
                                                         int64_t depth)
{
    for (int64_t k = 0; k < depth; k += 16) {
        __mmask16 some = (__mmask16)(depth - k < 16 ? (1u << (depth - k)) - 1 : 0xffff);
        __m512i v[16];
        /* The panel after this one. */
        for (int i = 0; i < n; i++) _mm_prefetch((const char *)lines + i * step + 4 * (k + DEPTH), _MM_HINT_T1);
        for (int i = 0; i < 16; i++)
            v[i] = i < n ? _mm512_maskz_loadu_epi32(some, (const char *)lines + i * step + 4 * k) : _mm512_setzero_si512();
        transpose(v);
        for (int i = 0; i < 16 && k + i < depth; i++) _mm512_storeu_si512(panel + (k + i) * WIDTH, v[i]);
    }
}

LSA_TARGET_AVX512 static void pack_avx512(float *panel, const lsa_weight *w, int64_t row, int64_t n, int64_t col,
                                          int64_t depth, int round)
{
    float lines[16 * DEPTH];
    int plain = w->dtype == LSA_F32 && !w->scale && !round;
    for (int64_t half = 0; half < WIDTH; half += 16) {
        int64_t first = row + half, count = n - half < 16 ? n - half : 16;
        if (plain) {
            pack_lines(panel + half, (const float *)w->data + first * w->cols + col, w->cols * 4, count, depth);
            continue;
        }
        for (int64_t r = 0; r < count; r++) lsa_linear_decode(lines + r * DEPTH, w, first + r, col, depth, round);
        pack_lines(panel + half, lines, DEPTH * 4, count, depth);
    }
}

#define TILE_CASE(name, n_tokens) \
    case n_tokens: name##_rows(y, y_stride, x, x_step, panel, depth, n_tokens, low, high, add); break;

/* Tiles of 12 tokens fill the registers; fewer tokens are divided evenly, as short tiles wait for their sums. */
#define TILE(name, TARGET, MULTIPLY)                                                                         \
    static inline TARGET LSA_BODY void name##_rows(float *y, int64_t y_stride, const float *x, int64_t x_step, \
                                                   const float *panel, int64_t depth, const int tokens,      \
                                                   __mmask16 low, __mmask16 high, int add)                   \
    {                                                                                                        \
        __m512 a[12], b[12];                                                                                 \
        for (int t = 0; t < tokens; t++) {                                                                   \
            a[t] = add ? _mm512_maskz_loadu_ps(low, y + t * y_stride) : _mm512_setzero_ps();                 \
            b[t] = add ? _mm512_maskz_loadu_ps(high, y + t * y_stride + 16) : _mm512_setzero_ps();           \
        }                                                                                                    \
        for (int64_t k = 0; k < depth; k++, x++, panel += WIDTH) {                                           \
            __m512 p = _mm512_loadu_ps(panel), q = _mm512_loadu_ps(panel + 16);                              \
            _Pragma("GCC unroll 12") for (int t = 0; t < tokens; t++) {                                      \
                __m512 v = _mm512_set1_ps(x[t * x_step]);                                                    \
                a[t] = MULTIPLY(a[t], v, p);                                                                 \
                b[t] = MULTIPLY(b[t], v, q);                                                                 \
            }                                                                                                \
        }                                                                                                    \
        for (int t = 0; t < tokens; t++) {                                                                   \
            _mm512_mask_storeu_ps(y + t * y_stride, low, a[t]);                                              \
            _mm512_mask_storeu_ps(y + t * y_stride + 16, high, b[t]);                                        \
        }                                                                                                    \
    }                                                                                                        \
    TARGET static void name(float *y, int64_t y_stride, const float *x, int64_t x_step, const float *panel,  \
                            int64_t depth, int64_t tokens, int64_t n, int add)                               \
    {                                                                                                        \
        __mmask16 low = (__mmask16)(n >= 16 ? 0xffff : (1u << n) - 1);                                       \
        __mmask16 high = (__mmask16)(n >= 16 ? (1u << (n - 16)) - 1 : 0);                                    \
        for (int64_t tiles = (tokens + 11) / 12; tiles > 0; tiles--) {                                       \
            int64_t step = (tokens + tiles - 1) / tiles;                                                     \
            switch (step) {                                                                                  \
                TILE_CASE(name, 1) TILE_CASE(name, 2) TILE_CASE(name, 3) TILE_CASE(name, 4)                  \
                TILE_CASE(name, 5) TILE_CASE(name, 6) TILE_CASE(name, 7) TILE_CASE(name, 8)                  \
                TILE_CASE(name, 9) TILE_CASE(name, 10) TILE_CASE(name, 11) TILE_CASE(name, 12)               \
            }                                                                                                \
            y += step * y_stride, x += step * x_step, tokens -= step;                                        \
        }                                                                                                    \
    }

#define MULTIPLY_F32(sum, x, w) _mm512_fmadd_ps(x, w, sum)
TILE(tile_avx512, LSA_TARGET_AVX512, MULTIPLY_F32)

/* ---- AVX-512 BF16 ---- */

#define MULTIPLY_BF16(sum, x, w) _mm512_dpbf16_ps(sum, (__m512bh)(x), (__m512bh)(w))
TILE(tile_bf16, LSA_TARGET_AVX512_BF16, MULTIPLY_BF16)

/* `depth` pairs of bf16 from `count` columns of a row. */
static inline LSA_TARGET_AVX512_BF16 LSA_BODY void decode_pairs(uint32_t *out, const lsa_weight *w, int64_t row,
                                                                int64_t col, int64_t count)
{
    float line[2 * DEPTH + 32];
    lsa_linear_decode(line, w, row, col, count, 0);
    _mm512_storeu_ps(line + count, _mm512_setzero_ps());
    for (int64_t i = 0; i < count; i += 32)
        _mm512_storeu_si512(out + i / 2, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(line + i + 16), _mm512_loadu_ps(line + i)));
}

LSA_TARGET_AVX512_BF16 static void pack_bf16(float *panel, const lsa_weight *w, int64_t row, int64_t n, int64_t col,
                                             int64_t depth, int round)
{
    uint32_t lines[16 * (DEPTH + 16)];
    int64_t columns = w->cols - col < 2 * depth ? w->cols - col : 2 * depth;
    int plain = w->dtype == LSA_BF16 && !w->scale && columns == 2 * depth;
    (void)round;
    for (int64_t half = 0; half < WIDTH; half += 16) {
        int64_t first = row + half, count = n - half < 16 ? n - half : 16;
        if (plain) {
            pack_lines(panel + half, (const uint16_t *)w->data + first * w->cols + col, w->cols * 2, count, depth);
            continue;
        }
        for (int64_t r = 0; r < count; r++) decode_pairs(lines + r * (DEPTH + 16), w, first + r, col, columns);
        pack_lines(panel + half, lines, (DEPTH + 16) * 4, count, depth);
    }
}

LSA_TARGET_AVX512_BF16 static void round_bf16(void *out, const float *x, int64_t n)
{
    uint16_t *h = out;
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 some = (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
        __mmask16 words = (__mmask16)(n - i < 16 ? (1u << (n - i + (n & 1))) - 1 : 0xffff);
        _mm256_mask_storeu_epi16(h + i, words, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(some, x + i)));
    }
}

#endif

static matrix_path path_for(int32_t compute)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512_BF16 && compute == LSA_COMPUTE_BF16) return (matrix_path){tile_bf16, pack_bf16, round_bf16, 1};
    if (level >= LSA_CPU_AVX512) return (matrix_path){tile_avx512, pack_avx512, round_plain, 0};
    if (level >= LSA_CPU_AVX2) return (matrix_path){tile_avx2, pack_plain, round_plain, 0};
#endif
    (void)compute;
    return (matrix_path){tile_plain, pack_plain, round_plain, 0};
}

/* One panel's rows for some of the tokens. */
static void panel_of_rows(const lsa_linear_call *call, matrix_path path, const float *x, int64_t x_step, int64_t row,
                          int64_t token, int64_t tokens)
{
    _Alignas(64) float panel[WIDTH * DEPTH];
    const int64_t words = path.pairs ? (call->w->cols + 1) / 2 : call->w->cols;
    int64_t n = call->rows - row < WIDTH ? call->rows - row : WIDTH;
    for (int64_t k = 0; k < words; k += DEPTH) {
        int64_t d = words - k < DEPTH ? words - k : DEPTH;
        path.pack(panel, call->w, call->row_from + row, n, path.pairs ? 2 * k : k, d, call->compute == LSA_COMPUTE_BF16);
        path.tile(call->y + token * call->y_stride + row, call->y_stride, x + token * x_step + k, x_step, panel, d,
                  tokens, n, k > 0);
    }
}

/* All rows for tokens whose x is held. */
static void panels(const lsa_linear_call *call, matrix_path path, const float *x, int64_t x_step)
{
    int64_t count = (call->rows + WIDTH - 1) / WIDTH;
    int threads = lsa_threads_for(call->tokens * call->rows * call->w->cols / 50);
    int64_t most = call->tokens / LEAST_SHARE, shares = count >= 2 * threads ? 1 : threads;
    if (shares > most) shares = most < 1 ? 1 : most;
    int64_t share = (call->tokens + shares - 1) / shares;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < count * shares; i++) {
        int64_t token = i % shares * share, rest = call->tokens - token;
        if (rest > 0) panel_of_rows(call, path, x, x_step, i / shares * WIDTH, token, rest < share ? rest : share);
    }
}

/* Words of a token's x, rounded. */
static int64_t rounded_step(const lsa_weight *w, int pairs) { return pairs ? (w->cols + 1) / 2 : w->cols; }

static int64_t tokens_held(const lsa_weight *w, int64_t tokens)
{
    int64_t most = MOST_X / (w->cols + 1);
    if (most < 64) most = 64;
    return tokens < most ? tokens : most;
}

int64_t lsa_linear_matrix_workspace(const lsa_weight *w, int64_t tokens, int32_t compute)
{
    return compute == LSA_COMPUTE_BF16 ? tokens_held(w, tokens) * w->cols * (int64_t)sizeof(float) : 0;
}

void lsa_linear_matrix(const lsa_linear_call *call, void *workspace)
{
    matrix_path path = path_for(call->compute);
    if (call->w->cols == 0) {
        for (int64_t t = 0; t < call->tokens; t++) memset(call->y + t * call->y_stride, 0, (size_t)call->rows * sizeof(float));
    } else if (call->compute == LSA_COMPUTE_F32) {
        panels(call, path, call->x, call->x_stride);
    } else {
        int64_t step = rounded_step(call->w, path.pairs), held = tokens_held(call->w, call->tokens);
        for (int64_t t = 0; t < call->tokens; t += held) {
            lsa_linear_call part = *call;
            part.tokens = call->tokens - t < held ? call->tokens - t : held;
            part.y = call->y + t * call->y_stride;
            for (int64_t i = 0; i < part.tokens; i++)
                path.round((float *)workspace + i * step, call->x + (t + i) * call->x_stride, call->w->cols);
            panels(&part, path, workspace, step);
        }
    }
}
