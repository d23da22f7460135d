// Attention on Hopper's tensor cores, in bf16 with f32 sums, for heads of 512 numbers.
//
// A query's keys, the window's and then its records', go in tiles of 64 against 64 heads at a time. A tile gives weights:
// powers of two of the scores less an integer, the tile's own, so that what weighs tiles against each other is a power of
// two as well and rounds nothing; and sums of them. Tiles are then added up one after the other, in splits of up to 17 of
// them, which are joined in order behind that. A number of the result so has one order of sums, whoever works at it:
//
// Many queries: a block has all of a split. One warpgroup makes the weights and half of the result's numbers, one the other
//   half; a third brings keys in.
// Few: a first launch makes the weights of all tiles, some a block; in a second a block adds up 64 or 128 of the 512 numbers
//   over a split.
//
// Which of these it is, and how many blocks there are, changes no bit. Keys lie in shared memory as bf16, in panels of 64
// numbers a row, which are read as rows of keys for scores and as columns of values for the result.
#include <algorithm>

#include "kernels/attention_wgmma.h"

// ---- kernels ----

// WEIGHTS: weights alone, of `per_block` tiles a block. Grid: (splits, or pieces of per_block tiles, groups of 64 heads,
// rows), block: WG_THREADS, shared: WG_SHARED.
template <bool WEIGHTS>
__global__ static void __launch_bounds__(WG_THREADS, 1)
    attend_tiles(const __grid_constant__ call c, const __grid_constant__ wg_work w)
{
#if LSA_WGMMA
    extern __shared__ uint8_t wg_shared[];
    uint8_t *queries = wg_shared + (1024 - lsa_shared_address(wg_shared) % 1024) % 1024;
    uint8_t *tiles = queries + WG_TILE_BYTES;
    uint4 *weights = (uint4 *)(tiles + 2 * WG_TILE_BYTES);
    uint64_t *keys = (uint64_t *)(weights + WG_WEIGHTS);
    float *factors = (float *)(keys + WG_EACH * WG_KEYS); // of rows: what is there is multiplied by
    __shared__ uint64_t full[2], empty[2], weighed, taken;
    // Whether the query has one split; how many tiles this block has, and keys from the first on; where the first tile is in
    // the workspace. They are in shared memory, as registers do not suffice.
    __shared__ bool whole;
    __shared__ volatile int count, left, place;
    __shared__ wg_mass_shared m;
    int thread = threadIdx.x % LSA_WARPGROUP, warp = threadIdx.x / LSA_WARP;
    int lane = threadIdx.x % LSA_WARP, wg = threadIdx.x / LSA_WARPGROUP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            lsa_barrier_init(full + i, WG_BRINGERS / LSA_WARP);
            lsa_barrier_init(empty + i, WEIGHTS ? 4 : 8);
        }
        lsa_barrier_init(&weighed, 4);
        lsa_barrier_init(&taken, 4);
        lsa_barrier_init_fence();
    }
    // The launches behind this one begin once all that was before it is over: they read what a call is given, keys and
    // all, before they wait.
    lsa_wait_for_launch_before();
    lsa_let_next_launch_start();
    int64_t row = w.first_row + blockIdx.z, group = blockIdx.y;
    int head0 = (int)group * WG_HEADS, heads = min((int)c.heads - head0, (int)WG_HEADS);
    query q = query_at(c, row);
    wg_split s = wg_split_of(q);
    if (c.source == LSA_ATTEND_ENTRIES && blockIdx.x == 0 && group == 0 && threadIdx.x == 0)
        c.counts[row] = (int32_t)q.records;
    int64_t each = WEIGHTS ? w.per_block : s.each;
    int64_t t0 = blockIdx.x * each, t1 = min(s.tiles, t0 + each);
    if (t0 >= t1 && (WEIGHTS || blockIdx.x > 0)) return;
    if (threadIdx.x == 0) {
        whole = s.count == 1, count = (int)(t1 - t0), left = (int)(s.keys - t0 * WG_KEYS);
        place = (int)((blockIdx.z * w.groups + group) * w.tiles + t0);
        m.window = (int)(q.position + 1 - q.first), m.keys = (int)s.keys;
    }
    __syncthreads(); // barriers are there

    float scale = c.scale * WG_LOG2E;
    int h0 = warp % 4 * 16 + lane / 4;
    // Where the numbers go, and the sums of a part.
    auto part = [&] { return (blockIdx.z * w.splits + blockIdx.x) * c.heads + head0; };
    auto to = [&] {
        return whole ? c.out + (row * c.heads + head0) * WG_DIM : w.parts + part() * WG_DIM;
    };

    if (wg >= 2) {
        lsa_registers_down<WG_FEWER>();
        int own = warp - 8;
        int brings = threadIdx.x - 2 * LSA_WARPGROUP;
        wg_keys(keys, c, q, s.keys, t0 * WG_KEYS, count * WG_KEYS, WG_AHEAD * WG_KEYS, brings,
                WG_BRINGERS);
        lsa_barrier_of(1, WG_BRINGERS);
        const uint64_t *asked = keys + own * WG_OWN_KEYS + lane / 8;
#pragma unroll 1
        for (int t = 0; t < min((int)count, (int)WG_AHEAD); t++)
            for (int i = 0; i < WG_OWN_KEYS; i += 4) wg_ask(asked[t * WG_KEYS + i], lane % 8);
        wg_fill(tiles, c, q, asked, count, full, empty, own, lane);
        if (WEIGHTS || !w.masses) return;
        lsa_barrier_of(3, LSA_WARPGROUP + WG_BRINGERS); // weights and last sums are there
        wg_masses(m, c, w, w.first_row + blockIdx.z, blockIdx.z * w.tiles,
                  threadIdx.x / LSA_WARPGROUP - 2, 2, threadIdx.x / LSA_WARPGROUP - 2,
                  threadIdx.x % LSA_WARPGROUP);
        return;
    }
    lsa_registers_up<WG_MORE>();
    wg_queries(queries, c.q + (row * c.heads + head0) * WG_DIM, heads, threadIdx.x,
               2 * LSA_WARPGROUP);
    lsa_async_fence();
    lsa_barrier_of(2, 2 * LSA_WARPGROUP);
    if (WEIGHTS) {
        for (int t = wg; t < count; t += 2) {
            uint32_t p[4][4];
            wg_sums own;
            lsa_barrier_wait(full + wg, t / 2 & 1);
            wg_weights(p, own, queries, tiles + wg * WG_TILE_BYTES, scale, left - t * WG_KEYS,
                       lane);
            if (lane == 0) lsa_barrier_arrive(empty + wg);
            wg_keep(w, place + t, p, own, thread);
        }
    } else if (wg == 0) {
        float out[128], mine[2], other[2], factor[2] = {1, 1};
#pragma unroll
        for (int i = 0; i < 128; i++) out[i] = 0;
        wg_sums all = {{-INFINITY, -INFINITY}, {0, 0}};
        for (int t = 0; t < count; t++) {
            uint32_t p[4][4];
            wg_sums own;
            const uint8_t *tile = tiles + t % 2 * WG_TILE_BYTES;
            lsa_barrier_wait(full + t % 2, t / 2 & 1);
            wg_weights(p, own, queries, tile, scale, left - t * WG_KEYS, lane);
            if (w.keeps) wg_keep(w, place + t, p, own, thread);
            wg_go_on(all, own, mine, other);
            wg_weigh(p, other);
            if (t > 0) lsa_barrier_wait(&taken, (t - 1) & 1);
#pragma unroll
            for (int i = 0; i < 4; i++)
                weights[i * LSA_WARPGROUP + thread] =
                    make_uint4(p[i][0], p[i][1], p[i][2], p[i][3]);
            if (lane % 4 == 0) factors[h0] = mine[0], factors[h0 + 8] = mine[1];
            __syncwarp();
            if (lane == 0) lsa_barrier_arrive(&weighed);
            wg_shrink(out, mine);
            wg_add(out, p, tile);
            if (lane == 0) lsa_barrier_arrive(empty + t % 2);
        }
        if (count > 0) lsa_barrier_wait(&taken, (count - 1) & 1);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int h = h0 + 8 * r;
            if (!whole && h < heads && lane % 4 == 0) {
                float *sums = w.part_sums + (part() + h) * 2;
                sums[0] = all.top[r], sums[1] = all.sum[r];
            }
            if (whole) {
                float base, total;
                factor[r] = wg_last(all.top[r], all.sum[r], h < heads ? c.sinks[head0 + h] : 0.0f,
                                    &base, &total);
                if (w.keeps && h < heads && lane % 4 == 0) {
                    float *to = w.masses ? m.finals + h * 2
                                         : w.finals + (blockIdx.z * c.heads + head0 + h) * 2;
                    to[0] = base, to[1] = total;
                }
            }
            if (lane % 4 == 0) factors[h] = factor[r];
        }
        __syncwarp();
        if (lane == 0) lsa_barrier_arrive(&weighed);
        if (w.masses) lsa_barrier_reach(3, LSA_WARPGROUP + WG_BRINGERS);
        wg_put(to(), out, factor, 0, heads, warp, lane);
    } else {
        float out[128], mine[2], factor[2] = {1, 1};
#pragma unroll
        for (int i = 0; i < 128; i++) out[i] = 0;
        for (int t = 0; t < count; t++) {
            uint32_t p[4][4];
            lsa_barrier_wait(&weighed, t & 1);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint4 v = weights[i * LSA_WARPGROUP + thread];
                p[i][0] = v.x, p[i][1] = v.y, p[i][2] = v.z, p[i][3] = v.w;
            }
            mine[0] = factors[h0], mine[1] = factors[h0 + 8];
            __syncwarp();
            if (lane == 0) lsa_barrier_arrive(&taken);
            lsa_barrier_wait(full + t % 2, t / 2 & 1);
            wg_shrink(out, mine);
            wg_add(out, p, tiles + t % 2 * WG_TILE_BYTES + 4 * WG_PANEL_BYTES);
            if (lane == 0) lsa_barrier_arrive(empty + t % 2);
        }
        lsa_barrier_wait(&weighed, count & 1);
        factor[0] = factors[h0], factor[1] = factors[h0 + 8];
        wg_put(to(), out, factor, 256, heads, warp, lane);
    }
