// Selection on the GPU. A threshold and a number of ties, as on the CPU.
//
// Of the k largest scores: blocks that run at once have the row in registers, as integers in the order of the floats. The
// threshold's key is found by digits of 11, 11 and 10 bits, from the top, each by a histogram of the keys that share those before it,
// which all blocks add up in memory before any goes on. Then each block knows from what the others counted in the last digit how
// many of the ties are its own.
//
// Of a share of the sum, and of rows that registers do not hold: the threshold's key by digits of 4 bits from the top. A launch a digit: every block weighs its part of the scores against the sixteen keys that the next digit could make
// (how many reach each of them, or the sum of those that do, in f64 and in a fixed order), and every block of the next launch
// adds up what all of them found and so finds the digit. Then a pass counts ties block by block, and one writes the set.
#include <cooperative_groups.h>
#include <utility>

#include "kernels/cuda_select.h"

extern "C" {
#include "kernels/select.h"
}

enum {
    THREADS = 256,
    WARPS = THREADS / LSA_WARP,
    MOST_PARTS = 96, // blocks that share the row; the CPU's workspace holds what they find
    BOUNDS = 16,
    DIGITS = 8,
    STATE_BYTES = 512,
    HELD_THREADS = 512,
    HELD_WARPS = HELD_THREADS / LSA_WARP,
    HELD_BLOCKS = 128, // no more than there are multiprocessors
    HELD_DIGITS = 3,
    HELD_VECTORS = 16, // fours of a thread, at most
    GRANULE = 128      // ids of a warp's fours
};

// need: scores, or their sum; as a share of all of it where `share`.
struct search {
    const float *scores;
    int64_t n;
    double need;
    bool mass, share;
};

// What is known before a digit: those before it, and the weight of the keys above all that have them.
struct state {
    double need, above;
    uint32_t key;
    bool all; // everything weighs too little: all is taken
};

// In the workspace: [DIGITS + 1] states, [DIGITS][MOST_PARTS][BOUNDS] weights, [MOST_PARTS] counts of ties.
struct room {
    state *states;
    double *weights;
    int64_t *ties;
};

// ---- helpers ----

__device__ static double weight_of(float x, uint32_t key, bool mass)
{
    if (mass) return x > 0.0f ? (double)x : 0.0;
    return key != 0 ? 1.0 : 0.0;
}

__device__ static float float_of(uint32_t key)
{
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

// The part of the row that a block takes, in whole words of the set.
__device__ static void part_of(int64_t *from, int64_t *to, int64_t n)
{
    int64_t words = (n + 63) / 64, each = (words + gridDim.x - 1) / gridDim.x;
    *from = min(n, blockIdx.x * each * 64);
    *to = min(n, *from + each * 64);
}

// The state before a digit, from the one before and what the launch before found; the same in every thread of every
// block, and kept for the next launch. shared: [BOUNDS][BOUNDS]; the block is 256 threads.
__device__ static state known(const search &s, const room &r, int digit, double (*shared)[BOUNDS])
{
    if (digit == 0) return {s.need, 0, 0, false};
    int b = threadIdx.x % BOUNDS, part = threadIdx.x / BOUNDS;
    const double *w = r.weights + (int64_t)(digit - 1) * MOST_PARTS * BOUNDS + b;
    state at = {s.need, 0, 0, false};
    if (digit > 1) at = r.states[digit - 1];
    double total = 0;
    for (unsigned i = part; i < gridDim.x; i += BOUNDS) total += w[i * BOUNDS];
    shared[part][b] = total;
    __syncthreads();
    total = 0;
    for (int i = 0; i < BOUNDS; i++) total += shared[i][b];
    __syncthreads();
    shared[0][b] = total;
    __syncthreads();
    const double *totals = shared[0];
    if (digit == 1 && s.share) at.need = s.need * totals[0];
    if (digit == 1 && totals[0] < at.need) at.all = true;
    int bound = BOUNDS - 1; // the highest one that weighs enough
    while (bound > 0 && totals[bound] < at.need) bound--;
    if (bound < BOUNDS - 1) at.above = totals[bound + 1];
    at.key |= (uint32_t)bound << (32 - 4 * digit);
    if (blockIdx.x == 0 && threadIdx.x == 0) r.states[digit] = at;
    __syncthreads();
    return at;
}

// ---- kernels ----

// Grid: (parts), block: 256, shared: 3 KB.
__global__ static void __launch_bounds__(THREADS) select_weigh(search s, room r, int digit)
{
    __shared__ double totals[BOUNDS][BOUNDS], sums[WARPS][BOUNDS];
    state at = known(s, r, digit, totals);
    double own[BOUNDS] = {};
    int64_t from, to;
    int shift = 28 - 4 * digit;
    part_of(&from, &to, s.n);
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) {
        float x = s.scores[i];
        uint32_t key = lsa_score_key(x);
        double w = weight_of(x, key, s.mass);
#pragma unroll
        for (int b = 0; b < BOUNDS; b++)
            if (key >= (at.key | (uint32_t)b << shift)) own[b] += w;
    }
#pragma unroll
    for (int b = 0; b < BOUNDS; b++) {
        double all = lsa_warp_sum(own[b]);
        if (threadIdx.x % LSA_WARP == 0) sums[threadIdx.x / LSA_WARP][b] = all;
    }
    __syncthreads();
    if (threadIdx.x < BOUNDS) {
        double all = 0;
        for (int i = 0; i < WARPS; i++) all += sums[i][threadIdx.x];
        r.weights[((int64_t)digit * MOST_PARTS + blockIdx.x) * BOUNDS + threadIdx.x] = all;
    }
}

