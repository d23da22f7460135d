/* Owns random numbers of the normal distribution that need no state. */
#include "kernels/normal.h"

#include <math.h>

#include "core/base/cpu.h"
#include "core/base/error.h"

/* Output i of SplitMix64, whose state advances by a constant. */
static uint64_t mixed(uint64_t seed, uint64_t i)
{
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (i + 1);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int lsa_normal_cpu(float *out, int64_t n, uint64_t seed, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "normal: %lld elements", (long long)n);
    int threads = lsa_threads_for(n * 20);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += 2) {
        double u = (double)((mixed(seed, (uint64_t)i) >> 11) + 1) * 0x1p-53;
        double angle =
            (double)(mixed(seed, (uint64_t)i + 1) >> 11) * (0x1p-52 * 3.14159265358979323846);
        double radius = sqrt(-2 * log(u));
        out[i] = (float)(radius * cos(angle));
        if (i + 1 < n) out[i + 1] = (float)(radius * sin(angle));
    }
    return LSA_OK;
}
