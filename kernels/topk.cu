// Exact top-k of rows on the GPU: a cluster of blocks a row, each with a piece of it, in registers as integers in the order of the
// floats.
//
// A thread's largest scores bound the k-th largest from below: k of them are at least that. What reaches the bound is little,
// and is gathered, in the order of ids, in the first block's shared memory; where it is too much for that, the blocks go on
// together. The k-th largest is found by digits of 11, 11 and 10 bits, from the top, each by a histogram of the candidates that
// share the digits before it; then its ties go to the lower ids. Counts are integers, so no order of adding changes a bit.
// Rows that no cluster holds are a block's, which reads them again for each digit.
#include "kernels/cuda_select.h"
#include "kernels/hopper.h"

#include "kernels/topk_cuda.h"

enum {
    THREADS = 512,
    WARPS = THREADS / LSA_WARP,
    CLUSTER = 8,
    STRIDE = THREADS * 4, // scores between a thread's fours
    LEAST_VECTORS =
        2, // fours of a thread, so that every lane of a warp has a sum of theirs to add up
    MOST_VECTORS = 16,
    BINS = 4 * THREADS,
    LIST = 8192, // candidates that the first block takes
    LIST_VECTORS = LIST / STRIDE,
    DIGITS = 3
};

struct choice {
    int32_t *ids;
    float *values;
    int32_t *counts;
    const float *scores;
    const int32_t *lengths; // NULL: n
    int64_t rows, n, stride;
    int32_t k;
};

// A block's shared memory.
struct room {
    uint32_t bins[2][BINS]; // in turns, so that what others still read is left alone
    uint32_t places[MOST_VECTORS * WARPS];
    uint32_t warps[WARPS];
    uint32_t found[2]; // a bin, and how many lie above it
    uint32_t total;    // what this block has, for the others
    uint32_t list[LIST], list_ids[LIST];
};

// The blocks that work on a row together.
struct team {
    uint32_t rank, size;
    uint32_t turn; // of the histograms
};

// ---- helpers ----

__device__ static inline void sync(const team &t)
{
    if (t.size > 1)
        lsa_cluster_sync();
    else
        __syncthreads();
}

__device__ static uint32_t warp_prefix(uint32_t v, int lane) // with its own
{
#pragma unroll
    for (int step = 1; step < LSA_WARP; step *= 2) {
        uint32_t other = __shfl_up_sync(0xffffffff, v, step);
        if (lane >= step) v += other;
    }
    return v;
}

// Adds up the team's histograms and finds the bin where, from the largest down, the `need`-th is; false where there are fewer.
// found: that bin, and how many are above it. All threads.
__device__ static bool find_bin(room &r, team &t, uint32_t need)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    uint32_t *bins = r.bins[t.turn++ % 2], first = BINS - 4 - 4 * threadIdx.x;
    sync(t);
    uint4 own = *(const uint4 *)(bins + first);
    if (t.size > 1) {
#pragma unroll
        for (uint32_t other = 1; other < CLUSTER; other++) {
            uint4 v = lsa_load_shared4(lsa_shared_of(bins + first, (t.rank + other) % CLUSTER));
            own.x += v.x;
            own.y += v.y;
            own.z += v.z;
            own.w += v.w;
        }
    }
    uint32_t mine = own.x + own.y + own.z + own.w, sum = warp_prefix(mine, lane);
    if (lane == LSA_WARP - 1) r.warps[warp] = sum;
    __syncthreads();
    uint32_t others = warp_prefix(lane < WARPS ? r.warps[lane] : 0, lane);
    uint32_t all = __shfl_sync(0xffffffff, others, LSA_WARP - 1);
    uint32_t before = __shfl_sync(0xffffffff, others, warp ? warp - 1 : 0);
    before = (warp ? before : 0) + sum - mine;
    if (before < need && before + mine >= need) {
        uint32_t bin = first + 3, counts[4] = {own.w, own.z, own.y, own.x};
#pragma unroll
        for (int i = 0; i < 3; i++) {
            if (before + counts[i] >= need) break;
            before += counts[i];
            bin--;
        }
        r.found[0] = bin;
        r.found[1] = before;
    }
    __syncthreads();
    return all >= need;
}

// Clears the histogram whose turn it is.
__device__ static uint32_t *clear_bins(room &r, const team &t)
{
    uint32_t *bins = r.bins[t.turn % 2];
    *(uint4 *)(bins + 4 * threadIdx.x) = make_uint4(0, 0, 0, 0);
    __syncthreads();
    return bins;
}

