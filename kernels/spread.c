/* Owns the maximum near each element: by doubling windows, a block at a time in the first cache. */
#include "kernels/spread.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"
#include "kernels/vector_math.h"

enum { LANES = 16, BLOCK = 1024 };

/* Elements from .. from + m - 1: y[i] begins as element from - r + i, and ends as the largest of
 * the 2 r + 1 from there on. */
static inline LSA_BODY void spread_body(float *out, const float *x, int64_t n, int64_t from,
                                        int64_t m, int64_t r)
{
    float y[BLOCK + 2 * LSA_SPREAD_MOST + 2 * LANES];
    const int64_t width = m + 2 * r, start = from < r ? r - from : 0;
    const int64_t end = n - from + r < width ? n - from + r : width;
    for (int64_t i = 0; i < start; i++) y[i] = -INFINITY;
    memcpy(y + start, x + from - r + start, (size_t)(end - start) * sizeof *y);
    for (int64_t i = end; i < width + 2 * LANES; i++) y[i] = -INFINITY;
    for (int64_t done = 0, step; done < 2 * r; done += step) {
        step = done + 1 < 2 * r - done ? done + 1 : 2 * r - done;
        for (int64_t i = 0; i < width - step; i += LANES)
            f32x16_store(y + i, f32x16_larger(f32x16_load(y + i), f32x16_load(y + i + step)));
    }
    memcpy(out + from, y, (size_t)m * sizeof *y);
}
LSA_PATHS(spread, (float *out, const float *x, int64_t n, int64_t from, int64_t m, int64_t r),
          (out, x, n, from, m, r))

int lsa_spread_check(int64_t n, int64_t radius)
{
    if (radius < 0 || radius > LSA_SPREAD_MOST)
        return lsa_fail(LSA_EARG, "spread: radius is %lld, 0 to %d are possible", (long long)radius,
                        LSA_SPREAD_MOST);
    if (n < 0) return lsa_fail(LSA_ESHAPE, "spread: %lld elements", (long long)n);
    return LSA_OK;
}

typedef struct call {
    float *out;
    const float *x;
    int64_t n, radius;
} call;

static void spread_blocks(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const call *c = context;
    for (int64_t from = first * BLOCK; from < end * BLOCK && from < c->n; from += BLOCK)
        spread(c->out, c->x, c->n, from, c->n - from < BLOCK ? c->n - from : BLOCK, c->radius);
}

int lsa_spread_cpu(float *out, const float *x, int64_t n, int64_t radius, void *stream)
{
    (void)stream;
    int rc = lsa_spread_check(n, radius);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n), (n + BLOCK - 1) / BLOCK, spread_blocks,
                 &(call){out, x, n, radius});
    return LSA_OK;
}
