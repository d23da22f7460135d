/* Private to attention_wgmma.cu: keys brought into shared memory as bf16, and what a warpgroup does with a tile of them. */
#ifndef LSA_ATTENTION_WGMMA_H
#define LSA_ATTENTION_WGMMA_H
#include <cuda_bf16.h>
#include <float.h>

#include "kernels/attention_cuda.h"
#include "kernels/hopper.h"

enum {
    WG_KEYS = 64, // of a tile
    WG_HEADS = 64,
    WG_DIM = 512,
    WG_ROPE = 64, // of records that have a way of their own
    WG_NOPE = WG_DIM - WG_ROPE,
    WG_PANELS = WG_DIM / 64,
    WG_PANEL_BYTES = 64 * 128,
    WG_TILE_BYTES = WG_PANELS * WG_PANEL_BYTES,
    WG_EACH = 34,                // tiles of a split, and of a block, at most
    WG_UNITS = 128,              // splits of queries in a launch, so that the workspace stays small
    WG_FEW_UNITS = 64,           // up to here they are few
    WG_AHEAD = 3,                // tiles that are asked for before they are read
    WG_WEIGHTS = 512,            // 16-byte pieces of a tile's weights
    WG_BRINGERS = LSA_WARPGROUP, // threads that bring keys in
    WG_THREADS = WG_BRINGERS + 2 * LSA_WARPGROUP,
    WG_FEWER = 72, // registers of theirs, and of the others
    WG_MORE = 216,
    WG_OWN_KEYS = WG_KEYS / (WG_BRINGERS / LSA_WARP), // of a warp, to bring in
    WG_SHARED = 1024 + 3 * WG_TILE_BYTES + WG_WEIGHTS * 16 + WG_EACH * WG_KEYS * 8 + 512,
    WG_PASS_TILES = 2, // brought in together for a part of the numbers
    WG_PASSES = 5,
    WG_PASS_BRINGERS = 2 * LSA_WARPGROUP,
    WG_PASS_THREADS = WG_PASS_BRINGERS + LSA_WARPGROUP,
};

/* What a launch has besides its call. */
struct wg_work {
    float *parts, *part_sums; // [rows of the launch, splits, heads, 512 or 2]
    float *finals;            // [rows of the launch, heads, 2]
    float2 *sums;             // [rows, groups of heads, tiles, 64]: the integer and the sum
    uint4 *weights;           // [rows, groups of heads, tiles, WG_WEIGHTS]
    int64_t first_row, tiles; // tiles: how many a query has room for
    int64_t splits, groups;   // the same; groups of 64 heads
    int64_t per_block;        // tiles of a block that makes weights alone
    bool keeps;               // blocks that do everything leave weights for masses
};

/* How a query's keys are split: `each` tiles a split. */
struct wg_split {
    int64_t keys, tiles, each, count;
};

__device__ static inline wg_split wg_split_of(const query &q)
{
    wg_split s;
    s.keys = q.position + 1 - q.first + q.records;
    s.tiles = (s.keys + WG_KEYS - 1) / WG_KEYS;
    s.count = max((int64_t)1, (s.tiles + WG_EACH - 1) / WG_EACH);
    s.each = (s.tiles + s.count - 1) / s.count;
    return s;
}

/* ---- keys ---- */

/* What lies at an address: in its upper byte. */
enum { WG_NONE, WG_FLOATS, WG_FP8, WG_BF16, WG_ODD_FLOATS, WG_ODD_RECORD };

__device__ static inline int wg_kind(uint64_t key) { return (int)(key >> 56); }

__device__ static inline const uint8_t *wg_at(uint64_t key)
{
    return (const uint8_t *)(key & 0xffffffffffffffull);
}

/* Key j of a query; WG_NONE beyond the last. */
__device__ static inline uint64_t wg_key(const call &c, const query &q, int64_t keys, int64_t j)
{
    int64_t window = q.position + 1 - q.first;
    if (j >= keys) return 0;
    if (j < window) {
        uint64_t at = (uint64_t)(q.window + (q.first + j) % q.room * WG_DIM);
        return at | (uint64_t)(at % 16 == 0 ? WG_FLOATS : WG_ODD_FLOATS) << 56;
    }
    j -= window;
    uint64_t at = (uint64_t)record_at(q.where, q.ids ? q.ids[j] : j);
    int kind = WG_ODD_RECORD;
    if (at % 8 == 0 && c.rope_dim == WG_ROPE && q.where.format == LSA_KV_FP8) kind = WG_FP8;
    if (at % 8 == 0 && q.where.format == LSA_KV_BF16) kind = WG_BF16;
    if (at % 16 == 0 && q.where.format == LSA_KV_F32) kind = WG_FLOATS;
    return at | (uint64_t)kind << 56;
}

