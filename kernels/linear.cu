// Linear layers on the GPU. Few tokens stream the weight by our own kernels, eight tokens a pass: which numbers a lane adds
// up, and in which order sums meet, follows from the weight's columns alone, so an output's bits depend neither on the
// number of tokens nor on the rows asked for. Many tokens are a product by cuBLASLt, its algorithm chosen for the weight's
// shape and one number of tokens, whatever their number is; weights that are not stored as the product wants them are made
// so in the workspace, some rows at a time.
#include "kernels/cublaslt.h"
#include "kernels/linear_mma.h"

enum {
    TILE_NUMBERS = 1 << 24, // weights, or rounded x, in the workspace at a time
    PINNED_TOKENS = 512,    // that the product's algorithm is chosen for
    PRODUCT_BYTES = 32 << 20,
    BOUNDARY = 256, // on which cuBLASLt wants its workspace
    THREADS = WARPS * LSA_WARP
};

// ---- few tokens ----

// Grid: (ceil(rows / (8 / splits ROWS))), block: 256.
template <typename NUMBERS, int ROWS, int TOKENS>
__global__ static void __launch_bounds__(THREADS, TOKENS > 4 ? 1 : 2)
    linear_eights(product p, int splits)
{
    rows_in_eights<NUMBERS, ROWS, TOKENS>(p, in_order{p.tokens - 1}, blockIdx.x, splits);
}

// Grid: (ceil(rows / (8 / splits))), block: 256.
__global__ static void linear_any(product p, int splits)
{
    rows_of_any<GROUP>(p, in_order{p.tokens - 1}, blockIdx.x, splits);
}

template <typename NUMBERS, int ROWS, int TOKENS>
static void launch(const product &p, cudaStream_t stream)
{
    int splits = splits_of(p.cols), rows = WARPS / splits * ROWS;
    unsigned blocks = (unsigned)((p.rows + rows - 1) / rows);
    linear_eights<NUMBERS, ROWS, TOKENS><<<blocks, THREADS, 0, stream>>>(p, splits);
}

template <typename NUMBERS> static void launch_tokens(const product &p, cudaStream_t stream)
{
    if (p.tokens == 1)
        launch<NUMBERS, 2, 1>(p, stream);
    else if (p.tokens == 2)
        launch<NUMBERS, 2, 2>(p, stream);
    else if (p.tokens <= 4)
        launch<NUMBERS, 2, 4>(p, stream);
    else
        launch<NUMBERS, 2, 8>(p, stream);
}

// Grid: any, block: 256, shared: strip_x_bytes.
template <typename PIECES, int ROWS, int TOKENS>
__global__ static void __launch_bounds__(THREADS, 2)
    linear_strips(const __grid_constant__ product p)
{
    extern __shared__ uint4 x[];
    product_strips<PIECES, ROWS, 4, TOKENS>(p, in_order{p.tokens - 1}, blockIdx.x, gridDim.x, x,
                                            [] { lsa_after_previous(); });
}

// How many blocks strips keep busy: x is made once a block, which of one token costs little.
enum { ENOUGH_BLOCKS = 264 };

template <typename PIECES, int ROWS, int TOKENS>
static int launch_strips(const product &p, cudaStream_t stream)
{
    auto kernel = linear_strips<PIECES, ROWS, TOKENS>;
    size_t shared = (size_t)strip_x_bytes(p.cols, p.dtype, TOKENS);
    int64_t each = WARPS / strip_splits(p.cols, p.dtype) * ROWS * STRIP;
    int64_t blocks = (p.rows + each - 1) / each;
    if (TOKENS > 1 && blocks > ENOUGH_BLOCKS) blocks = ENOUGH_BLOCKS;
    if (shared > 48 << 10 &&
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared))
        return lsa_launched("linear", p.rows, p.cols);
    lsa_launch(kernel, dim3((unsigned)blocks), THREADS, shared, stream, p);
    return LSA_OK;
}