// Grid: (parts), block: 256, shared: 2.1 KB.
__global__ static void select_ties(search s, room r)
{
    __shared__ double totals[BOUNDS][BOUNDS];
    __shared__ int64_t sums[WARPS];
    state at = known(s, r, DIGITS, totals);
    int64_t from, to, own = 0;
    part_of(&from, &to, s.n);
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS)
        own += lsa_score_key(s.scores[i]) == at.key;
    own = lsa_block_sum(own, sums);
    if (threadIdx.x == 0) r.ties[blockIdx.x] = own;
}

// How many ties bring the weight from `above` to `need`: at least one.
__device__ static int64_t ties_for(const state &at, bool mass)
{
    double each = mass ? (double)float_of(at.key) : 1.0;
    int64_t ties = (int64_t)ceil((at.need - at.above) / each);
    while (ties > 1 && at.above + (double)(ties - 1) * each >= at.need) ties--;
    return ties < 1 ? 1 : ties;
}

// Writes the set: a warp two halves of a word. Grid: (parts), block: 256, shared: 0.1 KB.
__global__ static void select_mark(uint64_t *bits, search s, room r)
{
    __shared__ int ranks[WARPS];
    state at = r.states[DIGITS];
    int64_t ties = at.all ? 0 : ties_for(at, s.mass), from, to;
    uint32_t cut = at.all ? (s.mass ? lsa_score_key(0.0f) : 0) : at.key;
    part_of(&from, &to, s.n);
    for (unsigned i = 0; i < blockIdx.x; i++) ties -= r.ties[i];
    for (int64_t base = from; base < to; base += THREADS) {
        int64_t i = base + threadIdx.x;
        uint32_t key = i < to ? lsa_score_key(s.scores[i]) : 0;
        int tied;
        bool same = key != 0 && key == cut;
        int rank = lsa_block_rank(same, &tied, ranks);
        unsigned mask = __ballot_sync(0xffffffff, key > cut || (same && rank < ties));
        if (threadIdx.x % LSA_WARP == 0 && i < (to + 63) / 64 * 64)
            ((uint32_t *)bits)[i / 32] = mask;
        ties -= tied;
    }
}

// Grid: (ceil(n / 256)), block: 256; whole warps, as each writes half a word.
__global__ static void select_above_each(uint32_t *bits, const float *scores, int64_t n,
                                         float threshold, bool strict)
{
    for (int64_t i = lsa_thread(); i < (n + 63) / 64 * 64; i += lsa_threads()) {
        float x = i < n ? scores[i] : NAN;
        unsigned mask = __ballot_sync(0xffffffff, strict ? x > threshold : x >= threshold);
        if (i % 32 == 0) bits[i / 32] = mask;
    }
}