// Places in the order of ids. count: of a thread's fours, each what is to be counted; they become how many come before
// within the block; all that the team's blocks before this one have is in *before, and of all of them in *all.
template <int VECTORS>
__device__ static void place(uint32_t (&count)[VECTORS], uint32_t *before, uint32_t *all, room &r,
                             const team &t)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        uint32_t sum = warp_prefix(count[v], lane);
        if (lane == LSA_WARP - 1) r.places[v * WARPS + warp] = sum;
        count[v] = sum - count[v];
    }
    __syncthreads();
    if (warp == 0) {
        constexpr int EACH = VECTORS * WARPS / LSA_WARP; // sums of a lane, in order
        uint32_t own[EACH], sum = 0;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            own[i] = r.places[lane * EACH + i];
            sum += own[i];
        }
        uint32_t at = warp_prefix(sum, lane);
        if (lane == LSA_WARP - 1) r.total = at;
        at -= sum;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            r.places[lane * EACH + i] = at;
            at += own[i];
        }
    }
    sync(t);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) count[v] += r.places[v * WARPS + warp];
    *before = 0, *all = 0;
    if constexpr (VECTORS < MOST_VECTORS) {
        if (t.size > 1) { // a lane asks a block: the answers are waited for together
            uint32_t total =
                lane < (int)t.size ? lsa_load_shared(lsa_shared_of(&r.total, lane)) : 0;
            *all = __reduce_add_sync(0xffffffff, total);
            *before = __reduce_add_sync(0xffffffff, lane < (int)t.rank ? total : 0);
            return;
        }
    }
    for (uint32_t rank = 0; rank < t.size; rank++) {
        uint32_t total = t.size == 1 ? r.total : lsa_load_shared(lsa_shared_of(&r.total, rank));
        if (rank < t.rank) *before += total;
        *all += total;
    }
}

// Writes the `need` largest of the team's keys that are at least `least`, of which there are no fewer; 0 is none. Key e of
// a thread's four v is number v * STRIDE + 4 threadIdx.x + e of the block. id_of: of such a number.
template <int VECTORS, typename IDS>
__device__ static void select_exact(const choice &c, int64_t row,
                                    const uint32_t (&keys)[VECTORS][4], uint32_t least,
                                    uint32_t need, uint32_t candidates, room &r, team &t, IDS id_of)
{
    // Keys above `cut` are in, and the first `ties` of those equal to it.
    uint32_t cut = 0, known = 0, ties = 0;
    if (candidates > need) {
        ties = need;
        for (int digit = 0; digit < DIGITS; digit++) {
            int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
            uint32_t mask = digit == 2 ? BINS / 2 - 1 : BINS - 1, *bins = clear_bins(r, t);
#pragma unroll
            for (int i = 0; i < 4 * VECTORS; i++) {
                uint32_t key = keys[i / 4][i % 4];
                if (key >= least && (key & known) == cut) atomicAdd(&bins[key >> shift & mask], 1);
            }
            find_bin(r, t, ties);
            cut |= r.found[0] << shift;
            known |= mask << shift;
            ties -= r.found[1];
        }
    } else {
        sync(t); // others may still read this block's counts
    }
    uint32_t place_of[VECTORS], before, all;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        place_of[v] = 0; // ties, and 65536 for each that is above
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t key = keys[v][e];
            if (key >= least) place_of[v] += key > cut ? 0x10000 : key == cut;
        }
    }
    // A block's own counts fit in halves of a word; the team's are added apart.
    place<VECTORS>(place_of, &before, &all, r, t);
    uint32_t above = 0, tied = 0;
    for (uint32_t rank = 0; rank < t.rank; rank++) {
        uint32_t total = lsa_load_shared(lsa_shared_of(&r.total, rank));
        above += total >> 16;
        tied += total & 0xffff;
    }
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        uint32_t a = above + (place_of[v] >> 16), b = tied + (place_of[v] & 0xffff);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t key = keys[v][e];
            if (key < least || key < cut) continue;
            bool tie = key == cut;
            if (!tie || b < ties) {
                int64_t at = row * c.k + a + min(b, ties);
                int32_t id = id_of(v * STRIDE + 4 * (int)threadIdx.x + e);
                c.ids[at] = id;
                if (c.values) c.values[at] = c.scores[row * c.stride + id];
            }
            if (tie)
                b++;
            else
                a++;
        }
    }
}

// ---- kernels ----