/* Asks for a key to come near. */
__device__ static inline void wg_ask(uint64_t key, int lane)
{
    int kind = wg_kind(key);
    int bytes = kind == WG_FP8 ? 584 : kind == WG_BF16 ? 1024 : kind == WG_FLOATS ? 2048 : 0;
    if (lane * 128 < bytes + 128 && bytes)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(wg_at(key) + min(lane * 128, bytes - 1)));
}

/* Where numbers d .. d + 7 of a row belong in the panels. */
__device__ static inline uint8_t *wg_place(uint8_t *panels, int row, int d)
{
    return panels + d / 64 * WG_PANEL_BYTES + row * 128 + ((d % 64 / 8) ^ (row % 8)) * 16;
}

__device__ static inline uint4 wg_rounded(float4 a, float4 b)
{
    __nv_bfloat162 v[4] = {__floats2bfloat162_rn(a.x, a.y), __floats2bfloat162_rn(a.z, a.w),
                           __floats2bfloat162_rn(b.x, b.y), __floats2bfloat162_rn(b.z, b.w)};
    return *(const uint4 *)v;
}

/* Numbers d .. d + 7 of any key. */
__device__ static inline uint4 wg_any(const call &c, const query &q, uint64_t key, int d)
{
    int kind = wg_kind(key);
    if (kind == WG_NONE) return make_uint4(0, 0, 0, 0);
    int format = kind == WG_FLOATS || kind == WG_ODD_FLOATS ? (int)LSA_KV_F32 : q.where.format;
    const uint8_t *at = wg_at(key);
    bool aligned = vectors_fit(at, format, WG_DIM, (int)c.rope_dim);
    return wg_rounded(numbers_of(at, format, WG_DIM, (int)c.rope_dim, d, aligned),
                      numbers_of(at, format, WG_DIM, (int)c.rope_dim, d + 4, aligned));
}

/* Two e4m3 codes in the upper bytes of two halves, as bf16 that are 2^120 too small. */
__device__ static inline uint32_t wg_shrunk(uint32_t halves)
{
    return (halves & 0x80008000) | (halves & 0x7f007f00) >> 4;
}

/* Eight e4m3 numbers times 2^(scale - 127), as bf16: exact. *odd: set where that is another's work, NaN and scales that
 * only NaN or very large numbers have. */
__device__ static inline uint4 wg_eight(uint2 codes, uint32_t scale, bool *odd)
{
    uint32_t ends = ((codes.x & 0x7f7f7f7f) + 0x01010101) | ((codes.y & 0x7f7f7f7f) + 0x01010101);
    *odd |= (ends & 0x80808080) != 0 || scale > 134;
    uint32_t factor = (scale + 120) << 7, both = factor | factor << 16;
    uint32_t v[4] = {
        wg_shrunk(__byte_perm(codes.x, 0, 0x1404)), wg_shrunk(__byte_perm(codes.x, 0, 0x3424)),
        wg_shrunk(__byte_perm(codes.y, 0, 0x1404)), wg_shrunk(__byte_perm(codes.y, 0, 0x3424))};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __nv_bfloat162 r = __hmul2(*(__nv_bfloat162 *)&v[i], *(__nv_bfloat162 *)&both);
        v[i] = *(uint32_t *)&r;
    }
    return make_uint4(v[0], v[1], v[2], v[3]);
}

/* Scale `i` of the eight bytes at the end of an fp8 record. */
__device__ static inline uint32_t wg_scale(uint2 scales, int i)
{
    return (i < 4 ? scales.x >> 8 * i : scales.y >> 8 * (i - 4)) & 0xff;
}

