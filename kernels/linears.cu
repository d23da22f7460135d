// Several linear layers on the GPU: few tokens in one launch, whose blocks are dealt out to the products; many one after the
// other.
#include "kernels/linear_mma.h"

extern "C" {
#include "kernels/linears.h"
#include "kernels/rmsnorm.h"
}

enum { THREADS = WARPS * LSA_WARP, ROWS = 2 };

// Blocks first[i] .. first[i + 1] - 1 have product i.
struct several {
    product p[LSA_LINEARS_MOST];
    int32_t first[LSA_LINEARS_MOST + 1], splits[LSA_LINEARS_MOST];
    int32_t count, tokens;
    float norm_eps;
};

// ---- helpers ----

// Asks for a block's part of a weight, which nothing has to be waited for.
__device__ static void ask_for_rows(const product &p, int64_t block, int splits)
{
    int64_t each = WARPS / splits * ROWS, from = p.row_from + block * each;
    int64_t to = min(p.row_from + p.rows, from + each);
    int64_t bytes = p.dtype == LSA_F32                          ? 4 * p.cols
                    : p.dtype == LSA_BF16 || p.dtype == LSA_F16 ? 2 * p.cols
                    : p.dtype == LSA_F8_E4M3                    ? p.cols
                                                                : p.cols / 2;
    lsa_warm(p.data + from * bytes, (to - from) * bytes, threadIdx.x, THREADS);
}

// scales [tokens]: 1 / sqrt(mean(x^2) + eps) of the rows; a warp a row.
__device__ static void scale_rows(float *scales, const product &p, float eps)
{
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    for (int t = warp; t < p.tokens; t += WARPS) {
        float scale = scale_of_row(p.x + t * p.x_stride, p.cols, eps, p.x_whole);
        if (lane == 0) scales[t] = scale;
    }
    __syncthreads();
}

// ---- kernels ----

// Grid: (blocks of all products, groups of 8 tokens), block: 256.
template <int TOKENS>
__global__ static void __launch_bounds__(THREADS, 1)
    linears_few(const __grid_constant__ several all)
{
    __shared__ float scales[GROUP];
    int i = 0;
    while (i + 1 < all.count && (int)blockIdx.x >= all.first[i + 1]) i++;
    product p = all.p[i];
    int64_t block = blockIdx.x - all.first[i];
    int splits = all.splits[i];
    if (blockIdx.y == 0) ask_for_rows(p, block, splits);
    lsa_after_previous();
    p.x += (int64_t)blockIdx.y * GROUP * p.x_stride;
    p.y += (int64_t)blockIdx.y * GROUP * p.y_stride;
    p.tokens = min(all.tokens - (int)blockIdx.y * GROUP, (int)GROUP);
    if (p.norm) scale_rows(scales, p, all.norm_eps);
    in_order places = {p.tokens - 1};
    if (!in_eights(p))
        for (int r = 0; r < ROWS; r++) {
            rows_of_any<TOKENS>(p, places, block * ROWS + r, splits, scales);
            __syncthreads();
        }
    else if (p.dtype == LSA_F32)
        rows_in_eights<eight_f32, ROWS, TOKENS>(p, places, block, splits, scales);
    else if (p.dtype == LSA_BF16)
        rows_in_eights<eight_bf16, ROWS, TOKENS>(p, places, block, splits, scales);
    else if (p.dtype == LSA_F16)
        rows_in_eights<eight_f16, ROWS, TOKENS>(p, places, block, splits, scales);
    else if (p.dtype == LSA_F8_E4M3)
        rows_in_eights<eight_e4m3, ROWS, TOKENS>(p, places, block, splits, scales);
    else
        rows_in_eights<eight_e2m1, ROWS, TOKENS>(p, places, block, splits, scales);
}

// Products of short rows: a warp a row and a token. Rows first[i] .. first[i + 1] - 1 of all are those of product i.
struct several_short {
    struct {
        float *y;
        const float *x;
        const uint8_t *data;
        int64_t x_stride, y_stride;
        int32_t cols, row_bytes;
        bool f32, round_w;
    } p[LSA_LINEARS_MOST];
    int32_t first[LSA_LINEARS_MOST + 1];
    int32_t count;
    const float *norm;
    float norm_eps;
    bool round_x;
};

