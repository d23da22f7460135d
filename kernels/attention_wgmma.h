/* Private to attention.cu: attention on Hopper's tensor cores, in bf16 with f32 sums, for heads of 512 numbers.
 *
 * A query's keys, the window's and then its records, are cut into splits by how many there are: a block has one split for 64
 * heads, in tiles of 64 keys, and leaves its sums in the workspace; a second kernel joins them in order, beginning with
 * the sink. Of a block's two warpgroups each multiplies half of the numbers of queries and keys, and adds up the other's half of
 * the scores; each has half of the numbers of the result. So a query's bits follow from its own keys alone.
 *
 * Queries and a tile of keys lie in shared memory as bf16, in eight panels of 64 numbers a row, which are read as rows of keys
 * for scores and as columns of values for the result. */
#ifndef LSA_ATTENTION_WGMMA_H
#define LSA_ATTENTION_WGMMA_H
#include <cuda_bf16.h>
#include <cuda_pipeline.h>

#include "kernels/hopper.h"

enum {
    WG_KEYS = 64, // of a tile
    WG_HEADS = 64,
    WG_DIM = 512,
    WG_PANELS = WG_DIM / 64,
    WG_PANEL_BYTES = 64 * 128,
    WG_THREADS = 2 * LSA_WARPGROUP,
    WG_WARPS = WG_THREADS / LSA_WARP,
    WG_OWN_KEYS = WG_KEYS / WG_WARPS, // of a warp, to bring in
    WG_MOST_RECORD = 584,             // fp8, at V4-Flash's sizes
    WG_RAW_BYTES = WG_KEYS * WG_MOST_RECORD,
    WG_TILE_BYTES = WG_PANELS * WG_PANEL_BYTES,
    WG_SHARED = 2 * WG_TILE_BYTES + 2 * WG_RAW_BYTES + 1024,
    WG_TILES = 2,   // of a split, at least
    WG_SPLITS = 16, // of a query, at most
    WG_ROWS = 32    // of a launch, so that the workspace stays small
};

// How a query's keys are split: `each` tiles a split.
struct wg_split {
    int64_t keys, tiles, each, count;
};

__device__ static wg_split wg_split_of(const query &q)
{
    wg_split s;
    s.keys = q.position + 1 - q.first + q.records;
    s.tiles = (s.keys + WG_KEYS - 1) / WG_KEYS;
    s.each = max((int64_t)WG_TILES, (s.tiles + WG_SPLITS - 1) / WG_SPLITS);
    s.count = (s.tiles + s.each - 1) / s.each;
    return s;
}

// Where numbers d .. d + 7 of a row belong in the panels.
__device__ static uint8_t *wg_place(uint8_t *panels, int row, int d)
{
    return panels + d / 64 * WG_PANEL_BYTES + row * 128 + ((d % 64 / 8) ^ (row % 8)) * 16;
}

// Puts them there, as bf16.
__device__ static void wg_put(uint8_t *panels, int row, int d, float4 a, float4 b)
{
    __nv_bfloat162 v[4] = {__floats2bfloat162_rn(a.x, a.y), __floats2bfloat162_rn(a.z, a.w),
                           __floats2bfloat162_rn(b.x, b.y), __floats2bfloat162_rn(b.z, b.w)};
    *(uint4 *)wg_place(panels, row, d) = *(const uint4 *)v;
}

// A key of a tile: where it is. `raw`: a record that can be brought in by copies; `aligned`: its vectors can be read where
// they lie. at is NULL beyond the last key.
struct wg_key {
    const uint8_t *at;
    int format;
    bool raw, aligned;
};

// The keys of a warp of the tile from `from` on, one a lane, so that their addresses are waited for together.
__device__ static wg_key wg_keys_at(const call &c, const query &q, int64_t from, int64_t keys)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int64_t window = q.position + 1 - q.first, j = from + warp * WG_OWN_KEYS + lane;
    wg_key k = {NULL, LSA_KV_F32, false, true};
    if (lane >= WG_OWN_KEYS || j >= keys) return k;
    if (j < window) {
        k.at = (const uint8_t *)(q.window + (q.first + j) % q.room * WG_DIM);
    } else {
        j -= window;
        k.at = record_at(q.where, q.ids ? q.ids[j] : j);
        k.format = q.where.format;
        k.raw = k.format == LSA_KV_FP8 && (uintptr_t)k.at % 8 == 0 &&
                (WG_DIM - c.rope_dim) % 64 == 0 && c.record_bytes <= WG_MOST_RECORD;
    }
    k.aligned = vectors_fit(k.at, k.format, WG_DIM, (int)c.rope_dim);
    return k;
}

