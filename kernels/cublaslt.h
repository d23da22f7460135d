/* Private to CUDA files: cuBLASLt's handle. */
#ifndef LSA_CUBLASLT_H
#define LSA_CUBLASLT_H
#include <cublasLt.h>
#include <pthread.h>

extern "C" {
#include "core/base/device.h"
}

/* That of the GPU in use, made when it is first asked for; one that cannot be made is tried again the next time. */
inline cublasStatus_t lsa_cublaslt(cublasLtHandle_t *out)
{
    static cublasLtHandle_t made[LSA_MOST_GPUS];
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int32_t gpu = lsa_device_current();
    pthread_mutex_lock(&lock);
    cublasStatus_t rc = made[gpu] ? CUBLAS_STATUS_SUCCESS : cublasLtCreate(&made[gpu]);
    if (rc) made[gpu] = NULL;
    *out = made[gpu];
    pthread_mutex_unlock(&lock);
    return rc;
}

#endif
