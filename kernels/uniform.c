/* Owns random numbers that need no state: SplitMix64 at any place of its sequence. */
#include "kernels/uniform.h"

#include "core/base/error.h"
#include "kernels/uniform_private.h"

static inline LSA_BODY void uniform_body(float *out, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) out[i] = uniform_at(seed, i);
}
LSA_PATHS(uniform, (float *out, int64_t n, uint64_t seed), (out, n, seed))

int lsa_uniform_check(int64_t n)
{
    return n < 0 ? lsa_fail(LSA_ESHAPE, "uniform: %lld elements", (long long)n) : LSA_OK;
}

int lsa_uniform_cpu(float *out, int64_t n, uint64_t seed, void *stream)
{
    (void)stream;
    int rc = lsa_uniform_check(n);
    if (rc) return rc;
    uniform(out, n, seed);
    return LSA_OK;
}
