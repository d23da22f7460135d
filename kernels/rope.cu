// Rotary position embedding on the GPU: a pair a thread, with the CPU's bits.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/rope.h"
}

enum { THREADS = 128 };

// ---- kernels ----

// Grid: (ceil(n half / 128)), block: 128. In f64, where any angle of an f32 is far from its end.
__global__ static void rope_table_each(float *table, const float *inv_freq,
                                       const int32_t *positions, int64_t n, int64_t half)
{
    for (int64_t i = lsa_thread(); i < n * half; i += lsa_threads()) {
        double sine, cosine, angle = __fmul_rn((float)positions[i / half], inv_freq[i % half]);
        sincos(angle, &sine, &cosine);
        table[2 * i] = (float)cosine;
        table[2 * i + 1] = (float)sine;
    }
}

// Grid: (ceil(pairs / 128)), block: 128.
__global__ static void rope_pairs(float *x, const float *table, int64_t pairs, int64_t heads,
                                  int64_t dim, int64_t half, float sign)
{
    for (int64_t i = lsa_thread(); i < pairs; i += lsa_threads()) {
        int64_t vector = i / half, pair = i % half;
        float *at = x + vector * dim + dim - 2 * half + 2 * pair;
        const float *turn = table + (vector / heads * half + pair) * 2;
        float a = at[0], b = at[1], c = turn[0], s = turn[1] * sign;
        at[0] = __fadd_rn(__fmul_rn(a, c), __fmul_rn(b, -s));
        at[1] = __fadd_rn(__fmul_rn(b, c), __fmul_rn(a, s));
    }
}

// ---- launchers ----

int lsa_rope_table_cuda(float *table, const float *inv_freq, const int32_t *positions, int64_t n,
                        int64_t half, void *stream)
{
    int rc = lsa_rope_table_check(n, half);
    if (rc || n == 0 || half == 0) return rc;
    rope_table_each<<<lsa_blocks(n * half, THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        table, inv_freq, positions, n, half);
    return lsa_launched("rope_table");
}

int lsa_rope_cuda(float *x, const float *table, int64_t rows, int64_t heads, int64_t dim,
                  int64_t rope_dim, int32_t inverse, void *stream)
{
    int rc = lsa_rope_check(rows, heads, dim, rope_dim);
    int64_t pairs = rows * heads * (rope_dim / 2);
    if (rc || pairs == 0) return rc;
    rope_pairs<<<lsa_blocks(pairs, THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        x, table, pairs, heads, dim, rope_dim / 2, inverse ? -1.0f : 1.0f);
    return lsa_launched("rope");
}
