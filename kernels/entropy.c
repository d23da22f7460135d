/* Owns lsa_entropy_cpu. */
#include "kernels/entropy.h"

#include <math.h>

#include "core/base/cpu.h"
#include "core/base/error.h"

enum { LOGIT_NS = 10 };

static double entropy(const float *logits, int64_t n)
{
    double most = -INFINITY, sum = 0, weighted = 0;
    for (int64_t i = 0; i < n; i++)
        if (logits[i] > most) most = logits[i];
    if (isinf(most)) return NAN;
    for (int64_t i = 0; i < n; i++) {
        double d = logits[i] - most, e = exp(d);
        sum += e; /* a NaN among the logits shows here */
        if (e > 0) weighted += e * d;
    }
    return log(sum) - weighted / sum;
}

int lsa_entropy_check(int64_t n, int64_t vocab)
{
    if (n >= 0 && vocab >= 1) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "entropy: %lld rows of %lld logits", (long long)n,
                    (long long)vocab);
}

int lsa_entropy_cpu(double *out, const float *logits, int64_t n, int64_t vocab, void *stream)
{
    (void)stream;
    int rc = lsa_entropy_check(n, vocab);
    if (rc) return rc;
    int threads = lsa_threads_for(n * vocab * LOGIT_NS);
    if (threads > n) threads = n > 1 ? (int)n : 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < n; r++) out[r] = entropy(logits + r * vocab, vocab);
    return LSA_OK;
}
