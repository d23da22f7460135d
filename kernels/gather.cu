// Moving records on the GPU: 16-byte loads of many threads, eight in flight each, so that the bus is full whatever its latency.
#include <cuda_runtime.h>
#include <stdint.h>

extern "C" {
#include "core/base/error.h"
#include "kernels/gather.h"
}

enum { THREADS = 256, BLOCKS = 32, IN_FLIGHT = 8 };

__device__ static uint8_t *record_at(const lsa_records &r, int64_t i)
{
    return r.blocks[i >> r.block_shift] + (i & (((int64_t)1 << r.block_shift) - 1)) * r.stride +
           r.offset;
}

// A block takes records one after the other. Grid: up to 32, block: 256.
__global__ static void __launch_bounds__(THREADS, 2)
    gather_records(lsa_records to, const int32_t *slots, lsa_records from, const int32_t *chunks,
                   int64_t n, int64_t bytes)
{
    int64_t words = bytes / 16, tail = bytes % 16;
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        const uint8_t *source = record_at(from, chunks[i]);
        uint8_t *target = record_at(to, slots[i]);
        const uint4 *in = (const uint4 *)source;
        uint4 *out = (uint4 *)target;
        for (int64_t at = threadIdx.x; at < words; at += IN_FLIGHT * THREADS) {
            uint4 held[IN_FLIGHT];
#pragma unroll
            for (int j = 0; j < IN_FLIGHT; j++)
                if (at + j * THREADS < words) held[j] = in[at + j * THREADS];
#pragma unroll
            for (int j = 0; j < IN_FLIGHT; j++)
                if (at + j * THREADS < words) out[at + j * THREADS] = held[j];
        }
        if (threadIdx.x < tail) target[words * 16 + threadIdx.x] = source[words * 16 + threadIdx.x];
    }
}

int lsa_gather_cuda(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                    const int32_t *chunks, int64_t n, int64_t bytes, void *stream)
{
    if (n < 1 || bytes < 1) return LSA_OK;
    if (((to->stride | to->offset | from->stride | from->offset) & 15) != 0)
        return lsa_fail(LSA_ESHAPE, "gather: strides %lld and %lld are no multiples of 16",
                        (long long)to->stride, (long long)from->stride);
    int blocks = n < BLOCKS ? (int)n : BLOCKS;
    gather_records<<<blocks, THREADS, 0, (cudaStream_t)stream>>>(*to, slots, *from, chunks, n,
                                                                 bytes);
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? LSA_OK
                                : lsa_fail(LSA_EDEVICE, "gather: %s", cudaGetErrorString(error));
}