#else
    (void)c, (void)w;
#endif
}

// Adds up 64 PANELS numbers of a split's keys by the weights that are there. Grid: (512 / that, splits, groups of 64 heads
// and rows), block: WG_PASS_THREADS, shared: PANELS WG_PASSES WG_PASS_TILES panels, and keys.
template <int PANELS>
__global__ static void __launch_bounds__(WG_PASS_THREADS, 1)
    attend_values(const __grid_constant__ call c, const __grid_constant__ wg_work w)
{
#if LSA_WGMMA
    enum {
        PASS_BYTES = WG_PASS_TILES * PANELS * WG_PANEL_BYTES,
        PASS_KEYS = WG_PASS_TILES * WG_KEYS
    };
    extern __shared__ uint8_t wg_shared[];
    uint8_t *panels = wg_shared + (1024 - lsa_shared_address(wg_shared) % 1024) % 1024;
    uint64_t *keys = (uint64_t *)(panels + WG_PASSES * PASS_BYTES);
    __shared__ uint64_t full[WG_PASSES], empty[WG_PASSES];
    __shared__ wg_mass_shared m;
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    if (threadIdx.x == 0) {
        for (int i = 0; i < WG_PASSES; i++) {
            lsa_barrier_init(full + i, WG_PASS_BRINGERS / LSA_WARP);
            lsa_barrier_init(empty + i, LSA_WARPGROUP / LSA_WARP);
        }
        lsa_barrier_init_fence();
    }
    lsa_let_next_launch_start();
    int64_t group = blockIdx.z % w.groups, at = blockIdx.z / w.groups, row = w.first_row + at;
    int head0 = (int)group * WG_HEADS, heads = min((int)c.heads - head0, (int)WG_HEADS);
    query q = query_at(c, row);
    wg_split s = wg_split_of(q);
    int64_t t0 = blockIdx.y * s.each, t1 = min(s.tiles, t0 + s.each);
    if (t0 >= t1 && blockIdx.y > 0) return;
    int count = (int)(t1 - t0), passes = (count + WG_PASS_TILES - 1) / WG_PASS_TILES;
    int64_t place = blockIdx.z * w.tiles + t0;
    if (threadIdx.x == 0) m.window = (int)(q.position + 1 - q.first), m.keys = (int)s.keys;
    __syncthreads();

    if (warp >= 4) {
        int own = threadIdx.x - LSA_WARPGROUP;
        wg_keys(keys, c, q, s.keys, t0 * WG_KEYS, passes * PASS_KEYS, 0, own, WG_PASS_BRINGERS);
        lsa_barrier_of(1, WG_PASS_BRINGERS);
        for (int pass = 0; pass < passes; pass++) {
            int slot = pass % WG_PASSES;
            if (pass >= WG_PASSES) lsa_barrier_wait(empty + slot, (pass / WG_PASSES - 1) & 1);
            uint8_t *to = panels + slot * PASS_BYTES;
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++)
                wg_fill_panel<PANELS>(to + panel * WG_PANEL_BYTES, c, q, keys + pass * PASS_KEYS,
                                      (int)blockIdx.x * PANELS + panel, own);
            lsa_async_fence();
            __syncwarp();
            if (lane == 0) lsa_barrier_arrive(full + slot);
        }
        if (!w.masses) return;
        lsa_wait_for_launch_before();
        lsa_barrier_of(3, LSA_WARPGROUP + WG_PASS_BRINGERS); // last sums are there
        int which = own / LSA_WARPGROUP;
        wg_masses(m, c, w, row, place, (int)blockIdx.x * 2 + which, WG_PANELS / PANELS * 2, which,
                  own % LSA_WARPGROUP);
        return;
    }

    lsa_wait_for_launch_before();
    float out[32 * PANELS], mine[2], other[2], factor[2] = {1, 1};
    wg_sums all = {{-INFINITY, -INFINITY}, {0, 0}};
    int h0 = warp * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < 32 * PANELS; i++) out[i] = 0;
    uint4 next[4];
    float2 next_sums[2];
    auto ask = [&](int64_t tile) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            next[i] = w.weights[tile * WG_WEIGHTS + i * LSA_WARPGROUP + threadIdx.x];
        next_sums[0] = w.sums[tile * WG_HEADS + h0];
        next_sums[1] = w.sums[tile * WG_HEADS + h0 + 8];
    };
    if (count > 0) ask(place);
    for (int t = 0; t < count; t++) {
        int pass = t / WG_PASS_TILES, slot = pass % WG_PASSES;
        uint32_t p[4][4];
        wg_sums own;
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[i][0] = next[i].x, p[i][1] = next[i].y, p[i][2] = next[i].z, p[i][3] = next[i].w;
#pragma unroll
        for (int r = 0; r < 2; r++) own.top[r] = next_sums[r].x, own.sum[r] = next_sums[r].y;
        if (t + 1 < count) ask(place + t + 1);
        wg_go_on(all, own, mine, other);
        wg_weigh(p, other);
        if (t % WG_PASS_TILES == 0) lsa_barrier_wait(full + slot, pass / WG_PASSES & 1);
        wg_shrink(out, mine);
        wg_add(out, p, panels + slot * PASS_BYTES + t % WG_PASS_TILES * PANELS * WG_PANEL_BYTES);
        if (lane == 0 && (t % WG_PASS_TILES == WG_PASS_TILES - 1 || t + 1 == count))
            lsa_barrier_arrive(empty + slot);
    }
    int64_t part = (at * w.splits + blockIdx.y) * c.heads + head0;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int h = h0 + 8 * r;
        bool tells = blockIdx.x == 0 && h < heads && lane % 4 == 0;
        if (s.count > 1 && tells) {
            w.part_sums[(part + h) * 2] = all.top[r];
            w.part_sums[(part + h) * 2 + 1] = all.sum[r];
        }
        if (s.count == 1) {
            float base, total;
            factor[r] = wg_last(all.top[r], all.sum[r], h < heads ? c.sinks[head0 + h] : 0.0f,
                                &base, &total);
            if (w.masses ? h < heads && lane % 4 == 0 : tells) {
                float *to = w.masses ? m.finals + h * 2 : w.finals + (at * c.heads + head0 + h) * 2;
                to[0] = base, to[1] = total;
            }
        }
    }
    if (w.masses) lsa_barrier_reach(3, LSA_WARPGROUP + WG_PASS_BRINGERS);
    wg_put(s.count > 1 ? w.parts + part * WG_DIM : c.out + (row * c.heads + head0) * WG_DIM, out,
           factor, (int)blockIdx.x * PANELS * 64, heads, warp, lane);
