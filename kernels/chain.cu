// A chain of calls on the GPU, in one launch where all of them are short: a token is a cluster's work. What a stage gives, blocks
// send to one another, so that the next stage finds it in its own shared memory, and weights are asked for before the launch before
// has ended. Stages that take less time than sending does (a turn, few rows) are every block's own work.
#include "kernels/hopper.h"
#include "kernels/hyper_connection_cuda.h"
#include "kernels/moe_route_cuda.h"
#include "kernels/settle_cuda.h"

extern "C" {
#include "kernels/chain.h"
#include "kernels/table.h"

extern const lsa_kernels lsa_kernels_cuda;
}

enum {
    MOST_TOKENS = 128,
    MOST_EXPERTS = 8,
    FEW_ROWS = 16, // that every block computes itself
    NOWHERE = -1,
    MOST_BLOCKS = 16,      // of a cluster, where the GPU has so many beside one another
    MOST_SHARED = 24 << 10 // the arena
};

// As a power of two, the lanes of a warp that take a row: as many as a short row gives eight numbers each, or all. Lanes without
// numbers would add zeros, so a row's bits are the same.
enum { WHOLE_WARP = 5 };

__host__ __device__ static int lanes_of(int64_t cols)
{
    return cols <= EIGHT << 3 ? 3 : cols <= EIGHT << 4 ? 4 : WHOLE_WARP;
}

// Numbers of a token: in shared memory from `slot` on, or where it is NOWHERE, in row t of `global`.
struct operand {
    const float *global;
    int64_t stride;
    int32_t slot;
};

// slot: where its outputs go in shared memory, too. lanes: of a warp, that take a row.
struct chain_product {
    const uint8_t *data;
    float *y;
    operand x;
    int64_t y_stride;
    int32_t rows, cols, row_bytes, lanes, slot;
    bool f32, round_w;
};

// Products' rows in units of as many as a warp takes: units first[i] .. first[i + 1] - 1 are those of product i.
struct chain_linears {
    chain_product p[LSA_LINEARS_MOST];
    int32_t first[LSA_LINEARS_MOST + 1];
    int32_t count;
    const float *norm;
    float norm_eps;
    bool round_x, alone; // alone: every block computes all
};

struct chain_turn {
    turn u;
    operand y;
    int32_t slot, held; // of x; of the streams
    bool later;         // there is a turn before it in the chain
};

struct chain_route {
    routing r;
    operand logits;
};

struct chain_expert {
    const uint8_t *gate, *up, *down;
    bool gate_f32, up_f32, down_f32;
};

struct chain_experts {
    chain_expert e[MOST_EXPERTS + 1]; // the shared one behind the others
    float *y;
    operand x;
    int32_t slot, gate_slot, up_slot; // of y; of picks' rows
    int32_t hidden, inner, count, k, picks;
    float limit;
    bool round;
};

struct chain_settle {
    const lsa_span *spans;
    settling c;
    operand q, window, kv, gate, index_kv, index_gate, index_q, index_w, hidden;
    int32_t roles, held; // held: where its shared memory begins
};

// arriving: bytes that others send a block in each of a stage's halves; only experts have two.
struct chain_stage {
    int32_t kind, arriving[2];
    union {
        chain_linears linears;
        chain_turn turn;
        chain_route route;
        chain_experts experts;
        chain_settle settle;
    };
};

struct alignas(16) chain {
    chain_stage s[LSA_CHAIN_MOST];
    int32_t count;
};

// What a block has besides its arena.
struct block {
    uint64_t arrived[LSA_CHAIN_MOST][2], taken;
    float said[MOST_BLOCKS]; // a number that says nothing, of each block
    float sums[2][TURN_WARPS], pre[TURN_STREAMS], post[TURN_STREAMS];
    float comb[LSA_WARP], m[LSA_WARP];
    float weights[LSA_WARP];
    int32_t ids[LSA_WARP], order[LSA_WARP];
};

// Who a thread is.
struct place {
    float *arena;
    block *b;
    int64_t t;
    int rank, size, shift, warp, lane; // size: a power of two
    __device__ const float *at(const operand &x) const
    {
        return x.slot == NOWHERE ? x.global + t * x.stride : arena + x.slot;
    }
    // A block's share of n things: they lie side by side.
    __device__ int share_from(int n) const { return n * rank >> shift; }
    __device__ int share_to(int n) const { return n * (rank + 1) >> shift; }
};

// ---- sending ----

// v becomes what block `to` has at `here`.
__device__ static void send(float *here, float v, uint64_t *arrived, int to)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                     lsa_shared_of(here, (uint32_t)to)),
                 "r"(__float_as_uint(v)), "r"(lsa_shared_of(arrived, (uint32_t)to))
                 : "memory");
}

// By 2^lanes lanes that all have v.
__device__ static void send_all(const place &p, int slot, float v, uint64_t *arrived, int lanes)
{
#pragma unroll 1
    for (int to = p.lane & ((1 << lanes) - 1); to < p.size; to += 1 << lanes)
        send(p.arena + slot, v, arrived, to);
}

// ---- weights ----

// Which of the block's warps asks for what comes next: they take turns.
struct turns {
    int at;
    __device__ bool mine(const place &p) { return at++ % WARPS == p.warp; }
};

