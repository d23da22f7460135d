/* Index scores of chosen keys and their gradient on the CPU.
 *
 * The workspace holds the keys twice, as rows [n][dim] for the gradient and as tiles [dim][32] for the products, both
 * padded with zeros to whole vectors, and the products [heads][n] between them. Register tiles are 4 heads by 2 vectors,
 * 2 by 2 where a vector takes two registers. */
#include "kernels/index_gradient.h"

#include "core/base/error.h"
#include "core/base/simd_kept.h"
#include "kernels/number_formats.h"

enum { TILE = 32, HEADS = 4 };

static int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

typedef struct parts {
    float *rows, *tiles, *products, *slopes;
    int64_t n, width; /* keys and dim, padded */
} parts;

static parts parts_of(void *workspace, int64_t n, int64_t heads, int64_t dim)
{
    parts p = {.n = up(n, TILE), .width = up(dim, 16)};
    p.rows = workspace;
    p.tiles = p.rows + p.n * p.width;
    p.products = p.tiles + p.n * dim;
    p.slopes = p.products + heads * p.n;
    return p;
}

int64_t lsa_index_gradient_workspace(int64_t n, int64_t heads, int64_t dim)
{
    return (up(n, TILE) * (up(dim, 16) + dim + heads + 1)) * (int64_t)sizeof(float);
}

/* ---- keys ---- */

static inline LSA_BODY void decode(float *out, const uint8_t *key, int64_t dim, int32_t format)
{
    if (format == LSA_KV_F32) {
        memcpy(out, key, (size_t)dim * sizeof(float));
    } else if (format == LSA_KV_BF16) {
        for (int64_t d = 0; d < dim; d++) {
            uint16_t h;
            memcpy(&h, key + 2 * d, sizeof h);
            out[d] = bf16_to_f32(h);
        }
    } else {
        float scale;
        memcpy(&scale, key + dim, sizeof scale);
        for (int64_t d = 0; d < dim; d++) out[d] = e4m3_to_f32(key[d]) * scale;
    }
}

/* Keys from i on. */
static inline LSA_BODY void gather_from_body(const parts *p, const uint8_t *keys,
                                             const int32_t *ids, int64_t i, int64_t n, int64_t dim,
                                             int64_t key_stride, int32_t format)
{
    for (; i < p->n; i++) {
        float *row = p->rows + i * p->width, *tile = p->tiles + i / TILE * TILE * dim + i % TILE;
        if (i < n)
            decode(row, keys + (int64_t)ids[i] * key_stride, dim, format);
        else
            memset(row, 0, (size_t)dim * sizeof(float));
        for (int64_t d = dim; d < p->width; d++) row[d] = 0;
        for (int64_t d = 0; d < dim; d++) tile[d * TILE] = row[d];
    }
}

LSA_PATHS(gather_from,
          (const parts *p, const uint8_t *keys, const int32_t *ids, int64_t i, int64_t n,
           int64_t dim, int64_t key_stride, int32_t format),
          (p, keys, ids, i, n, dim, key_stride, format))

#if defined(__x86_64__)
/* fp8 keys sixteen by sixteen, dim a multiple of 16; returns how many that were. */
LSA_TARGET_AVX512
static int64_t gather_fp8_avx512(const parts *p, const uint8_t *keys, const int32_t *ids, int64_t n,
                                 int64_t dim, int64_t key_stride)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        float *tile = p->tiles + i / TILE * TILE * dim + i % TILE, scale[16];
        for (int j = 0; j < 16; j++)
            memcpy(scale + j, keys + (int64_t)ids[i + j] * key_stride + dim, sizeof *scale);
        for (int64_t d = 0; d < dim; d += 16) {
            __m512i r[16];
            for (int j = 0; j < 16; j++) {
                const uint8_t *key = keys + (int64_t)ids[i + j] * key_stride + d;
                __m512 x = e4m3x16_to_f32_avx512(_mm_loadu_si128((const void *)key));
                x = _mm512_mul_ps(x, _mm512_set1_ps(scale[j]));
                _mm512_storeu_ps(p->rows + (i + j) * p->width + d, x);
                r[j] = _mm512_castps_si512(x);
            }
            lsa_transpose16_avx512(r);
            for (int k = 0; k < 16; k++) _mm512_storeu_si512(tile + (d + k) * TILE, r[k]);
        }
    }
    return i;
}
#endif

