/* Private to CUDA files: scores of keys, which lie one behind the other or in blocks. A kernel on the tensor cores for bf16, and
 * a plain one for everything; in both, the order of a score's sums follows from heads and dim alone, so its bits do as well. */
#ifndef LSA_INDEX_SCORE_CUDA_H
#define LSA_INDEX_SCORE_CUDA_H
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include "kernels/kv_record_private.h"

extern "C" {
#include "kernels/index_score.h"
#include "kernels/linear.h"
}

enum {
    WARP = 32,
    PLAIN_KEYS = 64,  // of a block of the plain kernel; 16 threads of 4 keys each
    PLAIN_HEADS = 32, // at a time; 8 threads of 4 heads each
    PLAIN_DEPTH = 32,
    PLAIN_THREADS = 128,
    FEW_HEADS = 8, // where there are no more, and no longer ones, a thread has a key
    FEW_DIM = 64,
    FEW_THREADS = 128,
    FEW_TOKENS = 16, // whose queries a block holds
    MMA_WARPS = 8,
    MMA_THREADS = MMA_WARPS * WARP,
    MMA_KEYS = 32, // of a warp: two tiles of m16n8k16
    MMA_MOST_DIM = 128,
    QUERY_BYTES = 48 << 10, // of shared memory, for as many tokens as fit
    MOST_QUERY_BYTES = 96 << 10
};

struct scoring {
    float *scores;
    const float *q, *w;
    const uint8_t *keys;
    int64_t tokens, n, key_stride, score_stride;
    int32_t heads, dim, format, compute;
    uint8_t *const *
        blocks; // NULL, or of 2^block_shift keys each, `offset` bytes from where they begin, instead of keys
    int64_t offset;
    int32_t block_shift;
};

// ---- helpers ----

__device__ static float relu(float x) // NaN passes
{
    asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
    return x;
}

__device__ static uint32_t bytes_at(const uint8_t *p, int count)
{
    uint32_t u = 0;
    for (int i = 0; i < count; i++) u |= (uint32_t)p[i] << (8 * i);
    return u;
}

