/* The gradient of RMSNorm on the CPU: a few hundred rows at the most, on the calling thread. */
#include "kernels/rmsnorm_gradient.h"

#include "core/base/error.h"
#include "core/base/simd.h"

/* n (<= 16) values of a row: adds to the sums of squares and of products. */
static inline LSA_BODY void add_sums(f32x16 *squares, f32x16 *products, const float *dy,
                                     const float *x, const float *weight, int64_t n)
{
    f32x16 v = f32x16_load_n(x, n);
    *squares += v * v;
    *products += v * f32x16_load_n(weight, n) * f32x16_load_n(dy, n);
}

static inline LSA_BODY void write(float *dx, float *dweight, const float *dy, const float *x,
                                  const float *weight, int64_t n, float s, float back)
{
    f32x16 v = f32x16_load_n(x, n), d = f32x16_load_n(dy, n);
    f32x16_store_n(dweight, f32x16_load_n(dweight, n) + d * v * s, n);
    f32x16_store_n(dx, (f32x16_load_n(weight, n) * d - v * back) * s, n);
}

static inline LSA_BODY void gradient_rows_body(float *dx, float *dweight, const float *dy,
                                               const float *x, const float *weight, int64_t rows,
                                               int64_t n, float eps)
{
    memset(dweight, 0, (size_t)n * sizeof *dweight);
    for (int64_t r = 0; r < rows; r++, dx += n, dy += n, x += n) {
        f32x16 squares = f32x16_set(0.0f), products = squares;
        int64_t i = 0;
        for (; i + 16 <= n; i += 16) add_sums(&squares, &products, dy + i, x + i, weight + i, 16);
        if (i < n) add_sums(&squares, &products, dy + i, x + i, weight + i, n - i);
        float s = 1.0f / sqrtf(f32x16_sum(squares) / (float)n + eps);
        float back = s * s * (f32x16_sum(products) / (float)n);
        for (i = 0; i + 16 <= n; i += 16)
            write(dx + i, dweight + i, dy + i, x + i, weight + i, 16, s, back);
        if (i < n) write(dx + i, dweight + i, dy + i, x + i, weight + i, n - i, s, back);
    }
}

LSA_PATHS(gradient_rows,
          (float *dx, float *dweight, const float *dy, const float *x, const float *weight,
           int64_t rows, int64_t n, float eps),
          (dx, dweight, dy, x, weight, rows, n, eps))

int lsa_rmsnorm_gradient_check(int64_t rows, int64_t n)
{
    if (rows >= 0 && n >= 1) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "rmsnorm_gradient: %lld rows of %lld values", (long long)rows,
                    (long long)n);
}

int lsa_rmsnorm_gradient_cpu(float *dx, float *dweight, const float *dy, const float *x,
                             const float *weight, int64_t rows, int64_t n, float eps, void *stream)
{
    (void)stream;
    int rc = lsa_rmsnorm_gradient_check(rows, n);
    if (rc) return rc;
    gradient_rows(dx, dweight, dy, x, weight, rows, n, eps);
    return LSA_OK;
}
