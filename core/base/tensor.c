/* Owns tensors and the reference counts of their storage. */
#include "core/base/tensor.h"

#include <stdatomic.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"

struct lsa_storage {
    atomic_int references;
    void *data;
    int64_t bytes;
    void (*free)(void *, void *);
    void *context;
};

static const struct {
    const char *name;
    int64_t size;
} dtypes[LSA_DTYPES] = {
    [LSA_F32] = {"f32", 4},         [LSA_BF16] = {"bf16", 2},       [LSA_F16] = {"f16", 2},
    [LSA_F8_E4M3] = {"f8_e4m3", 1}, [LSA_F8_E8M0] = {"f8_e8m0", 1}, [LSA_I8] = {"i8", 1},
    [LSA_U8] = {"u8", 1},           [LSA_I32] = {"i32", 4},         [LSA_I64] = {"i64", 8},
    [LSA_F64] = {"f64", 8},
};

int64_t lsa_dtype_size(int32_t dtype)
{
    return dtype >= 0 && dtype < LSA_DTYPES ? dtypes[dtype].size : 0;
}

const char *lsa_dtype_name(int32_t dtype)
{
    if (dtype == LSA_F4_E2M1) return "f4_e2m1";
    return dtype >= 0 && dtype < LSA_DTYPES ? dtypes[dtype].name : "unknown";
}

int32_t lsa_dtype_of(const char *name)
{
    for (int32_t i = 0; i < LSA_DTYPES; i++)
        if (strcmp(dtypes[i].name, name) == 0) return i;
    return -1;
}

static void free_heap(void *data, void *context)
{
    (void)context;
    lsa_free(data);
}

int lsa_storage_wrap(lsa_storage **out, void *data, int64_t bytes, void (*free)(void *, void *),
                     void *context)
{
    lsa_storage *s = lsa_alloc(sizeof *s);
    if (!s) return LSA_ENOMEM;
    atomic_init(&s->references, 1);
    s->data = data;
    s->bytes = bytes;
    s->free = free;
    s->context = context;
    *out = s;
    return LSA_OK;
}

int lsa_storage_new(lsa_storage **out, int64_t bytes)
{
    void *data = lsa_alloc_zero(bytes);
    if (!data) return LSA_ENOMEM;
    int rc = lsa_storage_wrap(out, data, bytes, free_heap, NULL);
    if (rc) lsa_free(data);
    return rc;
}

void lsa_storage_retain(lsa_storage *storage) { atomic_fetch_add(&storage->references, 1); }

void lsa_storage_release(lsa_storage *storage)
{
    if (!storage || atomic_fetch_sub(&storage->references, 1) != 1) return;
    if (storage->free) storage->free(storage->data, storage->context);
    lsa_free(storage);
}

void *lsa_storage_data(const lsa_storage *storage) { return storage->data; }

int64_t lsa_storage_bytes(const lsa_storage *storage) { return storage->bytes; }

/* Elements of a contiguous shape, or a negative code for negative or overflowing dimensions. A zero does not
 * excuse the others, since strides multiply them. */
static int64_t count_of(int32_t rank, const int64_t *shape, int64_t element_bytes)
{
    int64_t n = 1, empty = 0;
    if (rank < 0 || rank > LSA_MAX_RANK)
        return lsa_fail(LSA_ESHAPE, "tensor: rank is %d, at most %d", rank, LSA_MAX_RANK);
    for (int32_t i = 0; i < rank; i++) {
        if (shape[i] < 0)
            return lsa_fail(LSA_ESHAPE, "tensor: dimension %d is %lld", i, (long long)shape[i]);
        if (shape[i] == 0) {
            empty = 1;
            continue;
        }
        if (n > INT64_MAX / 2 / element_bytes / shape[i])
            return lsa_fail(LSA_ESHAPE, "tensor: dimension %d of %lld makes it too large", i,
                            (long long)shape[i]);
        n *= shape[i];
    }
    return empty ? 0 : n;
}

int64_t lsa_tensor_bytes(int32_t dtype, int32_t rank, const int64_t *shape)
{
    int64_t size = lsa_dtype_size(dtype);
    if (!size) return lsa_fail(LSA_EDTYPE, "tensor: dtype %d is unknown", dtype);
    int64_t n = count_of(rank, shape, size);
    return n < 0 ? n : n * size;
}

