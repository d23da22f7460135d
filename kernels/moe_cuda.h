/* Private to CUDA files: the gated activation, with the CPU's bits. */
#ifndef LSA_MOE_CUDA_H
#define LSA_MOE_CUDA_H
#include "kernels/vector_math.h"

__device__ static inline float lsa_swiglu_of(float gate, float up, float limit)
{
    f32x16 g = f32x16_at_most(gate, limit);
    f32x16 u = f32x16_at_least(f32x16_at_most(up, limit), -limit);
    return (g * f32x16_sigmoid(g) * u).lane;
}

#endif