#else
    (void)c, (void)w;
#endif
}

// Joins the splits of a query's head where there are several. Grid: (heads, rows), block: 128.
__global__ static void __launch_bounds__(LSA_WARPGROUP)
    attend_join_splits(const __grid_constant__ call c, const __grid_constant__ wg_work w)
{
    lsa_let_next_launch_start();
    int64_t row = w.first_row + blockIdx.y, head = row * c.heads + blockIdx.x;
    query q = query_at(c, row);
    int64_t count = wg_split_of(q).count;
    lsa_wait_for_launch_before();
    if (count == 1) return;
    int64_t part = blockIdx.y * w.splits * c.heads + blockIdx.x;
    const float2 *sums = (const float2 *)w.part_sums + part;
    float own = wg_sink(c.sinks[blockIdx.x]), top = own;
    for (int64_t i = 0; i < count; i++) top = fmaxf(top, sums[i * c.heads].x);
    float base = finite_max(top), sum = wg_exp2(own - base);
    float4 total = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int64_t i = 0; i < count; i++) {
        float2 s = sums[i * c.heads];
        float factor = wg_exp2(s.x - base);
        float4 v = ((const float4 *)(w.parts + (part + i * c.heads) * WG_DIM))[threadIdx.x];
        sum = fmaf(s.y, factor, sum);
        total.x = fmaf(v.x, factor, total.x);
        total.y = fmaf(v.y, factor, total.y);
        total.z = fmaf(v.z, factor, total.z);
        total.w = fmaf(v.w, factor, total.w);
    }
    total = times(total, factor_of(sum));
    float *out = c.out + head * WG_DIM;
    lsa_store4(out, 4 * threadIdx.x, WG_DIM, (uintptr_t)out % 16 == 0, total);
    if (threadIdx.x == 0) {
        float *to = w.finals + (blockIdx.y * c.heads + blockIdx.x) * 2;
        to[0] = base, to[1] = sum;
    }
}

