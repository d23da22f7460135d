// Experts on the GPU. Picks are grouped by expert on the device, and an expert's go through its products in tiles of a few
// tokens; the shared expert is one more, that every token has. Sums follow from the weights' columns alone, so neither the
// number of tokens nor the other picks change a bit of a token's result.
#include "kernels/linear_mma.h"
#include "kernels/moe_cuda.h"

extern "C" {
#include "kernels/experts.h"
#include "kernels/moe.h"
}

enum {
    THREADS = WARPS * LSA_WARP,
    PLAN_THREADS = 1024,
    MANY = 8,       // tokens of a tile where experts have several
    CHUNK = 1024,   // tokens in the workspace at a time
    MOST_Y = 65535, // of a grid
    ROWS = 2,       // that a warp takes
    // More than SHORT_TOKENS, which have a warp a row and pick, where rows are not longer than TILE_COLS: a thread a row and some
    // tokens of a tile.
    TILE_TOKENS = 16,
    TILE_ROWS = 64,
    TILE_COLS = 320,
    TILE_EACH = TILE_TOKENS * TILE_ROWS / THREADS
};

// Picks of one expert: `members` from .. from + n - 1.
struct tile {
    int32_t expert, from, n;
};

// In the workspace. A pick is a place in ids, or tokens * k + t: token t's of the shared expert, whose number is `count`.
struct plan {
    int32_t *first;   // [count + 1]: where an expert's members begin
    int32_t *before;  // [count + 2]: tiles of lower experts; the last one all
    int32_t *members; // [tokens * (k + 1)]: picks by expert, ascending
    int32_t *order;   // [tokens, k]: a token's picks by expert
    tile *tiles;
    lsa_expert_weights *held; // [count + 1]: those with picks, near
    float *gate, *up;         // [tokens * (k + 1), width]
    float *down;              // [tokens * (k + 1), hidden]
    int64_t bytes;
};

struct call {
    float *y;
    const float *x;
    const int32_t *ids;
    const float *weights;
    const lsa_expert_weights *experts;
    lsa_expert_weights shared;
    bool has_shared;
    int64_t tokens, hidden, count, k, width;
    float limit;
    int32_t compute;
    plan p;
    uint32_t kinds[2]; // of what a launch makes: those of its weights, a bit each
    bool is_short;     // rows of all weights are short
    bool is_tiled;     // and fit in a tile
    bool by_strips;    // all products go by tensor cores (linear_mma.h)
};

// What a launch of products makes.
enum { GATE_AND_UP, DOWN };

// ---- grouping ----

__device__ static int32_t inclusive_sum(int32_t v, int lane)
{
#pragma unroll
    for (int step = 1; step < LSA_WARP; step *= 2) {
        int32_t other = __shfl_up_sync(0xffffffff, v, step);
        if (lane >= step) v += other;
    }
    return v;
}

// How many picks an expert has; a warp's work. to: NULL, or where they go.
__device__ static int32_t picks_of(const call &c, int64_t e, int32_t *to, int lane)
{
    int32_t picks = (int32_t)(c.tokens * c.k), n = 0;
    if (e == c.count) {
        int32_t all = c.has_shared ? (int32_t)c.tokens : 0;
        for (int32_t i = lane; to && i < all; i += LSA_WARP) to[i] = picks + i;
        return all;
    }
    for (int32_t i = 0; i < picks; i += LSA_WARP) {
        bool own = i + lane < picks && c.ids[i + lane] == e;
        uint32_t all = __ballot_sync(0xffffffff, own);
        if (own && to) to[n + __popc(all & ((1u << lane) - 1))] = i + lane;
        n += __popc(all);
    }
    return n;
}

// first, where the numbers of picks are, and before: their sums.
__device__ static void sum_up(const call &c, int32_t each, int lane)
{
    int32_t picks = 0, tiles = 0;
    for (int64_t from = 0; from <= c.count; from += LSA_WARP) {
        int64_t e = from + lane;
        int32_t n = e <= c.count ? c.p.first[e] : 0, m = (n + each - 1) / each;
        int32_t n_sum = inclusive_sum(n, lane), m_sum = inclusive_sum(m, lane);
        if (e <= c.count) c.p.first[e] = picks + n_sum - n;
        if (e <= c.count) c.p.before[e] = tiles + m_sum - m;
        picks += __shfl_sync(0xffffffff, n_sum, LSA_WARP - 1);
        tiles += __shfl_sync(0xffffffff, m_sum, LSA_WARP - 1);
    }
    if (lane == 0) c.p.before[c.count + 1] = tiles;
}

