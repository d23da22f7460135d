/* Private to CUDA files: butterflies in shared memory, of distance 1, 2, 4, ... as on the CPU. */
#ifndef LSA_HADAMARD_CUDA_H
#define LSA_HADAMARD_CUDA_H
#include <cuda_runtime.h>
#include <stdint.h>

/* x[count], rows of dim <= count one after the other; the block's threads have a barrier before and after it. */
__device__ static inline void lsa_butterflies(float *x, int count, int dim)
{
    for (int h = 1; h < dim; h *= 2) {
        for (int p = threadIdx.x; p < count / 2; p += blockDim.x) {
            int i = 2 * p - (p & (h - 1));
            float low = x[i], high = x[i + h];
            x[i] = low + high;
            x[i + h] = low - high;
        }
        __syncthreads();
    }
}

#endif
