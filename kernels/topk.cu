// Exact top-k of rows on the GPU: a block a row, or a cluster of blocks that have its granules of 128 scores in turns; scores are
// in registers, as integers in the order of the floats.
//
// Of a block's threads' largest scores, the one that is its share of k from the top bounds the k-th largest from below, and so does
// the least of all blocks' bounds. What reaches it is little more than k, wherever the large scores lie, and is gathered in the first
// block's shared memory; where it is too much for that, the blocks go on together. The k-th largest is found by digits of 11, 11 and 10
// bits, from the top, each by a histogram of the candidates that share the digits before it. What is above it becomes bits of a set,
// what is equal to it those of another, of which the lower ids are taken; ids come out of the sets in order. Counts are integers, so
// no order of adding changes a bit. Rows that no cluster holds are a block's, which reads them again for each digit.
#include "kernels/cuda_select.h"
#include "kernels/hopper.h"

#include "kernels/topk_cuda.h"

enum { ROW_THREADS = 512, ROW_WARPS = ROW_THREADS / LSA_WARP, CLUSTER = 8, GRANULE = 128 };

struct choice {
    int32_t *ids;
    float *values;
    int32_t *counts;
    const float *scores;
    const int32_t *lengths; // NULL: n
    int64_t rows, n, stride;
    int32_t k;
};

// BLOCKS a row, of which a thread has VECTORS fours of scores.
template <int THREADS_, int VECTORS_, int BLOCKS_> struct shape {
    static constexpr int THREADS = THREADS_, VECTORS = VECTORS_, BLOCKS = BLOCKS_;
    static constexpr int WARPS = THREADS / LSA_WARP;
    static constexpr int KEYS = THREADS * VECTORS * 4; // of a block
    static constexpr int WORDS = KEYS / 32;            // of a set of its own scores
    static constexpr int ROW_WORDS = WORDS * BLOCKS;   // of the row's
    static constexpr int EACH = (ROW_WORDS + THREADS - 1) / THREADS;
    static constexpr int LIST_EACH = 4,
                         LIST = LIST_EACH * THREADS; // candidates that the first block takes
};

// A block's shared memory.
template <typename S> struct room {
    uint32_t bins[2][LSA_BINS]; // in turns, so that what others still read is left alone
    uint32_t warps[32], ties[32];
    uint32_t bounds[S::BLOCKS];
    uint32_t found[2];   // a bin, and how many lie above it
    uint32_t candidates; // the first block's: of the row
    uint32_t base;       // where the block's candidates begin
    union {
        struct {
            uint32_t keys[S::LIST], ids[S::LIST];
        } list;
        struct {
            uint32_t above[S::ROW_WORDS], tied[S::ROW_WORDS];
        } sets; // the first block's, of the row; or a block's own, at its beginning
    };
};

// ---- helpers ----

template <int BLOCKS> __device__ static inline void sync()
{
    if (BLOCKS > 1)
        lsa_cluster_sync();
    else
        __syncthreads();
}

template <int THREADS> __device__ static inline void clear(uint32_t *bins)
{
#pragma unroll
    for (int i = 0; i < LSA_BINS / THREADS; i++) bins[i * THREADS + threadIdx.x] = 0;
    __syncthreads();
}

// Adds up the histograms of BLOCKS blocks and finds the bin where, from the largest down, the `need`-th is; false where there are
// fewer. r.found: that bin, and how many are above it. All threads.
template <int BLOCKS, typename S>
__device__ static bool find_bin(room<S> &r, const uint32_t *bins, uint32_t need)
{
    constexpr int PER = LSA_BINS / S::THREADS;
    uint32_t first = LSA_BINS - PER - PER * threadIdx.x, own[PER];
    sync<BLOCKS>();
#pragma unroll
    for (int i = 0; i < PER; i++) own[i] = bins[first + i];
    if constexpr (BLOCKS > 1) {
        uint32_t rank = lsa_cluster_rank();
#pragma unroll
        for (uint32_t other = 1; other < BLOCKS; other++) {
            uint32_t at = lsa_shared_of(bins + first, (rank + other) % BLOCKS);
#pragma unroll
            for (int i = 0; i < PER; i++) own[i] += lsa_load_shared(at + 4 * i);
        }
    }
    return lsa_find_in<PER, S::WARPS>(own, first, need, r.found, r.warps);
}

