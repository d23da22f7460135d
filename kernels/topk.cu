// Exact top-k of rows on the GPU, a block a row: the key of the k-th largest score by digits of 8 bits, from the top,
// each by a histogram of the scores that share the digits before it; then one pass in the order of ids, which gives ties to
// the lower one. Rows that fit are kept in shared memory, the rest are read again for each digit.
#include "kernels/cuda_select.h"

#include "kernels/topk_cuda.h"

enum { THREADS = 1024, WARPS = THREADS / LSA_WARP, DIGITS = 256, MOST_HELD = 49152 };

struct choice {
    int32_t *ids;
    float *values;
    int32_t *counts;
    const float *scores;
    const int32_t *lengths; // NULL: n
    int64_t rows, n, stride;
    int32_t k;
};

// ---- helpers ----

// Finds the digit where, from the largest down, the `need`-th candidate lies, and how many of them lie above it: one warp,
// which sums its 256 counts in eights. need <= all of them.
__device__ static void find_digit(const int *counts, int need, int *digit, int *above)
{
    int lane = threadIdx.x, own = 0, sum;
    for (int i = 0; i < DIGITS / LSA_WARP; i++)
        own += counts[DIGITS - 1 - lane * (DIGITS / LSA_WARP) - i];
    sum = own;
    for (int step = 1; step < LSA_WARP; step *= 2) {
        int other = __shfl_up_sync(0xffffffff, sum, step);
        if (lane >= step) sum += other;
    }
    int before = sum - own;
    if (before < need && sum >= need)
        for (int i = 0; i < DIGITS / LSA_WARP; i++) {
            int d = DIGITS - 1 - lane * (DIGITS / LSA_WARP) - i;
            if (before + counts[d] >= need) {
                *digit = d;
                *above = before;
                break;
            }
            before += counts[d];
        }
}

// ---- kernels ----

// HELD: keys are kept in shared memory. Grid: (rows), block: 1024, shared: 1.2 KB, and 4 n bytes where held.
template <bool HELD> __global__ static void __launch_bounds__(THREADS, 1) topk_row(choice c)
{
    extern __shared__ uint32_t held[];
    __shared__ int counts[DIGITS], ranks[WARPS], digit, above, candidates;
    for (int64_t r = blockIdx.x; r < c.rows; r += gridDim.x) {
        int n = c.lengths ? c.lengths[r] : (int)c.n;
        const float *scores = c.scores + r * c.stride;
        auto key_at = [&](int i) { return HELD ? held[i] : lsa_score_key(scores[i]); };
        int own = 0;
        for (int i = threadIdx.x; i < n; i += THREADS) {
            uint32_t key = lsa_score_key(scores[i]);
            if (HELD) held[i] = key;
            own += key != 0;
        }
        if (threadIdx.x == 0) candidates = 0;
        __syncthreads();
        own = lsa_warp_sum(own);
        if (threadIdx.x % LSA_WARP == 0) atomicAdd(&candidates, own);
        __syncthreads();

        // Keys above `cut` are in, and the first `ties` of those equal to it; all candidates where there are no more than k.
        int count = min(candidates, c.k), ties = 0;
        uint32_t cut = 0;
        if (candidates > c.k && c.k > 0) {
            ties = c.k;
            for (int shift = 24; shift >= 0; shift -= 8) {
                for (int i = threadIdx.x; i < DIGITS; i += THREADS) counts[i] = 0;
                __syncthreads();
                uint32_t known = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
                for (int i = threadIdx.x; i < n; i += THREADS) {
                    uint32_t key = key_at(i);
                    if (key != 0 && (key & known) == cut) atomicAdd(&counts[key >> shift & 255], 1);
                }
                __syncthreads();
                if (threadIdx.x < LSA_WARP) find_digit(counts, ties, &digit, &above);
                __syncthreads();
                cut |= (uint32_t)digit << shift;
                ties -= above;
                __syncthreads();
            }
        }

        int done = 0;
        for (int base = 0; base < n && done < count; base += THREADS) {
            int i = base + threadIdx.x, tied, taken;
            uint32_t key = i < n ? key_at(i) : 0;
            int rank = lsa_block_rank(ties > 0 && key != 0 && key == cut, &tied, ranks);
            bool take = key > cut || (ties > 0 && key != 0 && key == cut && rank < ties);
            int place = lsa_block_rank(take, &taken, ranks);
            if (take) {
                c.ids[r * c.k + done + place] = i;
                if (c.values) c.values[r * c.k + done + place] = scores[i];
            }
            ties -= min(tied, ties);
            done += taken;
        }
        for (int i = count + threadIdx.x; i < c.k; i += THREADS) {
            c.ids[r * c.k + i] = -1;
            if (c.values) c.values[r * c.k + i] = -INFINITY;
        }
        if (c.counts && threadIdx.x == 0) c.counts[r] = count;
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_topk_of_lengths(int32_t *ids, float *values, int32_t *counts, const float *scores,
                        const int32_t *lengths, int64_t rows, int64_t n, int64_t score_stride,
                        int32_t k, cudaStream_t stream)
{
    choice c = {ids, values, counts, scores, lengths, rows, n, score_stride, k};
    bool held = n <= MOST_HELD;
    auto kernel = held ? topk_row<true> : topk_row<false>;
    int bytes = held ? (int)n * 4 : 0;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return lsa_cuda_failed("topk", error);
    kernel<<<lsa_blocks(rows, 1), THREADS, bytes, stream>>>(c);
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
