/* Several linear layers in one call: what does not wait for one another runs side by side. */
#ifndef LSA_KERNELS_LINEARS_H
#define LSA_KERNELS_LINEARS_H
#include "kernels/linear.h"

enum { LSA_LINEARS_MOST = 8 };

/* y [., rows] = x [., cols] W^T, of rows row_from .. of the weight (kernels/linear.h). */
typedef struct lsa_product {
    float *y;
    float *x;
    const lsa_weight *w;
    int64_t row_from, rows, x_stride, y_stride;
} lsa_product;

/* A whole weight, rows of x and of y one behind the other. */
static inline lsa_product lsa_product_of(float *y, float *x, const lsa_weight *w)
{
    return (lsa_product){y, x, w, 0, w->rows, w->cols, w->rows};
}

/* `count` products, at most LSA_LINEARS_MOST, of as many tokens each; no y overlaps an x or another y.
 *
 * norm: NULL, or [cols]: the products have one x [tokens, cols], whose rows are normed before (kernels/rmsnorm.h, with
 *   norm_eps); what it holds afterwards is not defined.
 * workspace: as much as the product that wants most (lsa_linear_workspace). An output's bits are those of lsa_linear on the
 * normed x. LSA_EARG beside what lsa_linear gives. */
typedef int lsa_linears_fn(const lsa_product *products, int64_t count, int64_t tokens,
                           const float *norm, float norm_eps, int32_t compute, void *workspace,
                           void *stream);
lsa_linears_fn lsa_linears_cpu, lsa_linears_cuda;

/* The arguments, as both halves check them. */
int lsa_linears_check(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                      int32_t compute);

#endif
