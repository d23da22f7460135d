// Private to CUDA files: products of up to eight tokens by tensor cores, for bf16 arithmetic. A warp takes a strip of rows; a
// weight comes from memory to registers, is made bf16 there, and is a factor of m16n8k16 whose other one is x, rounded, in
// shared memory. Which columns a warp adds up, and in which order sums meet, follows from the weight's columns and format
// alone, and a column of the product is one token's: neither the number of tokens nor of rows changes a bit.
#ifndef LSA_LINEAR_MMA_H
#define LSA_LINEAR_MMA_H
#include "kernels/linear_cuda.h"

enum {
    PIECE = 16,           // bytes of a lane's load
    LANES = 4,            // that share a row
    SPAN = LANES * PIECE, // bytes of a row that a warp takes at a time
    STRIP = 8,        // rows that a warp's lanes share out; a lane has one, or one of two strips
    MOST_COLS = 12288 // eight rows of x in shared memory
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

// Whether products with a weight go this way. Short rows have a way of their own, and so have numbers that are rounded.
static inline bool by_tensor_cores(const lsa_weight &w, int32_t compute)
{
    bool narrow = w.dtype == LSA_BF16 || w.dtype == LSA_F8_E4M3 || w.dtype == LSA_F4_E2M1;
    if (!narrow || compute != LSA_COMPUTE_BF16 || is_short_row(w)) return false;
    int64_t numbers = numbers_of_piece(w.dtype);
    if (w.cols < numbers || w.cols > MOST_COLS || w.cols % numbers) return false;
    if ((uintptr_t)w.data % PIECE) return false;
    return !w.scale ||
           (w.dtype != LSA_BF16 && w.scale_dtype == LSA_F8_E8M0 && shift_of(w.block_rows) >= 0 &&
            shift_of(w.block_cols) >= 0 && w.block_cols >= numbers);
}

// Warps that share a strip: as many as leave each four chunks.
__host__ __device__ static inline int strip_splits(int64_t cols, int32_t dtype)
{
    int64_t chunks = (row_bytes(cols, dtype) + SPAN - 1) / SPAN;
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

    __device__ void load(const lane_rows &rows, int chunk, int to, int bytes, int shift)
    {
        int t = threadIdx.x % LANES;
#pragma unroll
        for (int a = 0; a < AHEAD; a++) {
            int at = (chunk + a) * SPAN + t * PIECE;
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
    __device__ void multiply(float *sum, const uint4 *x, int chunk, int to) const
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
__device__ static void strip_x(uint4 *out, const product &p, const PLACES &places)
{
    constexpr int EIGHTS = PIECES::NUMBERS / EIGHT;
    int units = (int)(strip_x_bytes(p.cols, p.dtype, TOKENS) / (int64_t)sizeof *out);
#pragma unroll 2
    for (int u = threadIdx.x; u < units; u += blockDim.x) {
        int t = u % LANES, token = u / LANES % TOKENS, at = u / LANES / TOKENS;
        int64_t col = ((int64_t)(at / EIGHTS) * LANES + t) * PIECES::NUMBERS + at % EIGHTS * EIGHT;
        float x[EIGHT] = {};
        if (token < p.tokens && col < p.cols) load_x(x, p, places.x(token), col, NULL);
        if (PIECES::CROSSED)
            out[u] = {bf16_pair(x[0], x[4]), bf16_pair(x[1], x[5]), bf16_pair(x[2], x[6]),
                      bf16_pair(x[3], x[7])};
        else
            out[u] = {bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]),
                      bf16_pair(x[6], x[7])};
    }
    __syncthreads();
}

// Sums of the warps of a block.
template <int ROWS, int TOKENS> struct strip_parts {
    float part[WARPS][ROWS][STRIP][TOKENS];

    __device__ void put(const float *sum)
    {
        int warp = threadIdx.x / LSA_WARP, t = threadIdx.x % LANES;
        int g = threadIdx.x % LSA_WARP / LANES;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if constexpr (TOKENS > 1) {
                part[warp][r][g][2 * t] = sum[2 * r];
                part[warp][r][g][2 * t + 1] = sum[2 * r + 1];
            } else if (t == 0) {
                part[warp][r][g][0] = sum[2 * r];
            }
        }
    }

    // Of the `splits` warps from `warp` on, in the order of the columns.
    __device__ float sum(int warp, int splits, int r, int row, int token) const
    {
        float all = part[warp][r][row][token];
        for (int s = 1; s < splits; s++) all += part[warp + s][r][row][token];
        return all;
    }
};

// A lane's row r of strip `strip` of a product, and its scales.
__device__ static inline void strip_row(lane_rows *rows, int r, const product &p, int64_t strip)
{
    int64_t own = strip * STRIP + threadIdx.x % LSA_WARP / LANES;
    int64_t row = p.row_from + min(own, p.rows - 1);
    rows->data[r] = p.data + row * row_bytes(p.cols, p.dtype);
    rows->scales[r] = p.scale ? (const uint8_t *)p.scale + (row >> p.row_shift) * p.across : NULL;
}

// How many warps' work a row of blocks has: `all` tasks of `splits` warps each.
struct strip_tasks {
    int64_t all;
    int splits;
    __device__ int of_block() const { return WARPS / splits; }
};

// Tasks of the blocks first, first + step .. : in each a lane has ROWS rows, which `rows_of(&rows, task)` finds, and
// `take(parts, warp, i, task)` takes sum number i of STRIP x TOKENS that is left in `parts`. `ready` makes x after the first loads
// are under way. The products have the shape and format of p.
template <typename PIECES, int ROWS, int AHEAD, int TOKENS, typename ROWS_OF, typename READY,
          typename TAKE>
__device__ static __forceinline__ void strips_of(const product &p, strip_tasks tasks, int64_t first,
                                                 int64_t step, const uint4 *x,
                                                 const ROWS_OF &rows_of, const READY &ready,
                                                 const TAKE &take)
{
    __shared__ strip_parts<ROWS, TOKENS> parts;
    int warp = threadIdx.x / LSA_WARP, splits = tasks.splits, of_block = tasks.of_block();
    int bytes = (int)row_bytes(p.cols, p.dtype), chunks = (bytes + SPAN - 1) / SPAN;
    int each = (chunks + splits - 1) / splits, from = min(chunks, warp % splits * each);
    int to = min(chunks, from + each);
    chunks_of<PIECES, ROWS, AHEAD> held;
    lane_rows rows;
    auto begin = [&](int64_t task) {
        if (task >= tasks.all) return;
        rows_of(&rows, task);
        held.load(rows, from, to, bytes, p.col_shift);
    };
    int64_t base = first * of_block;
    begin(base + warp / splits);
    ready();
    for (; base < tasks.all; base += step * of_block) {
        int64_t task = base + warp / splits;
        float sum[4] = {};
        if (task < tasks.all)
            for (int c = from; c < to; c += AHEAD) {
                held.template multiply<TOKENS>(sum, x, c, to);
                if (c + AHEAD < to) held.load(rows, c + AHEAD, to, bytes, p.col_shift);
            }
        begin(task + step * of_block);
        parts.put(sum);
        __syncthreads();
        for (int i = threadIdx.x; i < of_block * STRIP * TOKENS; i += blockDim.x) {
            int at = i / (STRIP * TOKENS);
            if (base + at < tasks.all) take(parts, at * splits, i % (STRIP * TOKENS), base + at);
        }
        __syncthreads();
    }
}

// Strips of one product.
template <typename PIECES, int ROWS, int AHEAD, int TOKENS, typename PLACES, typename WAIT>
__device__ static __forceinline__ void product_strips(const product &p, const PLACES &places,
                                                      int64_t first, int64_t step, uint4 *x,
                                                      const WAIT &wait)
{
    constexpr int TALL = ROWS * STRIP;
    strip_tasks tasks = {(p.rows + TALL - 1) / TALL, strip_splits(p.cols, p.dtype)};
    strips_of<PIECES, ROWS, AHEAD, TOKENS>(
        p, tasks, first, step, x,
        [&](lane_rows *rows, int64_t task) {
#pragma unroll
            for (int r = 0; r < ROWS; r++) strip_row(rows, r, p, task * ROWS + r);
        },
        [&] {
            wait();
            strip_x<PIECES, TOKENS>(x, p, places);
        },
        [&](const strip_parts<ROWS, TOKENS> &parts, int warp, int i, int64_t task) {
            int token = i % TOKENS;
            if (token >= p.tokens) return;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int64_t row = task * TALL + r * STRIP + i / TOKENS;
                if (row < p.rows)
                    p.y[places.y(token) * p.y_stride + row] =
                        parts.sum(warp, tasks.splits, r, i / TOKENS, token);
            }
        });
}

#endif
