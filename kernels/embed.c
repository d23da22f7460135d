/* Owns lsa_embed_cpu. */
#include "kernels/embed.h"

#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
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

int lsa_embed_cpu(float *streams, const int32_t *tokens, const lsa_weight *table, int64_t n,
                  int64_t hc, int64_t hidden, void *stream)
{
    (void)stream;
    LSA_TRY(lsa_embed_check(table, n, hc, hidden));
    if (hc == 0) return LSA_OK;
    int threads = lsa_threads_for(n * hc * hidden / DECODED_PER_NS);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float *first = streams + i * hc * hidden;
        lsa_linear_decode(first, table, tokens[i], 0, hidden, 0);
        for (int64_t j = 1; j < hc; j++)
            memcpy(first + j * hidden, first, (size_t)hidden * sizeof *first);
    }
    return LSA_OK;
}
