// Page scores on the GPU: reductions of parts of rows, and counts of a set's members.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/pages.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// A page a thread. Grid: (ceil(pages / 256)), block: 256.
__global__ static void density_each(float *out, const uint64_t *bits, int64_t n, int64_t size,
                                    int64_t pages)
{
    for (int64_t p = lsa_thread(); p < pages; p += lsa_threads()) {
        int64_t from = p * size, to = min(n, from + size), count = 0;
        while (from < to) {
            int64_t bit = from % 64, m = min(64 - bit, to - from);
            count += __popcll(bits[from / 64] >> bit << (64 - m));
            from += m;
        }
        out[p] = (float)count;
    }
}

// ---- launchers ----

int lsa_pages_cuda(float *out, const float *in, int64_t rows, int64_t n, int64_t size, int32_t op,
                   void *stream)
{
    int rc = lsa_pages_check(rows, n, size);
    if (rc) return rc;
    int64_t full = n / size, rest = n % size, pages = full + (rest > 0);
    if (rest == 0) return lsa_reduce_cuda(out, in, rows * full, size, 1, op, stream);
    for (int64_t r = 0; r < rows; r++) {
        rc = lsa_reduce_cuda(out + r * pages, in + r * n, full, size, 1, op, stream);
        if (!rc)
            rc = lsa_reduce_cuda(out + r * pages + full, in + r * n + full * size, 1, rest, 1, op,
                                 stream);
        if (rc) return rc;
    }
    return LSA_OK;
}

int lsa_density_cuda(float *out, const uint64_t *bits, int64_t n, int64_t size, void *stream)
{
    int rc = lsa_density_check(n, size);
    if (rc || n == 0) return rc;
    int64_t pages = (n + size - 1) / size;
    density_each<<<lsa_blocks(pages, THREADS), THREADS, 0, (cudaStream_t)stream>>>(out, bits, n,
                                                                                   size, pages);
    return lsa_launched("density", n, size);
}
