// Entropy on the GPU: a cluster of blocks a row, each with its part of the logits.
#include <cooperative_groups.h>

#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/entropy.h"
}

enum { THREADS = 1024, BLOCKS = 8, LONG_ROW = 16384 };

// ---- kernels ----

// Of logits from .. to - 1, in all threads; fmaxf passes NaN over.
__device__ static float largest_of(const float *logits, int64_t from, int64_t to, float *shared)
{
    float own = -INFINITY;
#pragma unroll 4
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) own = fmaxf(own, logits[i]);
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2)
        own = fmaxf(own, __shfl_xor_sync(0xffffffff, own, step));
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = own;
    __syncthreads();
    for (int i = 0; i < THREADS / LSA_WARP; i++) own = fmaxf(own, shared[i]);
    return own;
}

// Grid: (rows clusters), block: 1024. Blocks' sums meet in the order of their parts.
__global__ static void __launch_bounds__(THREADS, 1)
    entropy_row(double *out, const float *rows, int64_t vocab)
{
    __shared__ float tops[THREADS / LSA_WARP], block_tops[BLOCKS];
    __shared__ double sums[THREADS / LSA_WARP], weights[THREADS / LSA_WARP];
    __shared__ double block_sums[BLOCKS][2];
    cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    int blocks = (int)cluster.num_blocks(), rank = (int)cluster.block_rank();
    lsa_after_previous();
    int64_t r = blockIdx.x / blocks, each = (vocab + blocks - 1) / blocks;
    int64_t from = min(vocab, rank * each), to = min(vocab, from + each);
    const float *logits = rows + r * vocab;
    float top = largest_of(logits, from, to, tops);
    if (threadIdx.x < blocks) cluster.map_shared_rank(block_tops, threadIdx.x)[rank] = top;
    cluster.sync();
    for (int b = 0; b < blocks; b++) top = fmaxf(top, block_tops[b]);
    double most = top, sum = 0, weighted = 0;
    for (int64_t i = from + threadIdx.x; i < to; i += THREADS) {
        double d = logits[i] - most, e = exp(d);
        sum += e; // a NaN among the logits shows here
        if (e > 0) weighted += e * d;
    }
    sum = lsa_block_sum(sum, sums);
    weighted = lsa_block_sum(weighted, weights);
    if (threadIdx.x == 0) {
        double *to_first = *cluster.map_shared_rank(&block_sums[rank], 0);
        to_first[0] = sum, to_first[1] = weighted;
    }
    cluster.sync();
    if (rank > 0 || threadIdx.x > 0) return;
    for (int b = 1; b < blocks; b++) sum += block_sums[b][0], weighted += block_sums[b][1];
    out[r] = isinf(most) ? nan("") : log(sum) - weighted / sum;
}

// ---- launcher ----

int lsa_entropy_cuda(double *out, const float *logits, int64_t n, int64_t vocab, void *stream)
{
    int rc = lsa_entropy_check(n, vocab);
    if (rc || n == 0) return rc;
    int blocks = vocab > LONG_ROW ? BLOCKS : 1;
    (void)lsa_launch_clusters(entropy_row, dim3((unsigned)(n * blocks)), THREADS, 0, blocks, stream,
                              out, logits, vocab);
    return lsa_launched("entropy", n, vocab);
}
