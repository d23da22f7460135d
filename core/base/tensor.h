/* Tensors: views on reference-counted storage, in host memory, a mapped file, or device memory. */
#ifndef LSA_TENSOR_H
#define LSA_TENSOR_H
#include <stdint.h>

enum {
    LSA_F32 = 0,
    LSA_BF16 = 1,
    LSA_F16 = 2,
    LSA_F8_E4M3 = 3, /* e4m3fn: 448 is the largest, 0x7f and 0xff are NaN, no infinities */
    LSA_F8_E8M0 = 4, /* 2^(byte - 127), 0xff is NaN */
    LSA_I8 = 5,
    LSA_U8 = 6,
    LSA_I32 = 7,
    LSA_I64 = 8,
    LSA_F64 = 9,
    LSA_DTYPES = 10,
    LSA_F4_E2M1 = 10 /* weights only: two values a byte, low nibble first */
};

enum { LSA_CPU = 0, LSA_CUDA = 1 };
enum { LSA_MAX_RANK = 6 };

/* Bytes of one element; 0 for an unknown dtype (and for packed fp4). */
int64_t lsa_dtype_size(int32_t dtype);

/* "f32" "bf16" "f16" "f8_e4m3" "f8_e8m0" "i8" "u8" "i32" "i64" "f64"; lsa_dtype_of gives -1 for other names. */
const char *lsa_dtype_name(int32_t dtype);
int32_t lsa_dtype_of(const char *name);

typedef struct lsa_storage lsa_storage;

typedef struct lsa_tensor {
    lsa_storage *storage; /* one reference */
    void *data;           /* first element of the view */
    int32_t dtype;
    int32_t rank;
    int32_t device;    /* LSA_CPU or LSA_CUDA */
    int32_t read_only; /* a mapped file */
    int64_t shape[6];  /* LSA_MAX_RANK */
    int64_t stride[6]; /* in elements */
} lsa_tensor;

/* Storage starts with one reference. `free` is called as free(data, context) when the last one goes. */
int lsa_storage_new(lsa_storage **out, int64_t bytes);
int lsa_storage_wrap(lsa_storage **out, void *data, int64_t bytes, void (*free)(void *, void *),
                     void *context);
void lsa_storage_retain(lsa_storage *storage);
void lsa_storage_release(lsa_storage *storage);
void *lsa_storage_data(const lsa_storage *storage);
int64_t lsa_storage_bytes(const lsa_storage *storage);

/* Bytes of a contiguous tensor, or LSA_ESHAPE, LSA_EDTYPE where there can be no such tensor. */
int64_t lsa_tensor_bytes(int32_t dtype, int32_t rank, const int64_t *shape);

/* A new contiguous tensor on the CPU, zeroed. rank 0..6; every dimension >= 0. */
int lsa_tensor_new(lsa_tensor **out, int32_t dtype, int32_t rank, const int64_t *shape);

/* The same with undefined contents, for whoever writes all of it. */
int lsa_tensor_empty(lsa_tensor **out, int32_t dtype, int32_t rank, const int64_t *shape);

/* A contiguous view on `storage` (which gains a reference) from `byte_offset`. LSA_ESHAPE when it ends
 * past the storage. */
int lsa_tensor_on(lsa_tensor **out, lsa_storage *storage, int64_t byte_offset, int32_t dtype,
                  int32_t rank, const int64_t *shape);

/* A view with other shape and strides on the same storage, `element_offset` elements further. The
 * caller answers for the bounds; lsa_tensor_narrow checks its own. */
int lsa_tensor_view(lsa_tensor **out, const lsa_tensor *t, int64_t element_offset, int32_t rank,
                    const int64_t *shape, const int64_t *stride);

/* Elements from .. from+n-1 of dimension `dim`. */
int lsa_tensor_narrow(lsa_tensor **out, const lsa_tensor *t, int32_t dim, int64_t from, int64_t n);

void lsa_tensor_free(lsa_tensor *t);
void lsa_tensor_drop(lsa_tensor **t); /* frees *t, which is NULL from here on */

int64_t lsa_tensor_count(const lsa_tensor *t);
int lsa_tensor_contiguous(const lsa_tensor *t);

#endif