int lsa_tensor_on(lsa_tensor **out, lsa_storage *storage, int64_t byte_offset, int32_t dtype,
                  int32_t rank, const int64_t *shape)
{
    int64_t bytes = lsa_tensor_bytes(dtype, rank, shape);
    if (bytes < 0) return (int)bytes;
    if (byte_offset < 0 || byte_offset > storage->bytes || bytes > storage->bytes - byte_offset)
        return lsa_fail(LSA_ESHAPE, "tensor: %lld bytes from %lld, the storage has %lld",
                        (long long)bytes, (long long)byte_offset, (long long)storage->bytes);
    lsa_tensor *t = lsa_alloc_zero(sizeof *t);
    if (!t) return LSA_ENOMEM;
    lsa_storage_retain(storage);
    t->storage = storage;
    t->data = (char *)storage->data + byte_offset;
    t->dtype = dtype;
    t->rank = rank;
    int64_t stride = 1;
    for (int32_t i = rank - 1; i >= 0; i--) {
        t->shape[i] = shape[i];
        t->stride[i] = stride;
        stride *= shape[i];
    }
    *out = t;
    return LSA_OK;
}

int lsa_tensor_empty(lsa_tensor **out, int32_t dtype, int32_t rank, const int64_t *shape)
{
    int64_t bytes = lsa_tensor_bytes(dtype, rank, shape);
    if (bytes < 0) return (int)bytes;
    void *data = lsa_alloc(bytes);
    if (!data) return LSA_ENOMEM;
    lsa_storage *storage;
    int rc = lsa_storage_wrap(&storage, data, bytes, free_heap, NULL);
    if (rc) {
        lsa_free(data);
        return rc;
    }
    rc = lsa_tensor_on(out, storage, 0, dtype, rank, shape);
    lsa_storage_release(storage);
    return rc;
}

int lsa_tensor_new(lsa_tensor **out, int32_t dtype, int32_t rank, const int64_t *shape)
{
    int rc = lsa_tensor_empty(out, dtype, rank, shape);
    if (rc == 0) memset((*out)->data, 0, (size_t)lsa_storage_bytes((*out)->storage));
    return rc;
}

int lsa_tensor_view(lsa_tensor **out, const lsa_tensor *t, int64_t element_offset, int32_t rank,
                    const int64_t *shape, const int64_t *stride)
{
    if (rank < 0 || rank > LSA_MAX_RANK)
        return lsa_fail(LSA_ESHAPE, "tensor: rank is %d, at most %d", rank, LSA_MAX_RANK);
    lsa_tensor *v = lsa_alloc(sizeof *v);
    if (!v) return LSA_ENOMEM;
    *v = *t;
    lsa_storage_retain(v->storage);
    v->data = (char *)t->data + element_offset * lsa_dtype_size(t->dtype);
    v->rank = rank;
    for (int32_t i = 0; i < rank; i++) {
        v->shape[i] = shape[i];
        v->stride[i] = stride[i];
    }
    *out = v;
    return LSA_OK;
}

int lsa_tensor_narrow(lsa_tensor **out, const lsa_tensor *t, int32_t dim, int64_t from, int64_t n)
{
    if (dim < 0 || dim >= t->rank)
        return lsa_fail(LSA_EARG, "narrow: dimension %d out of range of a %d-D tensor", dim,
                        t->rank);
    if (from < 0 || n < 0 || from > t->shape[dim] || n > t->shape[dim] - from)
        return lsa_fail(LSA_EARG, "narrow: %lld elements from %lld, dimension %d has %lld",
                        (long long)n, (long long)from, dim, (long long)t->shape[dim]);
    int64_t shape[LSA_MAX_RANK];
    memcpy(shape, t->shape, sizeof shape);
    shape[dim] = n;
    return lsa_tensor_view(out, t, from * t->stride[dim], t->rank, shape, t->stride);
}

void lsa_tensor_free(lsa_tensor *t)
{
    if (!t) return;
    lsa_storage_release(t->storage);
    lsa_free(t);
}

void lsa_tensor_drop(lsa_tensor **t)
{
    lsa_tensor_free(*t);
    *t = NULL;
}

int64_t lsa_tensor_count(const lsa_tensor *t)
{
    int64_t n = 1;
    for (int32_t i = 0; i < t->rank; i++) n *= t->shape[i];
    return n;
}

int lsa_tensor_contiguous(const lsa_tensor *t)
{
    int64_t stride = 1;
    for (int32_t i = t->rank - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != stride) return 0;
        stride *= t->shape[i];
    }
    return 1;
}