// By a warp.
__device__ static void hold(const call &c, int64_t e, int lane)
{
    const uint32_t *from = (const uint32_t *)(e == c.count ? &c.shared : c.experts + e);
    uint32_t *to = (uint32_t *)(c.p.held + e);
    for (unsigned i = lane; i < sizeof *c.p.held / sizeof *to; i += LSA_WARP) to[i] = from[i];
}

// Grid: (1), block: 1024. A warp an expert.
__global__ static void __launch_bounds__(PLAN_THREADS, 1)
    group_picks(const __grid_constant__ call c, int32_t each)
{
    lsa_after_previous();
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    for (int64_t e = warp; e <= c.count; e += PLAN_THREADS / LSA_WARP) {
        int32_t n = picks_of(c, e, NULL, lane);
        if (lane == 0) c.p.first[e] = n;
    }
    __syncthreads();
    if (warp == 0) sum_up(c, each, lane);
    __syncthreads();
    for (int64_t e = warp; e <= c.count; e += PLAN_THREADS / LSA_WARP) {
        int32_t from = c.p.first[e], n = picks_of(c, e, c.p.members + from, lane);
        if (n > 0) hold(c, e, lane);
        for (int32_t i = lane; i * each < n; i += LSA_WARP)
            c.p.tiles[c.p.before[e] + i] = {(int32_t)e, from + i * each, min(each, n - i * each)};
    }
}

// ---- products ----

__device__ static const lsa_expert_weights &expert_of(const call &c, const tile &t)
{
    return c.p.held[t.expert];
}

// A tile's rows: of x a token's, or the pick's own; of y the pick's.
template <int TOKENS> struct picked_rows {
    int32_t picks[TOKENS], from[TOKENS];
    __device__ picked_rows(const call &c, const tile &t, bool of_picks)
    {
        int32_t all = (int32_t)(c.tokens * c.k), k = (int32_t)c.k;
#pragma unroll
        for (int i = 0; i < TOKENS; i++) {
            int32_t pick = c.p.members[t.from + min(i, t.n - 1)];
            picks[i] = pick;
            from[i] = of_picks ? pick : pick < all ? pick / k : pick - all;
        }
    }
    __device__ int64_t x(int t) const { return from[t]; }
    __device__ int64_t y(int t) const
    {
        int32_t pick = picks[0]; // by selection: an index would put them in memory
#pragma unroll
        for (int i = 1; i < TOKENS; i++)
            if (t == i) pick = picks[i];
        return pick;
    }
};

// How a weight's numbers are read; of each kind that a call has there is a launch, with registers for it alone.
enum { ANY, IN_F32, IN_BF16, IN_F16, IN_E4M3, IN_E2M1 };

__host__ __device__ static int kind_of(const product &p)
{
    return !in_eights(p)            ? ANY
           : p.dtype == LSA_F32     ? IN_F32
           : p.dtype == LSA_BF16    ? IN_BF16
           : p.dtype == LSA_F16     ? IN_F16
           : p.dtype == LSA_F8_E4M3 ? IN_E4M3
                                    : IN_E2M1;
}

template <int KIND, int TOKENS>
__device__ static void multiply(const product &p, const picked_rows<TOKENS> &rows, int64_t block,
                                int splits)
{
    if constexpr (KIND == ANY)
        rows_of_any<TOKENS>(p, rows, block, splits);
    else if constexpr (KIND == IN_F32)
        rows_in_eights<eight_f32, ROWS, TOKENS>(p, rows, block, splits);
    else if constexpr (KIND == IN_BF16)
        rows_in_eights<eight_bf16, ROWS, TOKENS>(p, rows, block, splits);
    else if constexpr (KIND == IN_F16)
        rows_in_eights<eight_f16, ROWS, TOKENS>(p, rows, block, splits);
    else if constexpr (KIND == IN_E4M3)
        rows_in_eights<eight_e4m3, ROWS, TOKENS>(p, rows, block, splits);
    else
        rows_in_eights<eight_e2m1, ROWS, TOKENS>(p, rows, block, splits);
}

__device__ static product product_of_tile(const call &c, const tile &t, int32_t what)
{
    const lsa_expert_weights &e = expert_of(c, t);
    const lsa_weight &w = what == DOWN ? e.down : blockIdx.z ? e.up : e.gate;
    float *y = what == DOWN ? c.p.down : blockIdx.z ? c.p.up : c.p.gate;
    product p =
        product_of(y, what == DOWN ? c.p.gate : c.x, w, t.n, 0, w.rows,
                   what == DOWN ? c.width : c.hidden, what == DOWN ? c.hidden : c.width, c.compute);
    if (what == DOWN) p.up = c.p.up, p.limit = c.limit;
    return p;
}

