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
    WG_EACH = 17,        // tiles of a split, and of a block, at most
    WG_UNITS = 256,      // splits of queries in a launch, so that the workspace stays small
    WG_MOST_PARTS = 128, // up to here blocks of the second launch have 64 numbers, else 128
    WG_FEW_UNITS = 48,   // up to here they are few
    WG_AHEAD = 2,        // tiles that are asked for before they are read
    WG_WEIGHTS = 512,    // 16-byte pieces of a tile's weights
    WG_BRINGERS = 2 * LSA_WARPGROUP, // threads that bring keys in
    WG_THREADS = WG_BRINGERS + 2 * LSA_WARPGROUP,
    WG_FEWER = 64, // registers of theirs, and of the others
    WG_MORE = 192,
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
    bool masses;              // who has a query's last sums makes its masses as well
};

/* How a query's keys are split: `each` tiles a split. */
struct wg_split {
    int64_t keys, tiles, each, count;
};

__device__ static inline wg_split wg_split_of(const query &q)
{
    int64_t keys = q.position + 1 - q.first + q.records;
    int tiles = (int)((keys + WG_KEYS - 1) / WG_KEYS),
        count = max(1, (tiles + WG_EACH - 1) / WG_EACH);
    wg_split s = {keys, tiles, (tiles + count - 1) / count, count};
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

/* How a record that lies at `at` is read. */
__device__ static inline int wg_record_kind(const call &c, const query &q, uint64_t at)
{
    int format = q.where.format;
    if (format == LSA_KV_FP8 && at % 8 == 0 && c.rope_dim == WG_ROPE) return WG_FP8;
    if (format == LSA_KV_BF16 && at % 8 == 0) return WG_BF16;
    return format == LSA_KV_F32 && at % 16 == 0 ? WG_FLOATS : WG_ODD_RECORD;
}

__device__ static inline void wg_ask_line(const uint8_t *at)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

/* Row j of those that a query sees of its window; `oldest`: where in the ring the first lies. */
__device__ static inline const uint8_t *wg_window_row(const query &q, int oldest, int j)
{
    int at = oldest + j;
    return (const uint8_t *)(q.window +
                             (int64_t)(at < (int)q.room ? at : at - (int)q.room) * WG_DIM);
}

/* Keys first .. first + n - 1 of a query, WG_NONE beyond the last, by `of` threads; each asks for several ids, and
 * then for several blocks, at once. Lines of the window, which take no look at a table, are asked for before: as many as
 * keys first .. first + asked - 1 have. */
__device__ static inline void wg_keys(uint64_t *keys, const call &c, const query &q, int64_t all,
                                      int64_t first, int n, int asked, int thread, int of)
{
    enum { AT_ONCE = 3, LINES = WG_DIM * 4 / 128 };
    // Counted from the first on.
    int left = (int)min(all - first, (int64_t)n);
    int window = (int)max(min(q.position + 1 - q.first - first, (int64_t)left), (int64_t)0);
    int oldest = (int)((q.first + (window > 0 ? first : 0)) % q.room);
    int64_t skipped = first - (q.position + 1 - q.first);
#pragma unroll 1
    for (int i = thread; i < min(window, asked) * LINES; i += of)
        wg_ask_line(wg_window_row(q, oldest, i / LINES) + i % LINES * 128);
#pragma unroll 1
    for (int from = thread; from < n; from += AT_ONCE * of) {
        int id[AT_ONCE];
        const uint8_t *at[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int j = from + i * of;
            id[i] = j >= window && j < left ? (int)(skipped + j) : -1;
            if (id[i] >= 0 && q.ids) id[i] = q.ids[id[i]];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) at[i] = id[i] >= 0 ? record_at(q.where, id[i]) : NULL;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int j = from + i * of;
            uint64_t address = (uint64_t)at[i];
            int kind = WG_NONE;
            if (j < window) {
                address = (uint64_t)wg_window_row(q, oldest, j);
                kind = address % 16 == 0 ? WG_FLOATS : WG_ODD_FLOATS;
            } else if (j < left) {
                kind = wg_record_kind(c, q, address);
            }
            if (j < n) keys[j] = address | (uint64_t)kind << 56;
        }
    }
}