// Half strips where whole ones are too few for the multiprocessors.
template <typename PIECES> static int strips(const product &p, cudaStream_t stream)
{
    int64_t blocks = p.rows * strip_splits(p.cols, p.dtype) / (WARPS * 2 * STRIP);
    if (p.tokens > 1) return launch_strips<PIECES, 2, GROUP>(p, stream);
    return blocks < ENOUGH_BLOCKS / 2 ? launch_strips<PIECES, 1, 1>(p, stream)
                                      : launch_strips<PIECES, 2, 1>(p, stream);
}

static int few_by_tensor_cores(const product &p, int64_t tokens, cudaStream_t stream)
{
    int rc = LSA_OK;
    for (int64_t t = 0; t < tokens && !rc; t += GROUP) {
        product part = p;
        part.x += t * p.x_stride;
        part.y += t * p.y_stride;
        part.tokens = (int32_t)(tokens - t < GROUP ? tokens - t : (int64_t)GROUP);
        rc = p.dtype == LSA_BF16      ? strips<piece_bf16>(part, stream)
             : p.dtype == LSA_F8_E4M3 ? strips<piece_e4m3>(part, stream)
                                      : strips<piece_e2m1>(part, stream);
    }
    return rc ? rc : lsa_launched("linear", p.rows, p.cols);
}

static int few_tokens(product p, int64_t tokens, cudaStream_t stream)
{
    for (int64_t t = 0; t < tokens; t += GROUP) {
        product part = p;
        part.x += t * p.x_stride;
        part.y += t * p.y_stride;
        part.tokens = (int32_t)(tokens - t < GROUP ? tokens - t : (int64_t)GROUP);
        int splits = splits_of(p.cols), rows = WARPS / splits;
        if (!in_eights(p))
            linear_any<<<(unsigned)((p.rows + rows - 1) / rows), THREADS, 0, stream>>>(part,
                                                                                       splits);
        else if (p.dtype == LSA_F32)
            launch_tokens<eight_f32>(part, stream);
        else if (p.dtype == LSA_BF16)
            launch_tokens<eight_bf16>(part, stream);
        else if (p.dtype == LSA_F16)
            launch_tokens<eight_f16>(part, stream);
        else if (p.dtype == LSA_F8_E4M3)
            launch_tokens<eight_e4m3>(part, stream);
        else
            launch_tokens<eight_e2m1>(part, stream);
    }
    return lsa_launched("linear");
}

// ---- many tokens ----

// Weight rows as the product wants them, zeros behind the columns. Grid: (ceil(n width / 256)), block: 256.
template <typename T>
__global__ static void dense_rows(T *out, product p, int64_t row, int64_t n, int64_t width)
{
    for (int64_t i = lsa_thread(); i < n * width; i += lsa_threads())
        out[i] =
            i % width < p.cols ? (T)weight_at(p, p.row_from + row + i / width, i % width) : (T)0.0f;
}

// Rows of x, rounded where T is narrower, zeros behind the columns. Grid: (ceil(n width / 256)), block: 256.
template <typename T>
__global__ static void packed_x(T *out, product p, int64_t token, int64_t n, int64_t width)
{
    for (int64_t i = lsa_thread(); i < n * width; i += lsa_threads())
        out[i] =
            i % width < p.cols ? (T)p.x[(token + i / width) * p.x_stride + i % width] : (T)0.0f;
}

static int refused(cublasStatus_t status, const product &p, int64_t tokens)
{
    return lsa_fail(LSA_EDEVICE, "linear: %lld x %lld by %lld tokens: %s", (long long)p.rows,
                    (long long)p.cols, (long long)tokens, cublasLtGetStatusString(status));
}

// One product's shapes: y [tokens, rows] = x [tokens, width] w [rows, width]^T, column by column as BLAS counts.
struct shapes {
    cublasLtMatmulDescOpaque_t product;
    cublasLtMatrixLayoutOpaque_t w, x, y;
};

