/* Owns lsa_entropy_cpu. */
#include "kernels/entropy.h"

#include <math.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"

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

typedef struct call {
    double *out;
    const float *logits;
    int64_t vocab;
} call;

static void measure_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const call *c = context;
    for (int64_t r = from; r < to; r++) c->out[r] = entropy(c->logits + r * c->vocab, c->vocab);
}

int lsa_entropy_cpu(double *out, const float *logits, int64_t n, int64_t vocab, void *stream)
{
    (void)stream;
    int rc = lsa_entropy_check(n, vocab);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n * vocab * LOGIT_NS), n, measure_rows,
                 &(call){out, logits, vocab});
    return LSA_OK;
}
