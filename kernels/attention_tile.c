/* The register-blocked arithmetic of attention, for every code path. */
#include "kernels/attention_tile.h"

#include "kernels/vector_math.h"

enum {
    TILE = LSA_ATTENTION_TILE,
    KEY_FLOATS = 8192 /* keys that stay in the first cache while all heads pass by */
};

/* ---- softmax, merge, mass: the same body for every path ---- */

static inline LSA_BODY float largest(f32x16 v)
{
    float a[16];
    f32x16_store(a, v);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) a[i] = a[i + step] > a[i] ? a[i + step] : a[i];
    return a[0];
}

static inline LSA_BODY i32x16 is_lowest(f32x16 v)
{
    return i32x16_is_zero((i32x16)v ^ (int32_t)0xff800000);
}

/* exp(a - b), 1 where both are -inf. */
static inline LSA_BODY f32x16 shrinkage(f32x16 a, f32x16 b)
{
    return f32x16_exp(f32x16_select(is_lowest(a) & is_lowest(b), (f32x16){0}, a - b));
}

/* Pads a head's scores with -inf and gives their maximum, NaN where one is. */
static inline LSA_BODY float pad_head(float *s, int64_t n, float max)
{
    const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32x16 lowest = f32x16_set(-INFINITY), most = lowest;
    for (int64_t j = 0; j < n; j += 16) {
        f32x16 v = f32x16_load(s + j);
        if (n - j < 16) v = f32x16_select((lane - (int32_t)(n - j)) >> 31, v, lowest);
        most = f32x16_larger(most, v);
        f32x16_store(s + j, v);
    }
    float top = largest(most);
    return top > max ? top : max;
}

static inline LSA_BODY void softmax_body(float *scores, float *max, float *sum, float *rescale,
                                         int64_t n, int64_t heads)
{
    for (int64_t h = 0; h < heads; h++) rescale[h] = pad_head(scores + h * TILE, n, max[h]);
    for (int64_t h = 0; h < heads; h += 16) {
        f32x16 next = f32x16_load(rescale + h), factor = shrinkage(f32x16_load(max + h), next);
        f32x16_store(rescale + h, factor);
        f32x16_store(max + h, next);
        f32x16_store(sum + h, f32x16_load(sum + h) * factor);
    }
    for (int64_t h = 0; h < heads; h++) {
        float *s = scores + h * TILE, base = max[h] == -INFINITY ? 0.0f : max[h];
        f32x16 total = {0};
        for (int64_t j = 0; j < n; j += 16) {
            f32x16 p = f32x16_exp(f32x16_load(s + j) - base);
            total += p;
            f32x16_store(s + j, p);
        }
        sum[h] += f32x16_sum(total);
    }
}

LSA_PATHS(softmax,
          (float *scores, float *max, float *sum, float *rescale, int64_t n, int64_t heads),
          (scores, max, sum, rescale, n, heads))

static inline LSA_BODY void merge_body(float *max, float *sum, float *acc, const float *from_max,
                                       const float *from_sum, const float *from_acc, int64_t heads,
                                       int64_t dim)
{
    for (int64_t g = 0; g < heads; g += 16) {
        f32x16 a = f32x16_load(max + g), b = f32x16_load(from_max + g), next = f32x16_larger(a, b);
        f32x16 keep = shrinkage(a, next), take = shrinkage(b, next);
        f32x16_store(max + g, next);
        f32x16_store(sum + g, f32x16_load(sum + g) * keep + f32x16_load(from_sum + g) * take);
        for (int64_t h = g; h < heads && h < g + 16; h++)
            for (int64_t i = h * dim; i < (h + 1) * dim; i += 16)
                f32x16_store(acc + i, f32x16_load(acc + i) * keep[h - g] +
                                          f32x16_load(from_acc + i) * take[h - g]);
    }
}

LSA_PATHS(merge,
          (float *max, float *sum, float *acc, const float *from_max, const float *from_sum,
           const float *from_acc, int64_t heads, int64_t dim),
          (max, sum, acc, from_max, from_sum, from_acc, heads, dim))

