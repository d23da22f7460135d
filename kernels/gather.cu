// Moving records on the GPU.
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/gather_cuda.h"
#include "kernels/record_at.h"

extern "C" {
#include "core/base/error.h"
#include "kernels/gather.h"
}

enum { THREADS = 1024 };

// More of them slow down what runs beside without filling the bus any better.
enum { BLOCKS = 4, BLOCKS_BESIDE = 2 };

// Grid: up to 4, block: 1,024.
__global__ static void __launch_bounds__(THREADS, 1)
    gather_records(lsa_records to, const int32_t *slots, lsa_records from, const int32_t *chunks,
                   int64_t n, int64_t bytes)
{
    int64_t parts = lsa_parts_of(bytes);
    for (int64_t p = lsa_thread() / LSA_WARP; p < n * parts; p += lsa_threads() / LSA_WARP) {
        int64_t i = p / parts;
        lsa_copy_part(lsa_record_at(&to, slots[i]), lsa_record_at(&from, chunks[i]), bytes,
                      p % parts);
    }
}

int lsa_gather_cuda(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                    const int32_t *chunks, int64_t n, int64_t bytes, void *stream)
{
    if (n < 1 || bytes < 1) return LSA_OK;
    if (((to->stride | to->offset | from->stride | from->offset) & 15) != 0)
        return lsa_fail(LSA_ESHAPE, "gather: strides %lld and %lld are no multiples of 16",
                        (long long)to->stride, (long long)from->stride);
    int64_t parts = n * (bytes / 16 / LSA_PART_WORDS + 1), most = stream ? BLOCKS_BESIDE : BLOCKS;
    int64_t blocks = (parts * LSA_WARP + THREADS - 1) / THREADS;
    gather_records<<<(unsigned)(blocks < most ? blocks : most), THREADS, 0, (cudaStream_t)stream>>>(
        *to, slots, *from, chunks, n, bytes);
    return lsa_launched("gather", n, bytes);
}
