/* Owns the call of oneDNN's f32 product: shapes that it does not take, and its number of threads. */
#include "kernels/gemm.h"

#include <dnnl.h>
#include <omp.h>
#include <string.h>

#include "core/cpu.h"
#include "core/error.h"

static int check(int64_t m, int64_t n, int64_t k, int64_t c_stride, int64_t a_stride, int64_t b_stride,
                 int32_t transpose_a, int32_t transpose_b)
{
    if (m < 0 || n < 0 || k < 0)
        return lsa_fail(LSA_ESHAPE, "gemm: [%lld, %lld] times [%lld, %lld]", (long long)m, (long long)k, (long long)k,
                        (long long)n);
    if (c_stride < n || a_stride < (transpose_a ? m : k) || b_stride < (transpose_b ? k : n))
        return lsa_fail(LSA_ESHAPE, "gemm: row strides %lld = %lld x %lld, of m %lld, n %lld, k %lld", (long long)c_stride,
                        (long long)a_stride, (long long)b_stride, (long long)m, (long long)n, (long long)k);
    return LSA_OK;
}

int lsa_gemm_cpu(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k, int64_t c_stride,
                 int64_t a_stride, int64_t b_stride, int32_t transpose_a, int32_t transpose_b, int32_t accumulate,
                 void *stream)
{
    (void)stream;
    int rc = check(m, n, k, c_stride, a_stride, b_stride, transpose_a, transpose_b);
    if (rc || m == 0 || n == 0) return rc;
    if (k == 0) {
        for (int64_t i = 0; i < m && !accumulate; i++) memset(c + i * c_stride, 0, (size_t)n * sizeof *c);
        return LSA_OK;
    }
    int before = omp_get_max_threads(), threads = lsa_threads_for(m * n * k / 32);
    if (threads != before) omp_set_num_threads(threads);
    dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, 1.0f, a, a_stride, b,
                                      b_stride, accumulate ? 1.0f : 0.0f, c, c_stride);
    if (threads != before) omp_set_num_threads(before);
    if (status != dnnl_success) return lsa_fail(LSA_EARG, "gemm: oneDNN gives status %d", (int)status);
    return LSA_OK;
}