__device__ static float bf16_rounded(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

__device__ static uint32_t bf16_pair(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(const uint32_t *)&pair;
}

__device__ static float key_number(const scoring &s, const uint8_t *key, int d)
{
    if (s.format == LSA_KV_FP8) return e4m3_to_f32(key[d]);
    if (s.format == LSA_KV_BF16) return __uint_as_float(bytes_at(key + 2 * d, 2) << 16);
    float x = __uint_as_float(bytes_at(key + 4 * (int64_t)d, 4));
    return s.compute == LSA_COMPUTE_BF16 ? bf16_rounded(x) : x;
}

__device__ static const uint8_t *key_at(const scoring &s, int64_t i)
{
    if (!s.blocks) return s.keys + i * s.key_stride;
    int64_t within = i & (((int64_t)1 << s.block_shift) - 1);
    return s.blocks[i >> s.block_shift] + within * s.key_stride + s.offset;
}

__device__ static float key_scale(const scoring &s, int64_t i)
{
    if (s.format != LSA_KV_FP8) return 1.0f;
    return __uint_as_float(bytes_at(key_at(s, i) + s.dim, 4));
}

// ---- what blocks do ----

// Queries in e4m3 numbers, and their weights: a warp a query. Grid: any; block: whole warps.
__device__ static void round_queries(float *to, float *weights, const scoring &s)
{
    int lane = threadIdx.x % WARP;
    int64_t warps = (int64_t)gridDim.x * blockDim.x / WARP, rows = s.tokens * s.heads;
    for (int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP; row < rows;
         row += warps) {
        const float *q = s.q + row * s.dim;
        uint32_t amax = LSA_KV_LEAST_AMAX;
        for (int d = lane; d < s.dim; d += WARP) amax = larger_bits(amax, q[d]);
        float scale = key_scale(__reduce_max_sync(0xffffffff, amax));
        for (int d = lane; d < s.dim; d += WARP)
            to[row * s.dim + d] = e4m3_to_f32(key_code(q[d], scale));
        if (lane == 0) weights[row] = s.w[row] * scale;
    }
}

// Any shape, f32 products. Grid: (at least ceil(n / 64), tokens up to 65535), block: 128, shared: 14.3 KB.
__device__ static void score_plain(const scoring &s)
{
    __shared__ float qs[PLAIN_DEPTH][PLAIN_HEADS + 1], ks[PLAIN_DEPTH][PLAIN_KEYS + 1];
    __shared__ float sums[PLAIN_HEADS / 4][PLAIN_KEYS];
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
    int64_t key0 = (int64_t)blockIdx.x * PLAIN_KEYS;
    if (key0 >= s.n) return;
    for (int64_t t = blockIdx.y; t < s.tokens; t += gridDim.y) {
        float sum[4] = {0, 0, 0, 0};
        for (int head0 = 0; head0 < s.heads; head0 += PLAIN_HEADS) {
            float acc[4][4] = {};
            for (int d0 = 0; d0 < s.dim; d0 += PLAIN_DEPTH) {
                for (int i = threadIdx.x; i < PLAIN_HEADS * PLAIN_DEPTH; i += PLAIN_THREADS) {
                    int h = head0 + i / PLAIN_DEPTH, d = d0 + i % PLAIN_DEPTH;
                    float v = h < s.heads && d < s.dim ? s.q[(t * s.heads + h) * s.dim + d] : 0.0f;
                    qs[i % PLAIN_DEPTH][i / PLAIN_DEPTH] =
                        s.compute == LSA_COMPUTE_BF16 ? bf16_rounded(v) : v;
                }
                for (int i = threadIdx.x; i < PLAIN_KEYS * PLAIN_DEPTH; i += PLAIN_THREADS) {
                    int64_t k = key0 + i / PLAIN_DEPTH;
                    int d = d0 + i % PLAIN_DEPTH;
                    ks[i % PLAIN_DEPTH][i / PLAIN_DEPTH] =
                        k < s.n && d < s.dim ? key_number(s, key_at(s, k), d) : 0.0f;
                }
                __syncthreads();
                for (int d = 0; d < PLAIN_DEPTH; d++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
#pragma unroll
                        for (int i = 0; i < 4; i++)
                            acc[j][i] = fmaf(qs[d][y + 8 * j], ks[d][x + 16 * i], acc[j][i]);
                __syncthreads();
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int h = head0 + y + 8 * j;
                if (h >= s.heads) continue;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    sum[i] = fmaf(s.w[t * s.heads + h], relu(acc[j][i]), sum[i]);
            }
        }
        for (int i = 0; i < 4; i++) sums[y][x + 16 * i] = sum[i];
        __syncthreads();
        int64_t k = key0 + threadIdx.x;
        if (threadIdx.x < PLAIN_KEYS && k < s.n) {
            float total = 0;
            for (int i = 0; i < PLAIN_HEADS / 4; i++) total += sums[i][threadIdx.x];
            s.scores[t * s.score_stride + k] = total * key_scale(s, k);
        }
        __syncthreads();
    }
}

__host__ __device__ static inline bool few_takes(int64_t heads, int64_t dim)
{
    return heads <= FEW_HEADS && dim <= FEW_DIM;
}

// A key's numbers, zeros beyond dim.
template <int DIM>
__device__ static void read_key(float (&to)[DIM], const scoring &s, const uint8_t *key)
{
    int bytes = s.format == LSA_KV_FP8 ? 1 : s.format == LSA_KV_BF16 ? 2 : 4;
    if (s.dim == DIM && (uintptr_t)key % 4 == 0) {
#pragma unroll
        for (int d = 0; d < DIM; d += 4) {
            const uint32_t *words = (const uint32_t *)(key + d * bytes);
            if (s.format == LSA_KV_FP8) {
#pragma unroll
                for (int e = 0; e < 4; e += 2) {
                    __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(
                        (__nv_fp8x2_storage_t)(words[0] >> 8 * e), __NV_E4M3);
                    float2 two = __half22float2(pair);
                    to[d + e] = two.x;
                    to[d + e + 1] = two.y;
                }
            } else if (s.format == LSA_KV_BF16) {
                uint32_t low = words[0], high = words[1];
                to[d] = __uint_as_float(low << 16);
                to[d + 1] = __uint_as_float(low & 0xffff0000);
                to[d + 2] = __uint_as_float(high << 16);
                to[d + 3] = __uint_as_float(high & 0xffff0000);
            } else {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float x = __uint_as_float(words[e]);
                    to[d + e] = s.compute == LSA_COMPUTE_BF16 ? bf16_rounded(x) : x;
                }
            }
        }
        return;
    }
#pragma unroll
    for (int d = 0; d < DIM; d++) to[d] = d < s.dim ? key_number(s, key, d) : 0.0f;
}

// What few_takes; dim is at most DIM. Grid: (at least ceil(n / 128), groups of tokens), block: 128, shared: 16 tokens' queries.
template <int DIM> __device__ static void score_few(const scoring &s)
{
    __shared__ float4 qs[FEW_TOKENS][FEW_HEADS][DIM / 4];
    __shared__ float ws[FEW_TOKENS][FEW_HEADS];
    int64_t k = (int64_t)blockIdx.x * FEW_THREADS + threadIdx.x;
    if ((int64_t)blockIdx.x * FEW_THREADS >= s.n) return;
    bool mine = k < s.n;
    float key[DIM], scale = 0;
    if (mine) {
        read_key<DIM>(key, s, key_at(s, k));
        scale = key_scale(s, k);
    }
    for (int64_t first = (int64_t)blockIdx.y * FEW_TOKENS; first < s.tokens;
         first += (int64_t)gridDim.y * FEW_TOKENS) {
        int tokens = (int)min((int64_t)FEW_TOKENS, s.tokens - first), rows = tokens * s.heads;
        __syncthreads();
        for (int i = threadIdx.x; i < rows * DIM; i += FEW_THREADS) {
            int row = i / DIM, d = i % DIM;
            float v = d < s.dim ? s.q[(first * s.heads + row) * s.dim + d] : 0.0f;
            ((float *)qs[row / s.heads][row % s.heads])[d] =
                s.compute == LSA_COMPUTE_BF16 ? bf16_rounded(v) : v;
        }
        for (int i = threadIdx.x; i < rows; i += FEW_THREADS)
            ws[i / s.heads][i % s.heads] = s.w[first * s.heads + i];
        __syncthreads();
        for (int t = 0; t < tokens && mine; t++) {
            float total = 0;
            for (int h = 0; h < s.heads; h++) {
                float sum = 0;
#pragma unroll
                for (int d = 0; d < DIM / 4; d++) {
                    float4 q = qs[t][h][d];
                    sum = fmaf(q.w, key[4 * d + 3],
                               fmaf(q.z, key[4 * d + 2],
                                    fmaf(q.y, key[4 * d + 1], fmaf(q.x, key[4 * d], sum))));
                }
                total = fmaf(ws[t][h], relu(sum), total);
            }
            s.scores[(first + t) * s.score_stride + k] = total * scale;
        }
    }
}

__device__ static void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, "
                 "{%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two e4m3 numbers, in the high bytes of the halves of `codes`, as two bf16; no NaN.
__device__ static uint32_t e4m3x2_to_bf16(uint32_t codes)
{
    uint32_t bits = (codes & 0x80008000) | (codes >> 4 & 0x07f007f0);
    uint32_t times = 0x7b807b80, product; // 2^120 twice; subnormals of bf16 are honoured
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(bits), "r"(times));
    return product;
}

