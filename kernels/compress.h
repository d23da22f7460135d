/* Compressors: windows of m tokens become one entry each. */
#ifndef LSA_KERNELS_COMPRESS_H
#define LSA_KERNELS_COMPRESS_H
#include <stdint.h>

/* Entries of n full windows, before norm and rope.
 *
 * Without overlap (HCA): kv, gate [n * m, dim]; out[w, c] = sum_i kv[w m + i, c] softmax_i(gate + bias)[i, c].
 * With overlap (CSA, index keys): kv, gate [n * m, 2 dim], the first dim columns series Ca, the others Cb; the softmax
 * runs over 2 m slots: window w-1's Ca and window w's Cb. Window -1 is prev_kv, prev_gate [m, 2 dim] (whole rows; their
 * gate without bias), or absent where they are NULL: its slots then weigh 0.
 * position_bias: [m, width], added to every gate row by its place in its window. out: [n, dim] f32.
 * Softmax per channel in f32. */
typedef int lsa_compress_fn(float *out, const float *kv, const float *gate, const float *prev_kv,
                            const float *prev_gate, const float *position_bias, int64_t n,
                            int64_t m, int64_t dim, int32_t overlap, void *stream);
lsa_compress_fn lsa_compress_cpu, lsa_compress_cuda;

/* The arguments, as both halves check them. */
int lsa_compress_check(int64_t n, int64_t m, int64_t dim);

#endif