// Key i of a warp's, which lane i has.
__device__ static wg_key wg_key_of(const wg_key &own, int i)
{
    wg_key k;
    k.at = (const uint8_t *)__shfl_sync(0xffffffff, (unsigned long long)own.at, i);
    int what = __shfl_sync(0xffffffff, own.format | own.raw << 8 | own.aligned << 9, i);
    k.format = what & 0xff;
    k.raw = what >> 8 & 1;
    k.aligned = what >> 9 & 1;
    return k;
}

// Begins to bring in the records of a tile.
__device__ static void wg_ask(uint8_t *raw, const call &c, const wg_key &own)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
#pragma unroll 2
    for (int i = 0; i < WG_OWN_KEYS; i++) {
        int row = warp * WG_OWN_KEYS + i;
        wg_key k = wg_key_of(own, i);
        if (!k.raw) continue;
        for (int b = 8 * lane; b < (int)c.record_bytes; b += 8 * LSA_WARP)
            __pipeline_memcpy_async(raw + row * WG_MOST_RECORD + b, k.at + b, 8);
    }
    __pipeline_commit();
}

// Two e4m3 numbers times a power of two, as bf16: exact.
__device__ static uint32_t wg_pair(uint32_t codes, float scale)
{
    __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)codes, __NV_E4M3);
    float2 f = __half22float2(pair);
    __nv_bfloat162 out = __floats2bfloat162_rn(f.x * scale, f.y * scale);
    return *(const uint32_t *)&out;
}

// Numbers d .. d + 7 of an fp8 record whose tiles are whole, d a multiple of 8.
__device__ static uint4 wg_eight(const uint8_t *record, int nope, int rope, int d)
{
    if (d >= nope) { // bf16 already
        uint2 a = *(const uint2 *)(record + nope + 2 * (d - nope)),
              b = *(const uint2 *)(record + nope + 2 * (d - nope) + 8);
        return make_uint4(a.x, a.y, b.x, b.y);
    }
    uint2 codes = *(const uint2 *)(record + d);
    float scale = e8m0_to_f32(record[nope + 2 * rope + d / 64]);
    return make_uint4(wg_pair(codes.x & 0xffff, scale), wg_pair(codes.x >> 16, scale),
                      wg_pair(codes.y & 0xffff, scale), wg_pair(codes.y >> 16, scale));
}

// Makes a tile of what was brought in, and of what was not.
__device__ static void wg_fill(uint8_t *tile, const uint8_t *raw, const call &c, const wg_key &own)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP, rope = (int)c.rope_dim;
#pragma unroll 4
    for (int i = 0; i < WG_OWN_KEYS; i++) {
        int row = warp * WG_OWN_KEYS + i;
        wg_key k = wg_key_of(own, i);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int d = 256 * half + 8 * lane;
            if (k.raw) {
                *(uint4 *)wg_place(tile, row, d) =
                    wg_eight(raw + row * WG_MOST_RECORD, WG_DIM - rope, rope, d);
                continue;
            }
            float4 a = make_float4(0, 0, 0, 0), b = a;
            if (k.at) {
                a = numbers_of(k.at, k.format, WG_DIM, rope, d, k.aligned);
                b = numbers_of(k.at, k.format, WG_DIM, rope, d + 4, k.aligned);
            }
            wg_put(tile, row, d, a, b);
        }
    }
}

#if LSA_WGMMA

// The maximum, or sum, of the four lanes that share a row of a product.
__device__ static float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffff, v, 2));
}

__device__ static float quad_sum(float v)
{
    v += __shfl_xor_sync(0xffffffff, v, 1);
    return v + __shfl_xor_sync(0xffffffff, v, 2);
}

#endif