// Grid: (ceil(rows / 8), tokens), block: 256.
__global__ static void __launch_bounds__(THREADS)
    linears_short(const __grid_constant__ several_short all)
{
    int row = blockIdx.x * WARPS + threadIdx.x / LSA_WARP, i = 0;
    int64_t t = blockIdx.y;
    if (row >= all.first[all.count]) return;
    while (row >= all.first[i + 1]) i++;
    row -= all.first[i];
    const auto &p = all.p[i];
    lsa_warm(p.data + (int64_t)row * p.row_bytes, p.row_bytes, threadIdx.x % LSA_WARP, LSA_WARP);
    lsa_after_previous();
    short_row r = {p.data + (int64_t)row * p.row_bytes,
                   p.x + t * p.x_stride,
                   all.norm,
                   NULL,
                   p.cols,
                   1,
                   0,
                   p.f32,
                   all.round_x,
                   p.round_w};
    if (r.norm) r.row_scale = scale_of_row(r.x, r.cols, all.norm_eps, (uintptr_t)r.x % 16 == 0);
    float sum = short_product(r);
    if (threadIdx.x % LSA_WARP == 0) p.y[t * p.y_stride + row] = sum;
}

// ---- launcher ----

static bool are_short(const lsa_product *products, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        if (!is_short_row(*products[i].w)) return false;
    return true;
}

// Such products are launches of their own, which overlap.
static bool some_by_tensor_cores(const lsa_product *products, int64_t count, int32_t compute)
{
    for (int64_t i = 0; i < count; i++)
        if (by_tensor_cores(*products[i].w, compute)) return true;
    return false;
}

static int short_rows(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                      float norm_eps, int32_t compute, void *stream)
{
    several_short all = {};
    all.norm = norm, all.norm_eps = norm_eps, all.round_x = compute == LSA_COMPUTE_BF16;
    for (int64_t i = 0; i < count; i++) {
        const lsa_product &p = products[i];
        bool f32 = p.w->dtype == LSA_F32;
        int32_t row_bytes = (int32_t)p.w->cols * (f32 ? 4 : 2);
        all.p[i] = {p.y,        p.x,        (const uint8_t *)p.w->data + p.row_from * row_bytes,
                    p.x_stride, p.y_stride, (int32_t)p.w->cols,
                    row_bytes,  f32,        f32 && all.round_x};
        all.first[i + 1] = all.first[i] + (int32_t)p.rows;
    }
    all.count = (int32_t)count;
    if (!all.first[count]) return LSA_OK;
    dim3 grid((unsigned)((all.first[count] + WARPS - 1) / WARPS), (unsigned)tokens);
    lsa_launch(linears_short, grid, THREADS, 0, stream, all);
    return lsa_launched("linears", count, tokens);
}

static int few_tokens(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                      float norm_eps, int32_t compute, void *stream)
{
    several all = {};
    all.tokens = (int32_t)tokens;
    all.norm_eps = norm_eps;
    for (int64_t i = 0; i < count; i++) {
        const lsa_product &p = products[i];
        if (p.rows == 0) continue;
        int at = all.count++, splits = splits_of(p.w->cols), rows = WARPS / splits * ROWS;
        int64_t x_stride = tokens == 1 ? p.w->cols : p.x_stride;
        all.p[at] =
            product_of(p.y, p.x, *p.w, tokens, p.row_from, p.rows, x_stride, p.y_stride, compute);
        all.p[at].norm = norm;
        all.splits[at] = splits;
        all.first[at + 1] = all.first[at] + (int32_t)((p.rows + rows - 1) / rows);
    }
    if (!all.count) return LSA_OK;
    auto kernel = tokens == 1 ? linears_few<1> : linears_few<GROUP>;
    dim3 grid((unsigned)all.first[all.count], (unsigned)((tokens + GROUP - 1) / GROUP));
    lsa_launch(kernel, grid, THREADS, 0, stream, all);
    return lsa_launched("linears", count, tokens);
}

int lsa_linears_cuda(const lsa_product *products, int64_t count, int64_t tokens, const float *norm,
                     float norm_eps, int32_t compute, void *workspace, void *stream)
{
    int rc = lsa_linears_check(products, count, tokens, norm, compute);
    if (rc || tokens == 0 || count == 0) return rc;
    if (tokens <= SHORT_TOKENS && are_short(products, count))
        return short_rows(products, count, tokens, norm, norm_eps, compute, stream);
    if (tokens <= FEW_TOKENS && !some_by_tensor_cores(products, count, compute))
        return few_tokens(products, count, tokens, norm, norm_eps, compute, stream);
    if (norm)
        rc = lsa_rmsnorm_cuda(products->x, products->x, norm, tokens, products->w->cols, norm_eps,
                              stream);
    for (int64_t i = 0; i < count && !rc; i++) {
        const lsa_product *p = &products[i];
        rc = lsa_linear_cuda(p->y, p->x, p->w, tokens, p->row_from, p->rows, p->x_stride,
                             p->y_stride, compute, workspace, stream);
    }
    return rc;
}
