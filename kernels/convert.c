/* Owns conversion between dtypes: blocks of numbers pass through f32, through i64 from integer to integer, or through f64 where
 * one side is that, in a buffer that stays in the first-level cache. */
#include "kernels/convert.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/convert_private.h"

enum { BLOCK = 512, PIECE = 1 << 16 };

static inline LSA_BODY uint16_t get16(const uint8_t *p, int64_t i)
{
    uint16_t v;
    memcpy(&v, p + 2 * i, sizeof v);
    return v;
}

static inline LSA_BODY int32_t get32(const uint8_t *p, int64_t i)
{
    int32_t v;
    memcpy(&v, p + 4 * i, sizeof v);
    return v;
}

static inline LSA_BODY int64_t get64(const uint8_t *p, int64_t i)
{
    int64_t v;
    memcpy(&v, p + 8 * i, sizeof v);
    return v;
}

static inline LSA_BODY double get_f64(const uint8_t *p, int64_t i)
{
    double v;
    memcpy(&v, p + 8 * i, sizeof v);
    return v;
}

static inline LSA_BODY void put_f64(uint8_t *p, int64_t i, double v) { memcpy(p + 8 * i, &v, 8); }
static inline LSA_BODY void put16(uint8_t *p, int64_t i, uint16_t v) { memcpy(p + 2 * i, &v, 2); }
static inline LSA_BODY void put32(uint8_t *p, int64_t i, int32_t v) { memcpy(p + 4 * i, &v, 4); }
static inline LSA_BODY void put64(uint8_t *p, int64_t i, int64_t v) { memcpy(p + 8 * i, &v, 8); }

#define EACH(statement)                                                                            \
    for (int64_t i = 0; i < n; i++) statement

/* odd: the numbers are rounded again when they are stored. */
static inline LSA_BODY void load_f32(float *out, const uint8_t *in, int64_t n, int32_t dtype,
                                     int odd)
{
    switch (dtype) {
    case LSA_F32:
        memcpy(out, in, (size_t)n * 4);
        break;
    case LSA_BF16:
        EACH(out[i] = bf16_to_f32(get16(in, i)));
        break;
    case LSA_F16:
        EACH(out[i] = f16_to_f32(get16(in, i)));
        break;
    case LSA_F8_E4M3:
        EACH(out[i] = e4m3_to_f32(in[i]));
        break;
    case LSA_F8_E8M0:
        EACH(out[i] = e8m0_to_f32(in[i]));
        break;
    case LSA_F4_E2M1:
        for (int64_t i = 0; i < n / 2; i++) {
            out[2 * i] = e2m1_to_f32(in[i]);
            out[2 * i + 1] = e2m1_to_f32(in[i] >> 4);
        }
        break;
    case LSA_I8:
        EACH(out[i] = (int8_t)in[i]);
        break;
    case LSA_U8:
        EACH(out[i] = in[i]);
        break;
    case LSA_I32:
        if (odd)
            EACH(out[i] = i64_to_f32_odd(get32(in, i)));
        else
            EACH(out[i] = (float)get32(in, i));
        break;
    default: /* LSA_I64 */
        if (odd)
            EACH(out[i] = i64_to_f32_odd(get64(in, i)));
        else
            EACH(out[i] = (float)get64(in, i));
        break;
    }
}

static inline LSA_BODY void store_f32(uint8_t *out, const float *in, int64_t n, int32_t dtype)
{
    switch (dtype) {
    case LSA_F32:
        memcpy(out, in, (size_t)n * 4);
        break;
    case LSA_BF16:
        EACH(put16(out, i, f32_to_bf16(in[i])));
        break;
    case LSA_F16:
        EACH(put16(out, i, f32_to_f16(in[i])));
        break;
    case LSA_F8_E4M3:
        EACH(out[i] = f32_to_e4m3(in[i]));
        break;
    case LSA_F8_E8M0:
        EACH(out[i] = f32_to_e8m0(in[i]));
        break;
    case LSA_I8:
        EACH(out[i] = (uint8_t)clamp(f32_to_i32(in[i]), INT8_MIN, INT8_MAX));
        break;
    case LSA_U8:
        EACH(out[i] = (uint8_t)clamp(f32_to_i32(in[i]), 0, UINT8_MAX));
        break;
    case LSA_I32:
        EACH(put32(out, i, f32_to_i32(in[i])));
        break;
    case LSA_I64:
        EACH(put64(out, i, f32_to_i64(in[i])));
        break;
    }
}

static inline LSA_BODY void load_i64(int64_t *out, const uint8_t *in, int64_t n, int32_t dtype)
{
    switch (dtype) {
    case LSA_I8:
        EACH(out[i] = (int8_t)in[i]);
        break;
    case LSA_U8:
        EACH(out[i] = in[i]);
        break;
    case LSA_I32:
        EACH(out[i] = get32(in, i));
        break;
    case LSA_I64:
        memcpy(out, in, (size_t)n * 8);
        break;
    }
}