static cublasStatus_t describe(shapes *s, cudaDataType_t type, int64_t rows, int64_t tokens,
                               int64_t width, int64_t x_stride, int64_t y_stride)
{
    cublasOperation_t transposed = CUBLAS_OP_T;
    cublasStatus_t rc = cublasLtMatmulDescInit(&s->product, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!rc)
        rc = cublasLtMatmulDescSetAttribute(&s->product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof transposed);
    if (!rc) rc = cublasLtMatrixLayoutInit(&s->w, type, width, rows, width);
    if (!rc) rc = cublasLtMatrixLayoutInit(&s->x, type, width, tokens, x_stride);
    if (!rc) rc = cublasLtMatrixLayoutInit(&s->y, CUDA_R_32F, rows, tokens, y_stride);
    return rc;
}

// No sums shared between blocks: such orders may depend on more than the shape.
static cublasStatus_t choose(cublasLtMatmulAlgo_t *algorithm, cublasLtHandle_t handle, shapes *s)
{
    cublasLtMatmulPreferenceOpaque_t wish;
    cublasLtMatmulHeuristicResult_t found;
    uint64_t bytes = PRODUCT_BYTES;
    uint32_t alone = CUBLASLT_REDUCTION_SCHEME_NONE, boundary = 16, y_boundary = 4;
    int count = 0;
    cublasStatus_t rc = cublasLtMatmulPreferenceInit(&wish);
    auto set = [&](cublasLtMatmulPreferenceAttributes_t name, const void *value, size_t size) {
        if (!rc) rc = cublasLtMatmulPreferenceSetAttribute(&wish, name, value, size);
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &alone, sizeof alone);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &boundary, sizeof boundary);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &boundary, sizeof boundary);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &y_boundary, sizeof y_boundary);
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &y_boundary, sizeof y_boundary);
    if (!rc)
        rc = cublasLtMatmulAlgoGetHeuristic(handle, &s->product, &s->w, &s->x, &s->y, &s->y, &wish,
                                            1, &found, &count);
    if (!rc && count == 0) rc = CUBLAS_STATUS_NOT_SUPPORTED;
    if (!rc) *algorithm = found.algo;
    return rc;
}

static cublasStatus_t multiply(float *y, const void *w, const void *x, cudaDataType_t type,
                               int64_t rows, int64_t tokens, int64_t width, int64_t x_stride,
                               int64_t y_stride, void *workspace, cudaStream_t stream)
{
    shapes s;
    cublasLtMatmulAlgo_t algorithm;
    cublasLtMatmulHeuristicResult_t fits;
    const float one = 1, none = 0;
    cublasLtHandle_t handle = NULL;
    cublasStatus_t rc = lsa_cublaslt(&handle);
    if (!rc) rc = describe(&s, type, rows, PINNED_TOKENS, width, x_stride, y_stride);
    if (!rc) rc = choose(&algorithm, handle, &s);
    if (!rc) rc = describe(&s, type, rows, tokens, width, x_stride, y_stride);
    if (!rc)
        rc = cublasLtMatmulAlgoCheck(handle, &s.product, &s.w, &s.x, &s.y, &s.y, &algorithm, &fits);
    if (!rc)
        rc = cublasLtMatmul(handle, &s.product, &one, w, &s.w, x, &s.x, &none, y, &s.y, y, &s.y,
                            &algorithm, workspace, PRODUCT_BYTES, stream);
    return rc;
}

static int64_t aligned(int64_t bytes) { return (bytes + BOUNDARY - 1) / BOUNDARY * BOUNDARY; }

static int64_t width_of(int64_t cols) { return (cols + 7) / 8 * 8; }

// How many rows of `width` numbers are in the workspace at a time.
static int64_t held(int64_t rows, int64_t width)
{
    int64_t most = TILE_NUMBERS / (width + 1);
    if (most < 256) most = 256;
    return rows < most ? rows : most;
}

