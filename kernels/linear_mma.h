// Private to CUDA files: products of up to eight tokens by tensor cores, for bf16 arithmetic. A warp takes a strip of rows; a
// weight comes from memory to registers, is made bf16 there, and is a factor of m16n8k16 whose other one is x, rounded, in
// shared memory. Which columns a warp adds up, and in which order sums meet, follows from the weight's columns and format
// alone, and a column of the product is one token's: neither the number of tokens nor of rows changes a bit.
#ifndef LSA_LINEAR_MMA_H
#define LSA_LINEAR_MMA_H
#include "kernels/linear_cuda.h"

enum {
    PIECE = 16,            // bytes of a lane's load
    LANES = 4,             // that share a row
    CHUNK = LANES * PIECE, // bytes of a row that a warp takes at a time
    STRIP = 8              // rows of a lane's first, and of its second, row
};

// ---- numbers ----

__device__ static inline uint32_t bf16_pair(float low, float high)
{
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

__device__ static inline uint32_t bf16_times(uint32_t a, uint32_t b)
{
    uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    return product;
}

// A power of two as e8m0 has it, twice.
__device__ static inline uint32_t scale_pair(uint32_t code)
{
    uint32_t bits = code == 0 ? 0x40 : code == 255 ? 0x7fc0 : code << 7;
    return bits * 0x10001;
}

// How a piece's numbers become pairs of bf16, eight numbers at a time; `crossed`: a pair is numbers i and i + 4 of the eight.
struct piece_bf16 {
    enum { NUMBERS = 8, CROSSED = 0, SCALED = 0 };
    __device__ static void eight(uint32_t *pairs, const uint4 &w, int, uint32_t)
    {
        pairs[0] = w.x, pairs[1] = w.y, pairs[2] = w.z, pairs[3] = w.w;
    }
};

struct piece_e4m3 {
    enum { NUMBERS = 16, CROSSED = 0, SCALED = 1 };
    __device__ static void eight(uint32_t *pairs, const uint4 &w, int j, uint32_t scale)
    {
        const uint32_t word[2] = {j ? w.z : w.x, j ? w.w : w.y};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t halves, codes = word[i / 2] >> 16 * (i % 2);
            asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((uint16_t)codes));
            float2 pair = __half22float2(*(const __half2 *)&halves);
            pairs[i] = bf16_times(bf16_pair(pair.x, pair.y), scale);
        }
    }
};

struct piece_e2m1 {
    enum { NUMBERS = 32, CROSSED = 1, SCALED = 1 };
    __device__ static void eight(uint32_t *pairs, const uint4 &w, int j, uint32_t scale)
    {
        uint32_t u = j == 0 ? w.x : j == 1 ? w.y : j == 2 ? w.z : w.w;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // Sign and three bits of a code go where bf16 has its sign and lowest exponents: 2^-126 of the value.
            uint32_t codes = (i < 2 ? u : u >> 8) & (i % 2 ? 0x00f000f0u : 0x000f000fu);
            uint32_t small = codes * (i % 2 ? 0x104u : 0x1040u) & 0x81c081c0u;
            pairs[i] = bf16_times(bf16_times(small, 0x7e807e80u), scale);
        }
    }
};

