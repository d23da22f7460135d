/* Owns lsa_linears_cpu: one product after the other, each by all threads; small ones of many tokens side by side. */
#include "kernels/linears.h"

#include <stddef.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/rmsnorm.h"

enum {
    SMALL = 128 << 10, /* bytes of workspace that a thread has on its stack */
    LEAST_TOKENS = 64, /* fewer are bound by reading weights, which all threads share out evenly */
    FLOPS_PER_NS = 100
};

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

static int multiply(const lsa_product *p, int64_t tokens, int32_t compute, void *workspace,
                    void *stream)
{
    return lsa_linear_cpu(p->y, p->x, p->w, tokens, p->row_from, p->rows, p->x_stride, p->y_stride,
                          compute, workspace, stream);
}

/* ---- side by side ---- */

typedef struct side_by_side {
    const lsa_product *products;
    int64_t tokens;
    int32_t compute;
    lsa_failure failure;
} side_by_side;

static int are_small(const lsa_product *products, int64_t count, int64_t tokens, int32_t compute)
{
    if (tokens < LEAST_TOKENS) return 0;
    for (int64_t i = 0; i < count; i++)
        if (lsa_linear_workspace(products[i].w, tokens, products[i].rows, compute) > SMALL)
            return 0;
    return 1;
}

static void multiply_some(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    side_by_side *c = context;
    uint8_t workspace[SMALL] __attribute__((aligned(64)));
    for (int64_t i = from; i < to; i++)
        lsa_failure_note(&c->failure,
                         multiply(&c->products[i], c->tokens, c->compute, workspace, NULL));
}

int lsa_linears_cpu(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                    float norm_eps, int32_t compute, void *workspace, void *stream)
{
    LSA_TRY(lsa_linears_check(products, count, tokens, norm, compute));
    if (norm && count)
        LSA_TRY(lsa_rmsnorm_cpu(products->x, products->x, norm, tokens, products->w->cols, norm_eps,
                                stream));
    side_by_side c = {products, tokens, compute, {0}};
    if (count > 1 && are_small(products, count, tokens, compute)) {
        int64_t numbers = 0;
        for (int64_t i = 0; i < count; i++) numbers += products[i].rows * products[i].w->cols;
        lsa_parallel(lsa_threads_for(2 * tokens * numbers / FLOPS_PER_NS), count, multiply_some,
                     &c);
        return lsa_failure_raise(&c.failure);
    }
    for (int64_t i = 0; i < count; i++)
        LSA_TRY(multiply(&products[i], tokens, compute, workspace, stream));
    return LSA_OK;
}
