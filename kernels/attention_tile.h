/* Private to C files: attention of one query over one tile of keys, for every code path.
 *
 * Rows and heads are `dim` floats, dim a multiple of 16. A tile is at most TILE keys; `rows` are
 * pointers to them, valid up to the next multiple of 4 (the extra ones point anywhere readable).
 * What a head's numbers are never depends on the heads beside it. */
#ifndef LSA_ATTENTION_TILE_H
#define LSA_ATTENTION_TILE_H
#include <stdint.h>

enum { LSA_ATTENTION_TILE = 64 };

typedef struct lsa_attention_ops {
    /* scores[h, j] = q[h] . rows[j] * scale; scores: [heads, TILE] */
    void (*scores)(float *scores, const float *q, const float *const *rows, int64_t n,
                   int64_t heads, int64_t dim, float scale);

    /* Online softmax: scores become exp(score - max); max and sum [heads up to a multiple of 16] go
     * on; rescale [the same]: by what earlier sums shrink. */
    void (*softmax)(float *scores, float *max, float *sum, float *rescale, int64_t n,
                    int64_t heads);

    /* acc[h] = acc[h] * rescale[h] + sum_j p[h, j] rows[j] */
    void (*accumulate)(float *acc, const float *p, const float *rescale, const float *const *rows,
                       int64_t n, int64_t heads, int64_t dim);

    /* max, sum, acc and what is in from_* joined, for `heads` (a multiple of 16 for max, sum) */
    void (*merge)(float *max, float *sum, float *acc, const float *from_max, const float *from_sum,
                  const float *from_acc, int64_t heads, int64_t dim);

    /* mass[j] = mean over heads of exp(kept[h, j] - max[h]) / sum[h] */
    void (*mass)(float *mass, const float *kept, const float *max, const float *sum, int64_t n,
                 int64_t heads, int64_t stride);
} lsa_attention_ops;

/* n records as rows of floats, each up to a multiple of 16 with zeros, `stride` floats apart;
 * `rows` becomes pointers to them. `tile` has 64 floats more than the rows take, for overruns. */
typedef void lsa_attention_decode_fn(float *tile, const float **rows, const uint8_t *const *records,
                                     int64_t n, int64_t stride, int64_t dim, int64_t rope_dim,
                                     int32_t format);

/* Those of the code path in force. */
const lsa_attention_ops *lsa_attention_ops_now(void);
lsa_attention_decode_fn *lsa_attention_decode_now(void);

#endif