// Masses of a tile's records: a thread has what it has of the weights. Grid: (tiles, rows), block: 128.
__global__ static void __launch_bounds__(LSA_WARPGROUP, 4)
    attend_tile_mass(const __grid_constant__ call c, const __grid_constant__ wg_work w)
{
    __shared__ float parts[4][WG_KEYS];
    lsa_let_next_launch_start();
    int64_t row = w.first_row + blockIdx.y;
    query q = query_at(c, row);
    wg_split s = wg_split_of(q);
    int64_t tile = blockIdx.x, window = q.position + 1 - q.first;
    lsa_wait_for_launch_before();
    if (tile >= s.tiles || (tile + 1) * WG_KEYS <= window) return;
    wg_mass_parts<false>(parts, c, w, w.finals + blockIdx.y * c.heads * 2,
                         blockIdx.y * w.groups * w.tiles + tile, threadIdx.x);
    __syncthreads();
    int64_t j = tile * WG_KEYS + threadIdx.x - window;
    if (threadIdx.x < WG_KEYS && j >= 0 && j < q.records)
        c.mass[row * c.id_stride + j] = wg_mass_of(parts, c, threadIdx.x);
}

// ---- for the launcher ----

// Whether these kernels take a call, where they can run.
bool lsa_attention_wgmma_takes(const call &c)
{
    int device, major, minor;
    return c.bounded && c.compute == LSA_COMPUTE_BF16 && c.dim == WG_DIM &&
           cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
}