static void gather(const parts *p, const uint8_t *keys, const int32_t *ids, int64_t n, int64_t dim,
                   int64_t key_stride, int32_t format)
{
    int64_t done = 0;
#if defined(__x86_64__)
    if (format == LSA_KV_FP8 && dim % 16 == 0 && lsa_cpu_level() >= LSA_CPU_AVX512)
        done = gather_fp8_avx512(p, keys, ids, n, dim, key_stride);
#endif
    gather_from(p, keys, ids, done, n, dim, key_stride, format);
}

/* ---- forward ---- */

/* Products of `heads` (1, 2 or 4) heads with one tile of keys. */
static inline LSA_BODY void tile_products(int wide, float *out, int64_t out_stride, const float *q,
                                          const float *tile, int64_t dim, int heads)
{
    f32x16_kept a[HEADS][2];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < 2; v++) f32x16_keep(wide, &a[h][v], f32x16_set(0));
    for (int64_t d = 0; d < dim; d++) {
        f32x16 first = f32x16_load(tile + d * TILE), second = f32x16_load(tile + d * TILE + 16);
        for (int h = 0; h < heads; h++) {
            f32x16_keep_sum(wide, &a[h][0], q[h * dim + d] * first);
            f32x16_keep_sum(wide, &a[h][1], q[h * dim + d] * second);
        }
    }
    for (int h = 0; h < heads; h++) {
        f32x16_store(out + h * out_stride, f32x16_kept_value(wide, &a[h][0]));
        f32x16_store(out + h * out_stride + 16, f32x16_kept_value(wide, &a[h][1]));
    }
}

static inline LSA_BODY f32x16 relu(f32x16 v)
{
    return (f32x16)(~(v <= 0.0f) & (i32x16)v); /* NaN stays */
}

static inline LSA_BODY void forward_body(int wide, float *logits, const parts *p, const float *q,
                                         const float *w, int64_t n, int64_t heads, int64_t dim)
{
    const int group = wide ? HEADS : HEADS / 2;
    for (int64_t i = 0; i < p->n; i += TILE) {
        int64_t h = 0;
        for (; h + group <= heads; h += group)
            tile_products(wide, p->products + h * p->n + i, p->n, q + h * dim, p->tiles + i * dim,
                          dim, group);
        for (; h < heads; h++)
            tile_products(wide, p->products + h * p->n + i, p->n, q + h * dim, p->tiles + i * dim,
                          dim, 1);
    }
    for (int64_t i = 0; i < n; i += 16) {
        f32x16_kept sum;
        f32x16_keep(wide, &sum, f32x16_set(0.0f));
        for (int64_t h = 0; h < heads; h++)
            f32x16_keep_sum(wide, &sum, w[h] * relu(f32x16_load(p->products + h * p->n + i)));
        f32x16_store_n(logits + i, f32x16_kept_value(wide, &sum), n - i < 16 ? n - i : 16);
    }
}

LSA_PATHS_WIDE(forward,
               (float *logits, const parts *p, const float *q, const float *w, int64_t n,
                int64_t heads, int64_t dim),
               (logits, p, q, w, n, heads, dim))

static int check(const char *what, int64_t n, int64_t heads, int64_t dim)
{
    if (n >= 0 && heads >= 1 && dim >= 1) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "%s: %lld keys, %lld heads of %lld", what, (long long)n,
                    (long long)heads, (long long)dim);
}

int lsa_index_gather_cpu(float *logits, const float *q, const float *w, const void *keys,
                         const int32_t *ids, int64_t n, int64_t heads, int64_t dim,
                         int64_t key_stride, int32_t key_format, void *workspace, void *stream)
{
    (void)stream;
    int rc = check("index_gather", n, heads, dim);
    if (rc) return rc;
    if (key_format < LSA_KV_F32 || key_format > LSA_KV_FP8)
        return lsa_fail(LSA_EARG, "index_gather: key format %d is not f32, bf16 or fp8",
                        key_format);
    parts p = parts_of(workspace, n, heads, dim);
    gather(&p, keys, ids, n, dim, key_stride, key_format);
    forward(logits, &p, q, w, n, heads, dim);
    return LSA_OK;
}