/* Makes rows of a tile by a warp, four at once where all are fp8, two where they are floats. */
__device__ static inline void wg_fill(uint8_t *tile, const call &c, const query &q,
                                      const uint64_t *keys, int warp, int lane)
{
    int row0 = warp * WG_OWN_KEYS;
    bool last = lane >= (WG_NOPE - 256) / 8; // of the second half: bf16
#pragma unroll 1
    for (int from = row0; from < row0 + WG_OWN_KEYS; from += 4) {
        uint64_t key[4];
        bool fp8 = true, floats = true, bf16 = true, odd = false;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            key[i] = keys[from + i];
            fp8 &= wg_kind(key[i]) == WG_FP8;
            floats &= wg_kind(key[i]) == WG_FLOATS;
            bf16 &= wg_kind(key[i]) == WG_BF16;
        }
        if (fp8) {
            uint2 first[4], second[4], third[4], scales[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint8_t *at = wg_at(key[i]);
                const uint8_t *next = at + (last ? WG_NOPE + 16 * (lane - 24) : 256 + 8 * lane);
                first[i] = *(const uint2 *)(at + 8 * lane);
                second[i] = *(const uint2 *)next;
                scales[i] = *(const uint2 *)(at + WG_NOPE + 2 * WG_ROPE);
                third[i] = *(const uint2 *)(last ? next + 8 : next);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint4 v = wg_eight(first[i], wg_scale(scales[i], lane / 8), &odd);
                *(uint4 *)wg_place(tile, from + i, 8 * lane) = v;
                bool other = false;
                v = wg_eight(second[i], wg_scale(scales[i], 4 + lane / 8), &other);
                if (last) v = make_uint4(second[i].x, second[i].y, third[i].x, third[i].y);
                odd |= other && !last;
                *(uint4 *)wg_place(tile, from + i, 256 + 8 * lane) = v;
            }
        } else if (floats) {
#pragma unroll
            for (int two = 0; two < 4; two += 2) {
                float4 v[2][4];
#pragma unroll
                for (int i = 0; i < 8; i++)
                    v[i / 4][i % 4] = ((const float4 *)wg_at(
                        key[two + i / 4]))[i % 4 / 2 * 64 + 2 * lane + i % 2];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    *(uint4 *)wg_place(tile, from + two + i / 2, i % 2 * 256 + 8 * lane) =
                        wg_rounded(v[i / 2][i % 2 * 2], v[i / 2][i % 2 * 2 + 1]);
            }
        } else if (bf16) {
            uint2 v[4][4];
#pragma unroll
            for (int i = 0; i < 16; i++)
                v[i / 4][i % 4] =
                    ((const uint2 *)wg_at(key[i / 4]))[i % 4 / 2 * 64 + 2 * lane + i % 2];
#pragma unroll
            for (int i = 0; i < 8; i++) {
                uint2 a = v[i / 2][i % 2 * 2], b = v[i / 2][i % 2 * 2 + 1];
                *(uint4 *)wg_place(tile, from + i / 2, i % 2 * 256 + 8 * lane) =
                    make_uint4(a.x, a.y, b.x, b.y);
            }
        } else {
            odd = true;
        }
        if (!__any_sync(0xffffffff, odd)) continue;
#pragma unroll 1
        for (int i = 0; i < 8; i++) {
            int d = i % 2 * 256 + 8 * lane;
            *(uint4 *)wg_place(tile, from + i / 2, d) = wg_any(c, q, keys[from + i / 2], d);
        }
    }
}

/* Makes panel `which` of WG_PASS_TILES tiles, a tile's panels PANELS apart, by WG_PASS_BRINGERS threads. */
template <int PANELS>
__device__ static inline void wg_fill_panel(uint8_t *panels, const call &c, const query &q,
                                            const uint64_t *keys, int which, int thread)
{
    enum { TASKS = WG_PASS_TILES * WG_KEYS * 8 / WG_PASS_BRINGERS };
    int first = thread / 8, chunk = thread % 8, d = which * 64 + chunk * 8;
    uint64_t key[TASKS];
    uint4 a[TASKS], b[TASKS], v[TASKS];
    bool same = true, odd = false;
#pragma unroll
    for (int i = 0; i < TASKS; i++) {
        key[i] = keys[first + i * (WG_PASS_BRINGERS / 8)];
        same &= wg_kind(key[i]) == wg_kind(key[0]);
    }
    int kind = same ? wg_kind(key[0]) : (int)WG_ODD_RECORD;
    if (kind == WG_FP8 && d < WG_NOPE) {
#pragma unroll
        for (int i = 0; i < TASKS; i++) {
            *(uint2 *)&a[i] = *(const uint2 *)(wg_at(key[i]) + d);
            a[i].z = wg_at(key[i])[WG_NOPE + 2 * WG_ROPE + which];
        }
#pragma unroll
        for (int i = 0; i < TASKS; i++) v[i] = wg_eight(make_uint2(a[i].x, a[i].y), a[i].z, &odd);
    } else if (kind == WG_FP8 || kind == WG_BF16) {
        int at = kind == WG_FP8 ? WG_NOPE + 2 * (d - WG_NOPE) : 2 * d;
#pragma unroll
        for (int i = 0; i < TASKS; i++) {
            uint2 x = *(const uint2 *)(wg_at(key[i]) + at);
            uint2 y = *(const uint2 *)(wg_at(key[i]) + at + 8);
            v[i] = make_uint4(x.x, x.y, y.x, y.y);
        }
    } else if (kind == WG_FLOATS) {
#pragma unroll
        for (int i = 0; i < TASKS; i++) {
            a[i] = *(const uint4 *)(wg_at(key[i]) + 4 * d);
            b[i] = *(const uint4 *)(wg_at(key[i]) + 4 * d + 16);
        }
#pragma unroll
        for (int i = 0; i < TASKS; i++) v[i] = wg_rounded(*(float4 *)&a[i], *(float4 *)&b[i]);
    } else {
        odd = true;
    }
    if (odd) {
#pragma unroll
        for (int i = 0; i < TASKS; i++) v[i] = wg_any(c, q, key[i], d);
    }
#pragma unroll
    for (int i = 0; i < TASKS; i++) {
        int row = first + i * (WG_PASS_BRINGERS / 8);
        *(uint4 *)wg_place(panels + row / WG_KEYS * PANELS * WG_PANEL_BYTES, row % WG_KEYS,
                           chunk * 8) = v[i];
    }
}

