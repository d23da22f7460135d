// Hyper-connections on the GPU: a block a token, the small algebra by as many threads as it has numbers.
#include "kernels/hyper_connection_cuda.h"

extern "C" {
#include "kernels/rmsnorm.h"
}

enum { THREADS = 512, CLOSE_THREADS = 256, MOST = LSA_HC_MOST_STREAMS };

// ---- helpers ----

// rsqrt(mean(x^2) + eps) over a token's streams.
__device__ static float norm_of(const float *x, int64_t n, float eps, bool whole, float *sums)
{
    float sum = 0;
    for (int64_t i = 4 * threadIdx.x; i < n; i += 4 * THREADS) {
        float4 v = lsa_load4(x, i, n, whole);
        sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
    }
    return 1.0f / sqrtf(lsa_block_sum(sum, sums) / (float)n + eps);
}

// A mix value, normalised, scaled and shifted.
__device__ static f32x16 mixed(const connection &k, const float *mix, int i, float norm, int group)
{
    return f32x16(mix[i]) * norm * k.scale[group] + k.base[i];
}

// x[i] = sum_j pre[j] streams[j][i], in ascending j.
__device__ static void collapse(float *x, const float *streams, const float *pre, int64_t hc,
                                int64_t dim)
{
    for (int64_t i = threadIdx.x; i < dim; i += THREADS) {
        float sum = __fmul_rn(streams[i], pre[0]);
        for (int64_t j = 1; j < hc; j++)
            sum = __fadd_rn(sum, __fmul_rn(streams[j * dim + i], pre[j]));
        x[i] = sum;
    }
}

// One of a matrix's numbers over the sum of its row (step 1) or column (step hc), plus eps; `first`: where that begins.
__device__ static float shared_out(const float *m, float own, int first, int step, int hc,
                                   float eps)
{
    float sum = m[first];
    for (int j = 1; j < hc; j++) sum += m[first + j * step];
    return own / (sum + eps);
}

// Sinkhorn's rounds on m [hc, hc], a number a thread, by the warps that have one; a barrier precedes it and follows it.
__device__ static void balance(float *m, int hc, int64_t iters, float eps)
{
    int at = threadIdx.x, row = at / hc * hc, column = at % hc;
    bool mine = at < hc * hc, alone = hc * hc <= LSA_WARP;
    if (alone && at >= LSA_WARP) return;
    float own = 0;
    if (mine) {
        f32x16 max = m[row], sum = 0.0f;
        for (int j = 1; j < hc; j++)
            max = f32x16_select(f32x16_below(max, m[row + j]), m[row + j], max);
        for (int j = 0; j < hc; j++) sum += f32x16_exp(f32x16(m[row + j]) - max);
        own = (f32x16_exp(f32x16(m[at]) - max) / sum + eps).lane;
    }
    int64_t halves = 2 * (iters > 1 ? iters : 1) - 1; // columns, rows, ..., columns
    for (int64_t step = 0; step <= halves; step++) {
        alone ? __syncwarp() : __syncthreads();
        if (mine) m[at] = own;
        alone ? __syncwarp() : __syncthreads();
        if (!mine || step == halves) continue;
        own = step % 2 ? shared_out(m, own, row, 1, hc, eps)
                       : shared_out(m, own, column, hc, hc, eps);
    }
}

// ---- kernels ----

// Grid: (tokens), block: 512, shared: 1.2 KB.
__global__ static void __launch_bounds__(THREADS)
    hc_open_token(float *x, float *post, float *comb, connection k, int64_t tokens, bool whole)
{
    __shared__ float sums[THREADS / LSA_WARP], pre[MOST], m[MOST * MOST];
    int hc = (int)k.hc, i = threadIdx.x;
    for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
        const float *streams = k.streams + t * hc * k.dim, *mix = k.mix + t * k.width;
        float norm = norm_of(streams, hc * k.dim, k.norm_eps, whole, sums);
        if (i < hc) {
            pre[i] = (f32x16_sigmoid(mixed(k, mix, i, norm, 0)) + k.hc_eps).lane;
            post[t * hc + i] = (f32x16_sigmoid(mixed(k, mix, hc + i, norm, 1)) * 2.0f).lane;
        }
        if (i < hc * hc) m[i] = mixed(k, mix, 2 * hc + i, norm, 2).lane;
        __syncthreads();
        balance(m, hc, k.iters, k.hc_eps);
        __syncthreads();
        if (i < hc * hc) comb[t * hc * hc + i] = m[i];
        collapse(x + t * k.dim, streams, pre, hc, k.dim);
        __syncthreads();
    }
}

