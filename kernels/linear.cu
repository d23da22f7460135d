// Linear layers on the GPU. Few tokens stream the weight by our own kernels, eight tokens a pass: which numbers a lane adds
// up, and in which order sums meet, follows from the weight's columns alone, so an output's bits depend neither on the
// number of tokens nor on the rows asked for. Many tokens are a product by cuBLASLt, its algorithm chosen for the weight's
// shape and one number of tokens, whatever their number is; weights that are not stored as the product wants them are made
// so in the workspace, some rows at a time.
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda_launch.h"
#include "kernels/number_formats.h"

extern "C" {
#include "kernels/linear.h"
}

enum {
    FEW_TOKENS = 32, // more than these are a matrix product
    GROUP = 8,       // tokens that share a pass
    WARPS = 8,       // of a block
    EIGHT = 8,       // columns of a lane's step
    STEP = EIGHT * LSA_WARP,
    STEPS_AHEAD = 4,        // loads in flight a row
    TILE_NUMBERS = 1 << 24, // weights, or rounded x, in the workspace at a time
    PINNED_TOKENS = 512,    // that the product's algorithm is chosen for
    PRODUCT_BYTES = 32 << 20,
    THREADS = 256
};

// A call, checked. Scales of block (r >> row_shift, c >> col_shift) where the blocks' sizes are powers of two.
struct product {
    float *y;
    const float *x;
    const uint8_t *data;
    const void *scale;
    int64_t cols, row_from, rows, x_stride, y_stride, block_rows, block_cols, across;
    int32_t dtype, scale_dtype, tokens, row_shift, col_shift;
    bool round_x, round_w, x_whole;
};

// ---- helpers ----

__device__ static float bf16_rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

__device__ static float scale_at(const product &p, int64_t i)
{
    return p.scale_dtype == LSA_F32 ? ((const float *)p.scale)[i]
                                    : e8m0_to_f32(((const uint8_t *)p.scale)[i]);
}

// Any number of the weight, scaled, and rounded where the call wants that.
__device__ static float weight_at(const product &p, int64_t row, int64_t col)
{
    int64_t at = row * p.cols + col;
    float w;
    if (p.dtype == LSA_F32)
        w = ((const float *)p.data)[at];
    else if (p.dtype == LSA_BF16)
        w = bf16_to_f32(((const uint16_t *)p.data)[at]);
    else if (p.dtype == LSA_F16)
        w = f16_to_f32(((const uint16_t *)p.data)[at]);
    else if (p.dtype == LSA_F8_E4M3)
        w = e4m3_to_f32(p.data[at]);
    else
        w = e2m1_to_f32((uint8_t)(p.data[at / 2] >> at % 2 * 4));
    if (p.scale) w *= scale_at(p, row / p.block_rows * p.across + col / p.block_cols);
    return p.round_w ? bf16_rounded(w) : w;
}

// Eight numbers as they are stored, on a boundary of their size, and as f32.
struct eight_f32 {
    uint4 low, high;
    __device__ void load(const uint8_t *data, int64_t at)
    {
        low = __ldcs((const uint4 *)(data + 4 * at));
        high = __ldcs((const uint4 *)(data + 4 * at) + 1);
    }
    __device__ void numbers(float *w) const
    {
        memcpy(w, &low, sizeof low);
        memcpy(w + 4, &high, sizeof high);
    }
};

struct eight_bf16 {
    uint4 word;
    __device__ void load(const uint8_t *data, int64_t at)
    {
        word = __ldcs((const uint4 *)(data + 2 * at));
    }
    __device__ void numbers(float *w) const
    {
        const uint32_t pair[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[2 * i] = f32_from_bits(pair[i] << 16);
            w[2 * i + 1] = f32_from_bits(pair[i] & 0xffff0000);
        }
    }
};

struct eight_f16 : eight_bf16 {
    __device__ void numbers(float *w) const
    {
        const uint32_t pair[4] = {word.x, word.y, word.z, word.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[2 * i] = f16_to_f32((uint16_t)pair[i]);
            w[2 * i + 1] = f16_to_f32((uint16_t)(pair[i] >> 16));
        }
    }
};

struct eight_e4m3 {
    uint2 word;
    __device__ void load(const uint8_t *data, int64_t at)
    {
        word = __ldcs((const uint2 *)(data + at));
    }
    __device__ void numbers(float *w) const
    {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t halves, codes = (i < 2 ? word.x : word.y) >> 16 * (i % 2);
            asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((uint16_t)codes));
            float2 pair = __half22float2(*(const __half2 *)&halves);
            w[2 * i] = pair.x;
            w[2 * i + 1] = pair.y;
        }
    }
};

struct eight_e2m1 {
    uint32_t word;
    __device__ void load(const uint8_t *data, int64_t at)
    {
        word = __ldcs((const uint32_t *)(data + at / 2));
    }
    __device__ void numbers(float *w) const
    {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t code = word >> 4 * i;
            w[i] = f32_from_bits((code & 8) << 28 | (code & 7) << 22) * 0x1p126f;
        }
    }
};

// ---- few tokens ----