// The key of the `need`-th largest of those that key_at(0 .. COUNT - 1) has in all threads, of which there are more than `need`;
// in *ties, how many of those equal to it are among them.
template <int BLOCKS, int COUNT, typename S, typename KEY>
__device__ static uint32_t find_cut(room<S> &r, uint32_t need, uint32_t least, uint32_t *ties,
                                    KEY key_at)
{
    uint32_t cut = 0, known = 0;
#pragma unroll
    for (int digit = 0; digit < 3; digit++) {
        int shift = digit == 0 ? 21 : digit == 1 ? 10 : 0;
        uint32_t mask = digit == 2 ? LSA_BINS / 2 - 1 : LSA_BINS - 1, *bins = r.bins[digit % 2];
        clear<S::THREADS>(bins);
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            uint32_t key = key_at(i);
            bool here = key >= least && (key & known) == cut;
            if (__any_sync(0xffffffff, here)) lsa_count_in(bins, key >> shift & mask, here);
        }
        find_bin<BLOCKS>(r, bins, need);
        cut |= r.found[0] << shift;
        known |= mask << shift;
        need -= r.found[1];
    }
    *ties = need;
    return cut;
}

// Writes the ids of one set and the first `ties` of another's, ascending. above, tied: of this thread's words of the row.
template <typename S>
__device__ static void emit(const choice &c, int64_t row, const uint32_t (&above)[S::EACH],
                            uint32_t (&tied)[S::EACH], uint32_t ties, room<S> &r)
{
    uint32_t own = 0, all;
#pragma unroll
    for (int i = 0; i < S::EACH; i++) own += __popc(tied[i]);
    uint32_t before = lsa_block_prefix<S::WARPS>(own, &all, r.ties);
    own = 0;
#pragma unroll
    for (int i = 0; i < S::EACH; i++) {
        before += lsa_take_lowest(&tied[i], before, ties); // the highest ids are too many
        tied[i] |= above[i];
        own += __popc(tied[i]);
    }
    int64_t at = row * c.k + lsa_block_prefix<S::WARPS>(own, &all, r.warps);
#pragma unroll
    for (int i = 0; i < S::EACH; i++) {
        for (uint32_t left = tied[i]; left; left &= left - 1, at++) {
            int32_t id = ((int)threadIdx.x * S::EACH + i) * 32 + __ffs(left) - 1;
            c.ids[at] = id;
            if (c.values) c.values[at] = c.scores[row * c.stride + id];
        }
    }
}

// ---- kernels ----

