// Copies between strided views on the GPU: an element a thread, its place counted out along the dimensions.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/copy_private.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// Grid: (ceil(n / 256)), block: 256.
template <typename T>
__global__ static void copy_each(T *out, const T *in, int64_t n, lsa_copy_dims d)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads()) {
        int64_t rest = i, to = 0, from = 0;
        for (int32_t k = d.rank - 1; k >= 0; k--) {
            int64_t at = rest % d.n[k];
            rest /= d.n[k];
            to += at * d.out[k];
            from += at * d.in[k];
        }
        out[to] = in[from];
    }
}

// ---- launcher ----

template <typename T>
static void launch(void *out, const void *in, const lsa_copy_dims &d, cudaStream_t stream)
{
    int64_t n = 1;
    for (int32_t k = 0; k < d.rank; k++) n *= d.n[k];
    copy_each<<<lsa_blocks(n, THREADS), THREADS, 0, stream>>>((T *)out, (const T *)in, n, d);
}

int lsa_copy_cuda(void *out, const void *in, int64_t size, int32_t rank, const int64_t *shape,
                  const int64_t *out_stride, const int64_t *in_stride, void *stream)
{
    lsa_copy_dims d;
    int some = lsa_copy_plan(&d, size, rank, shape, out_stride, in_stride);
    if (some <= 0) return some;
    cudaStream_t s = (cudaStream_t)stream;
    if (size == 1) launch<uint8_t>(out, in, d, s);
    if (size == 2) launch<uint16_t>(out, in, d, s);
    if (size == 4) launch<uint32_t>(out, in, d, s);
    if (size == 8) launch<uint64_t>(out, in, d, s);
    return lsa_launched("copy");
}