// The products of one kind. Grid: (blocks of rows, tiles, 2 for gate and up), block: 256.
template <int KIND, int TOKENS>
__global__ static void __launch_bounds__(THREADS, 1)
    expert_products(const __grid_constant__ call c, int32_t what)
{
    __shared__ product p; // registers are for numbers
    lsa_after_previous();
    int32_t tiles = c.p.before[c.count + 1];
    for (int32_t i = blockIdx.y; i < tiles; i += gridDim.y) {
        tile t = c.p.tiles[i];
        if (threadIdx.x == 0) p = product_of_tile(c, t, what);
        __syncthreads();
        picked_rows<TOKENS> rows(c, t, what == DOWN);
        int splits = splits_of(p.cols), taken = WARPS / splits * (KIND == ANY ? 1 : ROWS);
        int64_t blocks = kind_of(p) == KIND ? (p.rows + taken - 1) / taken : 0;
        for (int64_t b = blockIdx.x; b < blocks; b += gridDim.x) {
            multiply<KIND, TOKENS>(p, rows, b, splits);
            __syncthreads();
        }
        __syncthreads();
    }
}

// Few tokens, short rows: a warp a row of a pick's gate and up, or of its down, as each pick were a tile of its own. Grid:
// (ceil(rows / 8), picks and, behind them, the shared expert's tokens), block: 256.
__global__ static void __launch_bounds__(THREADS)
    expert_rows(const __grid_constant__ call c, int32_t what)
{
    lsa_after_previous();
    int32_t row = blockIdx.x * WARPS + threadIdx.x / LSA_WARP, pick = blockIdx.y;
    int32_t all = (int32_t)(c.tokens * c.k), token = pick < all ? pick / (int32_t)c.k : pick - all;
    const lsa_expert_weights &e = pick < all ? c.experts[c.ids[pick]] : c.shared;
    int32_t inner = (int32_t)e.gate.rows, rows = what == DOWN ? (int32_t)c.hidden : 2 * inner;
    if (row >= rows) return;
    bool of_up = what != DOWN && row >= inner;
    const lsa_weight &w = what == DOWN ? e.down : of_up ? e.up : e.gate;
    int32_t at = of_up ? row - inner : row;
    bool f32 = w.dtype == LSA_F32, round = c.compute == LSA_COMPUTE_BF16;
    short_row r = {(const uint8_t *)w.data + at * w.cols * (f32 ? 4 : 2),
                   what == DOWN ? c.p.gate + pick * c.width : c.x + token * c.hidden,
                   NULL,
                   what == DOWN ? c.p.up + pick * c.width : NULL,
                   (int32_t)w.cols,
                   1,
                   c.limit,
                   f32,
                   round,
                   round && f32};
    float sum = short_product(r);
    float *y =
        what == DOWN ? c.p.down + pick * c.hidden : (of_up ? c.p.up : c.p.gate) + pick * c.width;
    if (threadIdx.x % LSA_WARP == 0) y[at] = sum;
}

// What a thread of a tile multiplies: a row of the weight and some of x, both in shared memory.
struct tile_row {
    const float *w, *x;
    int cols;
};

// What lane `lane` of a warp that had the row would add up.
__device__ static void add_up_lane(float (&sums)[TILE_EACH], const tile_row &r, int lane)
{
#pragma unroll
    for (int t = 0; t < TILE_EACH; t++) sums[t] = 0;
#pragma unroll 1
    for (int col = lane * EIGHT; col < r.cols; col += STEP)
#pragma unroll
        for (int half = 0; half < EIGHT; half += 4) {
            float4 w = *(const float4 *)(r.w + col + half);
#pragma unroll
            for (int t = 0; t < TILE_EACH; t++) {
                float4 x = *(const float4 *)(r.x + t * r.cols + col + half);
                sums[t] = fmaf(w.w, x.w, fmaf(w.z, x.z, fmaf(w.y, x.y, fmaf(w.x, x.x, sums[t]))));
            }
        }
}

