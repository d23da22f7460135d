/* Owns lsa_settle_cpu: the kernels of each part, one after the other. */
#include "kernels/settle.h"

#include <stddef.h>

#include "core/base/error.h"
#include "core/base/try.h"
#include "kernels/table.h"

static int settle_index(const lsa_kernels *k, const lsa_span *spans, int64_t count, int64_t layer,
                        const lsa_settling *s, int64_t rows, void *stream)
{
    int64_t width = s->index_heads * s->index_dim;
    LSA_TRY(k->rope(s->index_q, s->index_table, rows, s->index_heads, s->index_dim, s->rope_dim, 0,
                    stream));
    if (s->index_seen) {
        int64_t n = rows * width, one = 1;
        LSA_TRY(k->copy(s->index_seen, s->index_q, sizeof(float), 1, &n, &one, &one, stream));
    }
    LSA_TRY(k->scale(s->index_w, s->index_scale, rows * s->index_heads, stream));
    if (s->transformed)
        LSA_TRY(k->hadamard(s->index_q, rows * s->index_heads, s->index_dim, stream));
    LSA_TRY(k->keep_rows(spans, count, layer, LSA_KEEP_QUERIES, s->index_q, width, stream));
    LSA_TRY(k->keep_rows(spans, count, layer, LSA_KEEP_QUERY_WEIGHTS, s->index_w, s->index_heads,
                         stream));
    return k->keep_rows(spans, count, layer, LSA_KEEP_HIDDEN, s->hidden, s->hidden_width, stream);
}

int lsa_settle_by(const lsa_kernels *k, const lsa_span *spans, int64_t count, int64_t layer,
                  const lsa_settling *s, int64_t rows, void *workspace, void *stream)
{
    LSA_TRY(k->rmsnorm(s->q, s->q, NULL, rows * s->heads, s->dim, s->norm_eps, stream));
    LSA_TRY(k->rope(s->q, s->table, rows, s->heads, s->dim, s->rope_dim, 0, stream));
    LSA_TRY(k->rmsnorm(s->window, s->window, s->window_norm, rows, s->dim, s->norm_eps, stream));
    LSA_TRY(k->rope(s->window, s->table, rows, 1, s->dim, s->rope_dim, 0, stream));
    LSA_TRY(k->keep_rows(spans, count, layer, LSA_KEEP_WINDOW, s->window, s->dim, stream));
    if (s->records)
        LSA_TRY(k->extend(s->entries, spans, count, layer, s->records, workspace, stream));
    if (s->keys)
        LSA_TRY(k->extend(s->key_entries, spans, count, layer, s->keys, workspace, stream));
    return s->index_q ? settle_index(k, spans, count, layer, s, rows, stream) : LSA_OK;
}

int lsa_settle_cpu(const lsa_span *spans, int64_t count, int64_t layer,
                   const lsa_settling *settling, int64_t rows, void *workspace, void *stream)
{
    return lsa_settle_by(&lsa_kernels_cpu, spans, count, layer, settling, rows, workspace, stream);
}
