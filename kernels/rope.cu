// Rotary position embedding on the GPU: a pair a thread, with the CPU's bits.
#include "kernels/cuda_launch.h"
#include "kernels/rope_cuda.h"

extern "C" {
#include "kernels/rope.h"
}

enum { THREADS = 128 };

// ---- kernels ----

// Grid: (ceil(n half / 128)), block: 128.
__global__ static void rope_table_each(float *table, const float *inv_freq,
                                       const int32_t *positions, int64_t n, int64_t half)
{
    lsa_after_previous();
    for (int64_t i = lsa_thread(); i < n * half; i += lsa_threads())
        lsa_rope_turn(table + 2 * i, table + 2 * i + 1, positions[i / half], inv_freq[i % half]);
}

// Grid: (ceil(pairs / 128)), block: 128.
__global__ static void rope_pairs(float *x, const float *table, int64_t pairs, int64_t heads,
                                  int64_t dim, int64_t half, float sign)
{
    lsa_after_previous();
    for (int64_t i = lsa_thread(); i < pairs; i += lsa_threads()) {
        int64_t vector = i / half, pair = i % half;
        float *at = x + vector * dim + dim - 2 * half + 2 * pair;
        const float *turn = table + (vector / heads * half + pair) * 2;
        lsa_rope_pair(at, turn[0], turn[1] * sign);
    }
}

// ---- launchers ----

int lsa_rope_table_cuda(float *table, const float *inv_freq, const int32_t *positions, int64_t n,
                        int64_t half, void *stream)
{
    int rc = lsa_rope_table_check(n, half);
    if (rc || n == 0 || half == 0) return rc;
    lsa_launch(rope_table_each, lsa_blocks(n * half, THREADS), THREADS, 0, (cudaStream_t)stream,
               table, inv_freq, positions, n, half);
    return lsa_launched("rope_table", n, half);
}

int lsa_rope_cuda(float *x, const float *table, int64_t rows, int64_t heads, int64_t dim,
                  int64_t rope_dim, int32_t inverse, void *stream)
{
    int rc = lsa_rope_check(rows, heads, dim, rope_dim);
    int64_t pairs = rows * heads * (rope_dim / 2);
    if (rc || pairs == 0) return rc;
    lsa_launch(rope_pairs, lsa_blocks(pairs, THREADS), THREADS, 0, (cudaStream_t)stream, x, table,
               pairs, heads, dim, rope_dim / 2, inverse ? -1.0f : 1.0f);
    return lsa_launched("rope", rows, heads, dim);
}
