/* Private to CUDA files: what launchers and kernels share. Sums over a block or a warp run in an order that its size
 * alone fixes. */
#ifndef LSA_CUDA_LAUNCH_H
#define LSA_CUDA_LAUNCH_H
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>

#include "core/base/cuda_error.h"

enum { LSA_WARP = 32, LSA_MOST_BLOCKS = 4096 };

/* How the last launch went. */
static inline cudaError_t lsa_cuda_last(void)
{
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess && lsa_device_fault() ? cudaErrorNotPermitted : error;
}

/* What the launcher of `op` returns after its last launch; `sizes` are in the message of a failure. */
template <typename... N> static inline int lsa_launched(const char *op, N... sizes)
{
    cudaError_t error = cudaGetLastError();
    bool refused = lsa_device_fault();
    if (error == cudaSuccess && !refused) return LSA_OK;
    char what[160];
    long long list[] = {(long long)sizes..., 0};
    int at = snprintf(what, sizeof what, "%s", op);
    for (int i = 0; i < (int)sizeof...(sizes) && at < (int)sizeof what; i++)
        at += snprintf(what + at, sizeof what - at, "%s%lld", i ? " x " : " of ", list[i]);
    if (error != cudaSuccess) return lsa_cuda_failed(what, error);
    return lsa_fail(LSA_EDEVICE, "%s: refused, as a test asked for", what);
}

/* Programmatic dependent launch: a kernel of one of the launchers below may begin while what was launched before it still runs.
 * It waits, in all threads, before it reads what that writes, and before it writes anything. */
__device__ static inline void lsa_wait_for_launch_before(void) { cudaGridDependencySynchronize(); }

/* Lets the kernel behind this one begin, once all blocks say so. */
__device__ static inline void lsa_let_next_launch_start(void)
{
    cudaTriggerProgrammaticLaunchCompletion();
}

/* Both: what a short kernel does first. */
__device__ static inline void lsa_after_previous(void)
{
    lsa_let_next_launch_start();
    lsa_wait_for_launch_before();
}

/* Asks for bytes that nothing writes while the pass runs, say a weight's or where a session keeps what, while the kernel before
 * still runs: they are in this processor's cache when they are wanted. What kernels do write must not share their lines, unless
 * it is read past that cache. All threads of `of`, of which the caller is number `thread`, share the work. */
__device__ static inline void lsa_warm(const void *data, int64_t bytes, int thread, int of)
{
    const int64_t line = 128;
    __shared__ uint32_t
        nowhere[1024]; /* a load that nobody reads would be left out by the compiler */
    uint32_t to = (uint32_t)__cvta_generic_to_shared(&nowhere[threadIdx.x]);
#pragma unroll 1
    for (int64_t at = line * thread; at < bytes; at += line * of) {
        const char *from = (const char *)((uintptr_t)data & ~(uintptr_t)3) + at;
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from));
    }
}

/* A barrier of `threads` of a block's threads, whole warps; group: 1 to 15. */
__device__ static inline void lsa_group_sync(int group, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(group), "r"(threads) : "memory");
}

/* A launch that may begin before the one before it has ended, in clusters of so many blocks. What it returns is for
 * cudaGetLastError, too, which lsa_launched looks at. */
template <typename... PARAMETERS, typename... ARGUMENTS>
static inline cudaError_t lsa_launch_clusters(void (*kernel)(PARAMETERS...), dim3 grid,
                                              unsigned threads, size_t shared, int cluster,
                                              void *stream, ARGUMENTS... arguments)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = (unsigned)cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared;
    config.stream = (cudaStream_t)stream;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
    return cudaLaunchKernelEx(&config, kernel, (PARAMETERS)arguments...);
}

/* Without clusters; lsa_launched says how it went. */
template <typename... PARAMETERS, typename... ARGUMENTS>
static inline void lsa_launch(void (*kernel)(PARAMETERS...), dim3 grid, unsigned threads,
                              size_t shared, void *stream, ARGUMENTS... arguments)
{
    (void)lsa_launch_clusters(kernel, grid, threads, shared, 1, stream, arguments...);
}

/* With its error. */
template <typename... PARAMETERS, typename... ARGUMENTS>
static inline cudaError_t lsa_launch_early(void (*kernel)(PARAMETERS...), dim3 grid, int threads,
                                           int shared, int cluster, cudaStream_t stream,
                                           ARGUMENTS... arguments)
{
    cudaError_t error = lsa_launch_clusters(kernel, grid, (unsigned)threads, (size_t)shared,
                                            cluster, stream, arguments...);
    return error == cudaSuccess ? lsa_cuda_last() : error;
}

/* Blocks that take `each` of n things; threads go on to further ones where that would be too many. */
static inline unsigned lsa_blocks(int64_t n, int64_t each)
{
    int64_t blocks = (n + each - 1) / each;
    return (unsigned)(blocks < LSA_MOST_BLOCKS ? blocks : (int64_t)LSA_MOST_BLOCKS);
}

/* Every thread's first thing, and how far its next one is. */
__device__ static inline int64_t lsa_thread(void)
{
    return (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

__device__ static inline int64_t lsa_threads(void) { return (int64_t)gridDim.x * blockDim.x; }

/* The sum of a warp's values, in all of its lanes. */
template <typename T> __device__ static inline T lsa_warp_sum(T v)
{
#pragma unroll
    for (int step = LSA_WARP / 2; step; step /= 2) v += __shfl_xor_sync(0xffffffff, v, step);
    return v;
}

/* The sum of a block's values, in all of its threads. shared: one value a warp; it may be used again
 * after the next barrier. */
template <typename T> __device__ static inline T lsa_block_sum(T v, T *shared)
{
    v = lsa_warp_sum(v);
    if (threadIdx.x % LSA_WARP == 0) shared[threadIdx.x / LSA_WARP] = v;
    __syncthreads();
    T sum = shared[0];
    for (unsigned i = 1; i < blockDim.x / LSA_WARP; i++) sum += shared[i];
    return sum;
}

/* Four floats from p[i] on, of n; zeros beyond. `whole`: p is on a 16-byte boundary. */
__device__ static inline float4 lsa_load4(const float *p, int64_t i, int64_t n, bool whole)
{
    if (whole && i + 4 <= n) return *(const float4 *)(p + i);
    float4 v = {0, 0, 0, 0};
    if (i < n) v.x = p[i];
    if (i + 1 < n) v.y = p[i + 1];
    if (i + 2 < n) v.z = p[i + 2];
    if (i + 3 < n) v.w = p[i + 3];
    return v;
}

__device__ static inline void lsa_store4(float *p, int64_t i, int64_t n, bool whole, float4 v)
{
    if (whole && i + 4 <= n) {
        *(float4 *)(p + i) = v;
        return;
    }
    if (i < n) p[i] = v.x;
    if (i + 1 < n) p[i + 1] = v.y;
    if (i + 2 < n) p[i + 2] = v.z;
    if (i + 3 < n) p[i + 3] = v.w;
}

#endif
