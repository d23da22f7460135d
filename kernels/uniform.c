/* Owns random numbers that need no state: SplitMix64 at any place of its sequence. */
#include "kernels/uniform.h"

#include "core/base/error.h"
#include "core/base/simd.h"

/* The finisher of SplitMix64, whose state advances by a constant. */
static inline LSA_BODY uint64_t mixed(uint64_t seed, int64_t i)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * ((uint64_t)i + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static inline LSA_BODY void uniform_body(float *out, int64_t n, uint64_t seed)
{
    for (int64_t i = 0; i < n; i++) out[i] = (float)(int32_t)(mixed(seed, i) >> 40) * 0x1p-24f;
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
