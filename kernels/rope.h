/* Rotary position embedding, interleaved, on the trailing dimensions. */
#ifndef LSA_KERNELS_ROPE_H
#define LSA_KERNELS_ROPE_H
#include <stdint.h>

/* table[i] = cos, sin of every frequency at positions[i]: [n, half, 2]. inv_freq: [half]; positions: [n].
 * The angle is the f32 product position * inv_freq (position exact in f32 below 2^24), its cosine and sine
 * correctly rounded to within an ulp at any size. */
typedef int lsa_rope_table_fn(float *table, const float *inv_freq, const int32_t *positions,
                              int64_t n, int64_t half, void *stream);
lsa_rope_table_fn lsa_rope_table_cpu, lsa_rope_table_cuda;

/* Rotates in place the trailing rope_dim of x [rows, heads, dim]: pair i of row r by table[r, i]
 * (table: [rows, rope_dim / 2, 2]); by the opposite angle when inverse is not 0. rope_dim is even and <= dim. */
typedef int lsa_rope_fn(float *x, const float *table, int64_t rows, int64_t heads, int64_t dim,
                        int64_t rope_dim, int32_t inverse, void *stream);
lsa_rope_fn lsa_rope_cpu, lsa_rope_cuda;

/* The arguments, as both halves check them: LSA_ESHAPE. */
int lsa_rope_table_check(int64_t n, int64_t half);
int lsa_rope_check(int64_t rows, int64_t heads, int64_t dim, int64_t rope_dim);

#endif
