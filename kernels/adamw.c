/* AdamW on the CPU: one pass that reads four arrays and writes three. */
#include "kernels/adamw.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"

enum { PART = 1 << 16 }; /* what a thread takes at a time: the same whatever their number */

typedef lsa_adamw_factors factors;

lsa_adamw_factors lsa_adamw_factors_of(const lsa_adamw *how)
{
    double first = 1.0 - pow(how->beta1, (double)how->step),
           second = 1.0 - pow(how->beta2, (double)how->step);
    return (factors){.keep = (float)(1.0 - (double)how->rate * how->decay),
                     .rate = (float)(how->rate / first),
                     .beta1 = how->beta1,
                     .beta2 = how->beta2,
                     .rest1 = (float)(1.0 - (double)how->beta1),
                     .rest2 = (float)(1.0 - (double)how->beta2),
                     .eps = how->eps,
                     .root2 = (float)(1.0 / sqrt(second)),
                     .gradient_scale = how->gradient_scale};
}

int lsa_adamw_check(int64_t n, const lsa_adamw *how)
{
    if (n < 0) return lsa_fail(LSA_ESHAPE, "adamw: %lld weights", (long long)n);
    if (how->step < 1)
        return lsa_fail(LSA_EARG, "adamw: step %lld; the first one is 1", (long long)how->step);
    return LSA_OK;
}

static inline LSA_BODY f32x16 f32x16_sqrt(f32x16 v)
{
    for (int i = 0; i < 16; i++) v[i] = sqrtf(v[i]);
    return v;
}

static inline LSA_BODY void update(float *x, float *m, float *v, const float *gradient, int64_t n,
                                   const factors *f)
{
    f32x16 g = f32x16_load_n(gradient, n) * f->gradient_scale;
    f32x16 m1 = f32x16_load_n(m, n) * f->beta1 + g * f->rest1;
    f32x16 v1 = f32x16_load_n(v, n) * f->beta2 + g * g * f->rest2;
    f32x16 x1 =
        f32x16_load_n(x, n) * f->keep - f->rate * m1 / (f32x16_sqrt(v1) * f->root2 + f->eps);
    f32x16_store_n(m, m1, n);
    f32x16_store_n(v, v1, n);
    f32x16_store_n(x, x1, n);
}

static inline LSA_BODY void update_part_body(float *x, float *m, float *v, const float *gradient,
                                             int64_t n, const factors *f)
{
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) update(x + i, m + i, v + i, gradient + i, 16, f);
    if (i < n) update(x + i, m + i, v + i, gradient + i, n - i, f);
}

LSA_PATHS(update_part,
          (float *x, float *m, float *v, const float *gradient, int64_t n, const factors *f),
          (x, m, v, gradient, n, f))

typedef struct updating {
    float *x, *m, *v;
    const float *gradient;
    int64_t n;
    const factors *f;
} updating;

static void update_parts(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const updating *u = context;
    int64_t at = first * PART, to = end * PART < u->n ? end * PART : u->n;
    update_part(u->x + at, u->m + at, u->v + at, u->gradient + at, to - at, u->f);
}

int lsa_adamw_cpu(float *x, float *m, float *v, const float *gradient, int64_t n,
                  const lsa_adamw *how, void *stream)
{
    (void)stream;
    int rc = lsa_adamw_check(n, how);
    if (rc) return rc;
    factors f = lsa_adamw_factors_of(how);
    lsa_parallel(lsa_threads_for(n / 2), (n + PART - 1) / PART, update_parts,
                 &(updating){x, m, v, gradient, n, &f});
    return LSA_OK;
}

static inline LSA_BODY void square_part_body(double *sum, const float *x, int64_t n)
{
    typedef double f64x8 __attribute__((vector_size(64), aligned(4), may_alias));
    typedef float f32x8 __attribute__((vector_size(32), aligned(4), may_alias));
    f64x8 a[4] = {{0}};
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 4; j++) {
            f32x8 v;
            memcpy(&v, x + i + 8 * j, sizeof v);
            f64x8 d = __builtin_convertvector(v, f64x8);
            a[j] += d * d;
        }
    f64x8 all = (a[0] + a[1]) + (a[2] + a[3]);
    double s = 0;
    for (int j = 0; j < 8; j++) s += all[j];
    for (; i < n; i++) s += (double)x[i] * x[i];
    *sum = s;
}

LSA_PATHS(square_part, (double *sum, const float *x, int64_t n), (sum, x, n))

typedef struct squaring {
    double *sums;
    const float *x;
    int64_t n;
} squaring;

static void square_parts(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const squaring *s = context;
    for (int64_t i = from; i < to; i++)
        square_part(s->sums + i, s->x + i * PART, s->n - i * PART < PART ? s->n - i * PART : PART);
}

int64_t lsa_square_sum_workspace(int64_t n)
{
    return (n + PART - 1) / PART * (int64_t)sizeof(double);
}

int lsa_square_sum_cpu(double *sum, const float *x, int64_t n, void *workspace, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "square_sum: %lld values", (long long)n);
    double *parts = workspace;
    int64_t count = (n + PART - 1) / PART;
    lsa_parallel(lsa_threads_for(n / 8), count, square_parts, &(squaring){parts, x, n});
    *sum = 0;
    for (int64_t i = 0; i < count; i++) *sum += parts[i];
    return LSA_OK;
}
