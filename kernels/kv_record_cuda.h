/* Private to CUDA files: records as a block of threads writes them, with the CPU's bytes. Records may start at any byte, so
 * bytes are what is written. */
#ifndef LSA_KV_RECORD_CUDA_H
#define LSA_KV_RECORD_CUDA_H
#include "kernels/cuda_launch.h"
#include "kernels/hadamard_cuda.h"
#include "kernels/kv_record_private.h"

extern "C" {
#include "kernels/kv_record.h"
}

__device__ static inline void put(uint8_t *out, uint32_t bits, int bytes)
{
    for (int i = 0; i < bytes; i++) out[i] = (uint8_t)(bits >> 8 * i);
}

__device__ static inline uint32_t warp_max(uint32_t v) { return __reduce_max_sync(0xffffffff, v); }

// A warp's tile of `count` values.
__device__ static inline void encode_tile(uint8_t *out, uint8_t *scale_at, const float *x,
                                          int count, int lane)
{
    float v[LSA_KV_TILE / LSA_WARP];
    uint32_t amax = LSA_KV_LEAST_AMAX;
#pragma unroll
    for (int i = 0; i < LSA_KV_TILE / LSA_WARP; i++) {
        int at = lane + i * LSA_WARP;
        v[i] = at < count ? x[at] : 0.0f;
        amax = larger_bits(amax, v[i]);
    }
    uint8_t scale = tile_scale(warp_max(amax));
#pragma unroll
    for (int i = 0; i < LSA_KV_TILE / LSA_WARP; i++)
        if (lane + i * LSA_WARP < count) out[lane + i * LSA_WARP] = tile_code(v[i], scale);
    if (lane == 0) *scale_at = scale;
}

// Value i of an f32 or bf16 record, of either kind.
__device__ static inline void encode_plain(uint8_t *record, float x, int64_t i, int32_t format)
{
    if (format == LSA_KV_F32)
        put(record + 4 * i, f32_bits(x), 4);
    else
        put(record + 2 * i, f32_to_bf16(x), 2);
}

// A block's record of `bytes` bytes: a warp a tile, then rope values and padding.
__device__ static inline void encode_fp8(uint8_t *record, const float *x, int64_t dim, int64_t rope,
                                         int64_t bytes)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int64_t nope = dim - rope, tiles = (nope + LSA_KV_TILE - 1) / LSA_KV_TILE;
    uint8_t *scales = record + nope + 2 * rope;
    for (int64_t t = warp; t < tiles; t += blockDim.x / LSA_WARP)
        encode_tile(record + t * LSA_KV_TILE, scales + t, x + t * LSA_KV_TILE,
                    (int)min((int64_t)LSA_KV_TILE, nope - t * LSA_KV_TILE), lane);
    for (int64_t i = threadIdx.x; i < rope; i += blockDim.x)
        put(record + nope + 2 * i, f32_to_bf16(x[nope + i]), 2);
    int64_t pad = nope + 2 * rope + tiles + threadIdx.x;
    if (pad < bytes) record[pad] = 0;
}

// A block's key. x: in shared memory, complete behind a barrier; it is used up, and free again behind the next.
// rotation: lsa_key_rotation(dim).
__device__ static inline void encode_key_fp8(uint8_t *key, float *x, int dim, float rotation)
{
    __shared__ uint32_t largest[32];
    lsa_butterflies(x, dim, dim);
    uint32_t amax = LSA_KV_LEAST_AMAX;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        x[i] *= rotation;
        amax = larger_bits(amax, x[i]);
    }
    amax = warp_max(amax);
    if (threadIdx.x % LSA_WARP == 0) largest[threadIdx.x / LSA_WARP] = amax;
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / LSA_WARP; i++) amax = max(amax, largest[i]);
    float scale = key_scale(amax);
    for (int i = threadIdx.x; i < dim; i += blockDim.x) key[i] = key_code(x[i], scale);
    if (threadIdx.x == 0) put(key + dim, f32_bits(scale), 4);
}

// What makes the butterflies a rotation.
static inline float lsa_key_rotation(int64_t dim) { return (float)(1 / sqrt((double)dim)); }

#endif
