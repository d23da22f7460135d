/* Owns the records' bytes: how attention KV and index keys are stored, and read back. */
#include "kernels/kv_record.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/hadamard.h"
#include "kernels/kv_record_private.h"

/* ROTATED: the floats that are rotated at a time. */
enum { TILE = LSA_KV_TILE, ROTATED = LSA_INDEX_MOST_FP8_DIM };

/* The bits of the largest |x|, at least 1e-4. Positive numbers order as their bits do, NaN last. */
static inline LSA_BODY uint32_t amax_bits(const float *x, int64_t n)
{
    uint32_t most = LSA_KV_LEAST_AMAX;
    for (int64_t i = 0; i < n; i++) most = larger_bits(most, x[i]);
    return most;
}

static inline LSA_BODY void encode_tile(uint8_t *out, uint8_t *scale, const float *x, int64_t n)
{
    *scale = tile_scale(amax_bits(x, n));
    if (*scale == 255) {
        memset(out, 0x7f, (size_t)n);
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = tile_code(x[i], *scale);
}

static inline LSA_BODY void decode_tile(float *out, const uint8_t *in, float scale, int64_t n)
{
    for (int64_t i = 0; i < n; i++) out[i] = tile_number(in[i], scale);
}

static inline LSA_BODY void encode_bf16(uint8_t *out, const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t h = f32_to_bf16(x[i]);
        memcpy(out + 2 * i, &h, sizeof h);
    }
}

static inline LSA_BODY void decode_bf16(float *out, const uint8_t *in, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, in + 2 * i, sizeof h);
        out[i] = bf16_to_f32(h);
    }
}

static inline LSA_BODY void encode_kv_fp8(uint8_t *out, const float *x, int64_t dim, int64_t rope)
{
    int64_t nope = dim - rope, tiles = nope / TILE, rest = nope % TILE;
    uint8_t *end = out + lsa_kv_record_bytes(LSA_KV_FP8, dim, rope);
    uint8_t *scales = out + nope + 2 * rope;
    for (int64_t t = 0; t < tiles; t++) encode_tile(out + t * TILE, scales++, x + t * TILE, TILE);
    if (rest) encode_tile(out + tiles * TILE, scales++, x + tiles * TILE, rest);
    encode_bf16(out + nope, x + nope, rope);
    while (scales < end) *scales++ = 0;
}

static inline LSA_BODY void decode_kv_fp8(float *out, const uint8_t *in, int64_t dim, int64_t rope)
{
    int64_t nope = dim - rope, tiles = nope / TILE, rest = nope % TILE;
    const uint8_t *scales = in + nope + 2 * rope;
    for (int64_t t = 0; t < tiles; t++)
        decode_tile(out + t * TILE, in + t * TILE, e8m0_to_f32(scales[t]), TILE);
    if (rest) decode_tile(out + tiles * TILE, in + tiles * TILE, e8m0_to_f32(scales[tiles]), rest);
    decode_bf16(out + nope, in + nope, rope);
}

/* x is rotated already. */
static inline LSA_BODY void encode_key_fp8(uint8_t *out, const float *x, int64_t dim)
{
    float scale = key_scale(amax_bits(x, dim));
    for (int64_t i = 0; i < dim; i++) out[i] = key_code(x[i], scale);
    memcpy(out + dim, &scale, sizeof scale);
}

static inline LSA_BODY void decode_key_fp8(float *out, const uint8_t *in, int64_t dim)
{
    float scale;
    memcpy(&scale, in + dim, sizeof scale);
    decode_tile(out, in, scale, dim);
}

/* What the loops over records are told; rope < 0: index keys. */
typedef struct layout {
    int64_t dim, rope, stride;
    int32_t format;
} layout;

static inline LSA_BODY void encode_body(uint8_t *out, const float *in, int64_t n, const layout *l)
{
    for (int64_t i = 0; i < n; i++, out += l->stride, in += l->dim) {
        if (l->format == LSA_KV_F32)
            memcpy(out, in, (size_t)l->dim * 4);
        else if (l->format == LSA_KV_BF16)
            encode_bf16(out, in, l->dim);
        else if (l->rope < 0)
            encode_key_fp8(out, in, l->dim);
        else
            encode_kv_fp8(out, in, l->dim, l->rope);
    }
}

static inline LSA_BODY void decode_body(float *out, const uint8_t *in, int64_t n, const layout *l)
{
    for (int64_t i = 0; i < n; i++, out += l->dim, in += l->stride) {
        if (l->format == LSA_KV_F32)
            memcpy(out, in, (size_t)l->dim * 4);
        else if (l->format == LSA_KV_BF16)
            decode_bf16(out, in, l->dim);
        else if (l->rope < 0)
            decode_key_fp8(out, in, l->dim);
        else
            decode_kv_fp8(out, in, l->dim, l->rope);
    }
}

LSA_PATHS(encode, (uint8_t * out, const float *in, int64_t n, const layout *l), (out, in, n, l))
LSA_PATHS(decode, (float *out, const uint8_t *in, int64_t n, const layout *l), (out, in, n, l))

/* Rotates copies, as many rows at a time as fit. */
static void encode_rotated(uint8_t *out, const float *in, int64_t n, const layout *l)
{
    float rotated[ROTATED];
    int64_t most = ROTATED / l->dim;
    for (int64_t i = 0; i < n; i += most) {
        int64_t rows = n - i < most ? n - i : most;
        memcpy(rotated, in + i * l->dim, (size_t)(rows * l->dim) * 4);
        lsa_hadamard_cpu(rotated, rows, l->dim, NULL);
        encode(out + i * l->stride, rotated, rows, l);
    }
}

