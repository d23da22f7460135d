// Compressors on the GPU: a channel of an entry a thread.
#include "kernels/compress_cuda.h"
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/compress.h"
}

enum { THREADS = 128 };

struct windows {
    float *out;
    const float *kv, *gate, *prev_kv, *prev_gate, *bias;
    int64_t n, m, dim, width;
    bool overlap;
};

// A window's rows, and those of the window before it.
struct window_rows {
    const float *own_kv, *own_gate, *before_kv, *before_gate;
    int64_t m, width;
    __device__ const float *kv(int64_t i) const
    {
        return i < 0 ? before_kv + (i + m) * width : own_kv + i * width;
    }
    __device__ const float *gate(int64_t i) const
    {
        return i < 0 ? before_gate + (i + m) * width : own_gate + i * width;
    }
};

// ---- kernels ----

// Grid: (ceil(n dim / 128)), block: 128.
__global__ static void compress_each(windows x)
{
    for (int64_t i = lsa_thread(); i < x.n * x.dim; i += lsa_threads()) {
        int64_t w = i / x.dim, row = x.m * x.width;
        window_rows rows = {x.kv + w * row, x.gate + w * row, x.prev_kv, x.prev_gate, x.m, x.width};
        if (w > 0) rows.before_kv = rows.own_kv - row, rows.before_gate = rows.own_gate - row;
        bool before = x.overlap && rows.before_kv && rows.before_gate;
        x.out[i] = lsa_mixed(rows, x.bias, before ? -x.m : 0, x.m, x.width, i % x.dim,
                             x.overlap ? x.dim : 0);
    }
}

// ---- launcher ----

int lsa_compress_cuda(float *out, const float *kv, const float *gate, const float *prev_kv,
                      const float *prev_gate, const float *position_bias, int64_t n, int64_t m,
                      int64_t dim, int32_t overlap, void *stream)
{
    int rc = lsa_compress_check(n, m, dim);
    if (rc || n == 0) return rc;
    windows x = {out,           kv, gate, prev_kv, prev_gate,
                 position_bias, n,  m,    dim,     overlap ? 2 * dim : dim,
                 overlap != 0};
    compress_each<<<lsa_blocks(n * dim, THREADS), THREADS, 0, (cudaStream_t)stream>>>(x);
    return lsa_launched("compress", n, m, dim);
}
