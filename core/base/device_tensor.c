/* Owns tensors whose storage is device memory: how it is got, filled and given back. */
#include "core/base/device_tensor.h"

#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"

static void free_device(void *data, void *context)
{
    (void)context;
    lsa_device_free(data);
}

int lsa_tensor_empty_on(lsa_tensor **out, int32_t device, int32_t dtype, int32_t rank,
                        const int64_t *shape)
{
    if (device == LSA_CPU) return lsa_tensor_empty(out, dtype, rank, shape);
    if (device != LSA_CUDA) return lsa_fail(LSA_EARG, "tensor: device %d is unknown", device);
    int64_t bytes = lsa_tensor_bytes(dtype, rank, shape);
    if (bytes < 0) return (int)bytes;

    void *data;
    int rc = lsa_device_alloc(&data, bytes);
    if (rc) return rc;
    lsa_storage *storage;
    rc = lsa_storage_wrap(&storage, data, bytes, free_device, NULL);
    if (rc) {
        lsa_device_free(data);
        return rc;
    }
    rc = lsa_tensor_on(out, storage, 0, dtype, rank, shape);
    lsa_storage_release(storage);
    if (rc == 0) (*out)->device = device;
    return rc;
}

int lsa_tensor_transfer(lsa_tensor **out, const lsa_tensor *t, int32_t device)
{
    if (!lsa_tensor_contiguous(t))
        return lsa_fail(LSA_ESHAPE, "transfer: the tensor is not contiguous");
    lsa_tensor *copy;
    int rc = lsa_tensor_empty_on(&copy, device, t->dtype, t->rank, t->shape);
    if (rc) return rc;
    int64_t bytes = lsa_tensor_count(t) * lsa_dtype_size(t->dtype);
    if (device == LSA_CPU && t->device == LSA_CPU)
        memcpy(copy->data, t->data, (size_t)bytes);
    else
        rc = lsa_device_copy(copy->data, t->data, bytes);
    if (rc)
        lsa_tensor_free(copy);
    else
        *out = copy;
    return rc;
}
