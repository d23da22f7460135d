/* Owns lsa_linears_cpu. */
#include "kernels/linears.h"

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/rmsnorm.h"

int lsa_linears_check(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                      int32_t compute)
{
    if (count < 0 || count > LSA_LINEARS_MOST)
        return lsa_fail(LSA_EARG, "linears: %lld products, 0 to %d are possible", (long long)count,
                        LSA_LINEARS_MOST);
    for (int64_t i = 0; i < count; i++) {
        const lsa_product *p = &products[i];
        LSA_TRY(lsa_linear_check(p->w, tokens, p->row_from, p->rows, p->x_stride, p->y_stride,
                                 compute));
        if (norm &&
            (p->x != products->x || p->w->cols != products->w->cols || p->x_stride != p->w->cols))
            return lsa_fail(LSA_EARG,
                            "linears: product %lld is of another x than the one that is normed",
                            (long long)i);
    }
    return LSA_OK;
}

int lsa_linears_cpu(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                    float norm_eps, int32_t compute, void *workspace, void *stream)
{
    LSA_TRY(lsa_linears_check(products, count, tokens, norm, compute));
    if (norm && count)
        LSA_TRY(lsa_rmsnorm_cpu(products->x, products->x, norm, tokens, products->w->cols, norm_eps,
                                stream));
    for (int64_t i = 0; i < count; i++) {
        const lsa_product *p = &products[i];
        LSA_TRY(lsa_linear_cpu(p->y, p->x, p->w, tokens, p->row_from, p->rows, p->x_stride,
                               p->y_stride, compute, workspace, stream));
    }
    return LSA_OK;
}
