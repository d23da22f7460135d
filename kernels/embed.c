/* Owns lsa_embed_cpu. */
#include "kernels/embed.h"

#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/try.h"
#include "kernels/linear_private.h"

enum { DECODED_PER_NS = 4 };

int lsa_embed_check(const lsa_weight *table, int64_t n, int64_t hc, int64_t hidden)
{
    if (n < 0 || hc < 0 || hidden != table->cols)
        return lsa_fail(LSA_ESHAPE, "embed: %lld tokens in %lld streams of %lld, rows have %lld",
                        (long long)n, (long long)hc, (long long)hidden, (long long)table->cols);
    return lsa_weight_rows(NULL, table, 0, 0); /* whether it can be read */
}

typedef struct embedding {
    float *streams;
    const int32_t *tokens;
    const lsa_weight *table;
    int64_t hc, hidden;
} embedding;

static void embed_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const embedding *e = context;
    for (int64_t i = from; i < to; i++) {
        float *first = e->streams + i * e->hc * e->hidden;
        lsa_linear_decode(first, e->table, e->tokens[i], 0, e->hidden, 0);
        for (int64_t j = 1; j < e->hc; j++)
            memcpy(first + j * e->hidden, first, (size_t)e->hidden * sizeof *first);
    }
}

int lsa_embed_cpu(float *streams, const int32_t *tokens, const lsa_weight *table, int64_t n,
                  int64_t hc, int64_t hidden, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_embed_check(table, n, hc, hidden));
    if (hc == 0) return LSA_OK;
    lsa_parallel(lsa_threads_for(n * hc * hidden / DECODED_PER_NS), n, embed_part,
                 &(embedding){streams, tokens, table, hc, hidden});
    return LSA_OK;
}