// The sums of those lanes whose number's last bits are those of `lane`, as a warp adds them up: short_product's bits.
template <int LEVEL>
__device__ static void add_up(float (&sums)[TILE_EACH], const tile_row &r, int lane)
{
    if constexpr (LEVEL == 0) {
        add_up_lane(sums, r, lane);
    } else {
        float others[TILE_EACH];
        add_up<LEVEL - 1>(sums, r, lane);
        add_up<LEVEL - 1>(others, r, lane + LSA_WARP / (1 << LEVEL));
#pragma unroll
        for (int t = 0; t < TILE_EACH; t++) sums[t] += others[t];
    }
}

// Rows from .. of a weight, as f32 with four numbers between them that keep threads out of one another's banks.
__device__ static void stage_rows(float *to, const lsa_weight &w, int from, bool round)
{
    int quads = (int)w.cols / 4, rows = min((int)w.rows - from, (int)TILE_ROWS);
    bool f32 = w.dtype == LSA_F32;
    const uint8_t *data = (const uint8_t *)w.data + (int64_t)from * w.cols * (f32 ? 4 : 2);
    for (int i = threadIdx.x; i < rows * quads; i += THREADS) {
        short_row r = {data, NULL, NULL, NULL, 0, 1, 0, f32, false, false};
        float v[4];
        four_numbers(v, r, 4 * i);
        int row = i / quads;
        float4 four = make_float4(v[0], v[1], v[2], v[3]);
        if (round && f32)
            four = make_float4(bf16_rounded(v[0]), bf16_rounded(v[1]), bf16_rounded(v[2]),
                               bf16_rounded(v[3]));
        *(float4 *)(to + row * (w.cols + 4) + 4 * (i - row * quads)) = four;
    }
}

// Grid: (blocks of 64 rows, tiles of 16 picks, 2 for gate and up), block: 256, shared: 64 rows and x of the picks.
template <int WHAT>
__global__ static void __launch_bounds__(THREADS, 2) expert_tiles(const __grid_constant__ call c)
{
    extern __shared__ float4 shared[];
    __shared__ int32_t picks[TILE_TOKENS], from[TILE_TOKENS];
    lsa_after_previous();
    int32_t tiles = c.p.before[c.count + 1], all = (int32_t)(c.tokens * c.k);
    bool round = c.compute == LSA_COMPUTE_BF16;
    for (int32_t i = blockIdx.y; i < tiles; i += gridDim.y) {
        tile t = c.p.tiles[i];
        const lsa_expert_weights &e = expert_of(c, t);
        const lsa_weight &w = WHAT == DOWN ? e.down : blockIdx.z ? e.up : e.gate;
        float *y = WHAT == DOWN ? c.p.down : blockIdx.z ? c.p.up : c.p.gate;
        int64_t x_stride = WHAT == DOWN ? c.width : c.hidden,
                y_stride = WHAT == DOWN ? c.hidden : c.width;
        int cols = (int)w.cols, quads = cols / 4;
        float *rows = (float *)shared, *x = rows + TILE_ROWS * (cols + 4);
        if (threadIdx.x < TILE_TOKENS) {
            int32_t pick = c.p.members[t.from + min((int32_t)threadIdx.x, t.n - 1)];
            picks[threadIdx.x] = pick;
            from[threadIdx.x] = WHAT == DOWN ? pick : pick < all ? pick / (int32_t)c.k : pick - all;
        }
        __syncthreads();
        for (int j = threadIdx.x; j < TILE_TOKENS * quads; j += THREADS) {
            int token = j / quads, d = 4 * (j - token * quads);
            const float *own = (WHAT == DOWN ? c.p.gate : c.x) + from[token] * x_stride + d;
            float4 v = *(const float4 *)own;
            if (WHAT == DOWN) {
                float4 up = *(const float4 *)(c.p.up + from[token] * x_stride + d);
                v = make_float4(
                    lsa_swiglu_of(v.x, up.x, c.limit), lsa_swiglu_of(v.y, up.y, c.limit),
                    lsa_swiglu_of(v.z, up.z, c.limit), lsa_swiglu_of(v.w, up.w, c.limit));
            }
            if (round)
                v = make_float4(bf16_rounded(v.x), bf16_rounded(v.y), bf16_rounded(v.z),
                                bf16_rounded(v.w));
            *(float4 *)(x + token * cols + d) = v;
        }
        int own = threadIdx.x % TILE_ROWS, first = threadIdx.x / TILE_ROWS * TILE_EACH;
        for (int row = blockIdx.x * TILE_ROWS; row < w.rows; row += gridDim.x * TILE_ROWS) {
            stage_rows(rows, w, row, round);
            __syncthreads();
            if (row + own < w.rows && first < t.n) {
                float sums[TILE_EACH];
                add_up<5>(sums, {rows + own * (cols + 4), x + first * cols, cols}, 0);
#pragma unroll
                for (int j = 0; j < TILE_EACH; j++)
                    if (first + j < t.n) y[picks[first + j] * y_stride + row + own] = sums[j];
            }
            __syncthreads();
        }
    }
}