// Whether the weight is stored as the product wants it.
static bool is_dense(const product &p, bool bf16)
{
    return !p.scale && p.dtype == (bf16 ? LSA_BF16 : LSA_F32) && p.cols % 8 == 0 &&
           (uintptr_t)p.data % 16 == 0;
}

// T: __nv_bfloat16 or float, what both factors are.
template <typename T>
static int many_tokens(const product &p, int64_t tokens, char *workspace, cudaStream_t stream)
{
    constexpr bool bf16 = sizeof(T) == 2;
    int64_t width = width_of(p.cols), most = held(p.rows, width), group = held(tokens, width);
    T *dense = (T *)(workspace + PRODUCT_BYTES);
    T *x = (T *)((char *)dense + aligned(most * width * (int64_t)sizeof(T)));
    for (int64_t t = 0; t < tokens; t += group) {
        int64_t many = tokens - t < group ? tokens - t : group;
        const T *from = x;
        int64_t x_stride = width;
        if (!bf16 && p.x_whole && width == p.cols) {
            from = (const T *)(p.x + t * p.x_stride);
            x_stride = p.x_stride;
        } else {
            packed_x<<<lsa_blocks(many * width, THREADS), THREADS, 0, stream>>>(x, p, t, many,
                                                                                width);
        }
        for (int64_t r = 0; r < p.rows; r += most) {
            int64_t n = p.rows - r < most ? p.rows - r : most;
            const T *w = (const T *)p.data + (p.row_from + r) * p.cols;
            if (!is_dense(p, bf16)) {
                dense_rows<<<lsa_blocks(n * width, THREADS), THREADS, 0, stream>>>(dense, p, r, n,
                                                                                   width);
                w = dense;
            }
            cublasStatus_t rc =
                multiply(p.y + t * p.y_stride + r, w, from, bf16 ? CUDA_R_16BF : CUDA_R_32F, n,
                         many, width, x_stride, p.y_stride, workspace, stream);
            if (rc) return refused(rc, p, tokens);
        }
    }
    return lsa_launched("linear");
}

// ---- launcher ----

int64_t lsa_linear_workspace_cuda(const lsa_weight *w, int64_t tokens, int64_t rows,
                                  int32_t compute)
{
    (void)rows;
    if (tokens <= FEW_TOKENS) return 0;
    int64_t width = width_of(w->cols), size = compute == LSA_COMPUTE_BF16 ? 2 : 4;
    return BOUNDARY + PRODUCT_BYTES + aligned(held(w->rows, width) * width * size) +
           aligned(held(tokens, width) * width * size);
}

int lsa_linear_cuda(float *y, const float *x, const lsa_weight *w, int64_t tokens, int64_t row_from,
                    int64_t rows, int64_t x_stride, int64_t y_stride, int32_t compute,
                    void *workspace, void *stream)
{
    int rc = lsa_linear_check(w, tokens, row_from, rows, x_stride, y_stride, compute);
    if (rc || tokens == 0 || rows == 0) return rc;
    product p = product_of(y, x, *w, tokens, row_from, rows, x_stride, y_stride, compute);
    if (tokens == 1) p.x_stride = p.y_stride = w->cols > rows ? w->cols : rows;
    if (tokens == 1) p.x_whole = (uintptr_t)x % 16 == 0 && w->cols % EIGHT == 0;
    cudaStream_t s = (cudaStream_t)stream;
    if (tokens <= FEW_TOKENS && by_tensor_cores(*w, compute))
        return few_by_tensor_cores(p, tokens, s);
    if (tokens <= FEW_TOKENS || w->cols == 0) return few_tokens(p, tokens, s);
    char *work = (char *)aligned((intptr_t)workspace);
    return compute == LSA_COMPUTE_BF16 ? many_tokens<__nv_bfloat16>(p, tokens, work, s)
                                       : many_tokens<float>(p, tokens, work, s);
}