// c += a b: a 16 rows of 16 numbers, b 16 numbers of 8 tokens.
__device__ static inline void mma_bf16(float *c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                       uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- which products go this way ----

__host__ __device__ static inline int64_t row_bytes(int64_t cols, int32_t dtype)
{
    return dtype == LSA_BF16 ? 2 * cols : dtype == LSA_F8_E4M3 ? cols : cols / 2;
}

__host__ __device__ static inline int numbers_of_piece(int32_t dtype)
{
    return dtype == LSA_BF16 ? 8 : dtype == LSA_F8_E4M3 ? 16 : 32;
}

// Short rows have a way of their own (is_short_row), and so have numbers that are rounded.
__host__ __device__ static inline bool by_tensor_cores(const product &p)
{
    bool narrow = p.dtype == LSA_BF16 || p.dtype == LSA_F8_E4M3 || p.dtype == LSA_F4_E2M1;
    if (!p.round_x || p.round_w || !narrow || p.cols == 0 || p.cols > 16384) return false;
    int64_t numbers = numbers_of_piece(p.dtype);
    if (p.scale && (p.row_shift < 0 || p.col_shift < 0 || p.block_cols < numbers)) return false;
    return p.cols % numbers == 0 && (uintptr_t)p.data % PIECE == 0;
}

// Warps that share a strip: as many as leave each four chunks.
__host__ __device__ static inline int strip_splits(int64_t cols, int32_t dtype)
{
    int64_t chunks = (row_bytes(cols, dtype) + CHUNK - 1) / CHUNK;
    return chunks >= 32 ? 8 : chunks >= 16 ? 4 : chunks >= 8 ? 2 : 1;
}

// Bytes of shared memory for x.
__host__ __device__ static inline int64_t strip_x_bytes(int64_t cols, int32_t dtype, int tokens)
{
    int64_t chunk = LANES * numbers_of_piece(dtype);
    return (cols + chunk - 1) / chunk * chunk * 2 * tokens;
}

// ---- a warp's work ----

// A lane's rows, one or two, and their scales; NULL: none.
struct lane_rows {
    const uint8_t *data[2], *scales[2];
};

// Chunks of a warp's rows, as they are stored.
template <typename PIECES, int ROWS, int AHEAD> struct chunks_of {
    uint4 piece[AHEAD][ROWS];
    uint8_t scale[AHEAD][ROWS];

    __device__ void load(const lane_rows &rows, int64_t chunk, int64_t to, int64_t bytes, int shift)
    {
        int t = threadIdx.x % LANES;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int64_t at = (chunk + a) * CHUNK + t * PIECE;
            bool there = chunk + a < to && at < bytes;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                piece[a][r] = there ? __ldcs((const uint4 *)(rows.data[r] + at)) : uint4{};
                scale[a][r] = 127;
                if (PIECES::SCALED && rows.scales[r] && there)
                    scale[a][r] = rows.scales[r][at / PIECE * PIECES::NUMBERS >> shift];
            }
        }
    }

    // TOKENS 1: only the first column of the product has a token.
    template <int TOKENS>
    __device__ void multiply(float *sum, const uint4 *x, int64_t chunk, int64_t to) const
    {
        constexpr int EIGHTS = PIECES::NUMBERS / EIGHT;
        int t = threadIdx.x % LANES, g = threadIdx.x % LSA_WARP / LANES;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            if (chunk + a >= to) continue;
            uint32_t by[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) by[r] = PIECES::SCALED ? scale_pair(scale[a][r]) : 0;
#pragma unroll
            for (int j = 0; j < EIGHTS; j++) {
                uint32_t w[2][4] = {};
                uint4 b = {};
                if (TOKENS > 1 || g == 0)
                    b = x[(((chunk + a) * EIGHTS + j) * TOKENS + (TOKENS > 1 ? g : 0)) * LANES + t];
#pragma unroll
                for (int r = 0; r < ROWS; r++) PIECES::eight(w[r], piece[a][r], j, by[r]);
                mma_bf16(sum, w[0][0], w[1][0], w[0][1], w[1][1], b.x, b.y);
                mma_bf16(sum, w[0][2], w[1][2], w[0][3], w[1][3], b.z, b.w);
            }
        }
    }
};

// x of a block's tokens, rounded, in the order in which lanes take it.
template <typename PIECES, int TOKENS, typename PLACES>
__device__ static void strip_x(uint4 *out, const product &p, const PLACES &places,
                               const float *row_scale)
{
    constexpr int EIGHTS = PIECES::NUMBERS / EIGHT;
    int units = (int)(strip_x_bytes(p.cols, p.dtype, TOKENS) / (int64_t)sizeof *out);
    for (int u = threadIdx.x; u < units; u += blockDim.x) {
        int t = u % LANES, token = u / LANES % TOKENS, at = u / LANES / TOKENS;
        int64_t col = ((int64_t)(at / EIGHTS) * LANES + t) * PIECES::NUMBERS + at % EIGHTS * EIGHT;
        float x[EIGHT] = {};
        if (col < p.cols) load_x(x, p, places.x(token), col, row_scale);
        if (PIECES::CROSSED)
            out[u] = {bf16_pair(x[0], x[4]), bf16_pair(x[1], x[5]), bf16_pair(x[2], x[6]),
                      bf16_pair(x[3], x[7])};
        else
            out[u] = {bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]),
                      bf16_pair(x[6], x[7])};
    }
}