/* Asks for a key to come near: one of eight lanes that share the work. */
__device__ static inline void wg_ask(uint64_t key, int lane)
{
    int kind = wg_kind(key);
    int bytes = kind == WG_FP8 ? 584 : kind == WG_BF16 ? 1024 : kind == WG_FLOATS ? 2048 : -128;
    int at = lane * 128;
    if (at < bytes + 128) wg_ask_line(wg_at(key) + min(at, bytes - 1));
    if (at + 1024 < bytes + 128) wg_ask_line(wg_at(key) + min(at + 1024, bytes - 1));
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

/* Eight e4m3 numbers times 2^(scale - 127), as bf16: exact. Where one is NaN, bits of `ends` among 0x80808080 are set,
 * and where the scale is above 134, which only NaN or very large numbers have: another's work. */
__device__ static inline uint4 wg_eight(uint2 codes, uint32_t scale, uint32_t *ends)
{
    *ends |= ((codes.x & 0x7f7f7f7f) + 0x01010101) | ((codes.y & 0x7f7f7f7f) + 0x01010101);
    uint32_t both = (scale + 120) * 0x00800080;
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

/* Bits among 0x80808080 are set where one of four scales is above 134. */
__device__ static inline uint32_t wg_large(uint32_t scales)
{
    return ((scales & 0x7f7f7f7f) + 0x79797979) & scales;
}

/* Loads from memory that no one writes while a kernel reads it, told apart from shared memory so that stores there need
 * not be waited for. */
__device__ static inline uint2 wg_load8(const uint8_t *at)
{
    uint2 v;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at) : "memory");
    return v;
}

__device__ static inline float4 wg_load16(const uint8_t *at)
{
    float4 v;
    asm("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
        : "l"(at));
    return v;
}

/* What one of eight lanes has of an fp8 record: eight numbers of every panel. */
struct wg_record {
    uint2 codes[WG_NOPE / 64], last[2], scales;
};

__device__ static inline void wg_load(wg_record &r, const uint8_t *at, int chunk)
{
    r.scales = wg_load8(at + WG_NOPE + 2 * WG_ROPE);
#pragma unroll
    for (int p = 0; p < WG_NOPE / 64; p++) r.codes[p] = wg_load8(at + 64 * p + 8 * chunk);
#pragma unroll
    for (int p = 0; p < 2; p++) r.last[p] = wg_load8(at + WG_NOPE + 16 * chunk + 8 * p);
}

/* Makes rows of tiles, four at a time by a warp, in two turns a tile: eight lanes a row. While a turn's record is made
 * numbers, the next one's takes its place in registers. `mine`: this lane's key of the first turn. */