// The k largest, of which there are fewer than scores. totals: [HELD_DIGITS][LSA_BINS]; counted: [blocks][LSA_BINS], of the last
// digit. Grid: all of it at once, `part` scores a block, a multiple of GRANULE; block: 512, shared: 8.8 KB and more.
template <int VECTORS>
__global__ static void __launch_bounds__(HELD_THREADS, 1)
    select_held(uint32_t *bits, const float *scores, int64_t n, int64_t k, int64_t part,
                uint32_t *totals, uint32_t *counted)
{
    constexpr int WORDS = VECTORS * HELD_WARPS * (GRANULE / 32);
    constexpr int EACH = (WORDS + HELD_THREADS - 1) / HELD_THREADS, PER = LSA_BINS / HELD_THREADS;
    __shared__ uint32_t bins[LSA_BINS], warps[LSA_WARP], sums[LSA_WARP], found[2];
    __shared__ uint32_t above[WORDS], tied[WORDS];
    auto grid = cooperative_groups::this_grid();
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    for (int64_t i = lsa_thread(); i < HELD_DIGITS * LSA_BINS; i += lsa_threads()) totals[i] = 0;
    auto cleared = grid.barrier_arrive();
    int64_t from = blockIdx.x * part, to = min(n, from + part);
    bool whole = (uintptr_t)scores % 16 == 0;
    uint32_t keys[VECTORS][4];
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int64_t at = from + (v * HELD_WARPS + warp) * GRANULE + 4 * lane;
        if (whole && at + 4 <= to) {
            uint4 x = *(const uint4 *)(scores + at);
            keys[v][0] = x.x, keys[v][1] = x.y, keys[v][2] = x.z, keys[v][3] = x.w;
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                keys[v][e] = __float_as_uint(at + e < to ? scores[at + e] : -INFINITY);
        }
    }
#pragma unroll
    for (int i = 0; i < 4 * VECTORS; i++)
        keys[i / 4][i % 4] = lsa_score_key(__uint_as_float(keys[i / 4][i % 4]));

    uint32_t cut = 0, known = 0, need = (uint32_t)k, ties_before = 0;
    bool enough = true;
#pragma unroll
    for (int digit = 0; digit < HELD_DIGITS; digit++) {
        int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
        uint32_t mask = digit == 2 ? LSA_BINS / 2 - 1 : LSA_BINS - 1;
#pragma unroll
        for (int i = 0; i < PER; i++) bins[i * HELD_THREADS + threadIdx.x] = 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4 * VECTORS; i++) {
            uint32_t key = keys[i / 4][i % 4];
            bool here = enough && key != 0 && (key & known) == cut;
            if (__any_sync(0xffffffff, here)) lsa_count_in(bins, key >> shift & mask, here);
        }
        __syncthreads();
        if (digit == 0) grid.barrier_wait(std::move(cleared));
        uint32_t *all = totals + digit * LSA_BINS;
#pragma unroll
        for (int i = 0; i < PER; i++) {
            int bin = i * HELD_THREADS + threadIdx.x;
            if (bins[bin]) atomicAdd(all + bin, bins[bin]);
            if (digit == 2) counted[(int64_t)blockIdx.x * LSA_BINS + bin] = bins[bin];
        }
        grid.sync();
        uint32_t first = LSA_BINS - PER - PER * threadIdx.x, own[PER];
        uint4 four = __ldcg((const uint4 *)(all + first));
        own[0] = four.x, own[1] = four.y, own[2] = four.z, own[3] = four.w;
        static_assert(PER == 4, "a load of bins");
        enough = lsa_find_in<PER, HELD_WARPS>(own, first, need, found, warps) && enough;
        if (!enough) continue;
        cut |= found[0] << shift;
        known |= mask << shift;
        need -= found[1];
    }
    if (enough) {
        for (unsigned i = threadIdx.x; i < blockIdx.x; i += HELD_THREADS)
            ties_before += __ldcg(counted + (int64_t)i * LSA_BINS + found[0]);
        __syncthreads();
        ties_before = lsa_block_sum(ties_before, sums);
    } else {
        need = 0; // all are above nothing
    }

#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        uint32_t a = 0, t = 0;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t key = keys[v][e], bit = 1u << (lane % 8 * 4 + e);
            if (key != 0) a |= key > cut ? bit : 0, t |= key == cut ? bit : 0;
        }
#pragma unroll
        for (int step = 1; step < 8; step *= 2) {
            a |= __shfl_xor_sync(0xffffffff, a, step);
            t |= __shfl_xor_sync(0xffffffff, t, step);
        }
        int word = (v * HELD_WARPS + warp) * (GRANULE / 32) + lane / 8;
        if (lane % 8 == 0) above[word] = a, tied[word] = t;
    }
    __syncthreads();
    uint32_t own[EACH] = {}, count = 0, all;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int word = (int)threadIdx.x * EACH + i;
        own[i] = word < WORDS ? tied[word] : 0;
        count += __popc(own[i]);
    }
    uint32_t before = ties_before + lsa_block_prefix<HELD_WARPS>(count, &all, warps);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int word = (int)threadIdx.x * EACH + i;
        before += lsa_take_lowest(&own[i], before, need);
        if (word < WORDS && from + 32 * word < (to + 63) / 64 * 64)
            bits[from / 32 + word] = own[i] | above[word];
    }
}

