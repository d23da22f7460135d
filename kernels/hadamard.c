/* Owns the Walsh-Hadamard transform: butterflies of distance 1, 2, 4, ... in that order on every
 * code path, so that every path gives the same bits. */
#include "kernels/hadamard.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"

enum { VECTORS = 8 };

/* Distances 1 to 8, inside one vector. */
static inline f32x16 lanes_generic(f32x16 v)
{
    float a[16];
    f32x16_store(a, v);
    for (int h = 1; h < 16; h *= 2)
        for (int i = 0; i < 16; i++) {
            if (i & h) continue;
            float low = a[i], high = a[i + h];
            a[i] = low + high;
            a[i + h] = low - high;
        }
    return f32x16_load(a);
}

#if defined(__x86_64__)
/* p: x with the partners swapped. Sums where the bit of `odd` is 0, differences where it is 1. */
#define BUTTERFLY(x, p, odd) _mm512_mask_sub_ps(_mm512_add_ps(x, p), odd, p, x)

static inline LSA_TARGET_AVX512 f32x16 lanes_avx512(f32x16 v)
{
    __m512 x = (__m512)v;
    x = BUTTERFLY(x, _mm512_permute_ps(x, 0xb1), 0xaaaa);
    x = BUTTERFLY(x, _mm512_permute_ps(x, 0x4e), 0xcccc);
    x = BUTTERFLY(x, _mm512_shuffle_f32x4(x, x, 0xb1), 0xf0f0);
    x = BUTTERFLY(x, _mm512_shuffle_f32x4(x, x, 0x4e), 0xff00);
    return (f32x16)x;
}
#undef BUTTERFLY

static inline LSA_TARGET_AVX2 __m256 half_lanes(__m256 x)
{
    __m256 p = _mm256_permute_ps(x, 0xb1);
    x = _mm256_blend_ps(_mm256_add_ps(x, p), _mm256_sub_ps(p, x), 0xaa);
    p = _mm256_permute_ps(x, 0x4e);
    x = _mm256_blend_ps(_mm256_add_ps(x, p), _mm256_sub_ps(p, x), 0xcc);
    p = _mm256_permute2f128_ps(x, x, 0x01);
    return _mm256_blend_ps(_mm256_add_ps(x, p), _mm256_sub_ps(p, x), 0xf0);
}

static inline LSA_TARGET_AVX2 f32x16 lanes_avx2(f32x16 v)
{
    __m256 half[2];
    memcpy(half, &v, sizeof v);
    __m256 low = half_lanes(half[0]), high = half_lanes(half[1]);
    half[0] = _mm256_add_ps(low, high);
    half[1] = _mm256_sub_ps(low, high);
    memcpy(&v, half, sizeof v);
    return v;
}
#endif

/* Up to 128 floats, `vectors` a constant: they stay in registers. */
static inline LSA_BODY void block(float *x, int vectors, f32x16 (*lanes)(f32x16), float scale)
{
    f32x16 v[VECTORS];
    for (int i = 0; i < vectors; i++) v[i] = lanes(f32x16_load(x + 16 * i));
    for (int h = 1; h < vectors; h *= 2)
        for (int i = 0; i < vectors; i++) {
            if (i & h) continue;
            f32x16 low = v[i], high = v[i + h];
            v[i] = low + high;
            v[i + h] = low - high;
        }
    for (int i = 0; i < vectors; i++) f32x16_store(x + 16 * i, v[i] * scale);
}

/* Distances of 128 and more: between blocks. */
static inline LSA_BODY void between_blocks(float *x, int64_t dim, float scale)
{
    for (int64_t h = 16 * VECTORS; h < dim; h *= 2) {
        float s = 2 * h == dim ? scale : 1;
        for (int64_t i = 0; i < dim; i += 2 * h)
            for (int64_t j = i; j < i + h; j += 16) {
                f32x16 low = f32x16_load(x + j), high = f32x16_load(x + j + h);
                f32x16_store(x + j, (low + high) * s);
                f32x16_store(x + j + h, (low - high) * s);
            }
    }
}

static inline LSA_BODY void short_row(float *x, int64_t dim, float scale)
{
    for (int64_t h = 1; h < dim; h *= 2)
        for (int64_t i = 0; i < dim; i++) {
            if (i & h) continue;
            float low = x[i], high = x[i + h];
            x[i] = low + high;
            x[i + h] = low - high;
        }
    for (int64_t i = 0; i < dim; i++) x[i] *= scale;
}

static inline LSA_BODY void rows_body(float *x, int64_t rows, int64_t dim, f32x16 (*lanes)(f32x16))
{
    float scale = (float)(1 / sqrt((double)dim));
    for (float *end = x + rows * dim; x != end; x += dim) {
        switch (dim) {
        case 16:
            block(x, 1, lanes, scale);
            break;
        case 32:
            block(x, 2, lanes, scale);
            break;
        case 64:
            block(x, 4, lanes, scale);
            break;
        case 128:
            block(x, 8, lanes, scale);
            break;
        default:
            if (dim < 16) {
                short_row(x, dim, scale);
                break;
            }
            for (int64_t i = 0; i < dim; i += 16 * VECTORS) block(x + i, VECTORS, lanes, 1);
            between_blocks(x, dim, scale);
        }
    }
}

static void rows_generic(float *x, int64_t rows, int64_t dim)
{
    rows_body(x, rows, dim, lanes_generic);
}

#if defined(__x86_64__)
LSA_TARGET_AVX2 static void rows_avx2(float *x, int64_t rows, int64_t dim)
{
    rows_body(x, rows, dim, lanes_avx2);
}

LSA_TARGET_AVX512 static void rows_avx512(float *x, int64_t rows, int64_t dim)
{
    rows_body(x, rows, dim, lanes_avx512);
}
#endif

static void transform(float *x, int64_t rows, int64_t dim)
{
#if defined(__x86_64__)
    int level = lsa_cpu_level();
    if (level >= LSA_CPU_AVX512)
        rows_avx512(x, rows, dim);
    else if (level == LSA_CPU_AVX2)
        rows_avx2(x, rows, dim);
    else
        rows_generic(x, rows, dim);
#else
    rows_generic(x, rows, dim);
#endif
}

int lsa_hadamard_check(int64_t rows, int64_t dim)
{
    if (rows < 0) return lsa_fail(LSA_EARG, "hadamard: rows is %lld", (long long)rows);
    if (dim < 1 || (dim & (dim - 1)))
        return lsa_fail(LSA_ESHAPE, "hadamard: dim is %lld, not a power of two", (long long)dim);
    return LSA_OK;
}

typedef struct transform_call {
    float *x;
    int64_t dim;
} transform_call;

static void transform_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const transform_call *c = context;
    transform(c->x + from * c->dim, to - from, c->dim);
}

int lsa_hadamard_cpu(float *x, int64_t rows, int64_t dim, void *stream)
{
    (void)stream;
    int rc = lsa_hadamard_check(rows, dim);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(rows * dim), rows, transform_part, &(transform_call){x, dim});
    return LSA_OK;
}
