// Dense products on the GPU by cuBLASLt, for training. BLAS counts columns: a row-major c = a b is its c^T = b^T a^T.
#include "kernels/gemm_cuda.h"

#include <pthread.h>
#include <string.h>

#include "kernels/cublaslt.h"
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/gemm.h"
}

// One product as cuBLASLt sees it, but for where its numbers lie; no gaps, so that equal ones have equal bytes.
struct shape {
    int64_t m, n, k, batch, c_stride, c_step, a_stride, a_step, b_stride, b_step;
    uint32_t a_boundary, b_boundary, c_boundary;
    int32_t a_transposed, b_transposed, gpu;
};

struct shapes {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t a, b, c;
};

// Of cuBLASLt's a, which is ours b: stored rows are its columns.
static cublasStatus_t lay_out(cublasLtMatrixLayoutOpaque_t *layout, int64_t stored_rows,
                              int64_t stored_cols, int64_t stride, int64_t step, int64_t batch)
{
    int32_t count = (int32_t)batch;
    cublasStatus_t rc = cublasLtMatrixLayoutInit(layout, CUDA_R_32F, (uint64_t)stored_cols,
                                                 (uint64_t)stored_rows, stride);
    if (!rc)
        rc = cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                              sizeof count);
    if (!rc)
        rc = cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                              &step, sizeof step);
    return rc;
}

// The largest power of two, up to 16, that an address and the steps from it are multiples of.
static uint32_t boundary(const float *data, int64_t stride, int64_t step)
{
    uint64_t all = (uint64_t)(uintptr_t)data | (uint64_t)(stride * 4) | (uint64_t)(step * 4) | 16;
    return (uint32_t)(all & (~all + 1));
}

static cublasStatus_t choose(cublasLtMatmulAlgo_t *algorithm, cublasLtHandle_t handle, shapes *s,
                             const shape &of)
{
    cublasLtMatmulPreferenceOpaque_t wish;
    cublasLtMatmulHeuristicResult_t found;
    uint64_t bytes = 0;
    uint32_t alone = CUBLASLT_REDUCTION_SCHEME_NONE;
    int count = 0;
    cublasStatus_t rc = cublasLtMatmulPreferenceInit(&wish);
    auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const void *value, size_t size) {
        if (!rc) rc = cublasLtMatmulPreferenceSetAttribute(&wish, name, value, size);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &alone, sizeof alone);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &of.b_boundary, sizeof of.b_boundary);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &of.a_boundary, sizeof of.a_boundary);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &of.c_boundary, sizeof of.c_boundary);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &of.c_boundary, sizeof of.c_boundary);
    if (!rc)
        rc = cublasLtMatmulAlgoGetHeuristic(handle, &s->product, &s->a, &s->b, &s->c, &s->c, &wish,
                                            1, &found, &count);
    if (!rc && count == 0) rc = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!rc) *algorithm = found.algo;
    return rc;
}

// What was chosen for a shape stays so: the same bits however often it comes. Shapes beyond what is kept are chosen for anew.
static cublasStatus_t chosen(cublasLtMatmulAlgo_t *algorithm, cublasLtHandle_t handle, shapes *s,
                             const shape &of)
{
    enum { KEPT = 512 };
    static struct {
        shape of;
        cublasLtMatmulAlgo_t algorithm;
    } kept[KEPT];
    static int count;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
    int i = 0;
    pthread_mutex_lock(&lock);
    while (i < count && memcmp(&kept[i].of, &of, sizeof of)) i++;
    if (i < count)
        *algorithm = kept[i].algorithm;
    else
        rc = choose(algorithm, handle, s, of);
    if (!rc && i == count && count < KEPT) {
        kept[count].of = of;
        kept[count++].algorithm = *algorithm;
    }
    pthread_mutex_unlock(&lock);
    return rc;
}