/* ---- sums ---- */

__device__ static inline float wg_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Of the rows that a thread has of a product, `lane / 4` of its warp's 16 and the one 8 further: the integer that
 * exponents are taken against, and the sum of weights. */
struct wg_sums {
    float top[2], sum[2];
};

/* Goes on to a tile: what is there is to be multiplied by `mine`, what the tile adds by `other`. */
__device__ static inline void wg_go_on(wg_sums &s, const wg_sums &tile, float (&mine)[2],
                                       float (&other)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = fmaxf(s.top[r], tile.top[r]), base = finite_max(top);
        mine[r] = wg_exp2(s.top[r] - base);
        other[r] = wg_exp2(tile.top[r] - base);
        s.sum[r] = __fadd_rn(__fmul_rn(s.sum[r], mine[r]), __fmul_rn(tile.sum[r], other[r]));
        s.top[r] = top;
    }
}

/* Multiplies a tile's weights, in registers as a product takes them. */
__device__ static inline void wg_weigh(uint32_t (&p)[4][4], const float (&other)[2])
{
    __nv_bfloat162 by[2] = {__float2bfloat162_rn(other[0]), __float2bfloat162_rn(other[1])};
#pragma unroll
    for (int i = 0; i < 16; i++) {
        __nv_bfloat162 v = __hmul2(*(__nv_bfloat162 *)&p[i / 4][i % 4], by[i % 2]);
        p[i / 4][i % 4] = *(uint32_t *)&v;
    }
}

/* Multiplies what is there; nothing is done where no lane has anything to do. */
template <int N> __device__ static void wg_shrink(float (&out)[N], const float (&mine)[2])
{
    if (!__any_sync(0xffffffff, mine[0] != 1.0f || mine[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < N; i++) out[i] *= mine[i % 4 / 2];
}

constexpr float WG_LOG2E = 1.4426950408889634f;

/* A sink as a power of two; what is finite stays finite. */
__device__ static inline float wg_sink(float sink)
{
    float own = sink * WG_LOG2E;
    return own == INFINITY && sink != INFINITY ? FLT_MAX : own;
}

/* The sink joins a query's one split: the factor of its numbers, and what masses take. */
__device__ static inline float wg_last(float top, float sum, float sink, float *base, float *total)
{
    float own = wg_sink(sink), larger = fmaxf(top, own), shrink;
    *base = finite_max(larger);
    shrink = wg_exp2(top - *base);
    *total = fmaf(sum, shrink, wg_exp2(own - *base));
    return *total == 0.0f ? 0.0f : shrink / *total;
}

/* Pair `pair` of the numbers of a query that are rotated back. */
__device__ static inline void wg_turn(float *two, const call &c, int64_t row, int pair)
{
    const float *turn = c.table + (row * (c.rope_dim / 2) + pair) * 2;
    lsa_rope_pair(two, turn[0], -turn[1]);
}

/* Puts a warp's numbers, N / 2 a row, where rows of 512 lie; `done`: they are the result. */
template <int N>
__device__ static inline void wg_put(float *to, const float (&out)[N], const float (&factor)[2],
                                     int first, int heads, int warp, int lane, const call &c,
                                     int64_t row, bool done)
{
    int turned = done && c.table ? WG_DIM - (int)c.rope_dim : (int)WG_DIM;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int h = warp % 4 * 16 + lane / 4 + 8 * r;
        if (h >= heads) continue;
#pragma unroll
        for (int j = 0; j < N / 4; j++) {
            int d = first + lane % 4 * 2 + 8 * j;
            float two[2] = {out[4 * j + 2 * r] * factor[r], out[4 * j + 2 * r + 1] * factor[r]};
            if (d >= turned) wg_turn(two, c, row, (d - turned) / 2);
            *(float2 *)(to + h * WG_DIM + d) = make_float2(two[0], two[1]);
        }
    }
}

#if LSA_WGMMA

/* The maximum, or sum, of the four lanes that share a row of a product. */
__device__ static inline float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffff, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffff, v, 2));
}

