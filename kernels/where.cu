// Choice between two rows by a set, on the GPU.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/where.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// Grid: (ceil(n / 256)), block: 256.
__global__ static void where_each(uint32_t *out, const uint64_t *bits, const uint32_t *a,
                                  const uint32_t *b, int64_t n, int32_t b_step)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads())
        out[i] = bits[i / 64] >> i % 64 & 1 ? a[i] : b[i * b_step];
}

// ---- launcher ----

int lsa_where_cuda(float *out, const uint64_t *bits, const float *a, const float *b, int64_t n,
                   int32_t b_step, void *stream)
{
    int rc = lsa_where_check(n, b_step);
    if (rc || n == 0) return rc;
    where_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(
        (uint32_t *)out, bits, (const uint32_t *)a, (const uint32_t *)b, n, b_step);
    return lsa_launched("where", n);
}
