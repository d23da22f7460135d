/* RMSNorm on the CPU: one row at a time, rows over the threads. */
#include "kernels/rmsnorm.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd_kept.h"

/* Four partial sums hide the latency of the additions. */
static inline LSA_BODY float sum_of_squares(int wide, const float *x, int64_t n)
{
    f32x16_kept sum[4];
    f32x16 part[4];
    for (int j = 0; j < 4; j++) f32x16_keep(wide, sum + j, f32x16_set(0));
    int64_t i = 0;
    for (; i + 64 <= n; i += 64)
        for (int j = 0; j < 4; j++) {
            f32x16 v = f32x16_load(x + i + 16 * j);
            f32x16_keep_sum(wide, sum + j, v * v);
        }
    for (; i + 16 <= n; i += 16) {
        f32x16 v = f32x16_load(x + i);
        f32x16_keep_sum(wide, sum, v * v);
    }
    if (i < n) {
        f32x16 v = f32x16_load_n(x + i, n - i);
        f32x16_keep_sum(wide, sum + 1, v * v);
    }
    for (int j = 0; j < 4; j++) part[j] = f32x16_kept_value(wide, sum + j);
    return f32x16_sum((part[0] + part[1]) + (part[2] + part[3]));
}

static inline LSA_BODY void norm_rows_body(int wide, float *y, const float *x, const float *weight,
                                           int64_t rows, int64_t n, float eps)
{
    for (int64_t r = 0; r < rows; r++, x += n, y += n) {
        float scale = 1.0f / sqrtf(sum_of_squares(wide, x, n) / (float)n + eps);
        int64_t i = 0;
        if (weight) {
            for (; i + 16 <= n; i += 16)
                f32x16_store(y + i, f32x16_load(x + i) * scale * f32x16_load(weight + i));
            for (; i < n; i++) y[i] = x[i] * scale * weight[i];
        } else {
            for (; i + 16 <= n; i += 16) f32x16_store(y + i, f32x16_load(x + i) * scale);
            for (; i < n; i++) y[i] = x[i] * scale;
        }
    }
}

LSA_PATHS_WIDE(norm_rows,
               (float *y, const float *x, const float *weight, int64_t rows, int64_t n, float eps),
               (y, x, weight, rows, n, eps))

int lsa_rmsnorm_check(int64_t rows, int64_t n)
{
    if (rows >= 0 && n >= 1) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "rmsnorm: %lld rows of %lld values", (long long)rows, (long long)n);
}

typedef struct norm_call {
    float *y;
    const float *x, *weight;
    int64_t n;
    float eps;
} norm_call;

static void norm_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const norm_call *c = context;
    norm_rows(c->y + from * c->n, c->x + from * c->n, c->weight, to - from, c->n, c->eps);
}

int lsa_rmsnorm_cpu(float *y, const float *x, const float *weight, int64_t rows, int64_t n,
                    float eps, void *stream)
{
    (void)stream;
    int rc = lsa_rmsnorm_check(rows, n);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(rows * (30 + n / 4)), rows, norm_part,
                 &(norm_call){y, x, weight, n, eps});
    return LSA_OK;
}
