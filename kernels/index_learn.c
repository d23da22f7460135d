/* The training of index scores on the CPU: every thread has samples of its own. */
#include "kernels/index_learn.h"

#include <stdatomic.h>
#include <stddef.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/index_gradient.h"

typedef struct learning {
    double *losses;
    float *dq, *dw;
    const float *q, *w;
    const lsa_index_sample *samples;
    int64_t most, heads, dim;
    int32_t key_format;
    const lsa_index_loss *how;
    float share;
    uint8_t *workspace;
    atomic_int failed;
} learning;

static int64_t up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

static int64_t row_bytes(int64_t most) { return up(most * (int64_t)sizeof(float)); }

/* Of a thread: logits, slopes, and what the gradient needs of the logits' making. */
static int64_t thread_bytes(int64_t most, int64_t heads, int64_t dim)
{
    return 2 * row_bytes(most) + up(lsa_index_gradient_workspace(most, heads, dim));
}

static int threads_of(int64_t ids, int64_t heads, int64_t dim)
{
    return lsa_threads_for(ids * heads * dim / 8);
}

int64_t lsa_index_learn_workspace(int64_t n, int64_t most, int64_t heads, int64_t dim)
{
    return threads_of(n * most, heads, dim) * thread_bytes(most, heads, dim);
}

int lsa_index_learn_check(int64_t n, int64_t most, int64_t heads, int64_t dim, int32_t key_format,
                          const lsa_index_loss *how)
{
    double nothing;
    if (n < 0 || most < 0 || heads < 1 || dim < 1)
        return lsa_fail(LSA_ESHAPE, "index_learn: %lld samples of %lld ids, %lld heads of %lld",
                        (long long)n, (long long)most, (long long)heads, (long long)dim);
    if (key_format < LSA_KV_F32 || key_format > LSA_KV_FP8)
        return lsa_fail(LSA_EARG, "index_learn: key format %d is not f32, bf16 or fp8", key_format);
    return lsa_index_loss_cpu(&nothing, NULL, NULL, NULL, 0, 0, how, NULL);
}

static int learn(const learning *l, int64_t i, int thread)
{
    const lsa_index_sample *x = l->samples + i;
    int64_t width = l->heads * l->dim, count = x->positives + x->negatives;
    uint8_t *own = l->workspace + thread * thread_bytes(l->most, l->heads, l->dim);
    float *logits = (float *)own, *slope = (float *)(own + row_bytes(l->most));
    const float *w = l->w + i * l->heads;
    void *rest = own + 2 * row_bytes(l->most);
    int rc =
        lsa_index_gather_cpu(logits, l->q + i * width, w, x->keys, x->ids, count, l->heads, l->dim,
                             lsa_index_key_bytes(l->key_format, l->dim), l->key_format, rest, NULL);
    if (!rc)
        rc = lsa_index_loss_cpu(l->losses + i, slope, logits, x->weights, x->positives,
                                x->negatives, l->how, NULL);
    if (rc) return rc;
    for (int64_t j = 0; j < count; j++) slope[j] *= l->share;
    return lsa_index_gradient_cpu(l->dq + i * width, l->dw + i * l->heads, slope, w, count,
                                  l->heads, l->dim, rest, NULL);
}

static void learn_part(void *context, int64_t from, int64_t to, int thread)
{
    learning *l = context;
    for (int64_t i = from; i < to; i++) {
        int rc = learn(l, i, thread);
        if (rc) l->failed = rc;
    }
}

int lsa_index_learn_cpu(double *losses, float *dq, float *dw, const float *q, const float *w,
                        const lsa_index_sample *samples, int64_t n, int64_t most, int64_t heads,
                        int64_t dim, int32_t key_format, const lsa_index_loss *how, float share,
                        void *workspace, void *stream)
{
    (void)stream;
    int rc = lsa_index_learn_check(n, most, heads, dim, key_format, how);
    if (rc) return rc;
    int64_t ids = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t positives = samples[i].positives, negatives = samples[i].negatives;
        if (positives < 0 || negatives < 0 || positives + negatives > most)
            return lsa_fail(LSA_ESHAPE,
                            "index_learn: sample %lld has %lld positives and %lld negatives, %lld "
                            "are the most",
                            (long long)i, (long long)positives, (long long)negatives,
                            (long long)most);
        ids += positives + negatives;
    }
    learning l = {losses, dq,  dw,         q,   w,     samples,   most,
                  heads,  dim, key_format, how, share, workspace, LSA_OK};
    lsa_parallel(threads_of(ids, heads, dim), n, learn_part, &l);
    return l.failed;
}
