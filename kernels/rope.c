/* Rotary position embedding on the CPU. */
#define _GNU_SOURCE /* sincosf */
#include "kernels/rope.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "core/base/simd.h"

int lsa_rope_table_check(int64_t n, int64_t half)
{
    if (n >= 0 && half >= 0) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "rope_table: %lld positions of %lld frequencies", (long long)n,
                    (long long)half);
}

int lsa_rope_check(int64_t rows, int64_t heads, int64_t dim, int64_t rope_dim)
{
    if (rows >= 0 && heads >= 0 && rope_dim >= 0 && rope_dim % 2 == 0 && rope_dim <= dim)
        return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "rope: [%lld, %lld, %lld] with %lld rotated values",
                    (long long)rows, (long long)heads, (long long)dim, (long long)rope_dim);
}

typedef struct table_call {
    float *table;
    const float *inv_freq;
    const int32_t *positions;
    int64_t half;
} table_call;

static void fill_table(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const table_call *c = context;
    for (int64_t i = from; i < to; i++) {
        float position = (float)c->positions[i];
        for (int64_t j = 0; j < c->half; j++) {
            float *pair = c->table + (i * c->half + j) * 2;
            sincosf(position * c->inv_freq[j], pair + 1, pair);
        }
    }
}

int lsa_rope_table_cpu(float *table, const float *inv_freq, const int32_t *positions, int64_t n,
                       int64_t half, void *stream)
{
    (void)stream;
    int rc = lsa_rope_table_check(n, half);
    if (rc) return rc;
    lsa_parallel(lsa_threads_for(n * half * 12), n, fill_table,
                 &(table_call){table, inv_freq, positions, half});
    return LSA_OK;
}

/* Eight pairs: (a, b) becomes (a cos - b sin, b cos + a sin). */
static inline LSA_BODY f32x16 rotate_pairs(f32x16 v, f32x16 table, float sign)
{
    const i32x16 cosines = {0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14};
    const i32x16 sines = {1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15};
    const i32x16 partners = {1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14};
    const f32x16 signs = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
    f32x16 c = __builtin_shuffle(table, cosines),
           s = __builtin_shuffle(table, sines) * (signs * sign);
    return v * c + __builtin_shuffle(v, partners) * s;
}

static inline LSA_BODY void rotate(float *x, const float *table, int64_t rope_dim, float sign)
{
    int64_t i = 0, tail = rope_dim % 16;
    for (; i + 16 <= rope_dim; i += 16)
        f32x16_store(x + i, rotate_pairs(f32x16_load(x + i), f32x16_load(table + i), sign));
    if (tail)
        f32x16_store_n(
            x + i, rotate_pairs(f32x16_load_n(x + i, tail), f32x16_load_n(table + i, tail), sign),
            tail);
}

static inline LSA_BODY void rotate_rows_body(float *x, const float *table, int64_t rows,
                                             int64_t heads, int64_t dim, int64_t rope_dim,
                                             float sign)
{
    for (int64_t r = 0; r < rows; r++, table += rope_dim)
        for (int64_t h = 0; h < heads; h++, x += dim)
            rotate(x + dim - rope_dim, table, rope_dim, sign);
}

LSA_PATHS(rotate_rows,
          (float *x, const float *table, int64_t rows, int64_t heads, int64_t dim, int64_t rope_dim,
           float sign),
          (x, table, rows, heads, dim, rope_dim, sign))

typedef struct rope_call {
    float *x;
    const float *table;
    int64_t heads, dim, rope_dim;
    float sign;
} rope_call;

static void rotate_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const rope_call *c = context;
    rotate_rows(c->x + from * c->heads * c->dim, c->table + from * c->rope_dim, to - from, c->heads,
                c->dim, c->rope_dim, c->sign);
}

int lsa_rope_cpu(float *x, const float *table, int64_t rows, int64_t heads, int64_t dim,
                 int64_t rope_dim, int32_t inverse, void *stream)
{
    (void)stream;
    int rc = lsa_rope_check(rows, heads, dim, rope_dim);
    if (rc) return rc;
    float sign = inverse ? -1.0f : 1.0f;
    lsa_parallel(lsa_threads_for(rows * heads * (6 + rope_dim / 2)), rows, rotate_part,
                 &(rope_call){x, table, heads, dim, rope_dim, sign});
    return LSA_OK;
}