static inline LSA_BODY void mass_body(float *mass, const float *kept, const float *max,
                                      const float *sum, int64_t n, int64_t heads, int64_t stride)
{
    for (int64_t j = 0; j < n; j += 16) {
        int64_t lanes = n - j < 16 ? n - j : 16;
        f32x16 total = {0};
        for (int64_t h = 0; h < heads; h++) {
            const float *s = kept + h * stride + j;
            f32x16 v = lanes == 16 ? f32x16_load(s) : f32x16_load_n(s, lanes);
            total += f32x16_exp(v - (max[h] == -INFINITY ? 0.0f : max[h])) *
                     (sum[h] == 0.0f ? 0.0f : 1.0f / sum[h]);
        }
        total /= (float)heads;
        if (lanes == 16)
            f32x16_store(mass + j, total);
        else
            f32x16_store_n(mass + j, total, lanes);
    }
}

LSA_PATHS(mass,
          (float *mass, const float *kept, const float *max, const float *sum, int64_t n,
           int64_t heads, int64_t stride),
          (mass, kept, max, sum, n, heads, stride))

/* ---- generic ---- */

static void scores_generic(float *scores, const float *q, const float *const *rows, int64_t n,
                           int64_t heads, int64_t dim, float scale)
{
    for (int64_t h = 0; h < heads; h++)
        for (int64_t j = 0; j < n; j++) {
            f32x16 sum = {0};
            for (int64_t i = 0; i < dim; i += 16)
                sum += f32x16_load(q + h * dim + i) * f32x16_load(rows[j] + i);
            scores[h * TILE + j] = f32x16_sum(sum) * scale;
        }
}

static void accumulate_generic(float *acc, const float *p, const float *rescale,
                               const float *const *rows, int64_t n, int64_t heads, int64_t dim)
{
    for (int64_t h = 0; h < heads; h++)
        for (int64_t i = 0; i < dim; i += 16) {
            f32x16 sum = f32x16_load(acc + h * dim + i) * rescale[h];
            for (int64_t j = 0; j < n; j++) sum += f32x16_load(rows[j] + i) * p[h * TILE + j];
            f32x16_store(acc + h * dim + i, sum);
        }
}

#if defined(__x86_64__)

/* ---- AVX2: blocks of 2 heads by 4 keys, 2 heads by 32 values ---- */

static inline LSA_TARGET_AVX2 LSA_BODY __m128 sums4_avx2(const __m256 *a)
{
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    return _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
}

static inline LSA_TARGET_AVX2 LSA_BODY void score_block_avx2(float *scores, const float *q,
                                                             const float *const *rows, int64_t dim,
                                                             float scale, int heads)
{
    __m256 sum[2][4];
    for (int h = 0; h < heads; h++)
        for (int j = 0; j < 4; j++) sum[h][j] = _mm256_setzero_ps();
    for (int64_t i = 0; i < dim; i += 8)
        for (int j = 0; j < 4; j++) {
            __m256 k = _mm256_loadu_ps(rows[j] + i);
            for (int h = 0; h < heads; h++)
                sum[h][j] = _mm256_fmadd_ps(_mm256_loadu_ps(q + h * dim + i), k, sum[h][j]);
        }
    for (int h = 0; h < heads; h++)
        _mm_storeu_ps(scores + h * TILE, _mm_mul_ps(sums4_avx2(sum[h]), _mm_set1_ps(scale)));
}

LSA_TARGET_AVX2 static void scores_avx2(float *scores, const float *q, const float *const *rows,
                                        int64_t n, int64_t heads, int64_t dim, float scale)
{
    int64_t keys = dim > KEY_FLOATS / 4 ? 4 : KEY_FLOATS / dim / 4 * 4;
    for (int64_t from = 0; from < n; from += keys) {
        int64_t to = n - from < keys ? n : from + keys, h = 0;
        for (; h + 2 <= heads; h += 2)
            for (int64_t j = from; j < to; j += 4)
                score_block_avx2(scores + h * TILE + j, q + h * dim, rows + j, dim, scale, 2);
        for (; h < heads; h++)
            for (int64_t j = from; j < to; j += 4)
                score_block_avx2(scores + h * TILE + j, q + h * dim, rows + j, dim, scale, 1);
    }
}