static void encode_any(uint8_t *out, const float *in, int64_t n, const layout *l)
{
    if (l->rope < 0 && l->format == LSA_KV_FP8)
        encode_rotated(out, in, n, l);
    else
        encode(out, in, n, l);
}

typedef struct coding {
    void *out;
    const void *in;
    const layout *l;
} coding;

static void encode_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const coding *c = context;
    encode_any((uint8_t *)c->out + from * c->l->stride, (const float *)c->in + from * c->l->dim,
               to - from, c->l);
}

static void decode_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const coding *c = context;
    decode((float *)c->out + from * c->l->dim, (const uint8_t *)c->in + from * c->l->stride,
           to - from, c->l);
}

/* A number takes some tenths of a nanosecond. */
static int encode_all(uint8_t *out, const float *in, int64_t n, const layout *l)
{
    lsa_parallel(lsa_threads_for(n * l->dim / 4), n, encode_part, &(coding){out, in, l});
    return LSA_OK;
}

static int decode_all(float *out, const uint8_t *in, int64_t n, const layout *l)
{
    lsa_parallel(lsa_threads_for(n * l->dim / 4), n, decode_part, &(coding){out, in, l});
    return LSA_OK;
}

int64_t lsa_kv_record_bytes(int32_t format, int64_t dim, int64_t rope_dim)
{
    if (dim < 1 || rope_dim < 0 || rope_dim > dim) return 0;
    int64_t nope = dim - rope_dim, tiles = (nope + TILE - 1) / TILE;
    switch (format) {
    case LSA_KV_F32:
        return 4 * dim;
    case LSA_KV_BF16:
        return 2 * dim;
    case LSA_KV_FP8:
        return (nope + 2 * rope_dim + tiles + 7) / 8 * 8;
    default:
        return 0;
    }
}

int64_t lsa_index_key_bytes(int32_t format, int64_t dim)
{
    if (dim < 1) return 0;
    switch (format) {
    case LSA_KV_F32:
        return 4 * dim;
    case LSA_KV_BF16:
        return 2 * dim;
    case LSA_KV_FP8:
        return dim + 4;
    default:
        return 0;
    }
}

static int check_records(const char *op, int64_t n, int64_t bytes, const layout *l)
{
    if (n < 0) return lsa_fail(LSA_EARG, "%s: n is %lld", op, (long long)n);
    if (l->format < LSA_KV_F32 || l->format > LSA_KV_FP8)
        return lsa_fail(LSA_EDTYPE, "%s: format %d is unknown", op, l->format);
    if (l->dim < 1) return lsa_fail(LSA_ESHAPE, "%s: dim is %lld", op, (long long)l->dim);
    if (bytes == 0)
        return lsa_fail(LSA_ESHAPE, "%s: rope_dim is %lld, dim is %lld", op, (long long)l->rope,
                        (long long)l->dim);
    if (l->stride < bytes)
        return lsa_fail(LSA_ESHAPE, "%s: stride is %lld, a record has %lld bytes", op,
                        (long long)l->stride, (long long)bytes);
    return LSA_OK;
}

static int check_key(const char *op, int64_t n, const layout *l)
{
    int rc = check_records(op, n, lsa_index_key_bytes(l->format, l->dim), l);
    if (rc) return rc;
    if (l->format == LSA_KV_FP8 && (l->dim & (l->dim - 1)))
        return lsa_fail(LSA_ESHAPE, "%s: dim is %lld, not a power of two", op, (long long)l->dim);
    if (l->format == LSA_KV_FP8 && l->dim > ROTATED)
        return lsa_fail(LSA_ESHAPE, "%s: dim is %lld, fp8 keys have at most %d", op,
                        (long long)l->dim, ROTATED);
    return LSA_OK;
}

int lsa_kv_check(const char *op, int64_t n, int64_t dim, int64_t rope_dim, int64_t stride,
                 int32_t format)
{
    layout l = {dim, rope_dim, stride, format};
    return check_records(op, n, lsa_kv_record_bytes(format, dim, rope_dim), &l);
}

int lsa_index_key_check(const char *op, int64_t n, int64_t dim, int64_t stride, int32_t format)
{
    layout l = {dim, -1, stride, format};
    return check_key(op, n, &l);
}

int lsa_kv_encode_cpu(void *out, const float *in, int64_t n, int64_t dim, int64_t rope_dim,
                      int64_t out_stride, int32_t format, void *stream)
{
    (void)stream;
    layout l = {dim, rope_dim, out_stride, format};
    int rc = lsa_kv_check("kv_encode", n, dim, rope_dim, out_stride, format);
    return rc ? rc : encode_all(out, in, n, &l);
}

int lsa_kv_decode_cpu(float *out, const void *in, int64_t n, int64_t dim, int64_t rope_dim,
                      int64_t in_stride, int32_t format, void *stream)
{
    (void)stream;
    layout l = {dim, rope_dim, in_stride, format};
    int rc = lsa_kv_check("kv_decode", n, dim, rope_dim, in_stride, format);
    return rc ? rc : decode_all(out, in, n, &l);
}

int lsa_index_encode_cpu(void *out, const float *in, int64_t n, int64_t dim, int64_t out_stride,
                         int32_t format, void *stream)
{
    (void)stream;
    layout l = {dim, -1, out_stride, format};
    int rc = lsa_index_key_check("index_encode", n, dim, out_stride, format);
    return rc ? rc : encode_all(out, in, n, &l);
}

int lsa_index_decode_cpu(float *out, const void *in, int64_t n, int64_t dim, int64_t in_stride,
                         int32_t format, void *stream)
{
    (void)stream;
    layout l = {dim, -1, in_stride, format};
    int rc = lsa_index_key_check("index_decode", n, dim, in_stride, format);
    return rc ? rc : decode_all(out, in, n, &l);
}