// A word's numbers 0 and 2, and 1 and 3. Sets a bit of `nan` where there is one: it comes out as
// 480.
__device__ static void e4m3x4_to_bf16(uint32_t &even, uint32_t &odd, uint32_t &nan, uint32_t word)
{
    even = e4m3x2_to_bf16(word << 8);
    odd = e4m3x2_to_bf16(word);
    nan |= ((word & 0x7f7f7f7f) + 0x01010101) & 0x80808080;
}

// Puts NaN where 480 is.
__device__ static uint32_t with_nan(uint32_t pair)
{
    if ((pair & 0x7fff) == 0x43f0) pair |= 0x7fc0;
    if ((pair & 0x7fff0000) == 0x43f00000) pair |= 0x7fc00000;
    return pair;
}

// Word i of a key as the tensor cores' kernel holds it: four fp8, or two bf16; zero beyond dim.
__device__ static uint32_t key_word(const scoring &s, const uint8_t *key, int i)
{
    if (s.format == LSA_KV_FP8) return bytes_at(key + 4 * i, max(0, min(4, s.dim - 4 * i)));
    if (s.format == LSA_KV_BF16) return bytes_at(key + 4 * i, max(0, min(4, 2 * s.dim - 4 * i)));
    float low = 2 * i < s.dim ? key_number(s, key, 2 * i) : 0.0f;
    float high = 2 * i + 1 < s.dim ? key_number(s, key, 2 * i + 1) : 0.0f;
    return bf16_pair(low, high);
}