// A warp asks for rows from .. to - 1.
__device__ __noinline__ static void ask_for_rows(const void *data, int from, int to, int row_bytes,
                                                 int lane)
{
    lsa_warm((const char *)data + (int64_t)from * row_bytes, (int64_t)(to - from) * row_bytes, lane,
             LSA_WARP);
}

__device__ static void ask_for(const chain_linears &l, const place &p, turns &t)
{
    int all = l.first[l.count], from = l.alone ? 0 : p.share_from(all),
        to = l.alone ? all : p.share_to(all);
    if (l.norm && t.mine(p)) ask_for_rows(l.norm, 0, l.p[0].cols, 4, p.lane);
#pragma unroll 1
    for (int i = 0; i < l.count; i++) {
        const chain_product &c = l.p[i];
        int each = LSA_WARP >> c.lanes, first = l.first[i];
        int begin = max(from - first, 0) * each, end = min((to - first) * each, c.rows);
        if (begin < end && t.mine(p)) ask_for_rows(c.data, begin, end, c.row_bytes, p.lane);
    }
}

__device__ static void ask_for(const chain_turn &s, const place &p, turns &t)
{
    const product &fn = s.u.fn;
    int rows = (int)fn.rows, bytes = (int)fn.cols * (fn.dtype == LSA_F32 ? 4 : 2);
    ask_for_rows(fn.data, rows * p.warp / WARPS, rows * (p.warp + 1) / WARPS, bytes, p.lane);
    if (t.mine(p)) ask_for_rows(s.u.norm, 0, (int)s.u.k.dim, 4, p.lane);
    if (t.mine(p)) ask_for_rows(s.u.k.base, 0, rows, 4, p.lane);
    if (t.mine(p)) ask_for_rows(s.u.k.scale, 0, 1, 4, p.lane);
}

// All experts': which ones, nobody knows yet.
__device__ static void ask_for(const chain_experts &s, const place &p, turns &t)
{
    int each = LSA_WARP >> lanes_of(s.hidden), units = (s.inner + each - 1) / each;
    int from = p.share_from(units) * each, to = min(p.share_to(units) * each, s.inner);
    int all = s.count + (s.picks > s.k);
#pragma unroll 1
    for (int e = 0; e < all; e++) {
        const chain_expert &x = s.e[e];
        if (t.mine(p)) ask_for_rows(x.gate, from, to, s.hidden * (x.gate_f32 ? 4 : 2), p.lane);
        if (t.mine(p)) ask_for_rows(x.up, from, to, s.hidden * (x.up_f32 ? 4 : 2), p.lane);
        if (t.mine(p))
            ask_for_rows(x.down, p.share_from(s.hidden), p.share_to(s.hidden),
                         s.inner * (x.down_f32 ? 4 : 2), p.lane);
    }
}

__device__ static void ask_for(const chain_stage &s, const place &p, turns &t)
{
    if (s.kind == LSA_STAGE_LINEARS) ask_for(s.linears, p, t);
    if (s.kind == LSA_STAGE_TURN) ask_for(s.turn, p, t);
    if (s.kind == LSA_STAGE_EXPERTS) ask_for(s.experts, p, t);
    if (s.kind == LSA_STAGE_SETTLE && t.mine(p))
        ask_for_rows(s.settle.spans[p.t].layers, (int)s.settle.c.layer, (int)s.settle.c.layer + 1,
                     sizeof(lsa_layer_store), p.lane);
}

// ---- stages ----