static inline LSA_TARGET_AVX2 LSA_BODY void accumulate_block_avx2(
    float *acc, const float *p, const float *rescale, const float *const *rows, int64_t n,
    int64_t at, int64_t dim, int heads, int vectors)
{
    __m256 sum[2][4];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++)
            sum[h][v] = _mm256_mul_ps(_mm256_loadu_ps(acc + h * dim + at + 8 * v),
                                      _mm256_set1_ps(rescale[h]));
    for (int64_t j = 0; j < n; j++)
        for (int v = 0; v < vectors; v++) {
            __m256 k = _mm256_loadu_ps(rows[j] + at + 8 * v);
            for (int h = 0; h < heads; h++)
                sum[h][v] = _mm256_fmadd_ps(_mm256_set1_ps(p[h * TILE + j]), k, sum[h][v]);
        }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) _mm256_storeu_ps(acc + h * dim + at + 8 * v, sum[h][v]);
}

LSA_TARGET_AVX2 static void accumulate_avx2(float *acc, const float *p, const float *rescale,
                                            const float *const *rows, int64_t n, int64_t heads,
                                            int64_t dim)
{
    for (int64_t at = 0, step; at < dim; at += step) {
        step = dim - at >= 32 ? 32 : 16;
        int64_t h = 0;
        for (; h + 2 <= heads; h += 2)
            if (step == 32)
                accumulate_block_avx2(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim, 2,
                                      4);
            else
                accumulate_block_avx2(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim, 2,
                                      2);
        for (; h < heads; h++)
            if (step == 32)
                accumulate_block_avx2(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim, 1,
                                      4);
            else
                accumulate_block_avx2(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim, 1,
                                      2);
    }
}

/* ---- AVX-512: blocks of 4 heads by 4 keys, 4 heads by 64 values ---- */

/* The sums of four vectors, in four partial sums: one a 128-bit lane. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512 quarter_sums_avx512(const __m512 *a)
{
    __m512 lo = _mm512_add_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    __m512 hi = _mm512_add_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    __m512d l = _mm512_castps_pd(lo), h = _mm512_castps_pd(hi);
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)),
                         _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
}

/* Lanes 0+2 and 1+3 of a, then of b. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512 fold_lanes_avx512(__m512 a, __m512 b)
{
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}

static inline LSA_TARGET_AVX512 LSA_BODY void score_block_avx512(float *scores, const float *q,
                                                                 const float *const *rows,
                                                                 int64_t dim, float scale,
                                                                 int heads)
{
    const float *k0 = rows[0], *k1 = rows[1], *k2 = rows[2], *k3 = rows[3];
    __m512 sum[4][4];
    for (int h = 0; h < 4; h++)
        for (int j = 0; j < 4; j++) sum[h][j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < dim; i += 16) {
        __m512 k[4] = {_mm512_loadu_ps(k0 + i), _mm512_loadu_ps(k1 + i), _mm512_loadu_ps(k2 + i),
                       _mm512_loadu_ps(k3 + i)};
        for (int h = 0; h < heads; h++) {
            __m512 v = _mm512_loadu_ps(q + h * dim + i);
            for (int j = 0; j < 4; j++) sum[h][j] = _mm512_fmadd_ps(v, k[j], sum[h][j]);
        }
    }
    __m512 part[4];
    for (int h = 0; h < 4; h++)
        part[h] = h < heads ? quarter_sums_avx512(sum[h]) : _mm512_setzero_ps();
    __m512 a = fold_lanes_avx512(part[0], part[1]), b = fold_lanes_avx512(part[2], part[3]);
    __m512 r = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    r = _mm512_mul_ps(r, _mm512_set1_ps(scale));
    _mm_storeu_ps(scores, _mm512_castps512_ps128(r));
    if (heads > 1) _mm_storeu_ps(scores + TILE, _mm512_extractf32x4_ps(r, 1));
    if (heads > 2) _mm_storeu_ps(scores + 2 * TILE, _mm512_extractf32x4_ps(r, 2));
    if (heads > 3) _mm_storeu_ps(scores + 3 * TILE, _mm512_extractf32x4_ps(r, 3));
}

LSA_TARGET_AVX512 static void scores_avx512(float *scores, const float *q, const float *const *rows,
                                            int64_t n, int64_t heads, int64_t dim, float scale)
{
    int64_t keys = dim > KEY_FLOATS / 4 ? 4 : KEY_FLOATS / dim / 4 * 4;
    for (int64_t from = 0; from < n; from += keys) {
        int64_t to = n - from < keys ? n : from + keys, h = 0;
        for (; h + 4 <= heads; h += 4)
            for (int64_t j = from; j < to; j += 4)
                score_block_avx512(scores + h * TILE + j, q + h * dim, rows + j, dim, scale, 4);
        for (; h < heads; h++)
            for (int64_t j = from; j < to; j += 4)
                score_block_avx512(scores + h * TILE + j, q + h * dim, rows + j, dim, scale, 1);
    }
}

/* e^x within 1 ulp for x <= 0; NaN stays NaN. */
static inline LSA_TARGET_AVX512 LSA_BODY __m512 exp_avx512(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)),
                                    _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p =
        _mm512_fmadd_ps(r, _mm512_set1_ps(1.9875691500e-4f), _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}