// A token's picks in the order of their experts, those of one in their own. Every block of a token finds it.
__device__ static void order_picks(const call &c, int64_t t)
{
    const int32_t *ids = c.ids + t * c.k;
    for (int64_t j = threadIdx.x; j < c.k; j += THREADS) {
        int32_t rank = 0;
        for (int64_t i = 0; i < c.k; i++) rank += ids[i] < ids[j] || (ids[i] == ids[j] && i < j);
        c.p.order[t * c.k + rank] = (int32_t)j;
    }
    __syncthreads();
}

// A tile's products by tensor cores; one token's picks are tiles as they are. Whether tile i is there and of this format.
template <typename PIECES>
__device__ static bool strip_tile(const call &c, int i, tile *t, lsa_expert_weights *e)
{
    if (c.tokens == 1) {
        bool routed = i < c.k;
        if (!routed && (i > c.k || !c.has_shared)) return false;
        *t = {routed ? c.ids[i] : (int32_t)c.count, i, 1};
        *e = routed ? c.experts[t->expert] : c.shared;
    } else {
        if (i >= c.p.before[c.count + 1]) return false;
        *t = c.p.tiles[i];
        *e = c.p.held[t->expert];
    }
    return true;
}

// Which rows a tile has of x, and which are its picks'.
template <int TOKENS> struct tile_rows {
    const int32_t *picks, *from;
    __device__ int64_t x(int t) const { return from[t]; }
    __device__ int64_t y(int t) const { return picks[t]; }
};

// Of silu(gate x) up x, or of down's products. A task of the first is a strip of gate and the same rows of up, whose sums one
// thread has. Grid: (blocks that share a tile's strips, tiles), block: 256, shared: strip_x_bytes.
template <typename PIECES, int TOKENS, int WHAT>
__global__ static void __launch_bounds__(THREADS, 2)
    expert_strips(const __grid_constant__ call c, int32_t dtype)
{
    extern __shared__ uint4 x[];
    __shared__ lsa_expert_weights e;
    __shared__ tile t;
    __shared__ bool there;
    __shared__ int32_t picks[TOKENS], from[TOKENS];
    lsa_after_previous();
    for (int32_t i = blockIdx.y;; i += gridDim.y) {
        if (threadIdx.x == 0) there = strip_tile<PIECES>(c, i, &t, &e);
        __syncthreads();
        if (!there) return;
        if ((WHAT == DOWN ? e.down : e.gate).dtype != dtype) { // the same in all threads
            __syncthreads();
            continue;
        }
        if (threadIdx.x < TOKENS) {
            int32_t all = (int32_t)(c.tokens * c.k), at = min((int)threadIdx.x, t.n - 1);
            int32_t pick = c.tokens == 1 ? t.from : c.p.members[t.from + at];
            int32_t token = pick < all ? pick / (int32_t)c.k : pick - all;
            picks[threadIdx.x] = pick;
            from[threadIdx.x] = WHAT == DOWN ? pick : token;
        }
        __syncthreads();
        tile_rows<TOKENS> places = {picks, from};
        if constexpr (WHAT == DOWN) {
            product p = product_of(c.p.down, c.p.gate, e.down, t.n, 0, e.down.rows, c.width,
                                   c.hidden, c.compute);
            product_strips<PIECES, 2, 4, TOKENS>(p, places, blockIdx.x, gridDim.x, x, [] {});
        } else {
            product gate = product_of(c.p.gate, c.x, e.gate, t.n, 0, e.gate.rows, c.hidden, c.width,
                                      c.compute);
            product up =
                product_of(NULL, NULL, e.up, t.n, 0, e.up.rows, c.hidden, c.width, c.compute);
            strip_tasks tasks = {(gate.rows + STRIP - 1) / STRIP,
                                 strip_splits(gate.cols, gate.dtype)};
            strips_of<PIECES, 2, 4, TOKENS>(
                gate, tasks, blockIdx.x, gridDim.x, x,
                [&](lane_rows *rows, int64_t task) {
                    strip_row(rows, 0, gate, task);
                    strip_row(rows, 1, up, task);
                },
                [&] { strip_x<PIECES, TOKENS>(x, gate, places); },
                [&](const strip_parts<2, TOKENS> &parts, int warp, int n, int64_t task) {
                    int token = n % TOKENS;
                    int64_t row = task * STRIP + n / TOKENS;
                    if (token >= t.n || row >= gate.rows) return;
                    float g = parts.sum(warp, tasks.splits, 0, n / TOKENS, token);
                    float u = parts.sum(warp, tasks.splits, 1, n / TOKENS, token);
                    c.p.gate[picks[token] * c.width + row] = lsa_swiglu_of(g, u, c.limit);
                });
        }
        __syncthreads();
    }
}

