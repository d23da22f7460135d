// Drawing tokens on the GPU: a block a row.
#include "kernels/sample_cuda.h"

extern "C" {
#include "kernels/sample.h"
}

// ---- kernels ----

// Grid: (rows), block: 1024.
__global__ static void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_row(int32_t *tokens, const float *rows, uint64_t *states, const double *temperatures,
               int64_t n, int32_t vocab)
{
    for (int64_t r = blockIdx.x; r < n; r += gridDim.x) {
        int32_t token = token_of(rows + r * vocab, &states[r], temperatures[r], vocab);
        if (threadIdx.x == 0) tokens[r] = token;
        __syncthreads();
    }
}

// ---- launcher ----

int lsa_sample_cuda(int32_t *tokens, const float *logits, uint64_t *states,
                    const double *temperatures, int64_t n, int64_t vocab, void *stream)
{
    int rc = lsa_sample_check(n, vocab);
    if (rc || n == 0) return rc;
    sample_row<<<lsa_blocks(n, 1), SAMPLE_THREADS, 0, (cudaStream_t)stream>>>(
        tokens, logits, states, temperatures, n, (int32_t)vocab);
    return lsa_launched("sample", n, vocab);
}