// Grid: (splits, groups of 64 heads, rows), block: 256, shared: WG_SHARED.
__global__ static void __launch_bounds__(WG_THREADS, 1) attend_splits(call c, int64_t first_row)
{
#if LSA_WGMMA
    extern __shared__ uint8_t wg_shared[];
    uint8_t *queries = wg_shared + (1024 - lsa_shared_address(wg_shared) % 1024) % 1024;
    uint8_t *tile = queries + WG_TILE_BYTES, *raw = tile + WG_TILE_BYTES;
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP, wg = warp / 4;
    int64_t row = first_row + blockIdx.z;
    int head0 = blockIdx.y * WG_HEADS, heads = min((int)c.heads - head0, (int)WG_HEADS);
    query q = query_at(c, row);
    wg_split s = wg_split_of(q);
    if (c.source == LSA_ATTEND_ENTRIES && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0)
        c.counts[row] = (int32_t)q.records;
    lsa_let_next_launch_start();
    int64_t t0 = blockIdx.x * s.each, t1 = min(s.tiles, t0 + s.each);
    if (t0 >= t1) return;
    wg_key now = wg_keys_at(c, q, t0 * WG_KEYS, s.keys),
           next = wg_keys_at(c, q, (t0 + 1) * WG_KEYS, t0 + 1 < t1 ? s.keys : 0);
    wg_ask(raw, c, now);
    wg_ask(raw + WG_RAW_BYTES, c, next);
#pragma unroll 4
    for (int i = 0; i < WG_HEADS / WG_WARPS; i++) {
        int h = warp * (WG_HEADS / WG_WARPS) + i;
        const float *from = c.q + (row * c.heads + head0 + h) * WG_DIM;
        bool whole = (uintptr_t)from % 16 == 0;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int d = 256 * half + 8 * lane;
            float4 a = make_float4(0, 0, 0, 0), b = a;
            if (h < heads) {
                a = lsa_load4(from, d, WG_DIM, whole);
                b = lsa_load4(from, d + 4, WG_DIM, whole);
            }
            wg_put(queries, h, d, a, b);
        }
    }

    float out[128], max[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 128; i++) out[i] = 0;
    for (int64_t t = t0; t < t1; t++) {
        uint8_t *own_raw = raw + (t - t0) % 2 * WG_RAW_BYTES;
        __pipeline_wait_prior(1);
        __syncthreads(); // records are there, and nobody reads the last tile any more
        wg_key after = wg_keys_at(c, q, (t + 2) * WG_KEYS, t + 2 < t1 ? s.keys : 0);
        wg_fill(tile, own_raw, c, now);
        lsa_async_fence();
        __syncthreads();

        float x[32];
#pragma unroll
        for (int i = 0; i < 32; i++) x[i] = 0;
        lsa_pin(x);
        lsa_wgmma_begin();
#pragma unroll
        for (int step = 0; step < 16; step++) {
            int panel = wg * 4 + step / 4;
            uint32_t at = panel * WG_PANEL_BYTES;
            lsa_wgmma_bf16_shared(x, lsa_rows_of_128(queries + at) + step % 4 * 2,
                                  lsa_rows_of_128(tile + at) + step % 4 * 2, step > 0);
        }
        lsa_wgmma_commit();
        lsa_wgmma_wait();
        lsa_pin(x);
        // The other half of the numbers, by way of the records' room, which is free by now.
        float *halves = (float *)own_raw;
        int place = threadIdx.x % LSA_WARPGROUP;
#pragma unroll
        for (int i = 0; i < 32; i++) halves[(wg * 32 + i) * LSA_WARPGROUP + place] = x[i];
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 32; i++) {
            float other = halves[((1 - wg) * 32 + i) * LSA_WARPGROUP + place];
            x[i] = (wg == 0 ? x[i] + other : other + x[i]) * c.scale;
        }
        __syncthreads();
        now = next;
        next = after;
        wg_ask(own_raw, c, next);

        // Thread (lane / 4, lane % 4) of a warp has keys 8 j + 2 (lane % 4) and the next, of heads g and g + 8.
        int g = warp % 4 * 16 + lane / 4;
        int64_t key0 = t * WG_KEYS + lane % 4 * 2, window = q.position + 1 - q.first;
        float larger[2] = {max[0], max[1]};
#pragma unroll
        for (int i = 0; i < 32; i++) {
            int64_t key = key0 + i / 4 * 8 + i % 2;
            int h = g + i % 4 / 2 * 8;
            if (key >= s.keys)
                x[i] = -INFINITY;
            else if (c.kept && wg == 0 && key >= window && h < heads)
                c.kept[(row * c.heads + head0 + h) * c.id_stride + key - window] = x[i];
            larger[i % 4 / 2] = fmaxf(larger[i % 4 / 2], x[i]);
        }
        float shrink[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            larger[r] = quad_max(larger[r]);
            float base = finite_max(larger[r]);
            shrink[r] = __expf(max[r] - base);
            max[r] = larger[r];
            sum[r] *= shrink[r];
            larger[r] = base;
        }
#pragma unroll
        for (int i = 0; i < 32; i++) {
            x[i] = __expf(x[i] - larger[i % 4 / 2]);
            sum[i % 4 / 2] += x[i];
        }
        uint32_t p[4][4];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
            p[i / 4][i % 4] = *(const uint32_t *)&pair;
        }
#pragma unroll
        for (int i = 0; i < 128; i++) out[i] *= shrink[i % 4 / 2];
        lsa_pin(out);
        lsa_wgmma_begin();
#pragma unroll
        for (int step = 0; step < 4; step++)
            lsa_wgmma_bf16_columns(
                out, p[step],
                lsa_columns_of_128(tile + wg * 4 * WG_PANEL_BYTES, WG_PANEL_BYTES) + step * 128);
        lsa_wgmma_commit();
        lsa_wgmma_wait();
        lsa_pin(out);
    }

    int64_t part = ((row - first_row) * WG_SPLITS + blockIdx.x) * c.heads + head0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int h = warp % 4 * 16 + lane / 4 + 8 * r;
        float all = quad_sum(sum[r]);
        if (h >= heads) continue;
        float *to = c.parts + (part + h) * WG_DIM + wg * 256 + lane % 4 * 2;
