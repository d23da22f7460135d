// Records on the GPU, with the CPU's bytes. Records may start at any byte, so bytes are what is written.
#include "kernels/kv_record_cuda.h"

enum { THREADS = 256, TILE = LSA_KV_TILE };

// Of n records; rope < 0: index keys.
struct layout {
    int64_t n, dim, rope, stride, bytes;
    int32_t format;
};

// ---- helpers ----

__device__ static uint32_t get(const uint8_t *in, int bytes)
{
    uint32_t bits = 0;
    for (int i = 0; i < bytes; i++) bits |= (uint32_t)in[i] << 8 * i;
    return bits;
}

// ---- kernels ----

// f32 and bf16 records, either kind. Grid: (ceil(n dim / 256)), block: 256.
__global__ static void encode_each(uint8_t *out, const float *in, layout l)
{
    for (int64_t i = lsa_thread(); i < l.n * l.dim; i += lsa_threads())
        encode_plain(out + i / l.dim * l.stride, in[i], i % l.dim, l.format);
}

// A block a record. Grid: (n), block: 256.
__global__ static void kv_encode_fp8(uint8_t *out, const float *in, layout l)
{
    for (int64_t r = blockIdx.x; r < l.n; r += gridDim.x)
        encode_fp8(out + r * l.stride, in + r * l.dim, l.dim, l.rope, l.bytes);
}

// A block a key. Grid: (n), block: 256, shared: 4 dim bytes.
__global__ static void index_encode_fp8(uint8_t *out, const float *in, layout l, float rotation)
{
    extern __shared__ float held[];
    int dim = (int)l.dim;
    for (int64_t r = blockIdx.x; r < l.n; r += gridDim.x) {
        for (int i = threadIdx.x; i < dim; i += THREADS) held[i] = in[r * dim + i];
        __syncthreads();
        encode_key_fp8(out + r * l.stride, held, dim, rotation);
        __syncthreads();
    }
}

// Records of every format and either kind. Grid: (ceil(n dim / 256)), block: 256.
__global__ static void decode_each(float *out, const uint8_t *in, layout l)
{
    int64_t nope = l.rope < 0 ? l.dim : l.dim - l.rope;
    for (int64_t i = lsa_thread(); i < l.n * l.dim; i += lsa_threads()) {
        const uint8_t *record = in + i / l.dim * l.stride;
        int64_t d = i % l.dim;
        float v;
        if (l.format == LSA_KV_F32)
            v = f32_from_bits(get(record + 4 * d, 4));
        else if (l.format == LSA_KV_BF16)
            v = bf16_to_f32((uint16_t)get(record + 2 * d, 2));
        else if (l.rope < 0)
            v = tile_number(record[d], f32_from_bits(get(record + l.dim, 4)));
        else if (d < nope)
            v = tile_number(record[d], e8m0_to_f32(record[nope + 2 * l.rope + d / TILE]));
        else
            v = bf16_to_f32((uint16_t)get(record + nope + 2 * (d - nope), 2));
        out[i] = v;
    }
}

// ---- launchers ----

static int encode(const char *op, void *out, const float *in, const layout &l, void *stream)
{
    if (l.n == 0) return LSA_OK;
    cudaStream_t s = (cudaStream_t)stream;
    uint8_t *records = (uint8_t *)out;
    if (l.format != LSA_KV_FP8)
        encode_each<<<lsa_blocks(l.n * l.dim, THREADS), THREADS, 0, s>>>(records, in, l);
    else if (l.rope >= 0)
        kv_encode_fp8<<<lsa_blocks(l.n, 1), THREADS, 0, s>>>(records, in, l);
    else
        index_encode_fp8<<<lsa_blocks(l.n, 1), THREADS, l.dim * sizeof(float), s>>>(
            records, in, l, lsa_key_rotation(l.dim));
    return lsa_launched(op);
}

static int decode(const char *op, float *out, const void *in, const layout &l, void *stream)
{
    if (l.n == 0) return LSA_OK;
    decode_each<<<lsa_blocks(l.n * l.dim, THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        out, (const uint8_t *)in, l);
    return lsa_launched(op);
}

int lsa_kv_encode_cuda(void *out, const float *in, int64_t n, int64_t dim, int64_t rope_dim,
                       int64_t out_stride, int32_t format, void *stream)
{
    int rc = lsa_kv_check("kv_encode", n, dim, rope_dim, out_stride, format);
    if (rc) return rc;
    layout l = {n, dim, rope_dim, out_stride, lsa_kv_record_bytes(format, dim, rope_dim), format};
    return encode("kv_encode", out, in, l, stream);
}

int lsa_kv_decode_cuda(float *out, const void *in, int64_t n, int64_t dim, int64_t rope_dim,
                       int64_t in_stride, int32_t format, void *stream)
{
    int rc = lsa_kv_check("kv_decode", n, dim, rope_dim, in_stride, format);
    if (rc) return rc;
    layout l = {n, dim, rope_dim, in_stride, 0, format};
    return decode("kv_decode", out, in, l, stream);
}

int lsa_index_encode_cuda(void *out, const float *in, int64_t n, int64_t dim, int64_t out_stride,
                          int32_t format, void *stream)
{
    int rc = lsa_index_key_check("index_encode", n, dim, out_stride, format);
    if (rc) return rc;
    layout l = {n, dim, -1, out_stride, 0, format};
    return encode("index_encode", out, in, l, stream);
}

int lsa_index_decode_cuda(float *out, const void *in, int64_t n, int64_t dim, int64_t in_stride,
                          int32_t format, void *stream)
{
    int rc = lsa_index_key_check("index_decode", n, dim, in_stride, format);
    if (rc) return rc;
    layout l = {n, dim, -1, in_stride, 0, format};
    return decode("index_decode", out, in, l, stream);
}
