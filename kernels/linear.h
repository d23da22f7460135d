/* Linear layers: y = x W^T, with the weight in the format in which a checkpoint stores it. */
#ifndef LSA_KERNELS_LINEAR_H
#define LSA_KERNELS_LINEAR_H
#include "core/base/tensor.h"

enum { LSA_COMPUTE_F32 = 0, LSA_COMPUTE_BF16 = 1 };

typedef struct lsa_weight {
    const void *data;   /* [rows, cols] of dtype, contiguous; LSA_F4_E2M1: [rows, cols / 2] bytes */
    const void *scale;  /* NULL, or [ceil(rows / block_rows), ceil(cols / block_cols)];
                              value = number * scale */
    int64_t rows, cols; /* out features, in features */
    int64_t block_rows, block_cols;
    int32_t dtype;       /* LSA_F32, LSA_BF16, LSA_F16, LSA_F8_E4M3 or LSA_F4_E2M1 */
    int32_t scale_dtype; /* LSA_F32 or LSA_F8_E8M0 */
} lsa_weight;

/* y[t, r] = sum_c x[t, c] W[row_from + r, c], for t < tokens, r < rows, in f32 sums.
 *
 * x: row t starts at x + t * x_stride (cols floats); y: row t at y + t * y_stride (rows floats);
 *   y does not overlap x. tokens or rows of 0 is legal.
 * compute: LSA_COMPUTE_F32 keeps x in f32; LSA_COMPUTE_BF16 rounds x (and, where the weight is wider
 *   than bf16, W = number * scale) to bf16 first.
 * workspace: lsa_linear_workspace(...) bytes (on a GPU lsa_linear_workspace_cuda), 64-byte aligned.
 * Few tokens stream the weight once for every eight of them, or once for all where it is of fp8 or fp4; an output is then summed in an order that
 * the weight's shape and format and the number of tokens fix: neither the number of threads nor
 * row_from and rows change a bit of it. Many tokens are a product by oneDNN (kernels/gemm.h), with
 * weight rows made dense on the way. LSA_ESHAPE, LSA_EDTYPE, LSA_EARG. */
typedef int lsa_linear_fn(float *y, const float *x, const lsa_weight *w, int64_t tokens,
                          int64_t row_from, int64_t rows, int64_t x_stride, int64_t y_stride,
                          int32_t compute, void *workspace, void *stream);
lsa_linear_fn lsa_linear_cpu, lsa_linear_cuda;

/* Bytes of workspace; bounded, whatever the number of tokens, and enough for fewer tokens. May be 0. */
typedef int64_t lsa_linear_workspace_fn(const lsa_weight *w, int64_t tokens, int64_t rows,
                                        int32_t compute);
lsa_linear_workspace_fn lsa_linear_workspace, lsa_linear_workspace_cuda;

/* The arguments, as both halves check them. */
int lsa_linear_check(const lsa_weight *w, int64_t tokens, int64_t row_from, int64_t rows,
                     int64_t x_stride, int64_t y_stride, int32_t compute);

/* out [rows, cols] = the values of rows row_from .. row_from + rows - 1, scaled, as f32.
 * LSA_ESHAPE, LSA_EDTYPE. */
int lsa_weight_rows(float *out, const lsa_weight *w, int64_t row_from, int64_t rows);

#endif