/* The largest of each of four vectors without NaN. */
static inline LSA_TARGET_AVX512 LSA_BODY __m128 max4_avx512(const __m512 *a)
{
    __m512 lo = _mm512_max_ps(_mm512_unpacklo_ps(a[0], a[1]), _mm512_unpackhi_ps(a[0], a[1]));
    __m512 hi = _mm512_max_ps(_mm512_unpacklo_ps(a[2], a[3]), _mm512_unpackhi_ps(a[2], a[3]));
    __m512d l = _mm512_castps_pd(lo), h = _mm512_castps_pd(hi);
    __m512 m = _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(l, h)),
                             _mm512_castpd_ps(_mm512_unpackhi_pd(l, h)));
    __m256 half = _mm256_max_ps(_mm512_castps512_ps256(m), _mm512_extractf32x8_ps(m, 1));
    return _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

static inline LSA_TARGET_AVX512 LSA_BODY __m128 sums4_avx512(const __m512 *a)
{
    __m512 m = quarter_sums_avx512(a);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(m), _mm512_extractf32x8_ps(m, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

/* `heads` heads, `vectors` vectors of keys; lanes past n are no keys. max_ps gives its second
 * operand where one is NaN: NaN scores leave the maximum alone, a NaN maximum stays. */
static inline LSA_TARGET_AVX512 LSA_BODY void softmax_block_avx512(float *scores, float *max,
                                                                   float *sum, float *rescale,
                                                                   int64_t n, int heads,
                                                                   int vectors)
{
    const __m512 lowest = _mm512_set1_ps(-INFINITY);
    __mmask8 some = (__mmask8)((1 << heads) - 1);
    __m512 p[4][4], most[4] = {lowest, lowest, lowest, lowest}, total[4];
    for (int v = 0; v < vectors; v++) {
        __mmask16 lanes = (__mmask16)_bzhi_u32(0xffff, (uint32_t)(n - 16 * v < 0 ? 0 : n - 16 * v));
        for (int h = 0; h < heads; h++) {
            p[h][v] = _mm512_mask_loadu_ps(lowest, lanes, scores + h * TILE + 16 * v);
            most[h] = _mm512_max_ps(p[h][v], most[h]);
        }
    }
    __m128 old = _mm_maskz_loadu_ps(some, max), next = _mm_max_ps(max4_avx512(most), old);
    __m128 shift = _mm_maskz_sub_ps(_mm_cmp_ps_mask(old, next, _CMP_NEQ_UQ), old, next);
    __m128 factor = _mm512_castps512_ps128(exp_avx512(_mm512_castps128_ps512(shift)));
    __m128 base =
        _mm_maskz_mov_ps(_mm_cmp_ps_mask(next, _mm_set1_ps(-INFINITY), _CMP_NEQ_UQ), next);
    for (int h = 0; h < 4; h++) {
        total[h] = _mm512_setzero_ps();
        if (h >= heads) continue;
        __m512 b = _mm512_permutexvar_ps(_mm512_set1_epi32(h), _mm512_castps128_ps512(base));
        for (int v = 0; v < vectors; v++) {
            __m512 e = exp_avx512(_mm512_sub_ps(p[h][v], b));
            total[h] = _mm512_add_ps(total[h], e);
            _mm512_storeu_ps(scores + h * TILE + 16 * v, e);
        }
    }
    _mm_mask_storeu_ps(max, some, next);
    _mm_mask_storeu_ps(rescale, some, factor);
    _mm_mask_storeu_ps(sum, some,
                       _mm_fmadd_ps(_mm_maskz_loadu_ps(some, sum), factor, sums4_avx512(total)));
}

LSA_TARGET_AVX512 static void softmax_blocks_avx512(float *scores, float *max, float *sum,
                                                    float *rescale, int64_t n, int64_t heads)
{
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4)
        if (n > 32)
            softmax_block_avx512(scores + h * TILE, max + h, sum + h, rescale + h, n, 4, 4);
        else
            softmax_block_avx512(scores + h * TILE, max + h, sum + h, rescale + h, n, 4, 2);
    for (; h < heads; h++)
        softmax_block_avx512(scores + h * TILE, max + h, sum + h, rescale + h, n, 1, 4);
}

static inline LSA_TARGET_AVX512 LSA_BODY void accumulate_block_avx512(
    float *acc, const float *p, const float *rescale, const float *const *rows, int64_t n,
    int64_t at, int64_t dim, int heads, int vectors)
{
    __m512 sum[4][4];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++)
            sum[h][v] = _mm512_mul_ps(_mm512_loadu_ps(acc + h * dim + at + 16 * v),
                                      _mm512_set1_ps(rescale[h]));
    for (int64_t j = 0; j < n; j++) {
        __m512 k[4];
        for (int v = 0; v < vectors; v++) k[v] = _mm512_loadu_ps(rows[j] + at + 16 * v);
        for (int h = 0; h < heads; h++) {
            __m512 weight = _mm512_set1_ps(p[h * TILE + j]);
            for (int v = 0; v < vectors; v++) sum[h][v] = _mm512_fmadd_ps(weight, k[v], sum[h][v]);
        }
    }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) _mm512_storeu_ps(acc + h * dim + at + 16 * v, sum[h][v]);
}

