// Private to CUDA files: the stages of a chain, as the blocks of a token's cluster run them. What a stage gives, blocks send to one
// another, so that the next stage finds it in its own shared memory. Stages that take less time than sending does (a turn, few rows)
// are every block's own work.
#ifndef LSA_CHAIN_CUDA_H
#define LSA_CHAIN_CUDA_H
#include "kernels/hopper.h"
#include "kernels/hyper_connection_cuda.h"
#include "kernels/moe_route_cuda.h"
#include "kernels/settle_cuda.h"

extern "C" {
#include "kernels/chain.h"
}

enum {
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

#endif
