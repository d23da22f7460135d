/* Private to CUDA files: what a span adds to what its session keeps, by a block of 256 threads. */
#ifndef LSA_EXTEND_CUDA_H
#define LSA_EXTEND_CUDA_H
#include "kernels/compress_cuda.h"
#include "kernels/kv_record_cuda.h"
#include "kernels/record_at.h"
#include "kernels/rope_cuda.h"

extern "C" {
#include "kernels/compress.h"
#include "kernels/extend.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
}

enum {
    THREADS = 256,
    PIECE = 4 * THREADS, // floats of a row that a block copies at once
    SHARED_BYTES = 48 << 10
};

// ---- rows ----

__device__ static void copy_piece(float *to, const float *from, int64_t at, int64_t width)
{
    bool whole = width % 4 == 0 && ((uintptr_t)to | (uintptr_t)from) % 16 == 0;
    at += 4 * threadIdx.x;
    if (at < width) lsa_store4(to, at, width, whole, lsa_load4(from, at, width, whole));
}

// Positions fit in 32 bits, of which a remainder takes a fraction of the instructions.
__device__ static int64_t place_in(const lsa_ring &ring, int64_t position)
{
    return (uint32_t)position % (uint32_t)ring.room;
}

// A part of n rows goes into a ring, by position.
__device__ static void append(const lsa_ring &ring, int64_t from, int64_t n, const float *rows,
                              int64_t part, int64_t parts)
{
    uint32_t pieces = ((uint32_t)ring.width + PIECE - 1) / PIECE, all = (uint32_t)n * pieces;
#pragma unroll 1
    for (uint32_t i = (uint32_t)part; i < all; i += (uint32_t)parts) {
        uint32_t row = i / pieces;
        copy_piece(ring.data + place_in(ring, from + row) * ring.width, rows + row * ring.width,
                   i % pieces * PIECE, ring.width);
    }
}

__device__ static const lsa_ring &ring_of(const lsa_layer_store &store, int32_t what)
{
    return what == LSA_KEEP_WINDOW          ? store.window
           : what == LSA_KEEP_QUERIES       ? store.queries
           : what == LSA_KEEP_QUERY_WEIGHTS ? store.query_weights
                                            : store.hidden;
}

// ---- entries ----

// A window's projections: of positions known before the pass in the rings, of others among the pass's rows, which other
// blocks put into the rings meanwhile.
struct projections {
    const lsa_ring &kv_ring, &gate_ring;
    const float *kv_rows, *gate_rows; // of position `known`
    int64_t known, begin;             // begin: the window's first position
    __device__ const float *row(const lsa_ring &ring, const float *rows, int64_t i) const
    {
        int64_t p = begin + i;
        return p < known ? ring.data + place_in(ring, p) * ring.width
                         : rows + (p - known) * ring.width;
    }
    __device__ const float *kv(int64_t i) const { return row(kv_ring, kv_rows, i); }
    __device__ const float *gate(int64_t i) const { return row(gate_ring, gate_rows, i); }
};

// What a launch is about, with what the host computed.
struct extending {
    lsa_extension x;
    int64_t bytes; // of a record or key
    float rotation;
};

// held [dim]: the entry of a window, normed and rotated. Ends with a barrier.
__device__ static void make_entry(float *held, const lsa_extension &x, const projections &rows)
{
    __shared__ float sums[THREADS / LSA_WARP];
    int64_t width = x.overlap ? 2 * x.dim : x.dim, half = x.rope_dim / 2;
    bool before = x.overlap && rows.begin > 0;
    float own = 0;
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < x.dim; c += THREADS) {
        held[c] =
            lsa_mixed(rows, x.bias, before ? -x.rate : 0, x.rate, width, c, x.overlap ? x.dim : 0);
        own = fmaf(held[c], held[c], own);
    }
    float scale = 1.0f / sqrtf(lsa_block_sum(own, sums) / (float)x.dim + x.norm_eps);
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < x.dim; c += THREADS)
        held[c] = held[c] * scale * (x.norm ? x.norm[c] : 1.0f);
    __syncthreads();
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < half; i += THREADS) {
        float cosine, sine;
        lsa_rope_turn(&cosine, &sine, (int32_t)rows.begin, x.inv_freq[i]);
        lsa_rope_pair(held + x.dim - 2 * half + 2 * i, cosine, sine);
    }
    __syncthreads();
}

// Ends with a barrier; held is used up.
__device__ static void encode(uint8_t *record, float *held, const extending &e)
{
    const lsa_extension &x = e.x;
    if (x.format != LSA_KV_FP8)
#pragma unroll 1
        for (int64_t i = threadIdx.x; i < x.dim; i += THREADS)
            encode_plain(record, held[i], i, x.format);
    else if (x.what == LSA_EXTEND_KEYS)
        encode_key_fp8(record, held, (int)x.dim, e.rotation);
    else
        encode_fp8(record, held, x.dim, x.rope_dim, e.bytes);
    __syncthreads();
}

