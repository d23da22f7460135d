// AdamW on the GPU: a thread a weight. Squares are added up by blocks of one size, whose sums one block joins in order.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/adamw.h"
}

enum { THREADS = 256, PART = 1 << 16 }; // PART: what a sum of the workspace is of, as on the CPU

// Grid: (ceil(n / 256)), block: 256.
__global__ static void adamw(float *x, float *m, float *v, const float *gradient, int64_t n,
                             lsa_adamw_factors f)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads()) {
        float g = gradient[i] * f.gradient_scale;
        float m1 = m[i] * f.beta1 + g * f.rest1, v1 = v[i] * f.beta2 + g * g * f.rest2;
        m[i] = m1;
        v[i] = v1;
        x[i] = x[i] * f.keep - f.rate * m1 / (sqrtf(v1) * f.root2 + f.eps);
    }
}

// Grid: (parts), block: 256.
__global__ static void square_parts(double *sums, const float *x, int64_t n, int64_t parts)
{
    __shared__ double shared[THREADS / LSA_WARP];
    for (int64_t part = blockIdx.x; part < parts; part += gridDim.x) {
        int64_t end = (part + 1) * PART < n ? (part + 1) * PART : n;
        double sum = 0;
        for (int64_t i = part * PART + threadIdx.x; i < end; i += THREADS)
            sum += (double)x[i] * x[i];
        sum = lsa_block_sum(sum, shared);
        if (threadIdx.x == 0) sums[part] = sum;
        __syncthreads();
    }
}

// Grid: (1), block: 256.
__global__ static void join_parts(double *sum, const double *sums, int64_t parts)
{
    __shared__ double shared[THREADS / LSA_WARP];
    double own = 0;
    for (int64_t i = threadIdx.x; i < parts; i += THREADS) own += sums[i];
    own = lsa_block_sum(own, shared);
    if (threadIdx.x == 0) *sum = own;
}

int lsa_adamw_cuda(float *x, float *m, float *v, const float *gradient, int64_t n,
                   const lsa_adamw *how, void *stream)
{
    int rc = lsa_adamw_check(n, how);
    if (rc || n == 0) return rc;
    rc = lsa_launched(
        "adamw", n); // a refusal comes before the launch: weights that moved would be no failure's
    if (rc) return rc;
    adamw<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(x, m, v, gradient, n,
                                                                        lsa_adamw_factors_of(how));
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? LSA_OK : lsa_cuda_failed("adamw", error);
}

int lsa_square_sum_cuda(double *sum, const float *x, int64_t n, void *workspace, void *stream)
{
    if (n < 0) return lsa_fail(LSA_ESHAPE, "square_sum: %lld values", (long long)n);
    int64_t parts = (n + PART - 1) / PART;
    double *sums = (double *)workspace;
    cudaStream_t s = (cudaStream_t)stream;
    if (parts) square_parts<<<lsa_blocks(parts, 1), THREADS, 0, s>>>(sums, x, n, parts);
    join_parts<<<1, THREADS, 0, s>>>(sum, sums, parts);
    return lsa_launched("square_sum", n);
}
