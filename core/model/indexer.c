/* Owns the Memory Indexer's query path. */
#include "core/model/indexer.h"

#include <math.h>
#include <stddef.h>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "kernels/hadamard.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/table.h"

int lsa_indexer_check(const lsa_indexer_layer *l, int64_t hidden_size, int64_t rope_dim)
{
    if (l->a.cols != hidden_size || l->w.cols != hidden_size)
        return lsa_fail(
            LSA_ESHAPE,
            "indexer: wq_a has %lld columns and weights_proj %lld, the hidden state %lld",
            (long long)l->a.cols, (long long)l->w.cols, (long long)hidden_size);
    if (l->b.cols != l->a.rows)
        return lsa_fail(LSA_ESHAPE, "indexer: wq_b has %lld columns, wq_a %lld rows",
                        (long long)l->b.cols, (long long)l->a.rows);
    if (l->w.rows != l->heads || l->b.rows != l->heads * l->dim)
        return lsa_fail(
            LSA_ESHAPE, "indexer: weights_proj has %lld rows, wq_b %lld, for %lld heads of %lld",
            (long long)l->w.rows, (long long)l->b.rows, (long long)l->heads, (long long)l->dim);
    if (rope_dim > l->dim)
        return lsa_fail(LSA_ESHAPE, "indexer: %lld rope dimensions, index keys have %lld",
                        (long long)rope_dim, (long long)l->dim);
    return LSA_OK;
}

static int64_t workspace_of(const lsa_indexer_layer *l, int64_t n, int32_t compute)
{
    const lsa_weight *weights[] = {&l->a, &l->b, &l->w};
    int64_t most = 0;
    for (int i = 0; i < 3; i++) {
        int64_t bytes = lsa_linear_workspace(weights[i], n, weights[i]->rows, compute);
        if (bytes > most) most = bytes;
    }
    return most;
}

int lsa_indexer_queries_on(const lsa_kernels *k, float *q, float *w, const lsa_indexer_layer *l,
                           const float *hidden, const float *table, int64_t n, int64_t hidden_size,
                           int64_t rope_dim, float norm_eps, int32_t rotate, int32_t compute,
                           float *low, void *workspace)
{
    int64_t rank = l->a.rows, width = l->heads * l->dim;
    LSA_TRY(k->linear(low, hidden, &l->a, n, 0, rank, hidden_size, rank, compute, workspace, NULL));
    LSA_TRY(k->rmsnorm(low, low, l->norm, n, rank, norm_eps, NULL));
    LSA_TRY(k->linear(q, low, &l->b, n, 0, width, rank, width, compute, workspace, NULL));
    LSA_TRY(k->rope(q, table, n, l->heads, l->dim, rope_dim, 0, NULL));
    if (rotate) LSA_TRY(k->hadamard(q, n * l->heads, l->dim, NULL));
    LSA_TRY(k->linear(w, hidden, &l->w, n, 0, l->heads, hidden_size, l->heads, compute, workspace,
                      NULL));
    return k->scale(w, 1.0f / sqrtf((float)l->dim) / sqrtf((float)l->heads), n * l->heads, NULL);
}

int lsa_indexer_queries(float *q, float *w, const lsa_indexer_layer *l, const float *hidden,
                        const int32_t *positions, int64_t n, int64_t hidden_size,
                        const float *inv_freq, int64_t rope_dim, float norm_eps, int32_t rotate,
                        int32_t compute)
{
    int rc = lsa_indexer_check(l, hidden_size, rope_dim);
    if (rc) return rc;
    int64_t f = sizeof(float);
    float *low = lsa_alloc(n * l->a.rows * f), *table = lsa_alloc(n * rope_dim * f);
    void *workspace = lsa_alloc(workspace_of(l, n, compute));
    if (!low || !table || !workspace) rc = LSA_ENOMEM;
    if (!rc) rc = lsa_kernels_cpu.rope_table(table, inv_freq, positions, n, rope_dim / 2, NULL);
    if (!rc)
        rc = lsa_indexer_queries_on(&lsa_kernels_cpu, q, w, l, hidden, table, n, hidden_size,
                                    rope_dim, norm_eps, rotate, compute, low, workspace);
    lsa_free(low);
    lsa_free(table);
    lsa_free(workspace);
    return rc;
}