static inline LSA_BODY void store_i64(uint8_t *out, const int64_t *in, int64_t n, int32_t dtype)
{
    switch (dtype) {
    case LSA_I8:
        EACH(out[i] = (uint8_t)clamp(in[i], INT8_MIN, INT8_MAX));
        break;
    case LSA_U8:
        EACH(out[i] = (uint8_t)clamp(in[i], 0, UINT8_MAX));
        break;
    case LSA_I32:
        EACH(put32(out, i, (int32_t)clamp(in[i], INT32_MIN, INT32_MAX)));
        break;
    case LSA_I64:
        memcpy(out, in, (size_t)n * 8);
        break;
    }
}

static int is_integer(int32_t dtype) { return dtype >= LSA_I8 && dtype <= LSA_I64; }

static int64_t bytes_of(int64_t n, int32_t dtype)
{
    return dtype == LSA_F4_E2M1 ? n / 2 : n * lsa_dtype_size(dtype);
}

/* One side is f64. */
static inline LSA_BODY void convert_f64(uint8_t *out, const uint8_t *in, int64_t n, int32_t to,
                                        int32_t from)
{
    int64_t whole[BLOCK];
    float block[BLOCK] = {0};
    if (to == LSA_F64 && is_integer(from)) {
        load_i64(whole, in, n, from);
        EACH(put_f64(out, i, (double)whole[i]));
    } else if (to == LSA_F64) {
        load_f32(block, in, n, from, 0);
        EACH(put_f64(out, i, (double)block[i]));
    } else if (is_integer(to)) {
        EACH(whole[i] = f64_to_i64(get_f64(in, i)));
        store_i64(out, whole, n, to);
    } else if (to == LSA_F32) {
        EACH(block[i] = (float)get_f64(in, i));
        store_f32(out, block, n, to);
    } else {
        EACH(block[i] = f64_to_f32_odd(get_f64(in, i)));
        store_f32(out, block, n, to);
    }
}

static inline LSA_BODY void convert_body(uint8_t *out, const uint8_t *in, int64_t n, int32_t to,
                                         int32_t from)
{
    int integers = is_integer(to) && is_integer(from);
    for (int64_t done = 0; done < n; done += BLOCK) {
        int64_t part = n - done < BLOCK ? n - done : BLOCK;
        const uint8_t *source = in + bytes_of(done, from);
        uint8_t *target = out + bytes_of(done, to);
        if (to == LSA_F64 || from == LSA_F64) {
            convert_f64(target, source, part, to, from);
        } else if (integers) {
            int64_t block[BLOCK];
            load_i64(block, source, part, from);
            store_i64(target, block, part, to);
        } else {
            float block[BLOCK];
            load_f32(block, source, part, from, to != LSA_F32);
            store_f32(target, block, part, to);
        }
    }
}

LSA_PATHS(convert, (uint8_t * out, const uint8_t *in, int64_t n, int32_t to, int32_t from),
          (out, in, n, to, from))

static void convert_piece(void *out, const void *in, int64_t n, int32_t out_dtype, int32_t in_dtype)
{
    if (in_dtype == out_dtype)
        memcpy(out, in, (size_t)bytes_of(n, in_dtype));
    else
        convert(out, in, n, out_dtype, in_dtype);
}

int lsa_convert_check(int64_t n, int32_t out_dtype, int32_t in_dtype)
{
    if (n < 0) return lsa_fail(LSA_EARG, "convert: n is %lld", (long long)n);
    if (out_dtype < 0 || out_dtype >= LSA_DTYPES)
        return lsa_fail(LSA_EDTYPE, "convert: out_dtype is %d, which no tensor has", out_dtype);
    if (in_dtype < 0 || (in_dtype >= LSA_DTYPES && in_dtype != LSA_F4_E2M1))
        return lsa_fail(LSA_EDTYPE, "convert: in_dtype is %d, which no tensor has", in_dtype);
    if (in_dtype == LSA_F4_E2M1 && n % 2)
        return lsa_fail(LSA_ESHAPE, "convert: %lld fp4 values do not fill whole bytes",
                        (long long)n);
    return LSA_OK;
}

typedef struct conversion {
    void *out;
    const void *in;
    int64_t n;
    int32_t out_dtype, in_dtype;
} conversion;

static void convert_pieces(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const conversion *c = context;
    int64_t from = first * PIECE, to = end * PIECE < c->n ? end * PIECE : c->n;
    convert_piece((uint8_t *)c->out + bytes_of(from, c->out_dtype),
                  (const uint8_t *)c->in + bytes_of(from, c->in_dtype), to - from, c->out_dtype,
                  c->in_dtype);
}

int lsa_convert_cpu(void *out, const void *in, int64_t n, int32_t out_dtype, int32_t in_dtype,
                    void *stream)
{
    (void)stream;
    int rc = lsa_convert_check(n, out_dtype, in_dtype);
    if (rc) return rc;
    int threads = lsa_threads_for(n / 4); /* a number takes some tenths of a nanosecond */
    lsa_parallel(threads, (n + PIECE - 1) / PIECE, convert_pieces,
                 &(conversion){out, in, n, out_dtype, in_dtype});
    return LSA_OK;
}