// Sums of a warp's part of a strip to where `sum_of_parts` takes them.
template <int ROWS, int TOKENS> struct strip_parts {
    float part[WARPS][ROWS * STRIP][TOKENS];

    __device__ void put(const float *sum)
    {
        int warp = threadIdx.x / LSA_WARP, t = threadIdx.x % LANES;
        int g = threadIdx.x % LSA_WARP / LANES;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if constexpr (TOKENS > 1) {
                part[warp][r * STRIP + g][2 * t] = sum[2 * r];
                part[warp][r * STRIP + g][2 * t + 1] = sum[2 * r + 1];
            } else if (t == 0) {
                part[warp][r * STRIP + g][0] = sum[2 * r];
            }
        }
    }

    // Of the strip that begins with `warp`, in the order of the columns.
    __device__ float sum(int warp, int row, int token, int splits) const
    {
        float all = part[warp][row][token];
        for (int s = 1; s < splits; s++) all += part[warp + s][row][token];
        return all;
    }
};

// Strips of a product, `first`, first + step .. of 8 / splits at a time. x: strip_x_bytes; `ready` makes it, and waits for what
// is to be waited for, after the first loads are under way.
template <typename PIECES, int ROWS, int AHEAD, int TOKENS, typename PLACES, typename READY>
__device__ static __forceinline__ void strips_of(const product &p, const PLACES &places,
                                                 int64_t first, int64_t step, int splits,
                                                 const uint4 *x, const READY &ready)
{
    constexpr int TALL = ROWS * STRIP;
    __shared__ strip_parts<ROWS, TOKENS> parts;
    int warp = threadIdx.x / LSA_WARP, lane = threadIdx.x % LSA_WARP;
    int64_t bytes = row_bytes(p.cols, p.dtype), chunks = (bytes + CHUNK - 1) / CHUNK;
    int64_t each = (chunks + splits - 1) / splits, from = min(chunks, warp % splits * each);
    int64_t to = min(chunks, from + each), strips = (p.rows + TALL - 1) / TALL;
    int of_block = WARPS / splits;
    chunks_of<PIECES, ROWS, AHEAD> held;
    lane_rows rows;
    auto begin = [&](int64_t strip) {
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            int64_t row = p.row_from + min(strip * TALL + r * STRIP + lane / LANES, p.rows - 1);
            rows.data[r] = p.data + row * bytes;
            rows.scales[r] =
                p.scale ? (const uint8_t *)p.scale + (row >> p.row_shift) * p.across : NULL;
        }
        held.load(rows, from, strip < strips ? to : from, bytes, p.col_shift);
    };
    int64_t base = first * of_block;
    begin(base + warp / splits);
    ready();
    for (; base < strips; base += step * of_block) {
        int64_t strip = base + warp / splits, end = strip < strips ? to : from;
        float sum[4] = {};
        for (int64_t c = from; c < end; c += AHEAD) {
            held.template multiply<TOKENS>(sum, x, c, end);
            if (c + AHEAD < end) held.load(rows, c + AHEAD, end, bytes, p.col_shift);
        }
        if (base + step * of_block < strips) begin(strip + step * of_block);
        parts.put(sum);
        __syncthreads();
        for (int i = threadIdx.x; i < of_block * TALL * TOKENS; i += blockDim.x) {
            int token = i % TOKENS, row = i / TOKENS % TALL, at = i / TOKENS / TALL;
            int64_t to_row = (base + at) * TALL + row;
            if (token < p.tokens && to_row < p.rows)
                p.y[places.y(token) * p.y_stride + to_row] =
                    parts.sum(at * splits, row, token, splits);
        }
        __syncthreads();
    }
}

#endif
