/* Private to linear*.c: the pieces that lsa_linear_cpu chooses from. */
#ifndef LSA_LINEAR_PRIVATE_H
#define LSA_LINEAR_PRIVATE_H
#include "kernels/linear.h"

enum {
    LSA_LINEAR_GROUP = 8, /* tokens that share one pass over the weight */
    LSA_LINEAR_UNIT = 64  /* columns that the vector paths take at once */
};

/* One call, checked. */
typedef struct lsa_linear_call {
    float *y;
    const float *x;
    const lsa_weight *w;
    int64_t tokens, row_from, rows, x_stride, y_stride;
    int32_t compute;
} lsa_linear_call;

/* Columns of prepared x: whole units, zeros beyond cols. */
static inline int64_t lsa_linear_padded(int64_t cols)
{
    return (cols + LSA_LINEAR_UNIT - 1) / LSA_LINEAR_UNIT * LSA_LINEAR_UNIT;
}

/* The values of columns col .. col + n - 1 of one row, scaled, as f32 (rounded to bf16 where
 * asked). */
void lsa_linear_decode(float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n,
                       int32_t round);

/* At most LSA_LINEAR_GROUP tokens; workspace: lsa_linear_vector_workspace bytes. */
void lsa_linear_vector(const lsa_linear_call *call, void *workspace);
int64_t lsa_linear_vector_workspace(const lsa_weight *w, int64_t tokens);

/* Any number of tokens; workspace: lsa_linear_matrix_workspace bytes. */
int lsa_linear_matrix(const lsa_linear_call *call, void *workspace);
int64_t lsa_linear_matrix_workspace(const lsa_weight *w, int64_t tokens, int32_t compute);

/* Rows from .. to - 1 of a call, with x as lsa_linear_vector prepared it for this function. */
typedef void lsa_linear_rows_fn(const lsa_linear_call *call, const void *x, int64_t from,
                                int64_t to);

/* How a path wants its x: f32 in order; f32 with every 32 columns as 16 even, then 16 odd ones;
 * bf16 in order. NIBBLES added: with a unit's even columns before its odd ones first. */
enum {
    LSA_LINEAR_X_F32 = 0,
    LSA_LINEAR_X_SPLIT = 1,
    LSA_LINEAR_X_BF16 = 2,
    LSA_LINEAR_X_NIBBLES = 4
};

/* x of one token for a path, its units `step` bytes apart; rounded to bf16 where asked. */
void lsa_linear_prepare(void *out, const float *x, int64_t cols, int32_t layout, int32_t round,
                        int64_t step);

/* What a path has for this call, and how x must lie; NULL where they have nothing. They read x
 * of 1, 2, 4 or 8 tokens, unit by unit and in a unit token by token: those beyond call->tokens exist, and their result is dropped. */
lsa_linear_rows_fn *lsa_linear_rows_avx2(const lsa_linear_call *call, int32_t *x_layout);
lsa_linear_rows_fn *lsa_linear_rows_avx512(const lsa_linear_call *call, int32_t *x_layout);
lsa_linear_rows_fn *lsa_linear_rows_avx512_bf16(const lsa_linear_call *call, int32_t *x_layout);

#endif
