// Private to CUDA files: a token's turn from one block of a layer to the next, where it is short.
#ifndef LSA_HYPER_CONNECTION_CUDA_H
#define LSA_HYPER_CONNECTION_CUDA_H
#include "kernels/linear_cuda.h"
#include "kernels/vector_math.h"

extern "C" {
#include "kernels/hyper_connection.h"
}

enum {
    TURN_THREADS = 256,
    TURN_WARPS = TURN_THREADS / LSA_WARP,
    TURN_STREAMS = 4,
    TURN_FLOATS = 8192,
    TURN_NUMBERS = 1 << 17
};

struct connection {
    const float *streams, *mix, *base, *scale;
    int64_t hc, dim, width, iters; // width: mix values a token
    float norm_eps, hc_eps;
};

// What a turn is about: a connection, and what stands around it.
struct turn {
    connection k;
    product fn;
    float *x, *streams, *post, *comb;
    const float *y, *norm;
    bool head;
};

// f32 or bf16, without scales.
__device__ static float4 weights4(const product &p, int row, int col)
{
    const uint8_t *at = p.data + (row * (int)p.cols + col) * (p.dtype == LSA_F32 ? 4 : 2);
    float4 v;
    if (p.dtype == LSA_F32) {
        v = *(const float4 *)at;
    } else {
        uint2 u = *(const uint2 *)at;
        v = make_float4(__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000),
                        __uint_as_float(u.y << 16), __uint_as_float(u.y & 0xffff0000));
    }
    if (p.round_w)
        v = make_float4(bf16_rounded(v.x), bf16_rounded(v.y), bf16_rounded(v.z), bf16_rounded(v.w));
    return v;
}

// Output o of fn held, by a warp.
__device__ static float projected(const turn &u, const float *held, int o)
{
    float sum = 0;
    int cols = (int)u.fn.cols;
#pragma unroll 2
    for (int i = 4 * (threadIdx.x % LSA_WARP); i < cols; i += 4 * LSA_WARP) {
        float4 v = *(const float4 *)(held + i), w = weights4(u.fn, o, i);
        if (u.fn.round_x)
            v = make_float4(bf16_rounded(v.x), bf16_rounded(v.y), bf16_rounded(v.z),
                            bf16_rounded(v.w));
        sum = fmaf(v.w, w.w, fmaf(v.z, w.z, fmaf(v.y, w.y, fmaf(v.x, w.x, sum))));
    }
    return lsa_warp_sum(sum);
}

// Number d of a token's streams, in `held` and where `to` is not NULL there as well, after y has joined them where there is one.
// from, to: [hc, dim]; they and held may be one. The return value is the sum of their squares.
__device__ static float take_column(float *held, float *to, const float *from, const float *y,
                                    const float *post, const float *comb, int hc, int dim, int d)
{
    float old[TURN_STREAMS], joining[TURN_STREAMS], mixed[TURN_STREAMS][TURN_STREAMS], own = 0,
                                                                                       square = 0;
#pragma unroll
    for (int j = 0; j < TURN_STREAMS; j++)
        if (j < hc) old[j] = from[j * dim + d];
    if (y) { // all of it is asked for before any of it is waited for
        own = y[d];
#pragma unroll
        for (int k = 0; k < TURN_STREAMS; k++)
            if (k < hc) joining[k] = post[k];
#pragma unroll
        for (int j = 0; j < TURN_STREAMS; j++)
#pragma unroll
            for (int k = 0; k < TURN_STREAMS; k++)
                if (j < hc && k < hc) mixed[j][k] = comb[j * hc + k];
    }
#pragma unroll
    for (int k = 0; k < TURN_STREAMS; k++) {
        if (k >= hc) break;
        float sum = old[k];
        if (y) {
            sum = __fmul_rn(own, joining[k]);
#pragma unroll
            for (int j = 0; j < TURN_STREAMS; j++)
                if (j < hc) sum = __fadd_rn(sum, __fmul_rn(old[j], mixed[j][k]));
            if (to) to[k * dim + d] = sum;
        }
        held[k * dim + d] = sum;
        square = fmaf(sum, sum, square);
    }
    return square;
}

// Sinkhorn's rounds on [hc, hc], a number a lane of a warp.
__device__ static float balanced(float own, int hc, int64_t iters, float eps)
{
    const uint32_t warp = 0xffffffff;
    int at = threadIdx.x % LSA_WARP, row = at / hc * hc, column = at % hc;
    f32x16 max = __shfl_sync(warp, own, row), sum = 0.0f;
#pragma unroll 1
    for (int j = 1; j < hc; j++) {
        f32x16 other = __shfl_sync(warp, own, row + j);
        max = f32x16_select(f32x16_below(max, other), other, max);
    }
    float power = f32x16_exp(f32x16(own) - max).lane;
#pragma unroll 1
    for (int j = 0; j < hc; j++) sum += f32x16(__shfl_sync(warp, power, row + j));
    own = (f32x16(power) / sum + eps).lane;
    int64_t halves = 2 * (iters > 1 ? iters : 1) - 1; // columns, rows, ..., columns
#pragma unroll 1
    for (int64_t step = 0; step < halves; step++) {
        int first = step % 2 ? row : column, stride = step % 2 ? 1 : hc;
        float all = __shfl_sync(warp, own, first);
#pragma unroll 1
        for (int j = 1; j < hc; j++) all += __shfl_sync(warp, own, first + j * stride);
        own = own / (all + eps);
    }
    return own;
}

// The sum of what threads have, once each warp's is in `sums`.
__device__ static float sum_of_warps(const float *sums)
{
    float sum = sums[0];
#pragma unroll
    for (int i = 1; i < TURN_WARPS; i++) sum += sums[i];
    return sum;
}

// Whether a block does a token's turn.
static inline bool is_short_turn(const lsa_hc_turning &u)
{
    return u.hc <= TURN_STREAMS && u.dim % 4 == 0 && (u.hc + 1) * u.dim <= TURN_FLOATS &&
           u.fn->rows * u.fn->cols <= TURN_NUMBERS && (uintptr_t)u.fn->data % 16 == 0 &&
           !u.fn->scale && (u.fn->dtype == LSA_F32 || u.fn->dtype == LSA_BF16);
}

static inline turn turn_of(const lsa_hc_turning &u, int64_t tokens)
{
    return {
        {u.streams, u.mix, u.base, u.scale, u.hc, u.dim, u.fn->rows, u.iters, u.norm_eps, u.hc_eps},
        product_of(NULL, NULL, *u.fn, tokens, 0, u.fn->rows, u.fn->cols, u.fn->rows, u.compute),
        u.x,
        u.streams,
        u.post,
        u.comb,
        u.y,
        u.norm,
        u.head != 0};
}

#endif
