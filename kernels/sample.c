/* Owns lsa_sample_cpu. */
#include "kernels/sample.h"

#include <math.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/xorshift.h"

enum { LOGIT_NS = 20 };

/* Where a row of finite logits has its largest; -1 for another row. */
static int32_t largest(const float *logits, int64_t n)
{
    float most = -INFINITY;
    int64_t at = -1;
    int bad = 0;
    for (int64_t i = 0; i < n; i++) {
        bad |= isnan(logits[i]);
        if (logits[i] > most) {
            most = logits[i];
            at = i;
        }
    }
    return bad || isinf(most) ? -1 : (int32_t)at;
}

static int32_t draw(const float *logits, uint64_t *state, double temperature, int64_t n)
{
    int32_t at = largest(logits, n);
    if (at < 0 || temperature == 0) return at;
    double most = logits[at], sum = 0;
    for (int64_t i = 0; i < n; i++) sum += exp((logits[i] - most) / temperature);
    double left = lsa_xorshift(state) * sum;
    for (int64_t i = 0; i < n; i++) {
        left -= exp((logits[i] - most) / temperature);
        if (left < 0) return (int32_t)i;
    }
    return (int32_t)(n - 1);
}

int lsa_sample_check(int64_t n, int64_t vocab)
{
    if (n >= 0 && vocab >= 1 && vocab <= INT32_MAX) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "sample: %lld rows of %lld logits", (long long)n, (long long)vocab);
}

typedef struct call {
    int32_t *tokens;
    const float *logits;
    uint64_t *states;
    const double *temperatures;
    int64_t vocab;
} call;

static void draw_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const call *c = context;
    for (int64_t r = from; r < to; r++)
        c->tokens[r] = draw(c->logits + r * c->vocab, c->states + r, c->temperatures[r], c->vocab);
}

int lsa_sample_cpu(int32_t *tokens, const float *logits, uint64_t *states,
                   const double *temperatures, int64_t n, int64_t vocab, void *stream)
{
    (void)stream;
    int rc = lsa_sample_check(n, vocab);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n * vocab * LOGIT_NS), n, draw_rows,
                 &(call){tokens, logits, states, temperatures, vocab});
    return LSA_OK;
}