// Grid: (ceil(hidden / 256), tokens), block: 256.
__global__ static void sum_picks(const __grid_constant__ call c)
{
    lsa_after_previous();
    for (int64_t t = blockIdx.y; t < c.tokens; t += gridDim.y) {
        order_picks(c, t);
        for (int64_t at = lsa_thread(); at < c.hidden; at += lsa_threads()) {
            float sum = c.has_shared ? c.p.down[(c.tokens * c.k + t) * c.hidden + at] : 0.0f;
            for (int64_t i = 0; i < c.k; i++) {
                int64_t pick = t * c.k + c.p.order[t * c.k + i];
                sum = __fadd_rn(sum, __fmul_rn(c.weights[pick], c.p.down[pick * c.hidden + at]));
            }
            c.y[t * c.hidden + at] = sum;
        }
    }
}

// ---- launcher ----

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Tokens of a tile. One: decode. Two: most experts have one.
static int32_t tile_of(int64_t tokens, int64_t count, int64_t k)
{
    return tokens == 1 ? 1 : tokens * k <= count ? 2 : (int32_t)MANY;
}

static int64_t most_tiles(int64_t tokens, int64_t count, int64_t k)
{
    int64_t picks = tokens * (k + 1);
    return smaller(picks, picks / tile_of(tokens, count, k) + count + 1);
}

static void *take(char *base, int64_t *used, int64_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return at;
}

// base NULL: only counts.
static plan lay_out(char *base, int64_t tokens, int64_t hidden, int64_t count, int64_t k,
                    int64_t width)
{
    plan p;
    int64_t used = 0, i = sizeof(int32_t), f = sizeof(float), picks = tokens * (k + 1);
    p.first = (int32_t *)take(base, &used, (count + 1) * i);
    p.before = (int32_t *)take(base, &used, (count + 2) * i);
    p.members = (int32_t *)take(base, &used, picks * i);
    p.order = (int32_t *)take(base, &used, tokens * k * i);
    p.tiles = (tile *)take(base, &used, picks * (int64_t)sizeof(tile));
    p.held = (lsa_expert_weights *)take(base, &used, (count + 1) * (int64_t)sizeof *p.held);
    p.gate = (float *)take(base, &used, picks * width * f);
    p.up = (float *)take(base, &used, picks * width * f);
    p.down = (float *)take(base, &used, picks * hidden * f);
    p.bytes = used;
    return p;
}

// Of rows in the workspace: whole vectors.
static int64_t width_of(int64_t inner) { return (inner + 3) / 4 * 4; }

int64_t lsa_experts_workspace_cuda(const lsa_expert_weights *experts,
                                   const lsa_expert_weights *shared, int64_t tokens, int64_t hidden,
                                   int64_t count, int64_t k, int32_t compute)
{
    (void)compute;
    int64_t width = width_of(lsa_experts_widest(experts, shared, count));
    return lay_out(NULL, smaller(tokens, CHUNK), hidden, count, k, width).bytes;
}

static int check_products(const lsa_expert_weights &e, int32_t compute)
{
    const lsa_weight *all[] = {&e.gate, &e.up, &e.down};
    int rc = LSA_OK;
    for (int i = 0; i < 3 && !rc; i++)
        rc = lsa_linear_check(all[i], 1, 0, all[i]->rows, 0, 0, compute);
    return rc;
}

// Whether a lane may have a row of each.
static bool alike(const lsa_weight &a, const lsa_weight &b)
{
    return a.dtype == b.dtype && !a.scale == !b.scale && a.block_cols == b.block_cols;
}

// Which kinds the weights have, a bit each.
static uint32_t kinds_of(const lsa_weight &w)
{
    return 1u << kind_of(product_of(NULL, NULL, w, 1, 0, 0, 0, 0, LSA_COMPUTE_F32));
}