// Floats of the workspace, for a call of so many rows, heads and tiles.
struct wg_layout {
    int64_t rows, splits, parts, part_sums, finals, sums, weights; // rows: of a launch
};

static wg_layout wg_layout_of(int64_t rows, int64_t heads, int64_t tiles)
{
    wg_layout l;
    int64_t groups = (heads + WG_HEADS - 1) / WG_HEADS;
    l.splits = std::max((tiles + WG_EACH - 1) / WG_EACH, (int64_t)1);
    l.rows = std::min(rows, std::max(WG_UNITS / l.splits, (int64_t)1));
    l.parts = l.splits > 1 ? l.rows * l.splits * heads * WG_DIM : 0;
    l.part_sums = l.splits > 1 ? l.rows * l.splits * heads * 2 : 0;
    l.finals = l.rows * heads * 2;
    l.weights = l.rows * groups * tiles * WG_WEIGHTS * 4;
    l.sums = l.rows * groups * tiles * WG_HEADS * 2;
    return l;
}

static int64_t wg_tiles(int64_t window_size, int64_t records)
{
    return std::max((window_size + records + WG_KEYS - 1) / WG_KEYS, (int64_t)1);
}

// For calls of at most so many.
int64_t lsa_attention_wgmma_floats(int64_t rows, int64_t heads, int64_t dim, int64_t window_size,
                                   int64_t records)
{
    int64_t most = 0, tiles = wg_tiles(window_size, records);
    if (dim != WG_DIM) return 0;
    for (int64_t splits = 1; (splits - 1) * WG_EACH < tiles; splits++) {
        wg_layout l = wg_layout_of(rows, heads, std::min(tiles, splits * WG_EACH));
        most = std::max(most, l.parts + l.part_sums + l.finals + l.weights + l.sums);
    }
    return most;
}