// A warp's part of the columns: which of the `splits` warps of a row takes which steps.
__device__ static void part_of(int64_t *from, int64_t *to, int64_t cols, int splits, int split)
{
    int64_t steps = (cols + STEP - 1) / STEP, each = (steps + splits - 1) / splits;
    *from = min(steps, split * each);
    *to = min(steps, *from + each);
}

__device__ static void load_x(float *x, const product &p, int token, int64_t col)
{
    const float *at = p.x + (int64_t)min(token, p.tokens - 1) * p.x_stride + col;
    if (p.x_whole) {
        *(float4 *)x = *(const float4 *)at;
        *(float4 *)(x + 4) = *(const float4 *)(at + 4);
    } else {
#pragma unroll
        for (int i = 0; i < EIGHT; i++) x[i] = col + i < p.cols ? at[i] : 0.0f;
    }
    if (p.round_x)
#pragma unroll
        for (int i = 0; i < EIGHT; i++) x[i] = bf16_rounded(x[i]);
}

// Sums over a warp, then over the warps that share a row, in the order of the columns.
template <int ROWS, int TOKENS>
__device__ static void finish(const product &p, const float (*sum)[TOKENS], int64_t row0,
                              int splits)
{
    __shared__ float parts[WARPS][ROWS][TOKENS];
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float all = lsa_warp_sum(sum[r][t]);
            if (lane == 0) parts[warp][r][t] = all;
        }
    __syncthreads();
    if (warp % splits) return;
    for (int i = lane; i < ROWS * TOKENS; i += LSA_WARP) {
        int r = i / TOKENS, t = i % TOKENS;
        float all = parts[warp][r][t];
        for (int s = 1; s < splits; s++) all += parts[warp + s][r][t];
        if (row0 + r < p.rows && t < p.tokens) p.y[t * p.y_stride + row0 + r] = all;
    }
}

// Columns in eights on their boundaries, scales constant over eight. Grid: (ceil(rows / (8 / splits ROWS))), block: 256.
template <typename NUMBERS, int ROWS, int TOKENS, int AHEAD>
__global__ static void __launch_bounds__(THREADS, TOKENS > 4 ? 1 : 2)
    linear_eights(product p, int splits)
{
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    int64_t row0 = ((int64_t)blockIdx.x * (WARPS / splits) + warp / splits) * ROWS, from, to;
    float sum[ROWS][TOKENS] = {};
    part_of(&from, &to, p.cols, splits, warp % splits);
    if (row0 >= p.rows) to = from;
    for (int64_t step0 = from; step0 < to; step0 += AHEAD) {
        NUMBERS stored[AHEAD][ROWS];
        float scale[AHEAD][ROWS];
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            int64_t col = (step0 + s) * STEP + lane * EIGHT;
            if (step0 + s >= to || col >= p.cols) continue;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int64_t row = p.row_from + min(row0 + r, p.rows - 1);
                stored[s][r].load(p.data, row * p.cols + col);
                if (p.scale)
                    scale[s][r] =
                        scale_at(p, (row >> p.row_shift) * p.across + (col >> p.col_shift));
            }
        }
#pragma unroll
        for (int s = 0; s < AHEAD; s++) {
            int64_t col = (step0 + s) * STEP + lane * EIGHT;
            if (step0 + s >= to || col >= p.cols) continue;
            float w[ROWS][EIGHT];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                stored[s][r].numbers(w[r]);
                if (p.scale)
#pragma unroll
                    for (int i = 0; i < EIGHT; i++) w[r][i] *= scale[s][r];
                if (p.round_w)
#pragma unroll
                    for (int i = 0; i < EIGHT; i++) w[r][i] = bf16_rounded(w[r][i]);
            }
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
                float x[EIGHT];
                load_x(x, p, t, col);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int i = 0; i < EIGHT; i++) sum[r][t] = fmaf(w[r][i], x[i], sum[r][t]);
            }
        }
    }
    finish<ROWS, TOKENS>(p, sum, row0, splits);
}

// Any weight, number by number. Grid: (ceil(rows / (8 / splits))), block: 256.
__global__ static void linear_any(product p, int splits)
{
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    int64_t row0 = (int64_t)blockIdx.x * (WARPS / splits) + warp / splits, from, to;
    float sum[1][GROUP] = {};
    part_of(&from, &to, p.cols, splits, warp % splits);
    if (row0 >= p.rows) to = from;
    for (int64_t step = from; step < to; step++) {
        int64_t col = step * STEP + lane * EIGHT;
        if (col >= p.cols) continue;
        float w[EIGHT];
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            w[i] = col + i < p.cols ? weight_at(p, p.row_from + row0, col + i) : 0.0f;
#pragma unroll
        for (int t = 0; t < GROUP; t++) {
            float x[EIGHT];
            if (t >= p.tokens) continue;
            load_x(x, p, t, col);
#pragma unroll
            for (int i = 0; i < EIGHT; i++)
                if (col + i < p.cols) sum[0][t] = fmaf(w[i], x[i], sum[0][t]);
        }
    }
    finish<1, GROUP>(p, sum, row0, splits);
}