// Brings a warp's 32 keys into shared memory, in rows of `PITCH` words; an fp8 row ends with its
// scale, as the record does. `direct`: records are rows already: where they lie one
// behind the other and aligned, 16 bytes at a time go, else words; the last keys go number by number.
template <int WORDS, int PITCH, bool FP8>
__device__ static void stage_keys(uint32_t *to, const scoring &s, int64_t key0, int lane,
                                  bool direct)
{
    const uint8_t *keys = key_at(s, key0);
    bool whole = direct && key0 + MMA_KEYS <= s.n;
    bool contiguous = (FP8 ? s.key_stride == s.dim + 4 : s.key_stride % 16 == 0) &&
                      (!s.blocks || s.block_shift >= 5);
    if (whole && contiguous && (uintptr_t)keys % 16 == 0) {
        constexpr int ROWS = FP8 ? 1 : MMA_KEYS, VECTORS = FP8 ? MMA_KEYS * PITCH / 4 : WORDS / 4;
#pragma unroll 3
        for (int i = lane; i < ROWS * VECTORS; i += WARP)
            __pipeline_memcpy_async(to + i / VECTORS * PITCH + i % VECTORS * 4,
                                    keys + i / VECTORS * s.key_stride + i % VECTORS * 16, 16);
    } else if (whole && s.key_stride % 4 == 0 && s.offset % 4 == 0 && (uintptr_t)keys % 4 == 0) {
#pragma unroll 1
        for (int r = 0; r < MMA_KEYS; r++) {
            const uint8_t *key = key_at(s, key0 + r);
#pragma unroll
            for (int i = lane; i < (FP8 ? WORDS + 1 : WORDS); i += WARP)
                __pipeline_memcpy_async(to + r * PITCH + i, key + 4 * i, 4);
        }
    } else {
#pragma unroll 1
        for (int r = 0; r < MMA_KEYS; r++) {
            const uint8_t *key = key0 + r < s.n ? key_at(s, key0 + r) : NULL;
#pragma unroll 1
            for (int i = lane; i < WORDS; i += WARP)
                to[r * PITCH + i] = key ? key_word(s, key, i) : 0;
        }
        if (FP8)
            to[lane * PITCH + WORDS] =
                key0 + lane < s.n ? __float_as_uint(key_scale(s, key0 + lane)) : 0;
    }
    __pipeline_commit();
}

// Queries as B fragments of m16n8k16, two steps of the depth together, and weights, a token after
// the other: [tile of 8 heads][step / 2][lane] of 4 registers, then a weight a head; zero past the
// last head. Which numbers meet in a step is ours to choose: of fp8 keys, thread t of a row takes
// word step + STEPS t, so that rows an odd number of words long are read from distinct banks, as
// numbers 0 with 2 and 1 with 3, which takes no shuffle. Grid: (tiles, tokens up to 65535), block:
// 32 STEPS.
template <int STEPS, bool FP8> __device__ static void pack_queries(uint2 *to, const scoring &s)
{
    int lane = threadIdx.x % WARP, step = threadIdx.x / WARP, tile = blockIdx.x,
        h = tile * 8 + lane / 4;
    int d = FP8 ? 4 * (step + STEPS * (lane % 4)) : 16 * step + 2 * (lane % 4);
    for (int64_t token = blockIdx.y; token < s.tokens; token += gridDim.y) {
        const float *q = s.q + (token * s.heads + h) * s.dim;
        uint2 *out = to + token * gridDim.x * (STEPS * WARP + 4);
        auto number = [&](int offset) {
            return h < s.heads && d + offset < s.dim ? q[d + offset] : 0.0f;
        };
        out[((tile * STEPS + step) / 2 * WARP + lane) * 2 + step % 2] =
            FP8 ? make_uint2(bf16_pair(number(0), number(2)), bf16_pair(number(1), number(3)))
                : make_uint2(bf16_pair(number(0), number(1)), bf16_pair(number(8), number(9)));
        if (threadIdx.x < 8) {
            int head = tile * 8 + threadIdx.x;
            ((float *)(out + gridDim.x * STEPS * WARP))[head] =
                head < s.heads ? s.w[token * s.heads + head] : 0.0f;
        }
    }
}

