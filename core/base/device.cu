// Owns device memory and its copies. Errors of the CUDA runtime become messages of the library.
#include <cuda_runtime.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cuda_error.h"

static int failed(const char *what, cudaError_t error) { return lsa_cuda_failed(what, error); }

static int failed_of(const char *what, int64_t bytes, cudaError_t error)
{
    char text[96];
    snprintf(text, sizeof text, "%s: %lld bytes", what, (long long)bytes);
    return lsa_cuda_failed(text, error);
}

int lsa_device_count_cuda(void)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return failed("device_count", error), 0;
    if (count == 0) lsa_fail(LSA_EDEVICE, "no device: the NVIDIA driver shows no GPU");
    return count;
}

// Each way between `gpu` and one that was used before; both are left as they were where they do not reach each other.
static cudaError_t reach(int from, int to)
{
    int can = 0;
    cudaError_t error = cudaDeviceCanAccessPeer(&can, from, to);
    if (error == cudaSuccess && !can) error = cudaErrorPeerAccessUnsupported;
    if (error == cudaSuccess) error = cudaSetDevice(from);
    if (error == cudaSuccess) error = cudaDeviceEnablePeerAccess(to, 0);
    if (error != cudaErrorPeerAccessAlreadyEnabled) return error;
    cudaGetLastError();
    return cudaSuccess;
}

int lsa_device_use_cuda(int32_t gpu)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static bool used[LSA_MOST_GPUS];
    int before = 0;
    pthread_mutex_lock(&lock);
    cudaError_t error = cudaGetDevice(&before);
    for (int i = 0; error == cudaSuccess && !used[gpu] && i < LSA_MOST_GPUS; i++) {
        if (used[i]) error = reach(gpu, i);
        if (used[i] && error == cudaSuccess) error = reach(i, gpu);
    }
    if (error == cudaSuccess) error = cudaSetDevice(gpu);
    if (error == cudaSuccess)
        used[gpu] = true;
    else
        cudaSetDevice(before);
    pthread_mutex_unlock(&lock);
    if (error == cudaSuccess) return LSA_OK;
    char what[64];
    snprintf(what, sizeof what, "device_use: GPU %d", gpu);
    return failed(what, error);
}

int lsa_device_describe_cuda(int32_t device, char *name, int64_t bytes, int64_t *free_bytes,
                             int64_t *total_bytes)
{
    cudaDeviceProp properties;
    size_t free_now = 0, total = 0;
    int current = 0;
    cudaError_t error = name ? cudaGetDeviceProperties(&properties, device) : cudaSuccess; // slow
    if (error == cudaSuccess) error = cudaGetDevice(&current);
    if (error == cudaSuccess) error = cudaSetDevice(device);
    if (error == cudaSuccess) {
        error = cudaMemGetInfo(&free_now, &total);
        cudaError_t back = cudaSetDevice(current);
        if (error == cudaSuccess) error = back;
    }
    if (error != cudaSuccess) return failed("device_describe", error);
    if (name && bytes > 0) snprintf(name, (size_t)bytes, "%s", properties.name);
    if (free_bytes) *free_bytes = (int64_t)free_now;
    if (total_bytes) *total_bytes = (int64_t)total;
    return LSA_OK;
}

int lsa_device_architecture_cuda(int32_t device, int32_t *major, int32_t *minor)
{
    int numbers[2];
    cudaError_t error =
        cudaDeviceGetAttribute(&numbers[0], cudaDevAttrComputeCapabilityMajor, device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&numbers[1], cudaDevAttrComputeCapabilityMinor, device);
    if (error != cudaSuccess) return failed("device_architecture", error);
    *major = numbers[0];
    *minor = numbers[1];
    return LSA_OK;
}

int lsa_device_alloc_cuda(void **out, int64_t bytes)
{
    cudaError_t error =
        bytes < 0 ? cudaErrorMemoryAllocation : cudaMalloc(out, bytes > 0 ? (size_t)bytes : 1);
    if (error == cudaSuccess) return LSA_OK;
    *out = NULL;
    return failed_of("device_alloc", bytes, error);
}

static cudaError_t advise(void *block, size_t bytes, cudaMemoryAdvise advice, int gpu)
{
    cudaMemLocation place = {};
    place.type = gpu ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost;
    place.id = lsa_device_current();
    return cudaMemAdvise(block, bytes, advice, place);
}