// Warps that share a row: as many as leave each a full round of loads.
static int splits_of(int64_t cols)
{
    int64_t rounds = (cols + STEP - 1) / STEP / STEPS_AHEAD;
    return rounds >= 8 ? 8 : rounds >= 4 ? 4 : rounds >= 2 ? 2 : 1;
}

template <typename NUMBERS, int ROWS, int TOKENS>
static void launch(const product &p, cudaStream_t stream)
{
    int splits = splits_of(p.cols), rows = WARPS / splits * ROWS;
    unsigned blocks = (unsigned)((p.rows + rows - 1) / rows);
    constexpr int AHEAD = TOKENS >= 4 || sizeof(NUMBERS) > 16 ? STEPS_AHEAD / 2 : STEPS_AHEAD;
    linear_eights<NUMBERS, ROWS, TOKENS, AHEAD><<<blocks, THREADS, 0, stream>>>(p, splits);
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

static bool in_eights(const product &p)
{
    int64_t boundary = p.dtype == LSA_F8_E4M3 ? 8 : p.dtype == LSA_F4_E2M1 ? 4 : 16;
    bool shifts = !p.scale || (p.row_shift >= 0 && p.col_shift >= 3);
    return p.cols % EIGHT == 0 && (uintptr_t)p.data % boundary == 0 && shifts;
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

static cublasLtHandle_t handle(void)
{
    static cublasLtHandle_t made = [] {
        cublasLtHandle_t h = NULL;
        cublasLtCreate(&h);
        return h;
    }();
    return made;
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
static cublasStatus_t choose(cublasLtMatmulAlgo_t *algorithm, shapes *s)
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
        rc = cublasLtMatmulAlgoGetHeuristic(handle(), &s->product, &s->w, &s->x, &s->y, &s->y,
                                            &wish, 1, &found, &count);
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
    cublasStatus_t rc = describe(&s, type, rows, PINNED_TOKENS, width, x_stride, y_stride);
    if (!rc) rc = choose(&algorithm, &s);
    if (!rc) rc = describe(&s, type, rows, tokens, width, x_stride, y_stride);
    if (!rc)
        rc = cublasLtMatmulAlgoCheck(handle(), &s.product, &s.w, &s.x, &s.y, &s.y, &algorithm,
                                     &fits);
    if (!rc)
        rc = cublasLtMatmul(handle(), &s.product, &one, w, &s.w, x, &s.x, &none, y, &s.y, y, &s.y,
                            &algorithm, workspace, PRODUCT_BYTES, stream);
    return rc;
}

static int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

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
    return PRODUCT_BYTES + aligned(held(w->rows, width) * width * size) +
           aligned(held(tokens, width) * width * size);
}

// The exponent of a power of two; -1 for other numbers.
static int32_t shift_of(int64_t n) { return n > 0 && (n & (n - 1)) == 0 ? __builtin_ctzll(n) : -1; }

int lsa_linear_cuda(float *y, const float *x, const lsa_weight *w, int64_t tokens, int64_t row_from,
                    int64_t rows, int64_t x_stride, int64_t y_stride, int32_t compute,
                    void *workspace, void *stream)
{
    int rc = lsa_linear_check(w, tokens, row_from, rows, x_stride, y_stride, compute);
    if (rc || tokens == 0 || rows == 0) return rc;
    bool bf16 = compute == LSA_COMPUTE_BF16;
    // What is no wider than bf16 keeps its bits: e4m3 and e2m1 by powers of two, and bf16 itself.
    bool narrow = w->dtype == LSA_BF16 || w->dtype == LSA_F8_E4M3 || w->dtype == LSA_F4_E2M1;
    bool exact = narrow && (!w->scale || (w->dtype != LSA_BF16 && w->scale_dtype == LSA_F8_E8M0));
    product p = {y,
                 x,
                 (const uint8_t *)w->data,
                 w->scale,
                 w->cols,
                 row_from,
                 rows,
                 x_stride,
                 y_stride,
                 w->scale ? w->block_rows : 1,
                 w->scale ? w->block_cols : 1,
                 w->scale ? (w->cols + w->block_cols - 1) / w->block_cols : 0,
                 w->dtype,
                 w->scale_dtype,
                 0,
                 shift_of(w->block_rows),
                 shift_of(w->block_cols),
                 bf16,
                 bf16 && !exact,
                 (uintptr_t)x % 16 == 0 && x_stride % 4 == 0 && w->cols % EIGHT == 0};
    if (tokens == 1) p.x_stride = p.y_stride = w->cols > rows ? w->cols : rows;
    if (tokens == 1) p.x_whole = (uintptr_t)x % 16 == 0 && w->cols % EIGHT == 0;
    cudaStream_t s = (cudaStream_t)stream;
    if (tokens <= FEW_TOKENS || w->cols == 0) return few_tokens(p, tokens, s);
    return bf16 ? many_tokens<__nv_bfloat16>(p, tokens, (char *)workspace, s)
                : many_tokens<float>(p, tokens, (char *)workspace, s);
}