// TILES tiles of 8 heads against a warp's keys; adds to the sums of keys g, g + 8, g + 16, g + 24.
template <int STEPS, int TILES>
__device__ static void score_heads(float sum[4], const uint32_t keys[2][STEPS][4], const uint4 *q,
                                   const float *weights, int head, int heads, int lane)
{
    float c[TILES][2][4] = {};
#pragma unroll
    for (int step = 0; step < STEPS; step += 2)
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            uint4 b = q[(i * STEPS + step) / 2 * WARP + lane];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                mma(c[i][half], keys[half][step], b.x, b.y);
                mma(c[i][half], keys[half][step + 1], b.z, b.w);
            }
        }
#pragma unroll
    for (int i = 0; i < TILES; i++) {
        int h = 8 * i + 2 * (lane % 4);
        float2 w = *(const float2 *)(weights + h);
#pragma unroll
        for (int row = 0; row < 4; row++) {
            // Heads that fill up a tile must not bring in the NaN of a zero times an infinite key.
            if (head + h < heads) sum[row] = fmaf(w.x, relu(c[i][row / 2][row % 2 * 2]), sum[row]);
            if (head + h + 1 < heads)
                sum[row] = fmaf(w.y, relu(c[i][row / 2][row % 2 * 2 + 1]), sum[row]);
        }
    }
}

// A warp's staged keys as A fragments of m16n8k16: rows g and g + 8 of two tiles.
template <int STEPS, bool FP8, int PITCH>
__device__ static void load_keys(uint32_t keys[2][STEPS][4], const uint32_t *staged, int g, int t)
{
    uint32_t nan = 0;
#pragma unroll
    for (int i = 0; i < 2 * STEPS; i++) {
        const uint32_t *row = staged + (i / STEPS * 16 + g) * PITCH;
        uint32_t *a = keys[i / STEPS][i % STEPS];
        if (FP8) {
            row += i % STEPS + STEPS * t;
            e4m3x4_to_bf16(a[0], a[2], nan, row[0]);
            e4m3x4_to_bf16(a[1], a[3], nan, row[8 * PITCH]);
        } else {
            row += i % STEPS * 8 + t;
            a[0] = row[0];
            a[1] = row[8 * PITCH];
            a[2] = row[4];
            a[3] = row[8 * PITCH + 4];
        }
    }
    if (FP8 && nan) {
#pragma unroll
        for (int i = 0; i < 8 * STEPS; i++) {
            uint32_t &pair = keys[i / (4 * STEPS)][i / 4 % STEPS][i % 4];
            pair = with_nan(pair);
        }
    }
}

// The sum over a token's heads, for key g + 8 t of the warp's 32.
template <int STEPS>
__device__ static float score_token(const uint32_t keys[2][STEPS][4], const uint4 *q, int tiles,
                                    int heads, int lane)
{
    const float *w = (const float *)(q + tiles * STEPS / 2 * WARP);
    float sum[4] = {0, 0, 0, 0};
    int tile = 0, t = lane % 4;
    for (; tile + 2 <= tiles; tile += 2)
        score_heads<STEPS, 2>(sum, keys, q + tile * STEPS / 2 * WARP, w + tile * 8, tile * 8, heads,
                              lane);
    if (tile < tiles)
        score_heads<STEPS, 1>(sum, keys, q + tile * STEPS / 2 * WARP, w + tile * 8, tile * 8, heads,
                              lane);
#pragma unroll
    for (int row = 0; row < 4; row++) {
        sum[row] += __shfl_xor_sync(0xffffffff, sum[row], 1);
        sum[row] += __shfl_xor_sync(0xffffffff, sum[row], 2);
    }
    return t == 0 ? sum[0] : t == 1 ? sum[1] : t == 2 ? sum[2] : sum[3];
}

