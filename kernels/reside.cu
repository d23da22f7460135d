// Residents' index keys side by side, on the GPU: a word a thread.
#include "kernels/cuda_launch.h"
#include "kernels/record_at.h"

extern "C" {
#include "kernels/reside.h"
}

enum { THREADS = 256 };

// ---- kernels ----

// Grid: (ceil(max(n words, observed) / 256), layers), block: 256. T: what keys are whole numbers of.
template <typename T>
__global__ static void take_over(const lsa_layer_store *layers, const int32_t *chunks,
                                 const int32_t *slots, uint32_t n, uint32_t observed,
                                 uint32_t words)
{
    const lsa_layer_store &l = layers[blockIdx.y];
    if (!l.used) return;
    bool in_cells = l.hot_keys.blocks != NULL;
    const lsa_records &keys = in_cells ? l.hot_keys : l.keys;
    for (uint32_t i = lsa_thread(); i < n * words; i += lsa_threads()) {
        uint32_t key = i / words;
        const T *from = (const T *)lsa_record_at(&keys, in_cells ? slots[key] : chunks[key]);
        ((T *)l.resident_keys)[i] = from[i - key * words];
    }
    for (uint32_t i = lsa_thread(); i < observed; i += lsa_threads()) {
        l.used[i] = 0;
        l.mass[i] = 0;
    }
}

// ---- launcher ----

int lsa_reside_cuda(const lsa_layer_store *layers, int64_t count, const int32_t *chunks,
                    const int32_t *slots, int64_t n, int64_t observed, int64_t bytes, void *stream)
{
    int64_t word = bytes % 4 ? 1 : 4, words = bytes / word;
    int64_t most = n * words > observed ? n * words : observed;
    if (most > INT32_MAX)
        return lsa_fail(LSA_ESHAPE, "reside: %lld keys of %lld bytes", (long long)n,
                        (long long)bytes);
    if (most < 1 || count < 1) return LSA_OK;
    dim3 grid(lsa_blocks(most, THREADS), (unsigned)count);
    cudaStream_t s = (cudaStream_t)stream;
    if (word == 4)
        take_over<uint32_t><<<grid, THREADS, 0, s>>>(layers, chunks, slots, (uint32_t)n,
                                                     (uint32_t)observed, (uint32_t)words);
    else
        take_over<uint8_t><<<grid, THREADS, 0, s>>>(layers, chunks, slots, (uint32_t)n,
                                                    (uint32_t)observed, (uint32_t)words);
    return lsa_launched("reside", n, bytes);
}
