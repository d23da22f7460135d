// Private to CUDA files: a weight's numbers, and products with few tokens. Which numbers a lane adds up, and in which order
// sums meet, follows from the weight's columns alone.
#ifndef LSA_LINEAR_CUDA_H
#define LSA_LINEAR_CUDA_H
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda_launch.h"
#include "kernels/moe_cuda.h"
#include "kernels/number_formats.h"

extern "C" {
#include "kernels/linear.h"
}

enum {
    FEW_TOKENS = 32,    // more than these are a matrix product
    SHORT_TOKENS = 128, // of short rows; all that takes them agrees on it, for a row's bits
    GROUP = 8,          // tokens that share a pass
    WARPS = 8,          // of a block
    EIGHT = 8,          // columns of a lane's step
    STEP = EIGHT * LSA_WARP,
    STEPS_AHEAD = 4,     // loads in flight a row
    MOST_SHORT = 1 << 22 // numbers of a weight of short rows
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
    const float *norm; // NULL, or [cols]: x is normed, its rows with scales that the block has
    const float *up; // NULL, or rows like those of x, with which x is gated (swiglu, with `limit`)
    float limit;
};

// The exponent of a power of two; -1 for other numbers.
__host__ __device__ static inline int32_t shift_of(int64_t n)
{
    if (n < 1 || (n & (n - 1))) return -1;
    int32_t shift = 0;
    while (n >> shift > 1) shift++;
    return shift;
}

// The product of rows row_from .. of a weight.
__host__ __device__ static inline product product_of(float *y, const float *x, const lsa_weight &w,
                                                     int64_t tokens, int64_t row_from, int64_t rows,
                                                     int64_t x_stride, int64_t y_stride,
                                                     int32_t compute)
{
    bool bf16 = compute == LSA_COMPUTE_BF16;
    // What is no wider than bf16 keeps its bits: e4m3 and e2m1 by powers of two, and bf16 itself.
    bool narrow = w.dtype == LSA_BF16 || w.dtype == LSA_F8_E4M3 || w.dtype == LSA_F4_E2M1;
    bool exact = narrow && (!w.scale || (w.dtype != LSA_BF16 && w.scale_dtype == LSA_F8_E8M0));
    return {y,
            x,
            (const uint8_t *)w.data,
            w.scale,
            w.cols,
            row_from,
            rows,
            x_stride,
            y_stride,
            w.scale ? w.block_rows : 1,
            w.scale ? w.block_cols : 1,
            w.scale ? (w.cols + w.block_cols - 1) / w.block_cols : 0,
            w.dtype,
            w.scale_dtype,
            (int32_t)tokens,
            shift_of(w.block_rows),
            shift_of(w.block_cols),
            bf16,
            bf16 && !exact,
            (uintptr_t)x % 16 == 0 && x_stride % 4 == 0 && w.cols % EIGHT == 0,
            NULL,
            NULL,
            0};
}

__host__ __device__ static inline bool in_eights(const product &p)
{
    int64_t boundary = p.dtype == LSA_F8_E4M3 ? 8 : p.dtype == LSA_F4_E2M1 ? 4 : 16;
    bool shifts = !p.scale || (p.row_shift >= 0 && p.col_shift >= 3);
    return p.cols % EIGHT == 0 && (uintptr_t)p.data % boundary == 0 && shifts;
}

// ---- numbers ----

__device__ static inline float bf16_rounded(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

__device__ static inline float scale_at(const product &p, int64_t i)
{
    return p.scale_dtype == LSA_F32 ? ((const float *)p.scale)[i]
                                    : e8m0_to_f32(((const uint8_t *)p.scale)[i]);
}

// Any number of the weight, scaled, and rounded where the call wants that.
__device__ static inline float weight_at(const product &p, int64_t row, int64_t col)
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

// Which row of x and of y a product's token is; x also of tokens that are not there.
struct in_order {
    int last;
    __device__ int64_t x(int t) const { return min(t, last); }
    __device__ int64_t y(int t) const { return t; }
};

// A warp's part of the columns: which of the `splits` warps of a row takes which steps.
__device__ static inline void part_of(int64_t *from, int64_t *to, int64_t cols, int splits,
                                      int split)
{
    int64_t steps = (cols + STEP - 1) / STEP, each = (steps + splits - 1) / splits;
    *from = min(steps, split * each);
    *to = min(steps, *from + each);
}

// row_scale: of a row that is normed.
__device__ static inline void load_x(float *x, const product &p, int64_t row, int64_t col,
                                     const float *row_scale)
{
    const float *at = p.x + row * p.x_stride + col;
    if (p.x_whole) {
        *(float4 *)x = *(const float4 *)at;
        *(float4 *)(x + 4) = *(const float4 *)(at + 4);
    } else {
#pragma unroll
        for (int i = 0; i < EIGHT; i++) x[i] = col + i < p.cols ? at[i] : 0.0f;
    }
    if (p.up)
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            if (col + i < p.cols)
                x[i] = lsa_swiglu_of(x[i], p.up[row * p.x_stride + col + i], p.limit);
    if (p.norm)
#pragma unroll
        for (int i = 0; i < EIGHT; i++)
            if (col + i < p.cols) x[i] = x[i] * row_scale[row] * p.norm[col + i];
    if (p.round_x)
#pragma unroll
        for (int i = 0; i < EIGHT; i++) x[i] = bf16_rounded(x[i]);
}

// Sums over a warp, then over the warps that share a row, in the order of the columns.
template <int ROWS, int TOKENS, typename PLACES>
__device__ static inline void finish(const product &p, const PLACES &places,
                                     const float (*sum)[TOKENS], int64_t row0, int splits)
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
    for (int i = warp % splits ? ROWS * TOKENS : lane; i < ROWS * TOKENS; i += LSA_WARP) {
        int r = i / TOKENS, t = i % TOKENS;
        float all = parts[warp][r][t];
        for (int s = 1; s < splits; s++) all += parts[warp + s][r][t];
        if (row0 + r < p.rows && t < p.tokens) p.y[places.y(t) * p.y_stride + row0 + r] = all;
    }
}