LSA_TARGET_AVX512 static void accumulate_avx512(float *acc, const float *p, const float *rescale,
                                                const float *const *rows, int64_t n, int64_t heads,
                                                int64_t dim)
{
    for (int64_t at = 0, step; at < dim; at += step) {
        step = dim - at >= 64 ? 64 : 16;
        int64_t h = 0;
        for (; h + 4 <= heads; h += 4)
            if (step == 64)
                accumulate_block_avx512(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim,
                                        4, 4);
            else
                accumulate_block_avx512(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim,
                                        4, 1);
        for (; h < heads; h++)
            if (step == 64)
                accumulate_block_avx512(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim,
                                        1, 4);
            else
                accumulate_block_avx512(acc + h * dim, p + h * TILE, rescale + h, rows, n, at, dim,
                                        1, 1);
    }
}

#endif

const lsa_attention_ops *lsa_attention_ops_now(void)
{
    static const lsa_attention_ops generic = {scores_generic, softmax, accumulate_generic, merge,
                                              mass};
#if defined(__x86_64__)
    static const lsa_attention_ops avx2 = {scores_avx2, softmax_avx2, accumulate_avx2, merge, mass};
    static const lsa_attention_ops avx512 = {scores_avx512, softmax_blocks_avx512,
                                             accumulate_avx512, merge, mass};
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512) return &avx512;
    if (level == LSA_CPU_AVX2) return &avx2;
#endif
    return &generic;
}
