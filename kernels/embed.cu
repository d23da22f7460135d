// Token embedding on the GPU, with the CPU's bits: a number of the table a thread.
#include "kernels/linear_cuda.h"

extern "C" {
#include "kernels/embed.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// Grid: (ceil(n hidden / 256)), block: 256.
__global__ static void embed_each(float *streams, const int32_t *tokens, product table, int64_t n,
                                  int64_t hc)
{
    lsa_after_previous();
    for (int64_t i = lsa_thread(); i < n * table.cols; i += lsa_threads()) {
        int64_t row = i / table.cols, col = i % table.cols;
        float v = weight_at(table, tokens[row], col);
        for (int64_t j = 0; j < hc; j++) streams[(row * hc + j) * table.cols + col] = v;
    }
}

// ---- launcher ----

int lsa_embed_cuda(float *streams, const int32_t *tokens, const lsa_weight *table, int64_t n,
                   int64_t hc, int64_t hidden, void *stream)
{
    int rc = lsa_embed_check(table, n, hc, hidden);
    if (rc || n * hc * hidden == 0) return rc;
    product p = product_of(NULL, NULL, *table, n, 0, 0, 0, 0, LSA_COMPUTE_F32);
    lsa_launch(embed_each, lsa_blocks(n * hidden, THREADS), THREADS, 0, (cudaStream_t)stream,
               streams, tokens, p, n, hc);
    return lsa_launched("embed", n, hc, hidden);
}
