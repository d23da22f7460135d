/* Owns the choice between two rows by a set, sixteen elements at a time. */
#include "kernels/where.h"

#include "core/base/error.h"
#include "core/base/simd.h"

enum { LANES = 16, WORD = 64 };

/* Lane by lane: a where the lowest 16 bits of `chosen` have a one. */
static inline LSA_BODY f32x16 blend(uint64_t chosen, f32x16 a, f32x16 b)
{
    const i32x16 place = {1,   2,   4,    8,    16,   32,   64,    128,
                          256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    i32x16 mask = ((place & (int32_t)(chosen & 0xffff)) != 0);
    return (f32x16)(((i32x16)a & mask) | ((i32x16)b & ~mask));
}

static inline LSA_BODY void where_body(float *out, const uint64_t *bits, const float *a,
                                       const float *b, int64_t n, int32_t b_step)
{
    f32x16 fixed = f32x16_set(b_step ? 0 : b[0]);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        f32x16_store(out + i, blend(bits[i / WORD] >> i % WORD, f32x16_load(a + i),
                                    b_step ? f32x16_load(b + i) : fixed));
    if (i == n) return;
    f32x16 other = b_step ? f32x16_load_n(b + i, n - i) : fixed;
    f32x16 last = blend(bits[i / WORD] >> i % WORD, f32x16_load_n(a + i, n - i), other);
    f32x16_store_n(out + i, last, n - i);
}
LSA_PATHS(where,
          (float *out, const uint64_t *bits, const float *a, const float *b, int64_t n,
           int32_t b_step),
          (out, bits, a, b, n, b_step))

int lsa_where_check(int64_t n, int32_t b_step)
{
    if (b_step != 0 && b_step != 1)
        return lsa_fail(LSA_EARG, "where: b_step is %d, 0 or 1 is possible", b_step);
    if (n < 0) return lsa_fail(LSA_ESHAPE, "where: %lld elements", (long long)n);
    return LSA_OK;
}

int lsa_where_cpu(float *out, const uint64_t *bits, const float *a, const float *b, int64_t n,
                  int32_t b_step, void *stream)
{
    (void)stream;
    int rc = lsa_where_check(n, b_step);
    if (rc) return rc;
    if (n) where(out, bits, a, b, n, b_step);
    return LSA_OK;
}
