// Owns device memory and its copies. Errors of the CUDA runtime become messages of the library.
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>

extern "C" {
#include "core/base/device.h"
#include "core/base/error.h"
}

static int failed(const char *what, cudaError_t error)
{
    return lsa_fail(error == cudaErrorMemoryAllocation ? LSA_ENOMEM : LSA_EDEVICE, "%s: %s", what,
                    cudaGetErrorString(error));
}

int lsa_device_count_cuda(void)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return failed("device_count", error), 0;
    if (count == 0) lsa_fail(LSA_EDEVICE, "no device: the NVIDIA driver shows no GPU");
    return count;
}

int lsa_device_describe_cuda(int32_t device, char *name, int64_t bytes, int64_t *free_bytes,
                             int64_t *total_bytes)
{
    cudaDeviceProp properties;
    size_t free_now = 0, total = 0;
    int current = 0;
    cudaError_t error = cudaGetDeviceProperties(&properties, device);
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

int lsa_device_alloc_cuda(void **out, int64_t bytes)
{
    cudaError_t error =
        bytes < 0 ? cudaErrorInvalidValue : cudaMalloc(out, bytes > 0 ? (size_t)bytes : 1);
    if (error == cudaSuccess) return LSA_OK;
    *out = NULL;
    cudaGetLastError(); // an allocation that failed leaves nothing behind
    return lsa_fail(LSA_ENOMEM, "device_alloc: %lld bytes: %s", (long long)bytes,
                    cudaGetErrorString(error));
}

static cudaError_t advise(void *block, size_t bytes, cudaMemoryAdvise advice, int gpu)
{
    cudaMemLocation place = {};
    place.type = gpu ? cudaMemLocationTypeDevice : cudaMemLocationTypeHost;
    return cudaMemAdvise(block, bytes, advice, place);
}

// What is preferred where it is not changes speed alone, so a system that has no such preferences serves too.
int lsa_device_alloc_shared_cuda(void **out, int64_t bytes, int32_t in_host)
{
    size_t n = bytes > 0 ? (size_t)bytes : 1;
    cudaError_t error = bytes < 0 ? cudaErrorInvalidValue : cudaMallocManaged(out, n);
    if (error != cudaSuccess) {
        *out = NULL;
        cudaGetLastError();
        return lsa_fail(LSA_ENOMEM, "device_alloc_shared: %lld bytes: %s", (long long)bytes,
                        cudaGetErrorString(error));
    }
    advise(*out, n, cudaMemAdviseSetPreferredLocation, !in_host);
    if (in_host) advise(*out, n, cudaMemAdviseSetAccessedBy, 1);
    cudaGetLastError();
    error = cudaMemset(*out, 0, n);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error == cudaSuccess) return LSA_OK;
    cudaFree(*out);
    *out = NULL;
    return failed("device_alloc_shared", error);
}

int lsa_device_free_cuda(void *block)
{
    cudaError_t error = cudaFree(block);
    return error == cudaSuccess ? LSA_OK : failed("device_free", error);
}

int lsa_device_copy_cuda(void *to, const void *from, int64_t bytes)
{
    if (bytes < 0) return lsa_fail(LSA_EARG, "device_copy: %lld bytes", (long long)bytes);
    cudaError_t error = cudaMemcpy(to, from, (size_t)bytes, cudaMemcpyDefault);
    if (error == cudaSuccess) error = cudaStreamSynchronize(0);
    return error == cudaSuccess ? LSA_OK : failed("device_copy", error);
}

int lsa_device_synchronize_cuda(void)
{
    cudaError_t error = cudaDeviceSynchronize();
    if (error == cudaSuccess) error = cudaGetLastError();
    return error == cudaSuccess ? LSA_OK : failed("device_synchronize", error);
}

// The stream that work is captured on.
static cudaStream_t capturing;

int lsa_device_capture_begin_cuda(void **stream)
{
    cudaError_t error = cudaSuccess;
    if (!capturing) error = cudaStreamCreateWithFlags(&capturing, cudaStreamNonBlocking);
    if (error == cudaSuccess)
        error = cudaStreamBeginCapture(capturing, cudaStreamCaptureModeThreadLocal);
    *stream = capturing;
    return error == cudaSuccess ? LSA_OK : failed("capture_begin", error);
}

int lsa_device_capture_end_cuda(void **graph)
{
    cudaGraph_t list = NULL;
    cudaGraphExec_t made = NULL;
    cudaError_t error = cudaStreamEndCapture(capturing, &list);
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
