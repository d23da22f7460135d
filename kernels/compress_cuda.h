/* Private to CUDA files: one channel of a compressed entry, with the CPU's bits. */
#ifndef LSA_COMPRESS_CUDA_H
#define LSA_COMPRESS_CUDA_H
#include "kernels/vector_math.h"

/* The window's slots are those of places 0 .. m-1, in columns of `shift` more; the window before it has places -m .. -1.
 * rows.kv(place), rows.gate(place): a slot's row. from: -m, or 0 where there is no window before. */
template <typename ROWS>
__device__ static inline float lsa_mixed(const ROWS &rows, const float *bias, int64_t from,
                                         int64_t m, int64_t width, int64_t c, int64_t shift)
{
    f32x16 most = -INFINITY, sum = 0.0f, out = 0.0f;
    for (int64_t i = from; i < m; i++) {
        int64_t at = i < 0 ? c : c + shift;
        f32x16 g = f32x16(rows.gate(i)[at]) + bias[(i < 0 ? i + m : i) * width + at];
        most = f32x16_select(f32x16_below(most, g), g, most);
    }
    for (int64_t i = from; i < m; i++) {
        int64_t at = i < 0 ? c : c + shift;
        f32x16 g = f32x16(rows.gate(i)[at]) + bias[(i < 0 ? i + m : i) * width + at];
        f32x16 p = f32x16_exp(g - most);
        sum += p;
        out += p * rows.kv(i)[at];
    }
    return (out / sum).lane;
}

#endif