// Grid: (rows * BLOCKS) in clusters of BLOCKS, block: THREADS, shared: a room.
template <typename S>
__global__ static void __launch_bounds__(S::THREADS, S::KEYS <= 4096 ? 2 : 1) topk_held(choice c)
{
    extern __shared__ uint4 shared[];
    room<S> &r = *(room<S> *)shared;
    constexpr int BLOCKS = S::BLOCKS;
    uint32_t rank = BLOCKS > 1 ? lsa_cluster_rank() : 0;
    int64_t row = blockIdx.x / BLOCKS;
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    const float *scores = c.scores + row * c.stride;
    if (threadIdx.x == 0) r.candidates = 0;
    clear<S::THREADS>(r.bins[0]);
    if (BLOCKS > 1) lsa_cluster_arrive();
    lsa_wait_for_launch_before();
    lsa_let_next_launch_start();
    int n = c.lengths ? c.lengths[row] : (int)c.n;
    bool whole = (uintptr_t)scores % 16 == 0;
    auto first_of = [&](int v) { // id of a thread's four
        return ((v * S::WARPS + warp) * BLOCKS + (int)rank) * GRANULE + 4 * lane;
    };
    uint32_t keys[S::VECTORS][4], largest = 0;
#pragma unroll
    for (int v = 0; v < S::VECTORS; v++) {
        int at = first_of(v);
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
    for (int i = 0; i < 4 * S::VECTORS; i++) {
        keys[i / 4][i % 4] = lsa_score_key(__uint_as_float(keys[i / 4][i % 4]));
        largest = max(largest, keys[i / 4][i % 4]);
    }

    // The bound, to 22 bits.
    uint32_t least = 1, part = ((uint32_t)c.k + BLOCKS - 1) / BLOCKS;
    lsa_count_in(r.bins[0], largest >> 21, largest != 0);
    if (part > 0 && find_bin<1>(r, r.bins[0], part)) {
        uint32_t top = r.found[0], above = r.found[1];
        clear<S::THREADS>(r.bins[1]);
        lsa_count_in(r.bins[1], largest >> 10 & (LSA_BINS - 1),
                     largest != 0 && largest >> 21 == top);
        find_bin<1>(r, r.bins[1], part - above);
        least = max(top << 21 | r.found[0] << 10, 1u);
    }
    if (BLOCKS > 1) {
        lsa_cluster_wait(); // all blocks are there
        if (threadIdx.x < BLOCKS)
            lsa_store_shared(lsa_shared_of(&r.bounds[rank], threadIdx.x), least);
        lsa_cluster_sync();
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) least = min(least, r.bounds[i]);
    }

    // What reaches it.
    uint32_t own = 0, all;
#pragma unroll
    for (int i = 0; i < 4 * S::VECTORS; i++) own += keys[i / 4][i % 4] >= least;
    uint32_t place = lsa_block_prefix<S::WARPS>(own, &all, r.ties);
    if (BLOCKS > 1) {
        if (threadIdx.x == 0) r.base = lsa_add_shared(lsa_shared_of(&r.candidates, 0), all);
        __syncthreads();
        place += r.base;
    } else if (threadIdx.x == 0) {
        r.candidates = all;
    }
    uint32_t list = lsa_shared_of(r.list.keys, 0), list_ids = lsa_shared_of(r.list.ids, 0);
#pragma unroll
    for (int v = 0; v < S::VECTORS; v++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            if (keys[v][e] < least) continue;
            if (place < S::LIST) {
                lsa_store_shared(list + 4 * place, keys[v][e]);
                lsa_store_shared(list_ids + 4 * place, (uint32_t)(first_of(v) + e));
            }
            place++;
        }
    sync<BLOCKS>();
    uint32_t candidates =
        BLOCKS > 1 ? lsa_load_shared(lsa_shared_of(&r.candidates, 0)) : r.candidates;
    uint32_t need = min(candidates, (uint32_t)c.k), cut = 0, ties = 0;
    uint32_t above[S::EACH], tied[S::EACH];
    if (candidates <= S::LIST) {
        if (BLOCKS > 1)
            lsa_cluster_arrive(); // nobody leaves while its memory is read, or writes into the first's
        if (rank == 0) {
            uint32_t few[S::LIST_EACH], few_ids[S::LIST_EACH];
#pragma unroll
            for (int i = 0; i < S::LIST_EACH; i++) {
                uint32_t at = i * S::THREADS + threadIdx.x;
                few[i] = at < candidates ? r.list.keys[at] : 0;
                few_ids[i] = at < candidates ? r.list.ids[at] : 0;
            }
            if (need < candidates && need > 0)
                cut = find_cut<1, S::LIST_EACH>(r, need, 1, &ties, [&](int i) { return few[i]; });
            __syncthreads();
            for (int i = threadIdx.x; i < S::ROW_WORDS; i += S::THREADS)
                r.sets.above[i] = r.sets.tied[i] = 0;
            __syncthreads();
#pragma unroll
            for (int i = 0; i < S::LIST_EACH; i++) {
                if (few[i] == 0 || few[i] < cut || need == 0) continue;
                atomicOr((few[i] > cut ? r.sets.above : r.sets.tied) + few_ids[i] / 32,
                         1u << few_ids[i] % 32);
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i < S::EACH; i++) {
                int word = (int)threadIdx.x * S::EACH + i;
                above[i] = word < S::ROW_WORDS ? r.sets.above[word] : 0;
                tied[i] = word < S::ROW_WORDS ? r.sets.tied[word] : 0;
            }
        }
    } else {
        if (need < candidates && need > 0)
            cut = find_cut<BLOCKS, 4 * S::VECTORS>(r, need, least, &ties,
                                                   [&](int i) { return keys[i / 4][i % 4]; });
#pragma unroll
        for (int v = 0; v < S::VECTORS; v++) {
            uint32_t a = 0, t = 0;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                uint32_t key = keys[v][e], bit = 1u << (lane % 8 * 4 + e);
                if (key >= least && need > 0) a |= key > cut ? bit : 0, t |= key == cut ? bit : 0;
            }
#pragma unroll
            for (int step = 1; step < 8; step *= 2) {
                a |= __shfl_xor_sync(0xffffffff, a, step);
                t |= __shfl_xor_sync(0xffffffff, t, step);
            }
            int word = (v * S::WARPS + warp) * (GRANULE / 32) + lane / 8;
            if (lane % 8 == 0) r.sets.above[word] = a, r.sets.tied[word] = t;
        }
        sync<BLOCKS>();
        if (rank == 0) {
#pragma unroll
            for (int i = 0; i < S::EACH; i++) {
                uint32_t word = threadIdx.x * S::EACH + i, granule = word / (GRANULE / 32);
                uint32_t at = granule / BLOCKS * (GRANULE / 32) + word % (GRANULE / 32);
                above[i] = tied[i] = 0;
                if (word >= S::ROW_WORDS) continue;
                above[i] = lsa_load_shared(lsa_shared_of(r.sets.above + at, granule % BLOCKS));
                tied[i] = lsa_load_shared(lsa_shared_of(r.sets.tied + at, granule % BLOCKS));
            }
        }
        if (BLOCKS > 1) lsa_cluster_arrive();
    }
    if (rank == 0) {
        emit<S>(c, row, above, tied, ties, r);
        for (uint32_t i = need + threadIdx.x; i < (uint32_t)c.k; i += S::THREADS) {
            c.ids[row * c.k + i] = -1;
            if (c.values) c.values[row * c.k + i] = -INFINITY;
        }
        if (c.counts && threadIdx.x == 0) c.counts[row] = (int32_t)need;
    }
    if (BLOCKS > 1) lsa_cluster_wait();
}

