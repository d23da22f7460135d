/* Private to CUDA files: errors of CUDA's become messages of the library. */
#ifndef LSA_CUDA_ERROR_H
#define LSA_CUDA_ERROR_H
#include <cuda_runtime.h>
#include <stdio.h>

extern "C" {
#include "core/base/device.h"
#include "core/base/error.h"
}

/* Whether the driver gives the GPU up after an error: every later call has it as well. */
static inline bool lsa_cuda_lasts(cudaError_t error)
{
    switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
        return true;
    default:
        return false;
    }
}

/* What a function returns after an error of CUDA's. `what`: the op and its sizes. */
static inline int lsa_cuda_failed(const char *what, cudaError_t error)
{
    char cause[512];
    cudaGetLastError(); /* it would be the next launch's, too */
    snprintf(cause, sizeof cause, "%.400s: %.100s", what, cudaGetErrorString(error));
    if (lsa_cuda_lasts(error)) return lsa_device_lose(cause);
    return lsa_fail(error == cudaErrorMemoryAllocation ? LSA_ENOMEM : LSA_EDEVICE, "%s", cause);
}

#endif
