/* Private to CUDA files: rotary position embedding, with the CPU's bits. */
#ifndef LSA_ROPE_CUDA_H
#define LSA_ROPE_CUDA_H
#include <cuda_runtime.h>
#include <stdint.h>

/* In f64, where any angle of an f32 is far from its end. */
__device__ static inline void lsa_rope_turn(float *cosine, float *sine, int32_t position,
                                            float inv_freq)
{
    double s, c;
    sincos((double)__fmul_rn((float)position, inv_freq), &s, &c);
    *cosine = (float)c;
    *sine = (float)s;
}

__device__ static inline void lsa_rope_pair(float *at, float cosine, float sine)
{
    float a = at[0], b = at[1];
    at[0] = __fadd_rn(__fmul_rn(a, cosine), __fmul_rn(b, -sine));
    at[1] = __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
}

#endif