// bf16 products; keys as fp8 or bf16 words, dim up to 16 STEPS. Keys are the rows of the products,
// heads the columns: a warp holds 32 keys in registers for all tokens, and fetches the next 32
// meanwhile. Grid: (blocks of 256 keys, groups of tokens: up to what fills the GPU), block: 256,
// shared: 256 keys, then `group` tokens as pack_queries leaves them.
template <int STEPS, bool FP8>
__device__ static void score_mma(const scoring &s, const uint4 *packed, int group, int tiles,
                                 bool direct)
{
    constexpr int WORDS = FP8 ? 4 * STEPS : 8 * STEPS, PITCH = FP8 ? WORDS + 1 : WORDS + 4;
    extern __shared__ uint4 shared[];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint32_t *staged = (uint32_t *)shared + warp * MMA_KEYS * PITCH;
    uint4 *queries = shared + MMA_WARPS * MMA_KEYS * PITCH / 4;
    int token_vectors = tiles * (STEPS / 2 * WARP + 2);
    int64_t held = -1, step = (int64_t)gridDim.x * MMA_WARPS * MMA_KEYS;
    int64_t key0 = ((int64_t)blockIdx.x * MMA_WARPS + warp) * MMA_KEYS;
    if (key0 < s.n) stage_keys<WORDS, PITCH, FP8>(staged, s, key0, lane, direct);
    for (; key0 - warp * MMA_KEYS < s.n;
         key0 += step) { // the same rounds in all warps, for the barriers
        uint32_t keys[2][STEPS][4];
        int64_t own = key0 + g + 8 * t;
        float scale = 1.0f;
        __pipeline_wait_prior(0);
        __syncwarp();
        if (key0 < s.n) {
            load_keys<STEPS, FP8, PITCH>(keys, staged, g, t);
            if (FP8) scale = __uint_as_float(staged[(g + 8 * t) * PITCH + WORDS]);
        }
        __syncwarp();
        if (key0 + step < s.n) stage_keys<WORDS, PITCH, FP8>(staged, s, key0 + step, lane, direct);
        for (int64_t t0 = (int64_t)blockIdx.y * group; t0 < s.tokens;
             t0 += (int64_t)gridDim.y * group) {
            int count = (int)min((int64_t)group, s.tokens - t0);
            if (t0 != held) {
                __syncthreads();
                for (int i = threadIdx.x; i < count * token_vectors; i += MMA_THREADS)
                    __pipeline_memcpy_async(queries + i, packed + t0 * token_vectors + i, 16);
                __pipeline_commit();
                __pipeline_wait_prior(0);
                __syncthreads();
                held = t0;
            }
            if (key0 >= s.n) continue;
            for (int i = 0; i < count; i++) {
                float sum =
                    score_token<STEPS>(keys, queries + i * token_vectors, tiles, s.heads, lane);
                if (own < s.n) s.scores[(t0 + i) * s.score_stride + own] = sum * scale;
            }
        }
    }
}

// Whether the tensor cores' kernel takes it.
static inline bool on_tensor_cores(int64_t heads, int64_t dim, int32_t compute)
{
    int64_t tiles = (heads + 7) / 8, steps = dim <= 32 ? 2 : dim <= 64 ? 4 : 8;
    return compute == LSA_COMPUTE_BF16 && dim <= MMA_MOST_DIM &&
           tiles * steps * WARP * 8 <= MOST_QUERY_BYTES;
}

// Bytes of a token's packed queries.
static inline int64_t packed_bytes(int64_t heads, int64_t dim)
{
    int64_t tiles = (heads + 7) / 8, steps = dim <= 32 ? 2 : dim <= 64 ? 4 : 8;
    return tiles * (steps * WARP * 8 + 32);
}

// Tokens of `tokens` whose packed queries a block holds.
static inline int64_t held_tokens(int64_t tokens, int64_t bytes)
{
    int64_t group = QUERY_BYTES / bytes < 1 ? 1 : QUERY_BYTES / bytes;
    return group < tokens ? group : tokens;
}

// Blocks of `kernel` that the GPU runs at once; makes room for their shared memory.
template <int STEPS, bool FP8, typename KERNEL>
static cudaError_t prepare_mma(KERNEL kernel, int64_t query_bytes, int *bytes, int64_t *room)
{
    int device, processors, resident;
    *bytes = MMA_WARPS * MMA_KEYS * (FP8 ? 4 * STEPS + 1 : 8 * STEPS + 4) * 4 + (int)query_bytes;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, *bytes);
    if (error == cudaSuccess)
        error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, MMA_THREADS,
                                                              (size_t)*bytes);
    if (error == cudaSuccess) *room = (int64_t)processors * resident;
    return error;
}

// Whether records of the tensor cores' kernel are rows already.
static inline bool rows_already(int32_t format, int64_t dim, int steps)
{
    return format != LSA_KV_F32 && dim == 16 * steps;
}

#endif