// A row a cluster; a block has VECTORS * STRIDE scores of it. Grid: (rows * cluster), block: 512, shared: a room.
template <int VECTORS>
__global__ static void __launch_bounds__(THREADS, VECTORS == LEAST_VECTORS ? 2 : 1)
    topk_cluster(choice c)
{
    extern __shared__ uint4 shared[];
    room &r = *(room *)shared;
    team t = {lsa_cluster_rank(), lsa_cluster_size(), 0};
    int64_t row = blockIdx.x / t.size;
    int first = (int)t.rank * VECTORS * STRIDE;
    const float *scores = c.scores + row * c.stride + first;
    uint32_t *bins = clear_bins(r, t);
    lsa_wait_for_launch_before();
    lsa_let_next_launch_start();
    if (c.k == 0) {
        if (c.counts && t.rank == 0 && threadIdx.x == 0) c.counts[row] = 0;
        return;
    }
    int n = (c.lengths ? c.lengths[row] : (int)c.n) - first;
    bool whole = (uintptr_t)scores % 16 == 0;
    uint32_t keys[VECTORS][4], largest = 0;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        int at = v * STRIDE + 4 * (int)threadIdx.x;
        if (whole && at + 4 <= n) {
            uint4 x = *(const uint4 *)(scores + at);
            keys[v][0] = x.x, keys[v][1] = x.y, keys[v][2] = x.z, keys[v][3] = x.w;
        } else {
#pragma unroll
            for (int e = 0; e < 4; e++)
                keys[v][e] = __float_as_uint(at + e < n ? scores[at + e] : -INFINITY);
        }
    }
#pragma unroll
    for (int i = 0; i < 4 * VECTORS; i++) {
        keys[i / 4][i % 4] = lsa_score_key(__uint_as_float(keys[i / 4][i % 4]));
        largest = max(largest, keys[i / 4][i % 4]);
    }
    if (largest) atomicAdd(&bins[largest >> 21], 1);
    bool bounded = find_bin(r, t, (uint32_t)c.k);
    uint32_t least = bounded ? max(r.found[0] << 21, 1u) : 1;

    uint32_t count[VECTORS], before, candidates;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        count[v] = 0;
#pragma unroll
        for (int e = 0; e < 4; e++) count[v] += keys[v][e] >= least;
    }
    place<VECTORS>(count, &before, &candidates, r, t);
    uint32_t need = min(candidates, (uint32_t)c.k);
    if (t.rank == 0) {
        for (uint32_t i = need + threadIdx.x; i < (uint32_t)c.k; i += THREADS) {
            c.ids[row * c.k + i] = -1;
            if (c.values) c.values[row * c.k + i] = -INFINITY;
        }
        if (c.counts && threadIdx.x == 0) c.counts[row] = (int32_t)need;
    }
    if (candidates > LIST) {
        select_exact<VECTORS>(c, row, keys, least, need, candidates, r, t,
                              [&](int i) { return first + i; });
        sync(t); // others read this block's counts
        return;
    }
    uint32_t list = lsa_shared_of(r.list, 0), list_ids = lsa_shared_of(r.list_ids, 0);
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
        uint32_t at = before + count[v];
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (keys[v][e] < least) continue;
            lsa_store_shared(list + 4 * at, keys[v][e]);
            lsa_store_shared(list_ids + 4 * at,
                             (uint32_t)(first + v * STRIDE + 4 * (int)threadIdx.x + e));
            at++;
        }
    }
    sync(t);
    if (t.rank > 0) return;
    team alone = {0, 1, t.turn};
    uint32_t few[LIST_VECTORS][4];
#pragma unroll
    for (int v = 0; v < LIST_VECTORS; v++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            uint32_t i = v * STRIDE + 4 * threadIdx.x + e;
            few[v][e] = i < candidates ? r.list[i] : 0;
        }
    select_exact<LIST_VECTORS>(c, row, few, 1, need, candidates, r, alone,
                               [&](int i) { return (int32_t)r.list_ids[i]; });
}