// Grid: (tokens), block: 512, shared: 0.1 KB.
__global__ static void __launch_bounds__(THREADS)
    hc_head_token(float *x, connection k, int64_t tokens, bool whole)
{
    __shared__ float sums[THREADS / LSA_WARP], pre[MOST];
    for (int64_t t = blockIdx.x; t < tokens; t += gridDim.x) {
        const float *streams = k.streams + t * k.hc * k.dim;
        float norm = norm_of(streams, k.hc * k.dim, k.norm_eps, whole, sums);
        if (threadIdx.x < k.hc) {
            f32x16 a = mixed(k, k.mix + t * k.width, threadIdx.x, norm, 0);
            pre[threadIdx.x] = (f32x16_sigmoid(a) + k.hc_eps).lane;
        }
        __syncthreads();
        collapse(x + t * k.dim, streams, pre, k.hc, k.dim);
        __syncthreads();
    }
}

// An element of every stream a thread; HC: their number, or the most. Grid: (ceil(tokens dim / 256)), block: 256.
template <int HC>
__global__ static void hc_close_each(float *streams, const float *y, const float *post,
                                     const float *comb, int64_t tokens, int hc, int64_t dim)
{
    for (int64_t i = lsa_thread(); i < tokens * dim; i += lsa_threads()) {
        int64_t t = i / dim;
        float *at = streams + t * hc * dim + i % dim, old[HC];
        const float *p = post + t * hc, *c = comb + t * hc * hc;
        float v = y[i];
#pragma unroll
        for (int j = 0; j < HC; j++)
            if (j < hc) old[j] = at[j * dim];
        for (int k = 0; k < hc; k++) {
            float sum = __fmul_rn(v, p[k]);
#pragma unroll
            for (int j = 0; j < HC; j++)
                if (j < hc) sum = __fadd_rn(sum, __fmul_rn(old[j], c[j * hc + k]));
            at[k * dim] = sum;
        }
    }
}

// The last warp balances what the next turn takes, while the others go on with x. Grid: (tokens), block: 288, shared: a token's
// streams and its x.
__global__ static void __launch_bounds__(TURN_THREADS + LSA_WARP, 1)
    hc_turn_token(const __grid_constant__ turn u)
{
    extern __shared__ float4 shared[];
    __shared__ float sums[2][TURN_WARPS], pre[TURN_STREAMS], m[LSA_WARP];
    const connection &k = u.k;
    int hc = (int)k.hc, dim = (int)k.dim, i = threadIdx.x, warp = i / LSA_WARP, lane = i % LSA_WARP;
    bool balances = warp == TURN_WARPS;
    int64_t t = blockIdx.x;
    float *held = (float *)shared, *x = held + hc * dim;
    int64_t bytes = u.fn.rows * u.fn.cols * (u.fn.dtype == LSA_F32 ? 4 : 2);
    lsa_warm(u.fn.data, bytes, i, TURN_THREADS + LSA_WARP);
    lsa_warm(u.norm, k.dim * 4, i, TURN_THREADS + LSA_WARP);
    lsa_warm(k.base, u.fn.rows * 4, i, TURN_THREADS + LSA_WARP);
    lsa_warm(k.scale, 4, i, TURN_THREADS + LSA_WARP);
    lsa_after_previous();
    float square = 0;
    float *streams = u.streams + t * hc * dim;
    for (int d = i; d < dim && !balances; d += TURN_THREADS)
        square += take_column(held, streams, streams, u.y ? u.y + t * dim : NULL, u.post + t * hc,
                              u.comb + t * hc * hc, hc, dim, d);
    square = lsa_warp_sum(square);
    if (!balances && lane == 0) sums[0][warp] = square;
    __syncthreads();
    float norm = 1.0f / sqrtf(sum_of_warps(sums[0]) / (float)(hc * dim) + k.norm_eps);
    for (int o = warp; o < u.fn.rows && !balances; o += TURN_WARPS) {
        float mix = projected(u, held, o);
        if (lane > 0) continue;
        int group = u.head ? 0 : o < hc ? 0 : o < 2 * hc ? 1 : 2;
        f32x16 v = f32x16(mix) * norm * k.scale[group] + k.base[o];
        if (group == 0) pre[o] = (f32x16_sigmoid(v) + k.hc_eps).lane;
        if (group == 1) u.post[t * hc + o - hc] = (f32x16_sigmoid(v) * 2.0f).lane;
        if (group == 2) m[o - 2 * hc] = v.lane;
    }
    __syncthreads();
    if (balances) {
        if (u.head) return;
        float own = balanced(lane < hc * hc ? m[lane] : 0.0f, hc, k.iters, k.hc_eps);
        if (lane < hc * hc) u.comb[t * hc * hc + lane] = own;
        return;
    }
    square = 0;
    for (int d = i; d < dim; d += TURN_THREADS) {
        float sum = __fmul_rn(held[d], pre[0]);
        for (int j = 1; j < hc; j++) sum = __fadd_rn(sum, __fmul_rn(held[j * dim + d], pre[j]));
        x[d] = sum;
        square = fmaf(sum, sum, square);
    }
    square = lsa_warp_sum(square);
    if (lane == 0) sums[1][warp] = square;
    lsa_group_sync(1, TURN_THREADS);
    float scale = 1.0f / sqrtf(sum_of_warps(sums[1]) / (float)dim + k.norm_eps);
    for (int d = i; d < dim; d += TURN_THREADS) u.x[t * dim + d] = x[d] * scale * u.norm[d];
}

