/* Private to linear*.c: the pieces that lsa_linear_cpu chooses from. */
#ifndef LSA_LINEAR_PRIVATE_H
#define LSA_LINEAR_PRIVATE_H
#include "kernels/linear.h"

enum { LSA_LINEAR_GROUP = 8 };               /* tokens that share one pass over the weight */

/* One call, checked. */
typedef struct lsa_linear_call {
    float *y;
    const float *x;
    const lsa_weight *w;
    int64_t tokens, row_from, rows, x_stride, y_stride;
    int32_t compute;
} lsa_linear_call;

/* The values of columns col .. col + n - 1 of one row, scaled, as f32 (rounded to bf16 where asked). */
void lsa_linear_decode(float *out, const lsa_weight *w, int64_t row, int64_t col, int64_t n, int32_t round);

/* At most LSA_LINEAR_GROUP tokens; workspace: lsa_linear_vector_workspace bytes. */
void lsa_linear_vector(const lsa_linear_call *call, void *workspace);
int64_t lsa_linear_vector_workspace(const lsa_weight *w, int64_t tokens);

#endif