// The first refusal to pin memory.
static char unpinned[160];

const char *lsa_device_unpinned_cuda(void) { return unpinned; }

// Pages of the host that the GPU reads over the bus. Where the system refuses to pin them, memory that the driver moves serves,
// more slowly.
static cudaError_t alloc_in_host(void **out, size_t n)
{
    cudaError_t error = lsa_device_fault() ? cudaErrorMemoryAllocation
                                           : cudaHostAlloc(out, n, cudaHostAllocPortable);
    if (error == cudaSuccess) {
        memset(*out, 0, n);
        return error;
    }
    cudaGetLastError();
    if (lsa_cuda_lasts(error)) return error;
    if (!unpinned[0])
        snprintf(unpinned, sizeof unpinned, "%lld bytes could not be pinned (%s)", (long long)n,
                 cudaGetErrorString(error));
    error = cudaMallocManaged(out, n);
    if (error != cudaSuccess) return error;
    advise(*out, n, cudaMemAdviseSetPreferredLocation, 0);
    advise(*out, n, cudaMemAdviseSetAccessedBy, 1);
    cudaGetLastError(); // what is preferred where it is not changes speed alone
    memset(*out, 0, n);
    return cudaSuccess;
}

// read: host and GPU both read it, and each may have a copy.
static cudaError_t alloc_on_gpu(void **out, size_t n, bool read)
{
    cudaError_t error = cudaMallocManaged(out, n);
    if (error != cudaSuccess) return error;
    advise(*out, n, read ? cudaMemAdviseSetReadMostly : cudaMemAdviseSetPreferredLocation, 1);
    if (!read) { // has its pages at once, not one by one as they are cleared
        cudaMemLocation here = {};
        here.type = cudaMemLocationTypeDevice;
        here.id = lsa_device_current();
        cudaMemPrefetchAsync(*out, n, here, 0, 0);
    }
    cudaGetLastError();
    error = cudaMemset(*out, 0, n);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error != cudaSuccess) cudaFree(*out);
    return error;
}

int lsa_device_alloc_shared_cuda(void **out, int64_t bytes, int32_t in_host)
{
    size_t n = bytes > 0 ? (size_t)bytes : 1;
    cudaError_t error = bytes < 0      ? cudaErrorMemoryAllocation
                        : in_host == 1 ? alloc_in_host(out, n)
                                       : alloc_on_gpu(out, n, in_host == 2);
    if (error == cudaSuccess) return LSA_OK;
    *out = NULL;
    return failed_of("device_alloc_shared", bytes, error);
}

int lsa_device_free_cuda(void *block)
{
    cudaPointerAttributes where = {};
    cudaError_t error = cudaPointerGetAttributes(&where, block);
    if (error == cudaSuccess)
        error = where.type == cudaMemoryTypeHost ? cudaFreeHost(block) : cudaFree(block);
    return error == cudaSuccess ? LSA_OK : failed("device_free", error);
}

int lsa_device_copy_cuda(void *to, const void *from, int64_t bytes)
{
    if (bytes < 0) return lsa_fail(LSA_EARG, "device_copy: %lld bytes", (long long)bytes);
    cudaError_t error = cudaMemcpy(to, from, (size_t)bytes, cudaMemcpyDefault);
    if (error == cudaSuccess) error = cudaStreamSynchronize(0);
    return error == cudaSuccess ? LSA_OK : failed_of("device_copy", bytes, error);
}

int lsa_device_clear_cuda(void *block, int64_t bytes)
{
    cudaError_t error = cudaMemsetAsync(block, 0, (size_t)bytes, 0);
    if (error == cudaSuccess) error = cudaStreamSynchronize(0); // the host may be next
    return error == cudaSuccess ? LSA_OK : failed_of("device_clear", bytes, error);
}

int lsa_device_synchronize_cuda(void)
{
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess) error = cudaGetLastError();
    return error == cudaSuccess ? LSA_OK : failed("device_synchronize", error);
}

// ---- streams ----

int lsa_device_stream_new_cuda(void **stream)
{
    cudaStream_t made = NULL;
    cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    *stream = made;
    return error == cudaSuccess ? LSA_OK : failed("stream_new", error);
}