// Eight numbers from p on, where four of them lie on a boundary of theirs.
__device__ static void load_eight(float *v, const float *p)
{
    float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ static void load_eight(float *v, const uint8_t *row, bool f32, int col)
{
    if (f32) return load_eight(v, (const float *)row + col);
    uint4 u = *(const uint4 *)(row + 2 * col);
    uint32_t pairs[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(pairs[i] << 16);
        v[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000);
    }
}

// A lane's part of short_product, with its bits, where x is not gated: 2^lanes lanes share the row.
__device__ static float own_product(const short_row &r, int lanes)
{
    float sum = 0;
#pragma unroll 1
    for (int col = (threadIdx.x & ((1 << lanes) - 1)) * EIGHT; col < r.cols;
         col += EIGHT << lanes) {
        float w[EIGHT], x[EIGHT], norm[EIGHT];
        load_eight(w, r.data, r.f32, col);
        load_eight(x, r.x + col);
        if (r.norm) {
            load_eight(norm, r.norm + col);
#pragma unroll
            for (int i = 0; i < EIGHT; i++) x[i] = x[i] * r.row_scale * norm[i];
        }
        if (r.round_x)
#pragma unroll
            for (int i = 0; i < EIGHT; i++) x[i] = bf16_rounded(x[i]);
        if (r.round_w)
#pragma unroll
            for (int i = 0; i < EIGHT; i++) w[i] = bf16_rounded(w[i]);
#pragma unroll
        for (int i = 0; i < EIGHT; i++) sum = fmaf(w[i], x[i], sum);
    }
    return lanes < WHOLE_WARP ? sum + 0.0f : sum;
}

template <int PARTS, int STEP_> __device__ static void add_lanes(float (&sums)[PARTS])
{
#pragma unroll
    for (int i = 0; i < PARTS; i++) sums[i] += __shfl_xor_sync(0xffffffff, sums[i], STEP_);
}

// The sums of PARTS rows' lanes side by side.
template <int PARTS> __device__ static void sum_lanes(float (&sums)[PARTS], int lanes)
{
    if (lanes == WHOLE_WARP) add_lanes<PARTS, 16>(sums);
    if (lanes >= 4) add_lanes<PARTS, 8>(sums);
    add_lanes<PARTS, 4>(sums);
    add_lanes<PARTS, 2>(sums);
    add_lanes<PARTS, 1>(sums);
}

// Which of a stage's products a unit is of; a lane's row of it, and whether there is one.
struct unit_row {
    const chain_product *c;
    int row;
    bool there;
};

__device__ static unit_row row_of(const chain_linears &l, int unit, int lane)
{
    bool behind = lane + 1 < l.count && unit >= l.first[lane + 1];
    int i = __popc(__ballot_sync(0xffffffff, behind));
    const chain_product &c = l.p[i];
    int row = ((unit - l.first[i]) << (WHOLE_WARP - c.lanes)) + (lane >> c.lanes);
    return {&c, row, row < c.rows};
}

// Units u, and where there are two u + WARPS, of a warp.
template <int UNITS>
__device__ static void run_units(const chain_linears &l, const place &p, int u, float scale,
                                 uint64_t *arrived)
{
    unit_row rows[UNITS];
    float sums[UNITS];
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        rows[i] = row_of(l, u + i * WARPS, p.lane);
        const chain_product &c = *rows[i].c;
        short_row r = {c.data + min(rows[i].row, c.rows - 1) * c.row_bytes,
                       p.at(c.x),
                       l.norm,
                       NULL,
                       c.cols,
                       scale,
                       0,
                       c.f32,
                       l.round_x,
                       c.round_w};
        sums[i] = own_product(r, c.lanes);
    }
    if (UNITS == 1 || rows[0].c->lanes == rows[UNITS - 1].c->lanes)
        sum_lanes(sums, rows[0].c->lanes);
    else // one of either side of where a product ends
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            float one[1] = {sums[i]};
            sum_lanes(one, rows[i].c->lanes);
            sums[i] = one[0];
        }
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        if (!rows[i].there) continue;
        const chain_product &c = *rows[i].c;
        bool first = (p.lane & ((1 << c.lanes) - 1)) == 0;
        if (c.slot != NOWHERE && !l.alone)
            send_all(p, c.slot + rows[i].row, sums[i], arrived, c.lanes);
        if (c.slot != NOWHERE && l.alone && first) p.arena[c.slot + rows[i].row] = sums[i];
        if (first && (!l.alone || p.rank == 0)) c.y[p.t * c.y_stride + rows[i].row] = sums[i];
    }
}

__device__ static void run(const chain_linears &l, const place &p, uint64_t *arrived)
{
    float scale = 1;
    int all = l.first[l.count], from = l.alone ? 0 : p.share_from(all),
        to = l.alone ? all : p.share_to(all);
    if (l.norm) scale = scale_of_row(p.at(l.p[0].x), l.p[0].cols, l.norm_eps, true);
    int u = from + p.warp;
#pragma unroll 1
    for (; u + WARPS < to; u += 2 * WARPS) run_units<2>(l, p, u, scale, arrived);
    if (u < to) run_units<1>(l, p, u, scale, arrived);
    if (l.alone) __syncthreads();
}

// Sinkhorn's rounds for the turn to come, which nothing before it waits for: a warp's work while others have something else to do
// or to wait for.
__device__ __noinline__ static void balance(const chain_turn *owed, const place &p)
{
    if (!owed || p.warp != WARPS - 1) return;
    const connection &k = owed->u.k;
    int hc = (int)k.hc;
    float own = balanced(p.lane < hc * hc ? p.b->m[p.lane] : 0.0f, hc, k.iters, k.hc_eps);
    if (p.lane >= hc * hc) return;
    p.b->comb[p.lane] = own;
    if (p.rank == 0) owed->u.comb[p.t * hc * hc + p.lane] = own;
}

// Every block takes what the first turn finds, and says so to the one that will write there.
__device__ static void take_streams(const chain &c, const place &p)
{
#pragma unroll 1
    for (int i = 0; i < c.count; i++) {
        if (c.s[i].kind != LSA_STAGE_TURN) continue;
        const turn &u = c.s[i].turn.u;
        int hc = (int)u.k.hc, all = hc * (int)u.k.dim;
        float *held = p.arena + c.s[i].turn.held;
        const float *streams = u.streams + p.t * all;
#pragma unroll 1
        for (int d = 4 * threadIdx.x; d < all; d += 4 * THREADS)
            *(float4 *)(held + d) = *(const float4 *)(streams + d);
        if (u.y && threadIdx.x < hc) p.b->post[threadIdx.x] = u.post[p.t * hc + threadIdx.x];
        if (u.y && threadIdx.x < hc * hc)
            p.b->comb[threadIdx.x] = u.comb[p.t * hc * hc + threadIdx.x];
        __syncthreads();
        if (u.y && threadIdx.x == 0) send(p.b->said + p.rank, 0, &p.b->taken, 0);
        return;
    }
}