template <int KIND, int TOKENS>
static void launch(const call &c, int32_t what, dim3 grid, cudaStream_t stream)
{
    if (c.kinds[what] >> KIND & 1)
        lsa_launch(expert_products<KIND, TOKENS>, grid, THREADS, 0, stream, c, what);
}

template <int TOKENS>
static void launch_kinds(const call &c, int32_t what, dim3 grid, cudaStream_t stream)
{
    launch<ANY, TOKENS>(c, what, grid, stream);
    launch<IN_F32, TOKENS>(c, what, grid, stream);
    launch<IN_BF16, TOKENS>(c, what, grid, stream);
    launch<IN_F16, TOKENS>(c, what, grid, stream);
    launch<IN_E4M3, TOKENS>(c, what, grid, stream);
    launch<IN_E2M1, TOKENS>(c, what, grid, stream);
}

template <int TOKENS> static void launch_experts(const call &c, cudaStream_t stream)
{
    unsigned tiles = (unsigned)smaller(most_tiles(c.tokens, c.count, c.k), MOST_Y);
    int64_t wide = WARPS / splits_of(c.hidden) * ROWS;
    dim3 up((unsigned)((c.width + wide - 1) / wide), tiles, 2);
    wide = WARPS / splits_of(c.width) * ROWS;
    dim3 down((unsigned)((c.hidden + wide - 1) / wide), tiles);
    if (c.width > 0) launch_kinds<TOKENS>(c, GATE_AND_UP, up, stream);
    launch_kinds<TOKENS>(c, DOWN, down, stream);
}

// A format's products; blocks keep x of eight tokens for several strips.
template <typename PIECES, int TOKENS, int WHAT>
static bool launch_strips(const call &c, int kind, int32_t dtype, int64_t tiles,
                          cudaStream_t stream)
{
    if (!(c.kinds[WHAT] >> kind & 1)) return true;
    auto kernel = expert_strips<PIECES, TOKENS, WHAT>;
    int64_t cols = WHAT == DOWN ? c.width : c.hidden, rows = WHAT == DOWN ? c.hidden : c.width;
    size_t shared = (size_t)strip_x_bytes(cols, dtype, TOKENS);
    int64_t each = WARPS / strip_splits(cols, dtype) * STRIP * (WHAT == DOWN ? 2 : 1);
    int64_t blocks = (rows + each - 1) / each, most = TOKENS == 1 ? 64 : 16;
    if (blocks > most) blocks = most;
    if (shared > 48 << 10 &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared))
        return false;
    lsa_launch(kernel, dim3((unsigned)blocks, (unsigned)tiles), THREADS, shared, stream, c, dtype);
    return true;
}

template <int TOKENS, int WHAT> static bool launch_formats(const call &c, cudaStream_t stream)
{
    int64_t tiles =
        c.tokens == 1 ? c.k + c.has_shared : smaller(most_tiles(c.tokens, c.count, c.k), MOST_Y);
    return launch_strips<piece_bf16, TOKENS, WHAT>(c, IN_BF16, LSA_BF16, tiles, stream) &&
           launch_strips<piece_e4m3, TOKENS, WHAT>(c, IN_E4M3, LSA_F8_E4M3, tiles, stream) &&
           launch_strips<piece_e2m1, TOKENS, WHAT>(c, IN_E2M1, LSA_F4_E2M1, tiles, stream);
}

static bool run_strips(const call &c, cudaStream_t stream)
{
    if (c.tokens == 1)
        return launch_formats<1, GATE_AND_UP>(c, stream) && launch_formats<1, DOWN>(c, stream);
    lsa_launch(group_picks, 1, PLAN_THREADS, 0, stream, c, (int32_t)MANY);
    return launch_formats<MANY, GATE_AND_UP>(c, stream) && launch_formats<MANY, DOWN>(c, stream);
}

template <int WHAT> static bool launch_tiles(const call &c, cudaStream_t stream)
{
    int64_t cols = WHAT == DOWN ? c.width : c.hidden, rows = WHAT == DOWN ? c.hidden : c.width;
    int64_t picks = c.tokens * (c.k + c.has_shared), tiles = picks / TILE_TOKENS + c.count + 1;
    size_t bytes = (TILE_ROWS * (cols + 4) + TILE_TOKENS * cols) * sizeof(float);
    if (cudaFuncSetAttribute(expert_tiles<WHAT>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             (int)bytes))
        return false;
    dim3 grid((unsigned)((rows + TILE_ROWS - 1) / TILE_ROWS), (unsigned)smaller(tiles, MOST_Y),
              WHAT == DOWN ? 1 : 2);
    lsa_launch(expert_tiles<WHAT>, grid, THREADS, bytes, stream, c);
    return true;
}

