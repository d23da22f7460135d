/* What a pass adds to what sessions keep: rows into rings, and the entries and index keys of chunks that are complete. */
#ifndef LSA_KERNELS_EXTEND_H
#define LSA_KERNELS_EXTEND_H
#include "kernels/span.h"

/* Which rows of a layer: a ring of its store. */
enum { LSA_KEEP_WINDOW = 0, LSA_KEEP_QUERIES = 1, LSA_KEEP_QUERY_WEIGHTS = 2, LSA_KEEP_HIDDEN = 3 };

/* Copies each span's rows into its session's ring, by position; the ring has room for them beside those that it is still
 * asked for. rows: [rows of the pass, width], width the ring's. LSA_EARG for an unknown `what`. */
typedef int lsa_keep_rows_fn(const lsa_span *spans, int64_t count, int64_t layer, int32_t what,
                             const float *rows, int64_t width, void *stream);
lsa_keep_rows_fn lsa_keep_rows_cpu, lsa_keep_rows_cuda;

enum { LSA_EXTEND_RECORDS = 0, LSA_EXTEND_KEYS = 1 };

/* One compressor of a layer. */
typedef struct lsa_extension {
    int32_t what;          /* LSA_EXTEND_RECORDS: attention entries; LSA_EXTEND_KEYS: index keys */
    int32_t format;        /* LSA_KV_* of what is kept */
    int64_t rate, dim;     /* tokens a window; channels of an entry */
    int32_t overlap;       /* CSA and index keys: projections are 2 dim wide (compress.h) */
    const float *bias;     /* position_bias [rate, width] */
    const float *norm;     /* [dim] */
    const float *inv_freq; /* [rope_dim / 2] */
    int64_t rope_dim;
    float norm_eps;
    const float *kv, *gate; /* [rows of the pass, width]: projections */
} lsa_extension;

/* Appends the projections' rows to the layer's rings; then every window of `rate` tokens that a span completes becomes an
 * entry (compress.h, RMSNorm, rope at the window's first position), is encoded (kv_record.h) and put where it belongs:
 * records at their chunk's place in the cold tier and the mirror, and at its slot where it has a cell; keys likewise, and among the
 * residents' at the chunk's place. A chunk's place in memory is there already. entries: [rows of the pass, dim], the i-th new
 * one of a span at row span.row + i. workspace: lsa_extend_workspace bytes. */
typedef int lsa_extend_fn(float *entries, const lsa_span *spans, int64_t count, int64_t layer,
                          const lsa_extension *extension, void *workspace, void *stream);
lsa_extend_fn lsa_extend_cpu, lsa_extend_cuda;

/* For a pass of `rows` rows. A GPU needs none. */
typedef int64_t lsa_extend_workspace_fn(int64_t rows, int64_t rate, int64_t dim, int64_t rope_dim,
                                        int32_t overlap);
lsa_extend_workspace_fn lsa_extend_workspace, lsa_extend_workspace_cuda;

/* The arguments, as both halves check them. */
int lsa_keep_rows_check(int32_t what);
int lsa_extend_check(const lsa_extension *extension);

#endif