#pragma unroll
        for (int j = 0; j < 32; j++)
            *(float2 *)(to + 8 * j) = make_float2(out[4 * j + 2 * r], out[4 * j + 2 * r + 1]);
        if (wg == 0 && lane % 4 == 0) {
            c.part_sums[(part + h) * 2] = max[r];
            c.part_sums[(part + h) * 2 + 1] = all;
        }
    }
#else
    (void)c, (void)first_row;
#endif
}

// Joins the splits of a query's head. Grid: (heads, rows), block: 128.
__global__ static void __launch_bounds__(THREADS) attend_join_splits(call c, int64_t first_row)
{
    int64_t row = first_row + blockIdx.y, head = row * c.heads + blockIdx.x;
    query q = query_at(c, row);
    lsa_wait_for_launch_before();
    int count = (int)wg_split_of(q).count;
    int64_t part = ((int64_t)blockIdx.y * WG_SPLITS) * c.heads + blockIdx.x;
    float max = c.sinks[blockIdx.x], largest = max, sum, factor[WG_SPLITS];
#pragma unroll
    for (int i = 0; i < WG_SPLITS; i++) {
        factor[i] = i < count ? c.part_sums[(part + i * c.heads) * 2] : -INFINITY;
        largest = fmaxf(largest, factor[i]);
    }
    float base = finite_max(largest);
    sum = expf(max - base);
#pragma unroll
    for (int i = 0; i < WG_SPLITS; i++) {
        factor[i] = expf(factor[i] - base);
        if (i < count) sum = fmaf(c.part_sums[(part + i * c.heads) * 2 + 1], factor[i], sum);
    }
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int i = 0; i < WG_SPLITS; i++) {
        if (i >= count) break;
        float4 v = ((const float4 *)(c.parts + (part + i * c.heads) * WG_DIM))[threadIdx.x];
        total.x = fmaf(v.x, factor[i], total.x);
        total.y = fmaf(v.y, factor[i], total.y);
        total.z = fmaf(v.z, factor[i], total.z);
        total.w = fmaf(v.w, factor[i], total.w);
    }
    float *out = c.out + head * WG_DIM;
    lsa_store4(out, 4 * threadIdx.x, WG_DIM, (uintptr_t)out % 16 == 0,
               times(total, factor_of(sum)));
    if (c.kept && threadIdx.x == 0) {
        c.finals[head * 2] = largest;
        c.finals[head * 2 + 1] = sum;
    }
}

// ---- for the launcher ----

// Whether these kernels take a call, where they can run.
static bool wg_takes(const call &c)
{
    int device, major, minor;
    return c.compute == LSA_COMPUTE_BF16 && c.dim == WG_DIM &&
           cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
}

// Floats of the workspace: [rows of a launch, splits, heads], `each` times.
static int64_t wg_part_floats(int64_t rows, int64_t heads, int64_t dim, int64_t each)
{
    if (dim != WG_DIM) return 0;
    return (rows < WG_ROWS ? rows : (int64_t)WG_ROWS) * WG_SPLITS * heads * each;
}

static cudaError_t wg_launch(const call &given, cudaStream_t stream)
{
    call c = given;
    c.record_bytes = lsa_kv_record_bytes(LSA_KV_FP8, c.dim, c.rope_dim);
    cudaError_t error =
        cudaFuncSetAttribute(attend_splits, cudaFuncAttributeMaxDynamicSharedMemorySize, WG_SHARED);
    int64_t tiles =
        (c.window_size + (c.source == LSA_ATTEND_WINDOW ? 0 : c.most) + WG_KEYS - 1) / WG_KEYS;
    int64_t splits = (tiles + WG_TILES - 1) / WG_TILES,
            groups = (c.heads + WG_HEADS - 1) / WG_HEADS;
    if (splits > WG_SPLITS || !c.bounded) splits = WG_SPLITS;
    for (int64_t row = 0; error == cudaSuccess && row < c.rows; row += WG_ROWS) {
        unsigned rows = (unsigned)(c.rows - row < WG_ROWS ? c.rows - row : (int64_t)WG_ROWS);
        attend_splits<<<dim3((unsigned)splits, (unsigned)groups, rows), WG_THREADS, WG_SHARED,
                        stream>>>(c, row);
        error = lsa_cuda_last();
        if (error == cudaSuccess)
            error = lsa_launch_early(attend_join_splits, dim3((unsigned)c.heads, rows), THREADS, 0,
                                     1, stream, c, row);
    }
    return error;
}

#endif
