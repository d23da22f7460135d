// Arithmetic on f32 elements on the GPU, with the CPU's bits.
#include "kernels/cuda_launch.h"
#include "kernels/vector_math.h"

extern "C" {
#include "kernels/elementwise.h"
}

enum { THREADS = 256 };

// ---- kernels ----

__device__ static float applied(float a, float b, int32_t op)
{
    switch (op) {
    case LSA_ADD:
        return a + b;
    case LSA_SUB:
        return a - b;
    case LSA_MUL:
        return a * b;
    case LSA_DIV:
        return a / b;
    case LSA_MIN:
        return f32x16_smaller(a, b).lane;
    default:
        return f32x16_larger(a, b).lane;
    }
}

// Grid: (ceil(n / 256)), block: 256.
__global__ static void binary_each(float *out, const float *a, const float *b, int64_t n,
                                   int64_t period, int32_t op)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads())
        out[i] = applied(a[i], b[period == n ? i : i % period], op);
}

// Grid: (ceil(n / 256)), block: 256.
__global__ static void unary_each(float *out, const float *a, int64_t n, int32_t op)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads()) {
        f32x16 v = a[i];
        out[i] = (op == LSA_EXP   ? f32x16_exp(v)
                  : op == LSA_LOG ? f32x16_log(v)
                                  : f32x16_sigmoid(v))
                     .lane;
    }
}

// Grid: (ceil(n / 256)), block: 256.
__global__ static void scale_each(float *x, float factor, int64_t n)
{
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads()) x[i] *= factor;
}

// ---- launchers ----

int lsa_binary_cuda(float *out, const float *a, const float *b, int64_t n, int64_t period,
                    int32_t op, void *stream)
{
    int rc = lsa_binary_check(n, period, op);
    if (rc || n == 0) return rc;
    binary_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(out, a, b, n, period,
                                                                              op);
    return lsa_launched("binary", n);
}

int lsa_unary_cuda(float *out, const float *a, int64_t n, int32_t op, void *stream)
{
    int rc = lsa_unary_check(n, op);
    if (rc || n == 0) return rc;
    unary_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(out, a, n, op);
    return lsa_launched("unary", n);
}

int lsa_scale_cuda(float *x, float factor, int64_t n, void *stream)
{
    if (n <= 0) return LSA_OK;
    scale_each<<<lsa_blocks(n, THREADS), THREADS, 0, (cudaStream_t)stream>>>(x, factor, n);
    return lsa_launched("scale", n);
}
