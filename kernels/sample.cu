// Drawing tokens on the GPU: a cluster of blocks a row.
#include "kernels/sample_cuda.h"

extern "C" {
#include "kernels/sample.h"
}

enum { LONG_ROW = 16384 }; // more than a block reads at once

// ---- kernels ----

// Grid: (rows clusters), block: 1024.
__global__ static void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_row(int32_t *tokens, const float *rows, uint64_t *states, const double *temperatures,
               int32_t vocab, int32_t blocks)
{
    lsa_after_previous();
    int64_t r = blockIdx.x / blocks;
    int32_t token = token_of(rows + r * vocab, &states[r], temperatures[r], vocab);
    if (threadIdx.x == 0 && blockIdx.x % blocks == 0) tokens[r] = token;
}

// ---- launcher ----

int lsa_sample_cuda(int32_t *tokens, const float *logits, uint64_t *states,
                    const double *temperatures, int64_t n, int64_t vocab, void *stream)
{
    int rc = lsa_sample_check(n, vocab);
    if (rc || n == 0) return rc;
    int32_t blocks = vocab > LONG_ROW ? SAMPLE_BLOCKS : 1;
    (void)lsa_launch_clusters(sample_row, dim3((unsigned)(n * blocks)), SAMPLE_THREADS, 0, blocks,
                              stream, tokens, logits, states, temperatures, (int32_t)vocab, blocks);
    return lsa_launched("sample", n, vocab);
}
