// Moving records on the GPU: a warp takes 4 KB at a time, eight 16-byte loads in flight a thread, so that few multiprocessors keep
// the bus full whatever its latency.
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/cuda_launch.h"

extern "C" {
#include "core/base/error.h"
#include "kernels/gather.h"
}

enum { THREADS = 1024, IN_FLIGHT = 8, PART = IN_FLIGHT * LSA_WARP };

// More of them slow down what runs beside without filling the bus any better.
enum { BLOCKS = 4, BLOCKS_BESIDE = 2 };

__device__ static uint8_t *record_at(const lsa_records &r, int64_t i)
{
    return r.blocks[i >> r.block_shift] + (i & (((int64_t)1 << r.block_shift) - 1)) * r.stride +
           r.offset;
}

// Grid: up to 4, block: 1,024.
__global__ static void __launch_bounds__(THREADS, 1)
    gather_records(lsa_records to, const int32_t *slots, lsa_records from, const int32_t *chunks,
                   int64_t n, int64_t bytes)
{
    int64_t words = bytes / 16, parts = (words + PART - 1) / PART;
    int tail = (int)(bytes % 16), lane = threadIdx.x % LSA_WARP;
    if (parts == 0) parts = 1; // the tail's
    for (int64_t p = lsa_thread() / LSA_WARP; p < n * parts; p += lsa_threads() / LSA_WARP) {
        int64_t i = p / parts, at = p % parts * PART + lane;
        const uint8_t *source = record_at(from, chunks[i]);
        uint8_t *target = record_at(to, slots[i]);
        const uint4 *in = (const uint4 *)source;
        uint4 *out = (uint4 *)target, held[IN_FLIGHT];
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++)
            if (at + j * LSA_WARP < words) held[j] = __ldcs(in + at + j * LSA_WARP);
#pragma unroll
        for (int j = 0; j < IN_FLIGHT; j++)
            if (at + j * LSA_WARP < words) out[at + j * LSA_WARP] = held[j];
        if (p % parts == 0 && lane < tail) target[words * 16 + lane] = source[words * 16 + lane];
    }
}

int lsa_gather_cuda(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                    const int32_t *chunks, int64_t n, int64_t bytes, void *stream)
{
    if (n < 1 || bytes < 1) return LSA_OK;
    if (((to->stride | to->offset | from->stride | from->offset) & 15) != 0)
        return lsa_fail(LSA_ESHAPE, "gather: strides %lld and %lld are no multiples of 16",
                        (long long)to->stride, (long long)from->stride);
    int64_t parts = n * (bytes / 16 / PART + 1), most = stream ? BLOCKS_BESIDE : BLOCKS;
    int64_t blocks = (parts * LSA_WARP + THREADS - 1) / THREADS;
    gather_records<<<(unsigned)(blocks < most ? blocks : most), THREADS, 0, (cudaStream_t)stream>>>(
        *to, slots, *from, chunks, n, bytes);
    return lsa_launched("gather", n, bytes);
}