static void run(const call &c, cudaStream_t stream)
{
    int32_t each = tile_of(c.tokens, c.count, c.k);
    if (c.tokens <= SHORT_TOKENS && c.is_short) {
        unsigned picks = (unsigned)(c.tokens * (c.k + c.has_shared));
        unsigned rows[] = {(unsigned)(2 * c.width + WARPS - 1) / WARPS,
                           (unsigned)(c.hidden + WARPS - 1) / WARPS};
        for (int32_t what = GATE_AND_UP; what <= DOWN && picks; what++)
            if (rows[what])
                lsa_launch(expert_rows, dim3(rows[what], picks), THREADS, 0, stream, c, what);
    } else if (c.is_tiled && c.tokens * (c.k + c.has_shared) > 0) {
        lsa_launch(group_picks, 1, PLAN_THREADS, 0, stream, c, (int32_t)TILE_TOKENS);
        if (c.width > 0 && !launch_tiles<GATE_AND_UP>(c, stream)) return; // lsa_launched says why
        if (!launch_tiles<DOWN>(c, stream)) return;
    } else if (c.by_strips && c.tokens * (c.k + c.has_shared) > 0) {
        if (!run_strips(c, stream)) return; // lsa_launched says why
    } else if (most_tiles(c.tokens, c.count, c.k) > 0) {
        lsa_launch(group_picks, 1, PLAN_THREADS, 0, stream, c, each);
        if (each == 1)
            launch_experts<1>(c, stream);
        else if (each == 2)
            launch_experts<2>(c, stream);
        else
            launch_experts<MANY>(c, stream);
    }
    dim3 grid((unsigned)((c.hidden + THREADS - 1) / THREADS), (unsigned)c.tokens);
    lsa_launch(sum_picks, grid, THREADS, 0, stream, c);
}

int lsa_experts_cuda(float *y, const float *x, const int32_t *ids, const float *weights,
                     const lsa_expert_weights *experts, const lsa_expert_weights *shared,
                     int64_t tokens, int64_t hidden, int64_t count, int64_t k, float swiglu_limit,
                     int32_t compute, void *workspace, void *stream)
{
    int rc = lsa_experts_check(experts, shared, tokens, hidden, count, k);
    if (rc || tokens == 0) return rc;
    int64_t inner = lsa_experts_widest(experts, shared, count);
    if (shared) rc = check_products(*shared, compute);
    for (int64_t e = 0; e < count && !rc; e++) rc = check_products(experts[e], compute);
    if (!rc) rc = lsa_swiglu_check(shared ? tokens * shared->gate.rows : inner, swiglu_limit);
    if (rc || hidden == 0) return rc;
    call c = {y,
              x,
              ids,
              weights,
              experts,
              {},
              shared != NULL,
              tokens,
              hidden,
              count,
              k,
              width_of(inner),
              swiglu_limit,
              compute,
              {},
              {0, 0},
              true,
              true,
              true};
    if (shared) c.shared = *shared;
    for (int64_t e = shared ? -1 : 0; e < count; e++) {
        const lsa_expert_weights &w = e < 0 ? *shared : experts[e];
        c.kinds[GATE_AND_UP] |= kinds_of(w.gate) | kinds_of(w.up);
        c.kinds[DOWN] |= kinds_of(w.down);
        c.is_short &= is_short_row(w.gate) && is_short_row(w.up) && is_short_row(w.down);
        c.by_strips &= by_tensor_cores(w.gate, compute) && by_tensor_cores(w.up, compute) &&
                       by_tensor_cores(w.down, compute) && alike(w.gate, w.up);
    }
    c.is_tiled = c.is_short && hidden <= TILE_COLS && inner > 0 && inner <= TILE_COLS &&
                 inner % 8 == 0 && (uintptr_t)x % 16 == 0;
    c.p = lay_out((char *)workspace, smaller(tokens, CHUNK), hidden, count, k, c.width);
    for (int64_t t = 0; t < tokens; t += CHUNK) {
        c.y = y + t * hidden, c.x = x + t * hidden, c.ids = ids + t * k,
        c.weights = weights + t * k;
        c.tokens = smaller(tokens - t, CHUNK);
        run(c, (cudaStream_t)stream);
    }
    return lsa_launched("experts");
}