__device__ static void run(const chain_turn &s, const place &p)
{
    const turn &u = s.u;
    const connection &k = u.k;
    block &b = *p.b;
    int hc = (int)k.hc, dim = (int)k.dim;
    float *held = p.arena + s.held, *x = p.arena + s.slot, square = 0;
    float *streams = u.streams + p.t * hc * dim;
    const float *y = u.y ? p.at(s.y) : NULL;
    if (s.later) __syncthreads(); // comb
    if (!s.later && y && p.rank == 0) lsa_barrier_wait(&b.taken, 0);
#pragma unroll 1
    for (int d = threadIdx.x; d < dim; d += THREADS)
        square +=
            take_column(held, p.rank == 0 ? streams : NULL, held, y, b.post, b.comb, hc, dim, d);
    square = lsa_warp_sum(square);
    if (p.lane == 0) b.sums[0][p.warp] = square;
    __syncthreads();
    float norm = 1.0f / sqrtf(sum_of_warps(b.sums[0]) / (float)(hc * dim) + k.norm_eps);
#pragma unroll 1
    for (int o = p.warp; o < u.fn.rows; o += TURN_WARPS) {
        float mix = projected(u, held, o);
        if (p.lane > 0) continue;
        int group = u.head ? 0 : o < hc ? 0 : o < 2 * hc ? 1 : 2;
        f32x16 v = f32x16(mix) * norm * k.scale[group] + k.base[o];
        if (group == 0) b.pre[o] = (f32x16_sigmoid(v) + k.hc_eps).lane;
        if (group == 1) b.post[o - hc] = (f32x16_sigmoid(v) * 2.0f).lane;
        if (group == 2) b.m[o - 2 * hc] = v.lane;
    }
    __syncthreads();
    if (p.rank == 0 && !u.head && threadIdx.x < hc)
        u.post[p.t * hc + threadIdx.x] = b.post[threadIdx.x];
    square = 0;
#pragma unroll 1
    for (int d = threadIdx.x; d < dim; d += THREADS) {
        float sum = __fmul_rn(held[d], b.pre[0]);
#pragma unroll 1
        for (int j = 1; j < hc; j++) sum = __fadd_rn(sum, __fmul_rn(held[j * dim + d], b.pre[j]));
        x[d] = sum;
        square = fmaf(sum, sum, square);
    }
    square = lsa_warp_sum(square);
    if (p.lane == 0) b.sums[1][p.warp] = square;
    __syncthreads();
    float scale = 1.0f / sqrtf(sum_of_warps(b.sums[1]) / (float)dim + k.norm_eps);
#pragma unroll 1
    for (int d = threadIdx.x; d < dim; d += THREADS) {
        x[d] = x[d] * scale * u.norm[d];
        if (p.rank == 0) u.x[p.t * dim + d] = x[d];
    }
    __syncthreads();
}

__device__ static void run(const chain_route &s, const place &p, const chain_turn *owed)
{
    const routing &r = s.r;
    block &b = *p.b;
    int k = (int)r.k;
    balance(owed, p);
    if (p.warp == 0) {
        route_by_warp<(MOST_EXPERTS + LSA_WARP - 1) / LSA_WARP>(r, p.at(s.logits), p.t, b.ids,
                                                                b.weights);
        __syncwarp();
        if (p.lane < k) {
            int rank = 0, own = b.ids[p.lane];
#pragma unroll 1
            for (int i = 0; i < k; i++) rank += b.ids[i] < own || (b.ids[i] == own && i < p.lane);
            b.order[rank] = p.lane; // picks in the order of their experts
            if (p.rank == 0) {
                r.ids[p.t * k + p.lane] = own;
                r.weights[p.t * k + p.lane] = b.weights[p.lane];
            }
        }
    }
    __syncthreads();
}

// Where a warp is among the units of a block's share of gate and up of all picks.
struct up_units {
    int matrix, unit, own; // a pick's gate, its up, the next one's gate ...; of so many units
    __device__ void move(int by)
    {
        for (unit += by; unit >= own; unit -= own) matrix++;
    }
};

// The next UNITS of them.
template <int UNITS>
__device__ static void run_up_units(const chain_experts &s, const place &p, up_units &at, int from,
                                    uint64_t *arrived)
{
    int lanes = lanes_of(s.hidden), slots[UNITS];
    float sums[UNITS];
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        int pick = at.matrix >> 1, of_up = at.matrix & 1;
        int row = ((from + at.unit) << (WHOLE_WARP - lanes)) + (p.lane >> lanes);
        const chain_expert &e = s.e[pick < s.k ? p.b->ids[pick] : s.count];
        bool f32 = of_up ? e.up_f32 : e.gate_f32;
        int bytes = s.hidden * (f32 ? 4 : 2);
        short_row r = {(of_up ? e.up : e.gate) + min(row, s.inner - 1) * bytes,
                       p.at(s.x),
                       NULL,
                       NULL,
                       s.hidden,
                       1,
                       0,
                       f32,
                       s.round,
                       s.round && f32};
        sums[i] = own_product(r, lanes);
        slots[i] =
            row < s.inner ? (of_up ? s.up_slot : s.gate_slot) + pick * s.inner + row : (int)NOWHERE;
        at.move(WARPS);
    }
    sum_lanes(sums, lanes);
#pragma unroll
    for (int i = 0; i < UNITS; i++)
        if (slots[i] != NOWHERE) send_all(p, slots[i], sums[i], arrived, lanes);
}

