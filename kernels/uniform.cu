// Random numbers on the GPU, the CPU's ones.
#include "kernels/cuda_launch.h"
#include "kernels/uniform_private.h"

extern "C" {
#include "kernels/uniform.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// Grid: (ceil(n / 256)), block: 256.
__global__ static void uniform_each(float *out, int64_t n, uint64_t seed)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads()) out[i] = uniform_at(seed, i);
}

// ---- launcher ----

int lsa_uniform_cuda(float *out, int64_t n, uint64_t seed, void *stream)
{
    int rc = lsa_uniform_check(n);
    if (rc || n == 0) return rc;
    uniform_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(out, n, seed);
    return lsa_launched("uniform", n);
}