// Rows 8 / splits ROWS block .. of a product in eights: columns on their boundaries, scales constant over eight.
template <typename NUMBERS, int ROWS, int TOKENS, typename PLACES>
__device__ static __forceinline__ void rows_in_eights(const product &p, const PLACES &places,
                                                      int64_t block, int splits,
                                                      const float *row_scale = NULL)
{
    constexpr int AHEAD = TOKENS >= 4 || sizeof(NUMBERS) > 16 ? STEPS_AHEAD / 2 : STEPS_AHEAD;
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    int64_t row0 = (block * (WARPS / splits) + warp / splits) * ROWS, from, to;
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
                load_x(x, p, places.x(t), col, row_scale);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
#pragma unroll
                    for (int i = 0; i < EIGHT; i++) sum[r][t] = fmaf(w[r][i], x[i], sum[r][t]);
            }
        }
    }
    finish<ROWS, TOKENS>(p, places, sum, row0, splits);
}

// Rows 8 / splits block .. of any product, number by number.
template <int TOKENS, typename PLACES>
__device__ static inline void rows_of_any(const product &p, const PLACES &places, int64_t block,
                                          int splits, const float *row_scale = NULL)
{
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    int64_t row0 = block * (WARPS / splits) + warp / splits, from, to;
    float sum[1][TOKENS] = {};
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
        for (int t = 0; t < TOKENS; t++) {
            float x[EIGHT];
            if (t >= p.tokens) continue;
            load_x(x, p, places.x(t), col, row_scale);
#pragma unroll
            for (int i = 0; i < EIGHT; i++)
                if (col + i < p.cols) sum[0][t] = fmaf(w[i], x[i], sum[0][t]);
        }
    }
    finish<1, TOKENS>(p, places, sum, row0, splits);
}

// A short row of f32 or bf16 without scales: its product with x, in all lanes, summed as rows_in_eights sums it with one warp a
// row. A loop of few instructions: what a step of small layers waits for is their being fetched.
struct short_row {
    const uint8_t *data;        // on a boundary of eight numbers
    const float *x, *norm, *up; // as product has them
    int32_t cols;
    float row_scale, limit;
    bool f32, round_x, round_w;
};

__host__ __device__ static inline bool is_short_row(const lsa_weight &w)
{
    return !w.scale && (w.dtype == LSA_F32 || w.dtype == LSA_BF16) && w.cols % EIGHT == 0 &&
           w.cols <= 4 * STEP && w.rows * w.cols <= MOST_SHORT && (uintptr_t)w.data % 32 == 0;
}

__device__ static inline void four_numbers(float *w, const short_row &r, int col)
{
    if (r.f32) {
        float4 v = *(const float4 *)(r.data + 4 * (int64_t)col);
        w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
    } else {
        uint2 u = *(const uint2 *)(r.data + 2 * (int64_t)col);
        w[0] = __uint_as_float(u.x << 16), w[1] = __uint_as_float(u.x & 0xffff0000);
        w[2] = __uint_as_float(u.y << 16), w[3] = __uint_as_float(u.y & 0xffff0000);
    }
}

__device__ static inline float short_product(const short_row &r)
{
    float sum = 0;
#pragma unroll 1
    for (int col = threadIdx.x % LSA_WARP * EIGHT; col < r.cols; col += STEP)
#pragma unroll 1
        for (int half = col; half < col + EIGHT; half += 4) {
            float w[4], x[4];
            four_numbers(w, r, half);
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = r.x[half + i];
            if (r.up)
#pragma unroll
                for (int i = 0; i < 4; i++) x[i] = lsa_swiglu_of(x[i], r.up[half + i], r.limit);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (r.norm) x[i] = x[i] * r.row_scale * r.norm[half + i];
                if (r.round_x) x[i] = bf16_rounded(x[i]);
                if (r.round_w) w[i] = bf16_rounded(w[i]);
                sum = fmaf(w[i], x[i], sum);
            }
        }
    return lsa_warp_sum(sum);
}

// 1 / sqrt(mean(x^2) + eps), in all lanes.
__device__ static inline float scale_of_row(const float *x, int64_t cols, float eps, bool whole)
{
    float sum = 0;
    for (int64_t i = 4 * (threadIdx.x % LSA_WARP); i < cols; i += 4 * LSA_WARP) {
        float4 v = lsa_load4(x, i, cols, whole);
        sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
    }
    return 1.0f / sqrtf(lsa_warp_sum(sum) / (float)cols + eps);
}

// Warps that share a row: as many as leave each a full round of loads.
__host__ __device__ static inline int splits_of(int64_t cols)
{
    int64_t rounds = (cols + STEP - 1) / STEP / STEPS_AHEAD;
    return rounds >= 8 ? 8 : rounds >= 4 ? 4 : rounds >= 2 ? 2 : 1;
}

#endif