__device__ static inline float quad_sum(float v)
{
    v += __shfl_xor_sync(0xffffffff, v, 1);
    return v + __shfl_xor_sync(0xffffffff, v, 2);
}

/* A tile's weights as products take them, and their sums; `left` keys of it are there. */
__device__ static inline void wg_weights(uint32_t (&p)[4][4], wg_sums &s, const uint8_t *queries,
                                         const uint8_t *tile, float scale, int64_t left, int lane)
{
    float x[32];
#pragma unroll
    for (int i = 0; i < 32; i++) x[i] = 0;
    lsa_pin(x);
    lsa_wgmma_begin();
#pragma unroll
    for (int step = 0; step < WG_DIM / 16; step++) {
        uint32_t at = step / 4 * WG_PANEL_BYTES;
        lsa_wgmma_bf16_shared(x, lsa_rows_of_128(queries + at) + step % 4 * 2,
                              lsa_rows_of_128(tile + at) + step % 4 * 2, step > 0);
    }
    lsa_wgmma_commit();
    lsa_wgmma_wait();
    lsa_pin(x);
    // Thread (lane / 4, lane % 4) of a warp has keys 8 j + 2 (lane % 4) and the next, of two heads.
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 32; i++) {
        x[i] = i / 4 * 8 + lane % 4 * 2 + i % 2 < left ? x[i] * scale : -INFINITY;
        largest[i % 4 / 2] = fmaxf(largest[i % 4 / 2], x[i]);
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        s.top[r] = ceilf(quad_max(largest[r]));
        base[r] = finite_max(s.top[r]);
        s.sum[r] = 0;
    }
#pragma unroll
    for (int i = 0; i < 32; i++) {
        x[i] = wg_exp2(x[i] - base[i % 4 / 2]);
        s.sum[i % 4 / 2] += x[i];
    }
#pragma unroll
    for (int r = 0; r < 2; r++) s.sum[r] = quad_sum(s.sum[r]);
#pragma unroll
    for (int i = 0; i < 16; i++) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
        p[i / 4][i % 4] = *(const uint32_t *)&pair;
    }
}

/* Leaves them in the workspace; `tile`: its place there. */
__device__ static inline void wg_keep(const wg_work &w, int64_t tile, const uint32_t (&p)[4][4],
                                      const wg_sums &s, int thread)
{
    int h = thread / LSA_WARP * 16 + thread % LSA_WARP / 4;
#pragma unroll
    for (int i = 0; i < 4; i++)
        w.weights[tile * WG_WEIGHTS + i * LSA_WARPGROUP + thread] =
            make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]);
    if (thread % 4 == 0) {
        w.sums[tile * WG_HEADS + h] = make_float2(s.top[0], s.sum[0]);
        w.sums[tile * WG_HEADS + h + 8] = make_float2(s.top[1], s.sum[1]);
    }
}

/* Queries of a group as bf16, by `of` threads. */
__device__ static inline void wg_queries(uint8_t *queries, const float *from, int heads, int thread,
                                         int of)
{
    bool whole = (uintptr_t)from % 16 == 0;
#pragma unroll 8
    for (int i = thread; i < WG_HEADS * WG_DIM / 8; i += of) {
        int h = i / (WG_DIM / 8), d = i % (WG_DIM / 8) * 8;
        float4 a = make_float4(0, 0, 0, 0), b = a;
        if (h < heads) {
            a = lsa_load4(from + h * WG_DIM, d, WG_DIM, whole);
            b = lsa_load4(from + h * WG_DIM, d + 4, WG_DIM, whole);
        }
        *(uint4 *)wg_place(queries, h, d) = wg_rounded(a, b);
    }
}

/* Adds a tile's values, N / 2 numbers of each of 64 heads, to what is there. */
template <int N>
__device__ static inline void wg_add(float (&out)[N], const uint32_t (&p)[4][4],
                                     const uint8_t *panels)
{
    lsa_pin(out);
    lsa_wgmma_begin();
#pragma unroll
    for (int step = 0; step < 4; step++)
        lsa_wgmma_bf16_columns(out, p[step],
                               lsa_columns_of_128(panels, WG_PANEL_BYTES) + step * 128);
    lsa_wgmma_commit();
    lsa_wgmma_wait();
    lsa_pin(out);
}

#endif

#endif