// `record` is in shared memory, on a boundary of four bytes.
__device__ static void put_record(uint8_t *to, const uint8_t *record, int64_t bytes)
{
    int64_t whole = (uintptr_t)to % 4 == 0 ? bytes / 4 : 0;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < whole; i += THREADS)
        ((uint32_t *)to)[i] = ((const uint32_t *)record)[i];
#pragma unroll 1
    for (int64_t i = 4 * whole + threadIdx.x; i < bytes; i += THREADS) to[i] = record[i];
}

// A chunk's record or key goes where it belongs.
__device__ static void publish(const lsa_span &s, const lsa_layer_store &store, const extending &e,
                               int64_t chunk, const uint8_t *record)
{
    bool keys = e.x.what == LSA_EXTEND_KEYS;
    const lsa_records &hot = keys ? store.hot_keys : store.hot;
    put_record(lsa_record_at(keys ? &store.keys : &store.cold, chunk), record, e.bytes);
    if (!keys && store.mirror.blocks)
        put_record(lsa_record_at(&store.mirror, chunk), record, e.bytes);
    int32_t slot = s.born_slot && hot.blocks ? s.born_slot[chunk - s.born_from] : -1;
    if (slot >= 0) put_record(lsa_record_at(&hot, slot), record, e.bytes);
    if (keys && s.among_residents)
        put_record(store.resident_keys + (s.residents + chunk - s.chunks) * e.bytes, record,
                   e.bytes);
}

// A span's part of an extension: rows into the rings, and every gridDim.y-th of its new windows. kv_rows, gate_rows: the span's
// projections. held: shared memory for an entry and its record.
__device__ __noinline__ static void extend_span(float *entries, const lsa_span &s, int64_t layer,
                                                const extending &e, const float *kv_rows,
                                                const float *gate_rows, float *held, int64_t part,
                                                int64_t parts)
{
    const lsa_extension &x = e.x;
    uint8_t *record = (uint8_t *)(held + x.dim);
    const lsa_layer_store &store = s.layers[layer];
    bool keys = x.what == LSA_EXTEND_KEYS;
    const lsa_ring &kv = keys ? store.index_kv : store.kv;
    const lsa_ring &gate = keys ? store.index_gate : store.gate;
    int64_t known = s.progress->tokens; // positions fit in 32 bits
    int64_t first = (uint32_t)known / (uint32_t)x.rate;
    int64_t fresh = (uint32_t)(known + s.rows) / (uint32_t)x.rate - first;
    append(kv, known, s.rows, kv_rows, part, parts);
    append(gate, known, s.rows, gate_rows, part, parts);
#pragma unroll 1
    for (int64_t i = part; i < fresh; i += parts) {
        make_entry(held, x, {kv, gate, kv_rows, gate_rows, known, (first + i) * x.rate});
#pragma unroll 1
        for (int64_t c = threadIdx.x; c < x.dim; c += THREADS)
            entries[(s.row + i) * x.dim + c] = held[c];
        __syncthreads();
        encode(record, held, e);
        publish(s, store, e, first + i, record);
        __syncthreads();
    }
}

// Of projections where the extension says.
__device__ static void extend_span(float *entries, const lsa_span &s, int64_t layer,
                                   const extending &e, float *held, int64_t part, int64_t parts)
{
    const lsa_layer_store &store = s.layers[layer];
    int64_t width = e.x.what == LSA_EXTEND_KEYS ? store.index_kv.width : store.kv.width;
    extend_span(entries, s, layer, e, e.x.kv + s.row * width, e.x.gate + s.row * width, held, part,
                parts);
}

// What the host computes and checks of an extension; *shared: bytes.
static int extending_of(extending *e, const lsa_extension &x, int64_t *shared)
{
    bool keys = x.what == LSA_EXTEND_KEYS;
    *e = {x,
          keys ? lsa_index_key_bytes(x.format, x.dim)
               : lsa_kv_record_bytes(x.format, x.dim, x.rope_dim),
          lsa_key_rotation(x.dim)};
    int rc = lsa_extend_check(&x);
    if (!rc) rc = lsa_compress_check(1, x.rate, x.dim);
    if (!rc) rc = lsa_rope_check(1, 1, x.dim, x.rope_dim);
    if (!rc)
        rc = keys ? lsa_index_key_check("index_encode", 1, x.dim, e->bytes, x.format)
                  : lsa_kv_check("kv_encode", 1, x.dim, x.rope_dim, e->bytes, x.format);
    if (rc) return rc;
    *shared = x.dim * (int64_t)sizeof(float) + e->bytes;
    if (*shared <= SHARED_BYTES - 1024) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "extend: an entry of %lld channels takes %lld bytes, a GPU has %d",
                    (long long)x.dim, (long long)*shared, SHARED_BYTES - 1024);
}

#endif
