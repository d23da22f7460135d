/* Owns the queries of page bounds; they are few and short. */
#include "kernels/bound_query.h"

#include "core/base/error.h"

static float above(float x) { return x < 0 ? 0 : x; }

static float below(float x) { return x > 0 ? 0 : x; }

int lsa_bound_query_check(int64_t rows, int64_t heads, int64_t dim)
{
    if (rows >= 0 && heads >= 0 && dim >= 0) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "bound_query: shape [%lld, %lld, %lld]", (long long)rows,
                    (long long)heads, (long long)dim);
}

int lsa_bound_query_cpu(float *both, float *weights, const float *q, const float *w, int64_t rows,
                        int64_t heads, int64_t dim, void *stream)
{
    (void)stream;
    int rc = lsa_bound_query_check(rows, heads, dim);
    if (rc) return rc;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < heads; h++) {
            const float *x = q + (r * heads + h) * dim;
            float *most = both + (r * 2 * heads + h) * 2 * dim, *least = most + heads * 2 * dim;
            for (int64_t d = 0; d < dim; d++) {
                most[d] = least[dim + d] = above(x[d]);
                most[dim + d] = least[d] = below(x[d]);
            }
            weights[r * 2 * heads + h] = above(w[r * heads + h]);
            weights[(r * 2 + 1) * heads + h] = below(w[r * heads + h]);
        }
    return LSA_OK;
}
