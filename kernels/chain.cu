// A chain of calls on the GPU, in one launch where all of them are short: a token is a cluster's work (chain_cuda.h). Weights are
// asked for before the launch before has ended.
#include "kernels/chain_cuda.h"

extern "C" {
#include "kernels/table.h"

extern const lsa_kernels lsa_kernels_cuda;
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
    if (count < 2 || count > LSA_CHAIN_MOST || tokens > SHORT_TOKENS) return false;
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