__device__ static inline void wg_fill(uint8_t *tiles, const call &c, const query &q,
                                      const uint64_t *mine, const volatile int &count,
                                      uint64_t *full, uint64_t *empty, int warp, int lane)
{
    int chunk = lane % 8;
    // Keys are read where they lie, again and again, as registers do not suffice.
    auto key_of = [&](int turn) {
        return turn < 2 * count ? mine[turn / 2 * WG_KEYS + turn % 2 * 4] : 0;
    };
    wg_record a;
    if (wg_kind(key_of(0)) == WG_FP8) wg_load(a, wg_at(key_of(0)), chunk);
#pragma unroll 1
    for (int turn = 0; turn < 2 * count; turn++) {
        int t = turn / 2, row = turn % 2 * 4 + lane / 8; // of the warp's eight
        if (turn % 2 == 0) {
            if (t + WG_AHEAD < count) {
                wg_ask(mine[(t + WG_AHEAD) * WG_KEYS], chunk);
                wg_ask(mine[(t + WG_AHEAD) * WG_KEYS + 4], chunk);
            }
            if (t >= 2) lsa_barrier_wait(empty + t % 2, (t / 2 - 1) & 1);
        }
        uint8_t *rows = tiles + t % 2 * WG_TILE_BYTES + (warp * WG_OWN_KEYS + row) * 128;
        uint8_t *to = rows + (chunk ^ row) * 16;
        int kind = wg_kind(key_of(turn));
        uint32_t odd = 0, together = __ballot_sync(0xffffffff, kind == WG_FP8);
        if (kind == WG_FP8) {
            uint64_t next = key_of(turn + 1);
            const uint8_t *at = wg_at(wg_kind(next) == WG_FP8 ? next : key_of(turn));
            uint2 scales = a.scales;
            odd = wg_large(scales.x) | wg_large(scales.y & 0xffffff);
            *(uint4 *)(to + WG_NOPE / 64 * WG_PANEL_BYTES) =
                make_uint4(a.last[0].x, a.last[0].y, a.last[1].x, a.last[1].y);
#pragma unroll
            for (int p = 0; p < 3; p++)
                *(uint4 *)(to + p * WG_PANEL_BYTES) =
                    wg_eight(a.codes[p], scales.x >> 8 * p & 0xff, &odd);
            __syncwarp(together);
            a.scales = wg_load8(at + WG_NOPE + 2 * WG_ROPE);
#pragma unroll
            for (int p = 0; p < 2; p++) a.last[p] = wg_load8(at + WG_NOPE + 16 * chunk + 8 * p);
#pragma unroll
            for (int p = 0; p < 3; p++) a.codes[p] = wg_load8(at + 64 * p + 8 * chunk);
            __syncwarp(together);
#pragma unroll
            for (int p = 3; p < WG_NOPE / 64; p++)
                *(uint4 *)(to + p * WG_PANEL_BYTES) = wg_eight(
                    a.codes[p], (p < 4 ? scales.x >> 8 * p : scales.y >> 8 * (p - 4)) & 0xff, &odd);
            __syncwarp(together);
#pragma unroll
            for (int p = 3; p < WG_NOPE / 64; p++) a.codes[p] = wg_load8(at + 64 * p + 8 * chunk);
        } else if (kind == WG_FLOATS) {
            // Four numbers of each half of a panel, so that lanes read what is side by side.
            uint8_t *low = rows + (chunk / 2 ^ row) * 16 + chunk % 2 * 8;
            uint8_t *high = rows + ((4 + chunk / 2) ^ row) * 16 + chunk % 2 * 8;
            const uint8_t *at = wg_at(key_of(turn)) + 16 * chunk;
            float4 v[2][4];
#pragma unroll
            for (int k = 0; k < 4; k++) v[0][k] = wg_load16(at + 128 * k);
#pragma unroll
            for (int p = 0; p < WG_PANELS; p += 2) {
#pragma unroll
                for (int k = 0; k < 4 && p + 2 < WG_PANELS; k++)
                    v[(p / 2 + 1) % 2][k] = wg_load16(at + 256 * (p + 2) + 128 * k);
#pragma unroll
                for (int k = 0; k < 2; k++) {
                    uint4 r = wg_rounded(v[p / 2 % 2][2 * k], v[p / 2 % 2][2 * k + 1]);
                    *(uint2 *)(low + (p + k) * WG_PANEL_BYTES) = make_uint2(r.x, r.y);
                    *(uint2 *)(high + (p + k) * WG_PANEL_BYTES) = make_uint2(r.z, r.w);
                }
            }
        } else if (kind == WG_BF16) {
            const uint8_t *at = wg_at(key_of(turn)) + 16 * chunk;
#pragma unroll
            for (int p = 0; p < WG_PANELS; p += 4) {
                uint2 v[8];
#pragma unroll
                for (int k = 0; k < 8; k++) v[k] = wg_load8(at + 128 * (p + k / 2) + k % 2 * 8);
#pragma unroll
                for (int k = 0; k < 4; k++)
                    *(uint4 *)(to + (p + k) * WG_PANEL_BYTES) =
                        make_uint4(v[2 * k].x, v[2 * k].y, v[2 * k + 1].x, v[2 * k + 1].y);
            }
        } else {
            odd = 0x80;
        }
        if (odd & 0x80808080)
#pragma unroll 1
            for (int p = 0; p < WG_PANELS; p++)
                *(uint4 *)(to + p * WG_PANEL_BYTES) =
                    wg_any(c, q, key_of(turn), 64 * p + 8 * chunk);
        if (kind != WG_FP8 && wg_kind(key_of(turn + 1)) == WG_FP8)
            wg_load(a, wg_at(key_of(turn + 1)), chunk);
        if (turn % 2 == 0) continue;
        lsa_async_fence();
        __syncwarp();
        if (lane == 0) lsa_barrier_arrive(full + t % 2);
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
    uint32_t ends = 0;
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
        for (int i = 0; i < TASKS; i++) {
            v[i] = wg_eight(make_uint2(a[i].x, a[i].y), a[i].z, &ends);
            odd |= a[i].z > 134;
        }
        odd |= (ends & 0x80808080) != 0;
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

constexpr float WG_LOG2E = 1.4426950408889634f;
constexpr float WG_SLACK = 8; // powers of two

/* Goes on to a tile: what is there is to be multiplied by `mine`, what the tile adds by `other`. The integer stays as it is
 * unless it is far too small, so that there is seldom anything to multiply; as powers of two round nothing, that is no
 * matter. */
__device__ static inline void wg_go_on(wg_sums &s, const wg_sums &tile, float (&mine)[2],
                                       float (&other)[2])
{
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float top = tile.top[r] > s.top[r] + WG_SLACK ? tile.top[r] : s.top[r];
        float base = finite_max(top);
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

/* Puts what a thread has of a warp's heads where rows of 512 lie, from number `first` on. */
template <int N>
__device__ static inline void wg_put(float *to, float (&out)[N], const float (&factor)[2],
                                     int first, int heads, int warp, int lane)
{
    int h = warp % 4 * 16 + lane / 4, d = first + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < N; i++) out[i] *= factor[i % 4 / 2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float *at = to + (h + 8 * r) * WG_DIM + d;
        if (h + 8 * r >= heads) continue;
#pragma unroll
        for (int j = 0; j < N / 4; j++)
            *(float2 *)(at + 8 * j) = make_float2(out[4 * j + 2 * r], out[4 * j + 2 * r + 1]);
    }
}

/* ---- masses ---- */

/* By warps, what a tile's keys have of the weights of their heads; threads of a warpgroup have what products gave them.
 * `place`: of the tile in the workspace, further groups of heads w.tiles on; finals: the query's, of all heads. */
template <bool ONE_GROUP>
__device__ static inline void wg_mass_parts(float (*parts)[WG_KEYS], const call &c,
                                            const wg_work &w, const float *finals, int64_t place,
                                            int thread)
{
    int warp = thread / LSA_WARP, lane = thread % LSA_WARP, h0 = warp * 16 + lane / 4;
    float v[4][4] = {}; // keys 8 further from two on, 16 further from one row to the next
#pragma unroll 1
    for (int group = 0; group < (ONE_GROUP ? 1 : (int)w.groups); group++, place += w.tiles) {
        uint4 p[4];
        float factor[2];
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[i] = w.weights[place * WG_WEIGHTS + i * LSA_WARPGROUP + thread];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int h = group * WG_HEADS + h0 + 8 * r;
            factor[r] = 0;
            if (h >= (int)c.heads) continue;
            factor[r] = wg_exp2(w.sums[place * WG_HEADS + h0 + 8 * r].x - finals[h * 2]) *
                        factor_of(finals[h * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t four[4] = {p[i].x, p[i].y, p[i].z, p[i].w};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                float low = __uint_as_float(four[k] << 16),
                      high = __uint_as_float(four[k] & 0xffff0000);
                v[i][k / 2 * 2] = fmaf(low, factor[k % 2], v[i][k / 2 * 2]);
                v[i][k / 2 * 2 + 1] = fmaf(high, factor[k % 2], v[i][k / 2 * 2 + 1]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
        float sum = v[i / 4][i % 4];
#pragma unroll
        for (int step = 4; step < LSA_WARP; step *= 2)
            sum += __shfl_xor_sync(0xffffffff, sum, step);
        if (lane < 4) parts[warp][i / 2 * 8 + lane * 2 + i % 2] = sum;
    }
}

/* The mass of key `key` of the tile. */
__device__ static inline float wg_mass_of(const float (*parts)[WG_KEYS], const call &c, int key)
{
    float total = parts[0][key];
    for (int i = 1; i < 4; i++) total += parts[i][key];
    return total / (float)c.heads;
}

/* What a block has to make masses from, and in: of two warpgroups. */
struct wg_mass_shared {
    float finals[WG_HEADS * 2], parts[2][4][WG_KEYS];
    int window, keys; // of the query
};

/* Masses of tiles first, first + step, .. of a query whose first tile is at `place`, by a warpgroup: number `which`. */
__device__ static inline void wg_masses(wg_mass_shared &m, const call &c, const wg_work &w,
                                        int64_t row, int64_t place, int first, int step, int which,
                                        int thread)
{
    float *mass = c.mass + row * c.id_stride;
#pragma unroll 1
    for (int tile = first; tile * WG_KEYS < m.keys; tile += step) {
        if ((tile + 1) * WG_KEYS <= m.window) continue;
        wg_mass_parts<true>(m.parts[which], c, w, m.finals, place + tile, thread);
        lsa_barrier_of(4 + which, LSA_WARPGROUP);
        int j = tile * WG_KEYS + thread;
        if (thread < WG_KEYS && j >= m.window && j < m.keys)
            mass[j - m.window] = wg_mass_of(m.parts[which], c, thread);
        lsa_barrier_of(4 + which, LSA_WARPGROUP);
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
                                         const uint8_t *tile, float scale, int left, int lane)
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

/* Adds a tile's values, N / 2 numbers of each of 64 heads, to what is there. A product of more than 128 columns would have
 * to fit in the registers that a thread begins with. */
template <int N>
__device__ static inline void wg_add(float (&out)[N], const uint32_t (&p)[4][4],
                                     const uint8_t *panels)
{
    enum { AT_ONCE = N < 64 ? N : 64, BYTES = AT_ONCE / 32 * WG_PANEL_BYTES };
    lsa_pin(out);
    lsa_wgmma_begin();
#pragma unroll
    for (int i = 0; i < N / AT_ONCE; i++)
#pragma unroll
        for (int step = 0; step < 4; step++)
            lsa_wgmma_bf16_columns(*(float(*)[AT_ONCE])(out + i * AT_ONCE), p[step],
                                   lsa_columns_of_128(panels + i * BYTES, WG_PANEL_BYTES) +
                                       step * 128);
    lsa_wgmma_commit();
    lsa_wgmma_wait();
    lsa_pin(out);
}

#endif

#endif
