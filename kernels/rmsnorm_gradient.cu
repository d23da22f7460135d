// The gradient of RMSNorm on the GPU. The weight's needs x and dy of all rows, so it is taken first: dx may be dy.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/rmsnorm_gradient.h"
}

enum { THREADS = 256 };

__device__ static float root(float squares, int64_t n, float eps)
{
    return 1.0f / sqrtf(squares / (float)n + eps);
}

// A warp's sum of a row's squares, the same in every kernel here.
__device__ static float row_squares(const float *x, int64_t n, int lane)
{
    float sum = 0;
    for (int64_t i = lane; i < n; i += LSA_WARP) sum = fmaf(x[i], x[i], sum);
    return lsa_warp_sum(sum);
}

// 32 columns a block: its 8 warps find 8 rows' roots, and a lane of the first adds up its column in the rows' order.
// Grid: (ceil(n / 32)), block: 256.
__global__ static void weight_gradient(float *dweight, const float *dy, const float *x,
                                       int64_t rows, int64_t n, float eps)
{
    __shared__ float roots[THREADS / LSA_WARP];
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    for (int64_t from = (int64_t)blockIdx.x * LSA_WARP; from < n;
         from += (int64_t)gridDim.x * LSA_WARP) {
        int64_t column = from + lane;
        float sum = 0;
        for (int64_t r = 0; r < rows; r += THREADS / LSA_WARP) {
            if (r + warp < rows) {
                float squares = row_squares(x + (r + warp) * n, n, lane);
                if (lane == 0) roots[warp] = root(squares, n, eps);
            }
            __syncthreads();
            for (int i = 0; warp == 0 && column < n && i < THREADS / LSA_WARP && r + i < rows;
                 i++) {
                int64_t at = (r + i) * n + column;
                sum += dy[at] * x[at] * roots[i];
            }
            __syncthreads();
        }
        if (warp == 0 && column < n) dweight[column] = sum;
    }
}

// A warp a row. Grid: (ceil(rows / 8)), block: 256.
__global__ static void row_gradient(float *dx, const float *dy, const float *x, const float *weight,
                                    int64_t rows, int64_t n, float eps)
{
    int lane = threadIdx.x % LSA_WARP;
    for (int64_t r = lsa_thread() / LSA_WARP; r < rows; r += lsa_threads() / LSA_WARP) {
        const float *xr = x + r * n, *dr = dy + r * n;
        float products = 0, s = root(row_squares(xr, n, lane), n, eps);
        for (int64_t i = lane; i < n; i += LSA_WARP) products += xr[i] * weight[i] * dr[i];
        float back = s * s * (lsa_warp_sum(products) / (float)n);
        for (int64_t i = lane; i < n; i += LSA_WARP)
            dx[r * n + i] = (weight[i] * dr[i] - xr[i] * back) * s;
    }
}

int lsa_rmsnorm_gradient_cuda(float *dx, float *dweight, const float *dy, const float *x,
                              const float *weight, int64_t rows, int64_t n, float eps, void *stream)
{
    int rc = lsa_rmsnorm_gradient_check(rows, n);
    if (rc) return rc;
    cudaStream_t s = (cudaStream_t)stream;
    weight_gradient<<<lsa_blocks(n, LSA_WARP), THREADS, 0, s>>>(dweight, dy, x, rows, n, eps);
    if (rows)
        row_gradient<<<lsa_blocks(rows, THREADS / LSA_WARP), THREADS, 0, s>>>(dx, dy, x, weight,
                                                                              rows, n, eps);
    return lsa_launched("rmsnorm_gradient", rows, n);
}