int lsa_device_copy_start_cuda(void *to, const void *from, int64_t bytes, void *stream)
{
    cudaError_t error =
        cudaMemcpyAsync(to, from, (size_t)bytes, cudaMemcpyDefault, (cudaStream_t)stream);
    return error == cudaSuccess ? LSA_OK : failed_of("copy_start", bytes, error);
}

int lsa_device_stream_wait_cuda(void *stream)
{
    cudaError_t error = cudaStreamSynchronize((cudaStream_t)stream);
    if (error == cudaSuccess) error = cudaGetLastError();
    return error == cudaSuccess ? LSA_OK : failed("stream_wait", error);
}

// ---- graphs ----

// The streams that work is captured on, a GPU's own; whoever captures is alone on his GPU.
static cudaStream_t streams[LSA_MOST_GPUS];

int lsa_device_capture_begin_cuda(void **stream)
{
    cudaError_t error = cudaSuccess;
    cudaStream_t *own = &streams[lsa_device_current()];
    if (!*own) error = cudaStreamCreateWithFlags(own, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaStreamBeginCapture(*own, cudaStreamCaptureModeThreadLocal);
    *stream = *own;
    return error == cudaSuccess ? LSA_OK : failed("capture_begin", error);
}

int lsa_device_capture_end_cuda(void **graph)
{
    cudaGraph_t list = NULL;
    cudaGraphExec_t made = NULL;
    cudaError_t error = cudaStreamEndCapture(streams[lsa_device_current()], &list);
    if (error == cudaSuccess) error = cudaGraphInstantiate(&made, list, 0);
    if (list) cudaGraphDestroy(list);
    *graph = made;
    return error == cudaSuccess ? LSA_OK : failed("capture_end", error);
}

int lsa_device_graph_launch_cuda(void *graph)
{
    cudaError_t error = cudaGraphLaunch((cudaGraphExec_t)graph, 0);
    return error == cudaSuccess ? LSA_OK : failed("graph_launch", error);
}

int lsa_device_graph_free_cuda(void *graph)
{
    cudaError_t error = cudaGraphExecDestroy((cudaGraphExec_t)graph);
    return error == cudaSuccess ? LSA_OK : failed("graph_free", error);
}

// ---- programs ----

// A kernel of machine code that was made at run time.
struct program {
    cudaLibrary_t library;
    cudaKernel_t kernel;
};

int lsa_device_program_load_cuda(void **out, const void *image, const char *kernel)
{
    program *p = (program *)calloc(1, sizeof *p);
    if (!p) return lsa_fail(LSA_ENOMEM, "program_load: no memory");
    cudaError_t error = cudaLibraryLoadData(&p->library, image, NULL, NULL, 0, NULL, NULL, 0);
    if (error == cudaSuccess) {
        error = cudaLibraryGetKernel(&p->kernel, p->library, kernel);
        if (error != cudaSuccess) cudaLibraryUnload(p->library);
    }
    if (error != cudaSuccess) {
        free(p);
        return failed(kernel, error);
    }
    *out = p;
    return LSA_OK;
}

int lsa_device_program_launch_cuda(void *handle, const int64_t *grid, const int64_t *block,
                                   int64_t shared, void **arguments)
{
    enum { PLAIN_SHARED = 48 << 10 }; // what needs no leave
    program *p = (program *)handle;
    dim3 g((unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]);
    dim3 b((unsigned)block[0], (unsigned)block[1], (unsigned)block[2]);
    cudaError_t error = cudaSuccess;
    if (shared > PLAIN_SHARED)
        error = cudaFuncSetAttribute((const void *)p->kernel,
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (error == cudaSuccess)
        error = cudaLaunchKernel((const void *)p->kernel, g, b, arguments, (size_t)shared, 0);
    if (error == cudaSuccess) return LSA_OK;
    char what[160];
    snprintf(what, sizeof what,
             "grid %u x %u x %u, block %u x %u x %u, %lld bytes of shared memory", g.x, g.y, g.z,
             b.x, b.y, b.z, (long long)shared);
    return failed(what, error);
}

int lsa_device_program_free_cuda(void *handle)
{
    program *p = (program *)handle;
    cudaError_t error = cudaDeviceSynchronize(); // it may be running
    if (error == cudaSuccess) error = cudaLibraryUnload(p->library);
    free(p);
    return error == cudaSuccess ? LSA_OK : failed("program_free", error);
}
