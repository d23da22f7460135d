/* Softmaxes of rows, summed: what several queries make of the same chunks. */
#ifndef LSA_KERNELS_SOFTMAX_SUM_H
#define LSA_KERNELS_SOFTMAX_SUM_H
#include <stdint.h>

/* out[s] = sum over rows r, ascending, of e^(in[r, s] - max_r) / sum_s e^(in[r, s] - max_r)
 * in: [rows, n] f32 contiguous; out: [n] f32. Denominators are summed in f64. A row with a NaN, or without a finite largest value,
 * makes all of out NaN. No rows: zeros. n = 0 is legal. The same bits on every code path, with any number of threads. */
typedef int lsa_softmax_sum_fn(float *out, const float *in, int64_t rows, int64_t n, void *stream);
lsa_softmax_sum_fn lsa_softmax_sum_cpu, lsa_softmax_sum_cuda;

/* The sizes, as both check them: LSA_ESHAPE. */
int lsa_softmax_sum_check(int64_t rows, int64_t n);

#endif