// Gate and up of all picks.
__device__ static void run_up(const chain_experts &s, const place &p, uint64_t *arrived)
{
    int each = LSA_WARP >> lanes_of(s.hidden), units = (s.inner + each - 1) / each;
    int from = p.share_from(units), own = p.share_to(units) - from, all = 2 * s.picks * own;
    if (own == 0) return;
    up_units at = {0, 0, own};
    at.move(p.warp);
    int n = p.warp;
#pragma unroll 1
    for (; n + WARPS < all; n += 2 * WARPS) run_up_units<2>(s, p, at, from, arrived);
    if (n < all) run_up_units<1>(s, p, at, from, arrived);
}

// What down takes, in gate's place.
__device__ static void gate_up(const chain_experts &s, const place &p)
{
    float *gate = p.arena + s.gate_slot, *up = p.arena + s.up_slot;
#pragma unroll 1
    for (int i = threadIdx.x; i < s.picks * s.inner; i += THREADS)
        gate[i] = lsa_swiglu_of(gate[i], up[i], s.limit);
    __syncthreads();
}

// Down of all picks, some at a time, summed in the order of lsa_experts: the shared expert's first, then by expert.
__device__ static void run_down(const chain_experts &s, const place &p, uint64_t *arrived)
{
    int lanes = lanes_of(s.inner), each = LSA_WARP >> lanes, shared = s.picks - s.k;
#pragma unroll 1
    for (int row = p.share_from(s.hidden) + p.warp; row < p.share_to(s.hidden); row += WARPS) {
        float sum = 0;
#pragma unroll 1
        for (int from = 0; from < s.picks; from += each) {
            int nth = min(from + (p.lane >> lanes), s.picks - 1);
            int pick = nth < shared ? s.k : p.b->order[nth - shared];
            const chain_expert &e = s.e[pick < s.k ? p.b->ids[pick] : s.count];
            short_row r = {e.down + row * s.inner * (e.down_f32 ? 4 : 2),
                           p.arena + s.gate_slot + pick * s.inner,
                           NULL,
                           NULL,
                           s.inner,
                           1,
                           0,
                           e.down_f32,
                           s.round,
                           s.round && e.down_f32};
            float own[1] = {own_product(r, lanes)};
            sum_lanes(own, lanes);
#pragma unroll 1
            for (int i = 0; i < each && from + i < s.picks; i++) {
                float v = __shfl_sync(0xffffffff, own[0], i << lanes);
                int n = from + i;
                sum = n < shared
                          ? v
                          : __fadd_rn(sum, __fmul_rn(p.b->weights[p.b->order[n - shared]], v));
            }
        }
        if (s.slot != NOWHERE) send_all(p, s.slot + row, sum, arrived, WHOLE_WARP);
        if (p.lane == 0) s.y[p.t * s.hidden + row] = sum;
    }
}

__device__ static void run(const chain_settle &s, const place &p, float4 (*near)[MOST_DIM / 4])
{
    settle_row in = {p.at(s.q),       p.at(s.window),   p.at(s.kv),
                     p.at(s.gate),    p.at(s.index_kv), p.at(s.index_gate),
                     p.at(s.index_q), p.at(s.index_w),  p.at(s.hidden)};
#pragma unroll 1
    for (int role = p.rank; role < s.roles; role += p.size)
        settle_role(s.spans[p.t], s.c, in, role, p.arena + s.held, near), __syncthreads();
}

// ---- kernel ----

// Waits for what others send in half `half` of a stage.
__device__ static void await(const chain_stage &s, int half, block &b, int i)
{
    if (s.arriving[half]) lsa_barrier_wait(&b.arrived[i][half], 0);
}

