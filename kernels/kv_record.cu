// Records on the GPU, with the CPU's bytes. Records may start at any byte, so bytes are what is written.
#include "kernels/cuda_launch.h"
#include "kernels/hadamard_cuda.h"
#include "kernels/kv_record_private.h"

extern "C" {
#include "kernels/kv_record.h"
}

enum { THREADS = 256, TILE = LSA_KV_TILE };

// Of n records; rope < 0: index keys.
struct layout {
    int64_t n, dim, rope, stride, bytes;
    int32_t format;
};

// ---- helpers ----

__device__ static void put(uint8_t *out, uint32_t bits, int bytes)
{
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(bits >> 8 * i);
}

__device__ static uint32_t get(const uint8_t *in, int bytes)
{
    uint32_t bits = 0;
    for (int i = 0; i < bytes; i++) bits |= (uint32_t)in[i] << 8 * i;
    return bits;
}

__device__ static uint32_t warp_max(uint32_t v) { return __reduce_max_sync(0xffffffff, v); }

// A warp's tile of `count` values.
__device__ static void encode_tile(uint8_t *out, uint8_t *scale_at, const float *x, int count,
                                   int lane)
{
    float v[TILE / LSA_WARP];
    uint32_t amax = LSA_KV_LEAST_AMAX;
#pragma unroll
    for (int i = 0; i < TILE / LSA_WARP; i++) {
        int at = lane + i * LSA_WARP;
        v[i] = at < count ? x[at] : 0.0f;
        amax = larger_bits(amax, v[i]);
    }
    uint8_t scale = tile_scale(warp_max(amax));
#pragma unroll
    for (int i = 0; i < TILE / LSA_WARP; i++)
        if (lane + i * LSA_WARP < count) out[lane + i * LSA_WARP] = tile_code(v[i], scale);
    if (lane == 0) *scale_at = scale;
}

// ---- kernels ----

// f32 and bf16 records, either kind. Grid: (ceil(n dim / 256)), block: 256.
__global__ static void encode_plain(uint8_t *out, const float *in, layout l)
{
    int size = l.format == LSA_KV_F32 ? 4 : 2;
    for (int64_t i = lsa_thread(); i < l.n * l.dim; i += lsa_threads()) {
        uint32_t bits = l.format == LSA_KV_F32 ? f32_bits(in[i]) : f32_to_bf16(in[i]);
        put(out + i / l.dim * l.stride + i % l.dim * size, bits, size);
    }
}

// A block a record: a warp a tile, then rope values and padding. Grid: (n), block: 256.
__global__ static void kv_encode_fp8(uint8_t *out, const float *in, layout l)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int64_t nope = l.dim - l.rope, tiles = (nope + TILE - 1) / TILE;
    for (int64_t r = blockIdx.x; r < l.n; r += gridDim.x) {
        const float *x = in + r * l.dim;
        uint8_t *record = out + r * l.stride, *scales = record + nope + 2 * l.rope;
        for (int64_t t = warp; t < tiles; t += THREADS / LSA_WARP)
            encode_tile(record + t * TILE, scales + t, x + t * TILE,
                        (int)min((int64_t)TILE, nope - t * TILE), lane);
        for (int64_t i = threadIdx.x; i < l.rope; i += THREADS)
            put(record + nope + 2 * i, f32_to_bf16(x[nope + i]), 2);
        int64_t pad = nope + 2 * l.rope + tiles + threadIdx.x;
        if (pad < l.bytes) record[pad] = 0;
    }
}

// A block a key. Grid: (n), block: 256, shared: 4 dim bytes.
__global__ static void index_encode_fp8(uint8_t *out, const float *in, layout l, float rotation)
{
    extern __shared__ float held[];
    __shared__ uint32_t largest[THREADS / LSA_WARP];
    int dim = (int)l.dim;
    for (int64_t r = blockIdx.x; r < l.n; r += gridDim.x) {
        uint8_t *key = out + r * l.stride;
        for (int i = threadIdx.x; i < dim; i += THREADS) held[i] = in[r * dim + i];
        __syncthreads();
        lsa_butterflies(held, dim, dim);
        uint32_t amax = LSA_KV_LEAST_AMAX;
        for (int i = threadIdx.x; i < dim; i += THREADS) {
            held[i] *= rotation;
            amax = larger_bits(amax, held[i]);
        }
        amax = warp_max(amax);
        if (threadIdx.x % LSA_WARP == 0) largest[threadIdx.x / LSA_WARP] = amax;
        __syncthreads();
        for (int i = 0; i < THREADS / LSA_WARP; i++) amax = max(amax, largest[i]);
        float scale = key_scale(amax);
        for (int i = threadIdx.x; i < dim; i += THREADS) key[i] = key_code(held[i], scale);
        if (threadIdx.x == 0) put(key + dim, f32_bits(scale), 4);
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
        encode_plain<<<lsa_blocks(l.n * l.dim, THREADS), THREADS, 0, s>>>(records, in, l);
    else if (l.rope >= 0)
        kv_encode_fp8<<<lsa_blocks(l.n, 1), THREADS, 0, s>>>(records, in, l);
    else
        index_encode_fp8<<<lsa_blocks(l.n, 1), THREADS, l.dim * sizeof(float), s>>>(
            records, in, l, (float)(1 / sqrt((double)l.dim)));
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