// ---- launchers ----

static int above(const char *op, uint64_t *bits, const float *scores, int64_t n, float threshold,
                 bool strict, void *stream)
{
    if (n == 0) return LSA_OK;
    select_above_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        (uint32_t *)bits, scores, n, threshold, strict);
    return lsa_launched(op);
}

static int find(const char *op, uint64_t *bits, const search &s, void *workspace, void *stream)
{
    room r;
    r.states = (state *)workspace;
    r.weights = (double *)((char *)workspace + STATE_BYTES);
    int64_t parts = (s.n + 4095) / 4096, digits = DIGITS;
    if (parts > MOST_PARTS) parts = MOST_PARTS;
    r.ties = (int64_t *)(r.weights + digits * MOST_PARTS * BOUNDS);
    for (int digit = 0; digit < DIGITS; digit++)
        select_weigh<<<(unsigned)parts, THREADS, 0, (cudaStream_t)stream>>>(s, r, digit);
    select_ties<<<(unsigned)parts, THREADS, 0, (cudaStream_t)stream>>>(s, r);
    select_mark<<<(unsigned)parts, THREADS, 0, (cudaStream_t)stream>>>(bits, s, r);
    return lsa_launched(op);
}

static int64_t held_bytes(void) { return (int64_t)(HELD_DIGITS + HELD_BLOCKS) * LSA_BINS * 4; }

int64_t lsa_select_workspace_cuda(int64_t n)
{
    (void)n;
    int64_t other = STATE_BYTES + (int64_t)DIGITS * MOST_PARTS * BOUNDS * 8 + MOST_PARTS * 8;
    return other > held_bytes() ? other : held_bytes();
}

// Blocks of a row that they hold; 0 where they cannot.
static int64_t held_blocks(int64_t n)
{
    int device, count = 0;
    if (n > (int64_t)HELD_BLOCKS * HELD_THREADS * HELD_VECTORS * 4) return 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
        return 0;
    return count < HELD_BLOCKS ? 0 : HELD_BLOCKS;
}

template <int VECTORS>
static cudaError_t launch_held(uint64_t *bits, const float *scores, int64_t n, int64_t k,
                               int64_t part, void *workspace, void *stream)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    config.gridDim = dim3((unsigned)((n + part - 1) / part));
    config.blockDim = dim3(HELD_THREADS);
    config.stream = (cudaStream_t)stream;
    config.attrs = &attribute, config.numAttrs = 1;
    uint32_t *totals = (uint32_t *)workspace;
    return cudaLaunchKernelEx(&config, select_held<VECTORS>, (uint32_t *)bits, scores, n, k, part,
                              totals, totals + HELD_DIGITS * LSA_BINS);
}

int lsa_select_above_cuda(uint64_t *bits, const float *scores, int64_t n, float threshold,
                          int32_t strict, void *stream)
{
    int rc = lsa_select_above_check(n);
    return rc ? rc : above("select_above", bits, scores, n, threshold, strict != 0, stream);
}

int lsa_select_topk_cuda(uint64_t *bits, const float *scores, int64_t n, int64_t k, void *workspace,
                         void *stream)
{
    int rc = lsa_select_topk_check(n, k);
    if (rc) return rc;
    if (k == 0 || k >= n)
        return above("select_topk", bits, scores, n, k == 0 ? INFINITY : -INFINITY, true, stream);
    int64_t blocks = held_blocks(n);
    if (blocks) {
        int64_t granules = (n + GRANULE - 1) / GRANULE,
                part = (granules + blocks - 1) / blocks * GRANULE, vector = HELD_THREADS * 4;
        if (part < vector) part = vector; // of few scores few blocks
        auto launch = part <= vector       ? launch_held<1>
                      : part <= 4 * vector ? launch_held<4>
                                           : launch_held<HELD_VECTORS>;
        launch(bits, scores, n, k, part, workspace, stream);
        return lsa_launched("select_topk", n, k);
    }
    search s = {scores, n, (double)k, false, false};
    return find("select_topk", bits, s, workspace, stream);
}

int lsa_select_topp_cuda(uint64_t *bits, const float *scores, int64_t n, double mass,
                         void *workspace, void *stream)
{
    int rc = lsa_select_topp_check(n, mass);
    if (rc) return rc;
    if (mass == 0 || mass == 1)
        return above("select_topp", bits, scores, n, mass == 0 ? INFINITY : 0.0f, true, stream);
    search s = {scores, n, mass, true, true};
    return n == 0 ? LSA_OK : find("select_topp", bits, s, workspace, stream);
}