// The key of the k-th largest score by digits of 8 bits, then one pass in the order of ids. Grid: (rows), block: 512.
__global__ static void __launch_bounds__(ROW_THREADS, 1) topk_row(choice c)
{
    __shared__ uint32_t counts[256];
    __shared__ int ranks[ROW_WARPS], candidates;
    __shared__ uint32_t digit, above;
    for (int64_t row = blockIdx.x; row < c.rows; row += gridDim.x) {
        int64_t n = c.lengths ? c.lengths[row] : c.n;
        const float *scores = c.scores + row * c.stride;
        int own = 0;
        for (int64_t i = threadIdx.x; i < n; i += ROW_THREADS) own += lsa_score_key(scores[i]) != 0;
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
                for (int64_t i = threadIdx.x; i < n; i += ROW_THREADS) {
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
        for (int64_t base = 0; base < n && done < count; base += ROW_THREADS) {
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
        for (int i = count + threadIdx.x; i < c.k; i += ROW_THREADS) {
            c.ids[row * c.k + i] = -1;
            if (c.values) c.values[row * c.k + i] = -INFINITY;
        }
        if (c.counts && threadIdx.x == 0) c.counts[row] = count;
        __syncthreads();
    }
}

// ---- launcher ----

template <typename S> static cudaError_t launch_held(const choice &c, cudaStream_t stream)
{
    cudaError_t error = cudaFuncSetAttribute(
        topk_held<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(room<S>));
    if (error != cudaSuccess) return error;
    return lsa_launch_early(topk_held<S>, dim3((unsigned)(c.rows * S::BLOCKS)), S::THREADS,
                            sizeof(room<S>), S::BLOCKS, stream, c);
}

int lsa_topk_of_lengths(int32_t *ids, float *values, int32_t *counts, const float *scores,
                        const int32_t *lengths, int64_t rows, int64_t n, int64_t score_stride,
                        int32_t k, cudaStream_t stream)
{
    choice c = {ids, values, counts, scores, lengths, rows, n, score_stride, k};
    cudaError_t error = cudaSuccess;
    if (n <= shape<512, 2, 1>::KEYS)
        error = launch_held<shape<512, 2, 1>>(c, stream);
    else if (n <= shape<1024, 2, 1>::KEYS)
        error = launch_held<shape<1024, 2, 1>>(c, stream);
    else if (n <= shape<1024, 8, 1>::KEYS)
        error = launch_held<shape<1024, 8, 1>>(c, stream);
    else if (n <= CLUSTER * shape<1024, 2, CLUSTER>::KEYS)
        error = launch_held<shape<1024, 2, CLUSTER>>(c, stream);
    else if (n <= CLUSTER * shape<1024, 4, CLUSTER>::KEYS)
        error = launch_held<shape<1024, 4, CLUSTER>>(c, stream);
    else if (n <= CLUSTER * shape<512, 16, CLUSTER>::KEYS)
        error = launch_held<shape<512, 16, CLUSTER>>(c, stream);
    else
        topk_row<<<lsa_blocks(rows, 1), ROW_THREADS, 0, stream>>>(c);
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