static cublasStatus_t multiply(float *c, lsa_gemm_matrix a, lsa_gemm_matrix b, const shape &of,
                               cudaStream_t stream)
{
    shapes s;
    cublasLtHandle_t handle = NULL;
    cublasLtMatmulAlgo_t algorithm;
    const float one = 1, none = 0;
    int64_t m = of.m, n = of.n, k = of.k;
    cublasOperation_t op_a = b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
                      op_b = a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    cublasStatus_t rc = lsa_cublaslt(&handle);
    if (!rc) rc = cublasLtMatmulDescInit(&s.product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!rc)
        rc = cublasLtMatmulDescSetAttribute(&s.product, CUBLASLT_MATMUL_DESC_TRANSA, &op_a,
                                            sizeof op_a);
    if (!rc)
        rc = cublasLtMatmulDescSetAttribute(&s.product, CUBLASLT_MATMUL_DESC_TRANSB, &op_b,
                                            sizeof op_b);
    if (!rc)
        rc = lay_out(&s.a, b.transposed ? n : k, b.transposed ? k : n, b.stride, b.step, of.batch);
    if (!rc)
        rc = lay_out(&s.b, a.transposed ? k : m, a.transposed ? m : k, a.stride, a.step, of.batch);
    if (!rc) rc = lay_out(&s.c, m, n, of.c_stride, of.c_step, of.batch);
    if (!rc) rc = chosen(&algorithm, handle, &s, of);
    if (!rc)
        rc = cublasLtMatmul(handle, &s.product, &one, b.data, &s.a, a.data, &s.b, &none, c, &s.c, c,
                            &s.c, &algorithm, NULL, 0, stream);
    return rc;
}

// Zeros, where there is nothing to add up. Grid: (ceil(batch m n / 256)), block: 256.
__global__ static void clear(float *c, int64_t c_stride, int64_t c_step, int64_t m, int64_t n,
                             int64_t batch)
{
    for (int64_t i = lsa_thread(); i < batch * m * n; i += lsa_threads())
        c[i / (m * n) * c_step + i % (m * n) / n * c_stride + i % n] = 0;
}

int lsa_gemm_batch_cuda(const char *op, float *c, int64_t c_stride, int64_t c_step,
                        lsa_gemm_matrix a, lsa_gemm_matrix b, int64_t m, int64_t n, int64_t k,
                        int64_t batch, void *stream)
{
    cudaStream_t s = (cudaStream_t)stream;
    if (m == 0 || n == 0 || batch == 0) return LSA_OK;
    if (k == 0) {
        clear<<<lsa_blocks(batch * m * n, 256), 256, 0, s>>>(c, c_stride, c_step, m, n, batch);
        return lsa_launched(op, m, n, k);
    }
    shape of;
    memset(&of, 0, sizeof of);
    of = {m,
          n,
          k,
          batch,
          c_stride,
          c_step,
          a.stride,
          a.step,
          b.stride,
          b.step,
          boundary(a.data, a.stride, a.step),
          boundary(b.data, b.stride, b.step),
          boundary(c, c_stride, c_step),
          a.transposed,
          b.transposed,
          lsa_device_current()};
    cublasStatus_t rc = multiply(c, a, b, of, s);
    if (rc)
        return lsa_fail(LSA_EDEVICE, "%s: %lld products of %lld x %lld by %lld x %lld: %s", op,
                        (long long)batch, (long long)m, (long long)k, (long long)k, (long long)n,
                        cublasLtGetStatusString(rc));
    return lsa_launched(op, m, n, k);
}

int lsa_gemm_cuda(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k,
                  int64_t c_stride, int64_t a_stride, int64_t b_stride, int32_t transpose_a,
                  int32_t transpose_b, void *stream)
{
    int rc = lsa_gemm_check(m, n, k, c_stride, a_stride, b_stride, transpose_a, transpose_b);
    if (rc) return rc;
    return lsa_gemm_batch_cuda("gemm", c, c_stride, 0, {a, a_stride, 0, transpose_a != 0},
                               {b, b_stride, 0, transpose_b != 0}, m, n, k, 1, stream);
}