template <typename KERNEL> static cudaError_t wg_make_room(KERNEL kernel, int bytes)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <int PANELS>
static cudaError_t wg_values(const call &c, const wg_work &w, unsigned rows, cudaStream_t stream)
{
    int bytes = 1024 + WG_PASSES * WG_PASS_TILES * PANELS * WG_PANEL_BYTES +
                (WG_EACH + WG_PASS_TILES) * WG_KEYS * 8;
    cudaError_t error = wg_make_room(attend_values<PANELS>, bytes);
    if (error != cudaSuccess) return error;
    lsa_launch(attend_values<PANELS>,
               dim3(WG_PANELS / PANELS, (unsigned)w.splits, rows * (unsigned)w.groups),
               WG_PASS_THREADS, bytes, stream, c, w);
    return lsa_cuda_last();
}

cudaError_t lsa_attention_wgmma(const call &c, void *workspace, cudaStream_t stream)
{
    wg_work w = {};
    w.tiles = wg_tiles(c.window_size, c.source == LSA_ATTEND_WINDOW ? 0 : c.most);
    w.groups = (c.heads + WG_HEADS - 1) / WG_HEADS;
    wg_layout l = wg_layout_of(c.rows, c.heads, w.tiles);
    w.splits = l.splits;
    w.parts = (float *)workspace;
    w.weights = (uint4 *)(w.parts + l.parts);
    w.sums = (float2 *)((float *)w.weights + l.weights);
    w.part_sums = (float *)w.sums + l.sums;
    w.finals = w.part_sums + l.part_sums;
    w.keeps = c.mass != NULL;
    w.masses = w.keeps && w.groups == 1 && w.splits == 1;
    int device, sms;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess) error = wg_make_room(attend_tiles<false>, WG_SHARED);
    if (error == cudaSuccess) error = wg_make_room(attend_tiles<true>, WG_SHARED);
    for (; error == cudaSuccess && w.first_row < c.rows; w.first_row += l.rows) {
        unsigned rows = (unsigned)std::min(c.rows - w.first_row, l.rows);
        int64_t units = rows * w.groups * w.splits;
        if (units > WG_FEW_UNITS) {
            lsa_launch(attend_tiles<false>, dim3((unsigned)w.splits, (unsigned)w.groups, rows),
                       WG_THREADS, WG_SHARED, stream, c, w);
            error = lsa_cuda_last();
        } else {
            int64_t all = rows * w.groups * w.tiles;
            w.per_block = std::min((all + sms - 1) / sms, (int64_t)WG_EACH);
            unsigned pieces = (unsigned)((w.tiles + w.per_block - 1) / w.per_block);
            lsa_launch(attend_tiles<true>, dim3(pieces, (unsigned)w.groups, rows), WG_THREADS,
                       WG_SHARED, stream, c, w);
            error = lsa_cuda_last();
            if (error == cudaSuccess)
                error = units * WG_PANELS > WG_MOST_PARTS ? wg_values<2>(c, w, rows, stream)
                                                          : wg_values<1>(c, w, rows, stream);
        }
        if (error == cudaSuccess && w.splits > 1) {
            lsa_launch(attend_join_splits, dim3((unsigned)c.heads, rows), LSA_WARPGROUP, 0, stream,
                       c, w);
            error = lsa_cuda_last();
        }
        if (error == cudaSuccess && c.mass && !w.masses) {
            lsa_launch(attend_tile_mass, dim3((unsigned)w.tiles, rows), LSA_WARPGROUP, 0, stream, c,
                       w);
            error = lsa_cuda_last();
        }
    }
    return error;
}