// ---- launchers ----

static bool is_whole(const float *streams, int64_t n)
{
    return n % 4 == 0 && (uintptr_t)streams % 16 == 0;
}

int lsa_hc_open_cuda(float *x, float *post, float *comb, const float *streams, const float *mix,
                     const float *base, const float *scale, int64_t tokens, int64_t hc, int64_t dim,
                     int64_t iters, float norm_eps, float hc_eps, void *stream)
{
    int rc = lsa_hc_check("hc_open", tokens, hc, dim);
    if (rc || tokens == 0) return rc;
    connection k = {streams, mix, base, scale, hc, dim, (2 + hc) * hc, iters, norm_eps, hc_eps};
    hc_open_token<<<lsa_blocks(tokens, 1), THREADS, 0, (cudaStream_t)stream>>>(
        x, post, comb, k, tokens, is_whole(streams, hc * dim));
    return lsa_launched("hc_open", tokens, hc, dim);
}

int lsa_hc_head_cuda(float *x, const float *streams, const float *mix, const float *base,
                     const float *scale, int64_t tokens, int64_t hc, int64_t dim, float norm_eps,
                     float hc_eps, void *stream)
{
    int rc = lsa_hc_check("hc_head", tokens, hc, dim);
    if (rc || tokens == 0) return rc;
    connection k = {streams, mix, base, scale, hc, dim, hc, 0, norm_eps, hc_eps};
    hc_head_token<<<lsa_blocks(tokens, 1), THREADS, 0, (cudaStream_t)stream>>>(
        x, k, tokens, is_whole(streams, hc * dim));
    return lsa_launched("hc_head", tokens, hc, dim);
}

int lsa_hc_close_cuda(float *streams, const float *y, const float *post, const float *comb,
                      int64_t tokens, int64_t hc, int64_t dim, void *stream)
{
    int rc = lsa_hc_check("hc_close", tokens, hc, dim);
    if (rc || tokens == 0) return rc;
    auto kernel = hc <= 4 ? hc_close_each<4> : hc_close_each<MOST>;
    kernel<<<lsa_blocks(tokens * dim, CLOSE_THREADS), CLOSE_THREADS, 0, (cudaStream_t)stream>>>(
        streams, y, post, comb, tokens, (int)hc, dim);
    return lsa_launched("hc_close", tokens, hc, dim);
}

static int turn_by_parts(const lsa_hc_turning &u, int64_t tokens, void *workspace, void *stream)
{
    int rc = LSA_OK;
    if (u.y) rc = lsa_hc_close_cuda(u.streams, u.y, u.post, u.comb, tokens, u.hc, u.dim, stream);
    if (!rc)
        rc = lsa_linear_cuda(u.mix, u.streams, u.fn, tokens, 0, u.fn->rows, u.fn->cols, u.fn->rows,
                             u.compute, workspace, stream);
    if (!rc)
        rc = u.head ? lsa_hc_head_cuda(u.x, u.streams, u.mix, u.base, u.scale, tokens, u.hc, u.dim,
                                       u.norm_eps, u.hc_eps, stream)
                    : lsa_hc_open_cuda(u.x, u.post, u.comb, u.streams, u.mix, u.base, u.scale,
                                       tokens, u.hc, u.dim, u.iters, u.norm_eps, u.hc_eps, stream);
    if (!rc) rc = lsa_rmsnorm_cuda(u.x, u.x, u.norm, tokens, u.dim, u.norm_eps, stream);
    return rc;
}

int lsa_hc_turn_cuda(const lsa_hc_turning *turning, int64_t tokens, void *workspace, void *stream)
{
    const lsa_hc_turning &u = *turning;
    int rc = lsa_hc_turn_check(&u, tokens);
    if (rc || tokens == 0) return rc;
    if (!is_short_turn(u)) return turn_by_parts(u, tokens, workspace, stream);
    rc = lsa_linear_check(u.fn, tokens, 0, u.fn->rows, u.fn->cols, u.fn->rows, u.compute);
    if (rc) return rc;
    lsa_launch(hc_turn_token, dim3((unsigned)tokens), TURN_THREADS + LSA_WARP,
               (u.hc + 1) * u.dim * sizeof(float), stream, turn_of(u, tokens));
    return lsa_launched("hc_turn", tokens, u.hc, u.dim);
}