// The key of the k-th largest score by digits of 8 bits, then one pass in the order of ids. Grid: (rows), block: 512.
__global__ static void __launch_bounds__(THREADS, 1) topk_row(choice c)
{
    __shared__ uint32_t counts[256];
    __shared__ int ranks[WARPS], candidates;
    __shared__ uint32_t digit, above;
    for (int64_t row = blockIdx.x; row < c.rows; row += gridDim.x) {
        int64_t n = c.lengths ? c.lengths[row] : c.n;
        const float *scores = c.scores + row * c.stride;
        int own = 0;
        for (int64_t i = threadIdx.x; i < n; i += THREADS) own += lsa_score_key(scores[i]) != 0;
        if (threadIdx.x == 0) candidates = 0;
        __syncthreads();
        own = lsa_warp_sum(own);
        if (threadIdx.x % LSA_WARP == 0) atomicAdd(&candidates, own);
        __syncthreads();

        int count = min(candidates, c.k), ties = 0;
        uint32_t cut = 0;
        if (candidates > c.k && c.k > 0) {
            ties = c.k;
            for (int shift = 24; shift >= 0; shift -= 8) {
                if (threadIdx.x < 256) counts[threadIdx.x] = 0;
                __syncthreads();
                uint32_t known = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
                for (int64_t i = threadIdx.x; i < n; i += THREADS) {
                    uint32_t key = lsa_score_key(scores[i]);
                    if (key != 0 && (key & known) == cut) atomicAdd(&counts[key >> shift & 255], 1);
                }
                __syncthreads();
                if (threadIdx.x == 0) {
                    uint32_t d = 255, seen = 0;
                    while (seen + counts[d] < (uint32_t)ties) seen += counts[d--];
                    digit = d;
                    above = seen;
                }
                __syncthreads();
                cut |= digit << shift;
                ties -= (int)above;
                __syncthreads();
            }
        }

        int done = 0;
        for (int64_t base = 0; base < n && done < count; base += THREADS) {
            int64_t i = base + threadIdx.x;
            int tied, taken;
            uint32_t key = i < n ? lsa_score_key(scores[i]) : 0;
            int rank = lsa_block_rank(ties > 0 && key != 0 && key == cut, &tied, ranks);
            bool take = key > cut || (ties > 0 && key != 0 && key == cut && rank < ties);
            int place = lsa_block_rank(take, &taken, ranks);
            if (take) {
                c.ids[row * c.k + done + place] = (int32_t)i;
                if (c.values) c.values[row * c.k + done + place] = scores[i];
            }
            ties -= min(tied, ties);
            done += taken;
        }
        for (int i = count + threadIdx.x; i < c.k; i += THREADS) {
            c.ids[row * c.k + i] = -1;
            if (c.values) c.values[row * c.k + i] = -INFINITY;
        }
        if (c.counts && threadIdx.x == 0) c.counts[row] = count;
        __syncthreads();
    }
}

// ---- launcher ----

template <int VECTORS>
static cudaError_t launch_cluster(const choice &c, int cluster, cudaStream_t stream)
{
    cudaError_t error = cudaFuncSetAttribute(
        topk_cluster<VECTORS>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(room));
    if (error != cudaSuccess) return error;
    return lsa_launch_early(topk_cluster<VECTORS>, dim3((unsigned)(c.rows * cluster)), THREADS,
                            sizeof(room), cluster, stream, c);
}

int lsa_topk_of_lengths(int32_t *ids, float *values, int32_t *counts, const float *scores,
                        const int32_t *lengths, int64_t rows, int64_t n, int64_t score_stride,
                        int32_t k, cudaStream_t stream)
{
    choice c = {ids, values, counts, scores, lengths, rows, n, score_stride, k};
    cudaError_t error = cudaSuccess;
    int64_t of_cluster = (int64_t)CLUSTER * STRIDE;
    if (n <= LEAST_VECTORS * STRIDE)
        error = launch_cluster<LEAST_VECTORS>(c, 1, stream);
    else if (n <= 2 * of_cluster)
        error = launch_cluster<2>(c, CLUSTER, stream);
    else if (n <= 4 * of_cluster)
        error = launch_cluster<4>(c, CLUSTER, stream);
    else if (n <= 8 * of_cluster)
        error = launch_cluster<8>(c, CLUSTER, stream);
    else if (n <= MOST_VECTORS * of_cluster)
        error = launch_cluster<MOST_VECTORS>(c, CLUSTER, stream);
    else
        topk_row<<<lsa_blocks(rows, 1), THREADS, 0, stream>>>(c);
    if (error != cudaSuccess) return lsa_cuda_failed("topk", error);
    return lsa_launched("topk", rows, n, k);
}

int lsa_topk_cuda(int32_t *ids, float *values, int32_t *counts, const float *scores, int64_t rows,
                  int64_t n, int64_t score_stride, int32_t k, void *workspace, void *stream)
{
    (void)workspace;
    int rc = lsa_topk_check(rows, n, k);
    if (rc || rows == 0) return rc;
    return lsa_topk_of_lengths(ids, values, counts, scores, NULL, rows, n, score_stride, k,
                               (cudaStream_t)stream);
}