/* ---- backward ---- */

/* Turns a head's products into slopes of the products, and gives the gradient of its weight. */
static inline LSA_BODY float head_slopes(int wide, float *products, const float *slopes, float w,
                                         int64_t n)
{
    f32x16_kept sum;
    f32x16_keep(wide, &sum, f32x16_set(0.0f));
    for (int64_t i = 0; i < n; i += 16) {
        f32x16 x = f32x16_load(products + i), g = f32x16_load(slopes + i);
        f32x16_keep_sum(wide, &sum, g * relu(x));
        f32x16_store(products + i, (f32x16)(~(x <= 0.0f) & (i32x16)(g * w)));
    }
    return f32x16_sum(f32x16_kept_value(wide, &sum));
}

/* Sums over keys of slope times key, for `heads` heads and `vectors` (1 or 2) vectors of dim. */
static inline LSA_BODY void weighted_keys(int wide, float *dq, const float *products,
                                          int64_t stride, const float *rows, int64_t width,
                                          int64_t n, int64_t dim, int64_t from, int heads,
                                          int vectors)
{
    f32x16_kept a[HEADS][2];
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) f32x16_keep(wide, &a[h][v], f32x16_set(0));
    for (int64_t i = 0; i < n; i++) {
        f32x16 k[2] = {f32x16_load(rows + i * width + from)};
        if (vectors == 2) k[1] = f32x16_load(rows + i * width + from + 16);
        for (int h = 0; h < heads; h++)
            for (int v = 0; v < vectors; v++)
                f32x16_keep_sum(wide, &a[h][v], products[h * stride + i] * k[v]);
    }
    for (int h = 0; h < heads; h++)
        for (int v = 0; v < vectors; v++) {
            int64_t at = from + 16 * v, left = dim - at;
            f32x16_store_n(dq + h * dim + at, f32x16_kept_value(wide, &a[h][v]),
                           left < 16 ? left : 16);
        }
}

static inline LSA_BODY void heads_gradient(int wide, float *dq, const float *products,
                                           const parts *p, int64_t n, int64_t dim, int heads)
{
    int64_t d = 0;
    for (; d + 32 <= p->width; d += 32)
        weighted_keys(wide, dq, products, p->n, p->rows, p->width, n, dim, d, heads, 2);
    if (d < p->width)
        weighted_keys(wide, dq, products, p->n, p->rows, p->width, n, dim, d, heads, 1);
}

static inline LSA_BODY void backward_body(int wide, float *dq, float *dw, const parts *p,
                                          const float *w, int64_t n, int64_t heads, int64_t dim)
{
    const int group = wide ? HEADS : HEADS / 2;
    for (int64_t h = 0; h < heads; h++)
        dw[h] = head_slopes(wide, p->products + h * p->n, p->slopes, w[h], p->n);
    int64_t h = 0;
    for (; h + group <= heads; h += group)
        heads_gradient(wide, dq + h * dim, p->products + h * p->n, p, n, dim, group);
    for (; h < heads; h++) heads_gradient(wide, dq + h * dim, p->products + h * p->n, p, n, dim, 1);
}

LSA_PATHS_WIDE(backward,
               (float *dq, float *dw, const parts *p, const float *w, int64_t n, int64_t heads,
                int64_t dim),
               (dq, dw, p, w, n, heads, dim))

int lsa_index_gradient_cpu(float *dq, float *dw, const float *slope, const float *w, int64_t n,
                           int64_t heads, int64_t dim, void *workspace, void *stream)
{
    (void)stream;
    int rc = check("index_gradient", n, heads, dim);
    if (rc) return rc;
    parts p = parts_of(workspace, n, heads, dim);
    for (int64_t i = 0; i < p.n; i++) p.slopes[i] = i < n ? slope[i] : 0;
    backward(dq, dw, &p, w, n, heads, dim);
    return LSA_OK;
}