// The arguments, in shared memory: read as constants, they would come one by one. They are memory that all threads can read at
// once, where its address is asked for.
__device__ static void take_arguments(chain *to, const chain &given)
{
    uint64_t from;
    asm("cvta.param.u64 %0, %1;" : "=l"(from) : "l"(__cvta_generic_to_grid_constant(&given)));
    for (int i = threadIdx.x; i < (int)(sizeof *to / sizeof(uint4)); i += THREADS) {
        uint4 v;
        asm volatile("ld.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "l"(from + i * sizeof v));
        ((uint4 *)to)[i] = v;
    }
    __syncthreads();
}

// Grid: (blocks of a cluster, tokens), block: 256, shared: the arena.
__global__ static void __launch_bounds__(THREADS, 1)
    chain_token(const __grid_constant__ chain given)
{
    extern __shared__ float4 arena[];
    __shared__ chain c; // constants come one after the other, and every one of these is read once
    __shared__ block b;
    __shared__ float4 near[HEADS][MOST_DIM / 4];
    place p = {(float *)arena,
               &b,
               blockIdx.y,
               (int)lsa_cluster_rank(),
               (int)lsa_cluster_size(),
               __ffs((int)lsa_cluster_size()) - 1,
               (int)threadIdx.x / LSA_WARP,
               (int)threadIdx.x % LSA_WARP};
    lsa_let_next_launch_start();
    take_arguments(&c, given);
    if (threadIdx.x == 0) {
#pragma unroll 1
        for (int i = 0; i < c.count; i++)
#pragma unroll 1
            for (int half = 0; half < 2; half++) lsa_barrier_init(&b.arrived[i][half], 1);
        lsa_barrier_init(&b.taken, 1);
        lsa_barrier_init_fence();
        lsa_barrier_expect(&b.taken, (uint32_t)(p.size * sizeof(float)));
#pragma unroll 1
        for (int i = 0; i < c.count; i++)
#pragma unroll 1
            for (int half = 0; half < 2; half++)
                if (c.s[i].arriving[half])
                    lsa_barrier_expect(&b.arrived[i][half], (uint32_t)c.s[i].arriving[half]);
    }
    lsa_cluster_sync(); // nobody sends before all have barriers; it empties the cache, so weights are asked for behind it
    turns t = {0};
#pragma unroll 1
    for (int i = 0; i < c.count; i++) ask_for(c.s[i], p, t);
    lsa_wait_for_launch_before();
    take_streams(c, p);
    const chain_turn *owed = NULL; // a turn that is not balanced yet
#pragma unroll 1
    for (int i = 0; i < c.count; i++) {
        const chain_stage &s = c.s[i];
        switch (s.kind) {
        case LSA_STAGE_LINEARS:
            run(s.linears, p, b.arrived[i]);
            if (s.linears.alone) break;
            balance(owed, p), owed = NULL;
            await(s, 0, b, i);
            break;
        case LSA_STAGE_TURN:
            balance(owed, p);
            run(s.turn, p);
            owed = s.turn.u.head ? NULL : &s.turn;
            break;
        case LSA_STAGE_ROUTE:
            run(s.route, p, owed), owed = NULL;
            break;
        case LSA_STAGE_EXPERTS:
            run_up(s.experts, p, b.arrived[i]);
            balance(owed, p), owed = NULL;
            await(s, 0, b, i);
            gate_up(s.experts, p);
            run_down(s.experts, p, b.arrived[i] + 1);
            await(s, 1, b, i);
            break;
        default:
            run(s.settle, p, near);
        }
    }
    balance(owed, p);
}

// ---- launcher ----

// Where a token's outputs are in the arena: `length` numbers that are at `base` in memory.
struct region {
    const float *base;
    int64_t length;
    int32_t slot, stage;
    bool read;
};

struct plan {
    chain c;
    region regions[LSA_CHAIN_MOST * LSA_LINEARS_MOST];
    int count;
    int64_t floats;
    int32_t streams; // where they are, once there is a turn
};

static int32_t take(plan *p, int64_t floats)
{
    int64_t at = p->floats;
    p->floats += (floats + 3) / 4 * 4;
    return (int32_t)at;
}

// A stage's output; one buffer's parts are a region together. length: of a token's row.
static int32_t give(plan *p, int32_t stage, const float *base, int64_t length)
{
    for (int i = p->count - 1; i >= 0 && p->regions[i].stage == stage; i--)
        if (base >= p->regions[i].base && base < p->regions[i].base + p->regions[i].length)
            return p->regions[i].slot + (int32_t)(base - p->regions[i].base);
    region r = {base, length, take(p, length), stage, false};
    p->regions[p->count++] = r;
    return r.slot;
}

static operand read_of(plan *p, const float *x, int64_t stride)
{
    for (int i = p->count - 1; i >= 0; i--) {
        region &r = p->regions[i];
        if (x < r.base || x >= r.base + r.length) continue;
        r.read = true;
        return {x, stride, r.slot + (int32_t)(x - r.base)};
    }
    return {x, stride, NOWHERE};
}

// Whether a token's numbers lie where four of them are read at once.
static bool in_fours(const operand &x)
{
    return x.slot == NOWHERE ? (uintptr_t)x.global % 16 == 0 && x.stride % 4 == 0 : x.slot % 4 == 0;
}

static bool is_read(const plan &p, int32_t slot)
{
    for (int i = 0; i < p.count; i++)
        if (slot >= p.regions[i].slot && slot < p.regions[i].slot + p.regions[i].length)
            return p.regions[i].read;
    return false;
}

static bool plan_linears(plan *p, int32_t i, const lsa_stage &s, int64_t tokens)
{
    if (lsa_linears_check(s.linears.products, s.linears.count, tokens, s.linears.norm,
                          s.linears.compute))
        return false;
    chain_linears &l = p->c.s[i].linears;
    bool round = s.linears.compute == LSA_COMPUTE_BF16;
    int64_t rows = 0;
    l.count = (int32_t)s.linears.count;
    l.norm = s.linears.norm, l.norm_eps = s.linears.norm_eps, l.round_x = round;
    for (int j = 0; j < l.count; j++) {
        const lsa_product &q = s.linears.products[j];
        if (!is_short_row(*q.w)) return false;
        rows += q.rows;
    }
    l.alone = rows <= FEW_ROWS;
    operand x[LSA_LINEARS_MOST];
    for (int j = 0; j < l.count; j++) {
        x[j] = read_of(p, s.linears.products[j].x, s.linears.products[j].x_stride);
        if (!in_fours(x[j])) return false;
    }
    if (l.norm && (uintptr_t)l.norm % 16 != 0) return false;
    for (int j = 0; j < l.count; j++) {
        const lsa_product &q = s.linears.products[j];
        bool f32 = q.w->dtype == LSA_F32;
        int32_t bytes = (int32_t)q.w->cols * (f32 ? 4 : 2), lanes = lanes_of(q.w->cols);
        int32_t each = LSA_WARP >> lanes;
        l.p[j] = {(const uint8_t *)q.w->data + q.row_from * bytes,
                  q.y,
                  x[j],
                  q.y_stride,
                  (int32_t)q.rows,
                  (int32_t)q.w->cols,
                  bytes,
                  lanes,
                  give(p, i, q.y, q.y_stride),
                  f32,
                  f32 && round};
        l.first[j + 1] = l.first[j] + (l.p[j].rows + each - 1) / each;
    }
    for (int n = p->count - 1; n >= 0 && p->regions[n].stage == i; n--)
        rows -= p->regions[n].length;
    return rows == 0; // no region has a part that nobody gives
}

// before: the turn before it in the chain, or NULL.
static bool plan_turn(plan *p, int32_t i, const lsa_hc_turning &u, int64_t tokens,
                      const lsa_hc_turning *before)
{
    if (lsa_hc_turn_check(&u, tokens) || !is_short_turn(u) ||
        lsa_linear_check(u.fn, tokens, 0, u.fn->rows, u.fn->cols, u.fn->rows, u.compute))
        return false;
    bool same = before && before->streams == u.streams && before->post == u.post &&
                before->comb == u.comb && before->hc == u.hc && before->dim == u.dim;
    if (before && !same) return false;
    if (!before) p->streams = take(p, u.hc * u.dim);
    if ((uintptr_t)u.streams % 16 != 0) return false;
    chain_turn &t = p->c.s[i].turn;
    t.u = turn_of(u, tokens);
    t.y = read_of(p, u.y, u.dim);
    t.slot = give(p, i, u.x, u.dim);
    t.held = p->streams;
    t.later = before != NULL;
    return true;
}

static bool plan_route(plan *p, int32_t i, const lsa_routing &r, int64_t tokens)
{
    chain_route &s = p->c.s[i].route;
    s.r = {r.ids,  r.weights, r.logits, r.bias,    r.token_experts, r.tokens,
           tokens, r.experts, r.k,      r.scoring, r.scaling};
    s.logits = read_of(p, r.logits, r.experts);
    return !lsa_moe_route_check(tokens, r.experts, r.k, r.scoring) && r.experts <= MOST_EXPERTS;
}

static bool plan_expert(chain_expert *to, const lsa_expert_weights &e, const lsa_mixing &m,
                        int64_t inner)
{
    bool fits = is_short_row(e.gate) && is_short_row(e.up) && is_short_row(e.down) &&
                e.gate.rows == inner && e.up.rows == inner;
    *to = {(const uint8_t *)e.gate.data, (const uint8_t *)e.up.data, (const uint8_t *)e.down.data,
           e.gate.dtype == LSA_F32,      e.up.dtype == LSA_F32,      e.down.dtype == LSA_F32};
    return fits && !lsa_linear_check(&e.gate, 1, 0, inner, 0, 0, m.compute) &&
           !lsa_linear_check(&e.up, 1, 0, inner, 0, 0, m.compute) &&
           !lsa_linear_check(&e.down, 1, 0, e.down.rows, 0, 0, m.compute);
}

// route: of the same picks, in the chain.
static bool plan_experts(plan *p, int32_t i, const lsa_mixing &m, int64_t tokens,
                         const lsa_routing *route)
{
    if (!route || route->ids != m.ids || route->weights != m.weights || route->k != m.k ||
        m.count > MOST_EXPERTS || lsa_swiglu_check(tokens, m.limit) ||
        lsa_experts_check(m.experts, m.shared, tokens, m.hidden, m.count, m.k))
        return false;
    int64_t inner = lsa_experts_widest(m.experts, m.shared, m.count);
    chain_experts &s = p->c.s[i].experts;
    for (int64_t e = 0; e < m.count; e++)
        if (!plan_expert(&s.e[e], m.experts[e], m, inner)) return false;
    if (m.shared && !plan_expert(&s.e[m.count], *m.shared, m, inner)) return false;
    int32_t picks = (int32_t)m.k + (m.shared != NULL);
    if (picks == 0 || inner == 0) return false;
    s.y = m.y;
    s.x = read_of(p, m.x, m.hidden);
    if (!in_fours(s.x) || inner % 4 != 0) return false;
    s.gate_slot = take(p, picks * inner), s.up_slot = take(p, picks * inner);
    s.slot = give(p, i, m.y, m.hidden);
    s.hidden = (int32_t)m.hidden, s.inner = (int32_t)inner;
    s.count = (int32_t)m.count, s.k = (int32_t)m.k, s.picks = picks;
    s.limit = m.limit, s.round = m.compute == LSA_COMPUTE_BF16;
    return true;
}

static bool plan_settle(plan *p, int32_t i, const lsa_stage &stage, int64_t tokens)
{
    lsa_settling of = stage.settle.of;
    if (of.records) of.records = &stage.settle.records;
    if (of.keys) of.keys = &stage.settle.keys;
    chain_settle &s = p->c.s[i].settle;
    int64_t shared;
    if (tokens != stage.settle.count || !is_short_settle(of) ||
        settling_of(&s.c, of, stage.settle.layer, tokens, &shared))
        return false;
    const lsa_extension &r = stage.settle.records, &k = stage.settle.keys;
    int64_t width = of.records ? (r.overlap ? 2 : 1) * r.dim : 0;
    int64_t key_width = of.keys ? (k.overlap ? 2 : 1) * k.dim : 0;
    s.spans = stage.settle.spans;
    s.q = read_of(p, of.q, of.heads * of.dim);
    s.window = read_of(p, of.window, of.dim);
    s.kv = read_of(p, of.records ? r.kv : NULL, width);
    s.gate = read_of(p, of.records ? r.gate : NULL, width);
    s.index_kv = read_of(p, of.keys ? k.kv : NULL, key_width);
    s.index_gate = read_of(p, of.keys ? k.gate : NULL, key_width);
    s.index_q = read_of(p, of.index_q, of.index_heads * of.index_dim);
    s.index_w = read_of(p, of.index_w, of.index_heads);
    s.hidden = read_of(p, of.index_q ? of.hidden : NULL, of.hidden_width);
    s.roles = settle_roles(s.c);
    s.held = take(p, (shared + 3) / 4);
    return true;
}

// What nobody reads is not sent; what is, is waited for.
static void plan_sending(plan *p)
{
    for (int i = 0; i < p->c.count; i++) {
        chain_stage &s = p->c.s[i];
        if (s.kind == LSA_STAGE_LINEARS)
            for (int j = 0; j < s.linears.count; j++) {
                chain_product &q = s.linears.p[j];
                if (!is_read(*p, q.slot)) q.slot = NOWHERE;
                if (q.slot != NOWHERE && !s.linears.alone) s.arriving[0] += q.rows * 4;
            }
        if (s.kind == LSA_STAGE_EXPERTS) {
            chain_experts &e = s.experts;
            if (!is_read(*p, e.slot)) e.slot = NOWHERE;
            s.arriving[0] = 2 * e.picks * e.inner * 4;
            s.arriving[1] = e.slot == NOWHERE ? 0 : e.hidden * 4;
        }
    }
}

// Whether all stages are short. A stage that fails here fails by itself, too, and says why.
static bool plan_of(plan *p, const lsa_stage *stages, int64_t count, int64_t tokens)
{
    if (count < 2 || count > LSA_CHAIN_MOST || tokens > MOST_TOKENS) return false;
    const lsa_hc_turning *before = NULL;
    const lsa_routing *route = NULL;
    bool fits = true;
    for (int64_t i = 0; i < count && fits; i++) {
        const lsa_stage &s = stages[i];
        int32_t at = (int32_t)i;
        p->c.s[i].kind = s.kind;
        if (s.kind == LSA_STAGE_LINEARS) {
            fits = plan_linears(p, at, s, tokens);
        } else if (s.kind == LSA_STAGE_TURN) {
            fits = plan_turn(p, at, s.turn, tokens, before);
            before = &s.turn;
        } else if (s.kind == LSA_STAGE_ROUTE) {
            fits = plan_route(p, at, s.route, tokens);
            route = &s.route;
        } else if (s.kind == LSA_STAGE_EXPERTS) {
            fits = plan_experts(p, at, s.experts, tokens, route);
        } else {
            fits = s.kind == LSA_STAGE_SETTLE && plan_settle(p, at, s, tokens);
        }
    }
    p->c.count = (int32_t)count;
    if (!fits || p->floats * (int64_t)sizeof(float) > MOST_SHARED) return false;
    plan_sending(p);
    return true;
}

// Blocks of a token, so that all tokens run at once: 16 are more than every GPU can be asked for. 0: the GPU refuses the kernel.
static int cluster_of(int64_t tokens, int bytes)
{
    if (cudaFuncSetAttribute(chain_token, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) ||
        cudaFuncSetAttribute(chain_token, cudaFuncAttributeNonPortableClusterSizeAllowed, 1))
        return 0;
    int wanted = tokens <= 4 ? MOST_BLOCKS : tokens <= 16 ? 8 : tokens <= 32 ? 4 : 2, there = 0;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute size = {};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = (unsigned)wanted, size.val.clusterDim.y = size.val.clusterDim.z = 1;
    config.gridDim = dim3((unsigned)wanted, (unsigned)tokens), config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)bytes, config.attrs = &size, config.numAttrs = 1;
    if (wanted == MOST_BLOCKS &&
        (cudaOccupancyMaxActiveClusters(&there, chain_token, &config) || there < tokens)) {
        (void)cudaGetLastError();
        return 8;
    }
    return wanted;
}

int lsa_chain_cuda(const lsa_stage *stages, int64_t count, int64_t tokens, void *workspace,
                   void *stream)
{
    plan p = {};
    if (count > 0 && tokens == 0) return LSA_OK;
    if (!plan_of(&p, stages, count, tokens))
        return lsa_chain_by(&lsa_kernels_cuda, stages, count, tokens, workspace, stream);
    int bytes = (int)(p.floats * sizeof(float)), cluster = cluster_of(tokens, bytes);
    if (!cluster) return lsa_cuda_failed("chain", cudaGetLastError());
    (void)lsa_launch_clusters(chain_token, dim3((unsigned)cluster, (unsigned)tokens), THREADS,
                              (size_t)bytes, cluster, stream, p.c);
    return lsa_launched("chain", count, tokens);
}
