/* Private to CUDA files: index scores on Hopper's tensor cores, for fp8 keys of 128 numbers and up to 128 heads.
 *
 * Keys are the rows of the products, and come from registers: a record of 132 bytes is no row that the tensor cores could read
 * from shared memory, but as it lies there a warp reads its fragments without a conflict, thread t of a row words t * 8
 * to t * 8 + 7. Which numbers of a key meet in a step of the depth is ours to choose, so queries are packed in that order, as
 * the columns, in rows of 128 bytes as lsa_rows_of_128 wants them: e4m3, or bf16 once, or bf16 three times, so that the
 * terms sum to the f32 number. A warp brings in its own 16 keys of a tile of 64, ahead of their use, by bulk copies.
 * The order of a score's sums follows from heads and scoring alone. */
#ifndef LSA_INDEX_SCORE_WGMMA_H
#define LSA_INDEX_SCORE_WGMMA_H
#include "kernels/hopper.h"
#include "kernels/index_score_cuda.h"
#include "kernels/kv_record_private.h"

enum {
    WG_DIM = 128,
    WG_KEY_BYTES = 132,
    WG_KEYS = 64,  // of a tile, a warpgroup's
    WG_PIECE = 16, // of a warp
    WG_STAGES = 3, // pieces under way
    WG_PIECE_BYTES = WG_PIECE * WG_KEY_BYTES,
    WG_MOST_HEADS = 128,
    WG_PACKED_HEADS = 8, // of a block of 256 threads, a warp each: one wait for memory
    WG_WEIGHT_BYTES =
        1024, // of a token's packed queries, so that the next one's begin on such a boundary
    WG_MOST_SHARED = 226 << 10
};

// Where keys are: one behind the other, or in blocks of 2^block_shift.
struct key_source {
    const uint8_t *keys;
    uint8_t *const *blocks;
    int64_t n, stride, offset;
    int32_t block_shift;
};

// HEADS: 64 or 128, the last ones zero; SCORING: LSA_SCORE_*.
template <int HEADS, int SCORING> struct wg_shape {
    static constexpr int PANELS = SCORING == LSA_SCORE_FP8 ? 1 : SCORING == LSA_SCORE_BF16 ? 2 : 6;
    static constexpr int PANEL_BYTES = HEADS * 128;
    static constexpr int WEIGHTS_AT = PANELS * PANEL_BYTES;
    static constexpr int TOKEN_BYTES = WEIGHTS_AT + WG_WEIGHT_BYTES;
    // What a thread holds of sums and keys decides how many fit.
    static constexpr int GROUPS = HEADS == 128 && SCORING != LSA_SCORE_FP8 ? 3 : 4;
    static constexpr int THREADS = GROUPS * LSA_WARPGROUP;
    static constexpr int WARPS = THREADS / WARP;
    static constexpr int RING_BYTES = WARPS * WG_STAGES * WG_PIECE_BYTES;
    static constexpr int BARRIER_BYTES = (WARPS * WG_STAGES + 1) * 8;
    static constexpr int FIXED_BYTES = RING_BYTES + BARRIER_BYTES + 1024; // 1024: for alignment
};

// ---- queries ----

// Two numbers in e4m3, as key_code has them once they are divided by the scale.
__device__ static inline uint32_t e4m3_pair(float low, float high)
{
    uint16_t codes;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
    return codes;
}

// A head's query, of which a lane has four numbers, as store(byte, word) wants it at byte `at` on; h: its row.
template <int HEADS, int SCORING, typename STORE>
__device__ static inline void pack_head(STORE store, uint32_t at, int h, float v[4], float weight,
                                        int lane)
{
    using shape = wg_shape<HEADS, SCORING>;
    uint32_t row = at + h * 128;
    int t = lane / 8, word = lane % 8;
    if constexpr (SCORING == LSA_SCORE_FP8) {
        uint32_t amax = LSA_KV_LEAST_AMAX;
#pragma unroll
        for (int i = 0; i < 4; i++) amax = larger_bits(amax, v[i]);
        float scale = key_scale(__reduce_max_sync(0xffffffff, amax));
        store(row + (word ^ h % 8) * 16 + t * 4,
              e4m3_pair(v[0] / scale, v[1] / scale) | e4m3_pair(v[2] / scale, v[3] / scale) << 16);
        weight *= scale;
    } else {
#pragma unroll
        for (int term = 0; term < shape::PANELS / 2; term++) {
            uint32_t part[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (SCORING == LSA_SCORE_BF16 || !(fabsf(v[i]) < INFINITY)) {
                    part[i] = bf16_pair(v[i], 0.0f) & 0xffff;
                    v[i] = 0;
                } else { // eight bits of the number, and what is left
                    uint32_t top = __float_as_uint(v[i]) & 0xffff0000;
                    part[i] = top >> 16;
                    v[i] -= __uint_as_float(top);
                }
            }
            uint32_t panel = row + (2 * term + word / 4) * shape::PANEL_BYTES;
            int chunk = word % 4 * 2;
            store(panel + (chunk ^ h % 8) * 16 + t * 4, part[0] | part[2] << 16);
            store(panel + ((chunk + 1) ^ h % 8) * 16 + t * 4, part[1] | part[3] << 16);
        }
    }
    if (lane == 0) store(at + shape::WEIGHTS_AT + 4 * h, __float_as_uint(weight));
}

// Tokens' queries [tokens, heads, dim] and weights, packed, a warp a head; this one is number `warp` of `warps`. store: of a
// byte's number and the word that is to be there.
template <int HEADS, int SCORING, typename STORE>
__device__ static void pack_tokens(STORE store, const float *q, const float *w, int heads,
                                   int64_t tokens, int64_t warp, int64_t warps)
{
    using shape = wg_shape<HEADS, SCORING>;
    constexpr int BATCH = SCORING == LSA_SCORE_FP8 ? 6 : 3; // heads that are waited for together
    int lane = threadIdx.x % WARP;
    bool whole = (uintptr_t)q % 16 == 0;
    for (int64_t first = warp; first < tokens * HEADS; first += BATCH * warps) {
        float v[BATCH][4], weight[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int64_t row = first + i * warps, t = row / HEADS, h = row % HEADS;
            bool here = t < tokens && h < heads;
            int64_t at = t * heads + h;
            float4 x = lsa_load4(q, at * WG_DIM + 4 * lane, here ? (at + 1) * WG_DIM : 0, whole);
            v[i][0] = x.x, v[i][1] = x.y, v[i][2] = x.z, v[i][3] = x.w;
            weight[i] = here ? w[at] : 0;
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            int64_t row = first + i * warps;
            if (row < tokens * HEADS)
                pack_head<HEADS, SCORING>(store, (uint32_t)(row / HEADS * shape::TOKEN_BYTES),
                                          (int)(row % HEADS), v[i], weight[i], lane);
        }
    }
}

// The queries of a call, for blocks that do not pack their own. Grid: (parts of the heads, tokens up to 65535), block: 256.
template <int HEADS, int SCORING> __global__ static void pack_all(uint8_t *to, scoring s)
{
    lsa_let_next_launch_start();
    for (int64_t t = blockIdx.y; t < s.tokens; t += gridDim.y) {
        uint8_t *token = to + t * wg_shape<HEADS, SCORING>::TOKEN_BYTES;
        pack_tokens<HEADS, SCORING>(
            [&](uint32_t at, uint32_t word) { *(uint32_t *)(token + at) = word; },
            s.q + t * s.heads * WG_DIM, s.w + t * s.heads, s.heads, 1,
            blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, gridDim.x * (blockDim.x / WARP));
    }
}

// ---- keys ----

// A warp's pieces of keys: `next` of them have been asked for, `taken` used.
struct key_ring {
    uint8_t *stages;
    uint64_t *full;
    uint32_t next, taken;
};

// Asks for 16 keys from key0 on; what is beyond the last is zero.
__device__ static inline void ask_for_keys(key_ring &ring, const key_source &s, int64_t key0,
                                           int lane)
{
    uint32_t stage = ring.next++ % WG_STAGES;
    uint32_t *to = (uint32_t *)(ring.stages + stage * WG_PIECE_BYTES);
    auto at = [&](int64_t i) {
        if (!s.blocks) return s.keys + i * s.stride;
        int64_t within = i & (((int64_t)1 << s.block_shift) - 1);
        return (const uint8_t *)(s.blocks[i >> s.block_shift] + within * s.stride + s.offset);
    };
    if (key0 + WG_PIECE <= s.n && s.stride == WG_KEY_BYTES && (!s.blocks || s.block_shift >= 4)) {
        const uint8_t *keys = at(key0);
        if ((uintptr_t)keys % 16 == 0) {
            if (lane == 0) {
                lsa_barrier_expect(ring.full + stage, WG_PIECE_BYTES);
                lsa_bulk_load(to, keys, WG_PIECE_BYTES, ring.full + stage);
            }
            return;
        }
    }
#pragma unroll 1
    for (int r = 0; r < WG_PIECE; r++) {
        const uint8_t *key = key0 + r < s.n ? at(key0 + r) : NULL;
        to[r * 33 + lane] = key ? bytes_at(key + 4 * lane, 4) : 0;
        if (lane == 0) to[r * 33 + 32] = key ? bytes_at(key + WG_DIM, 4) : 0;
    }
    lsa_async_fence();
    __syncwarp();
    if (lane == 0) lsa_barrier_arrive(ring.full + stage);
}

// The next piece as fragments of A, and the scale of key `lane` % 16 of it. All lanes of the warp.
template <int SCORING> struct key_fragments {
    static constexpr int STEPS = SCORING == LSA_SCORE_FP8 ? 4 : 8;
    uint32_t a[STEPS][4];
    float scale;

    __device__ inline void take(key_ring &ring, int lane)
    {
        uint32_t stage = ring.taken % WG_STAGES, parity = ring.taken / WG_STAGES & 1, nan = 0;
        ring.taken++;
        lsa_barrier_wait(ring.full + stage, parity);
        const uint32_t *piece = (const uint32_t *)(ring.stages + stage * WG_PIECE_BYTES);
        const uint32_t *row = piece + lane / 4 * 33 + lane % 4 * 8;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            uint32_t low = row[i], high = row[8 * 33 + i];
            if (SCORING == LSA_SCORE_FP8) {
                a[i / 2 % STEPS][i % 2 * 2] = low;
                a[i / 2 % STEPS][i % 2 * 2 + 1] = high;
            } else {
                uint32_t *f = a[i % STEPS];
                e4m3x4_to_bf16(f[0], f[2], nan, low);
                e4m3x4_to_bf16(f[1], f[3], nan, high);
            }
        }
        scale = __uint_as_float(piece[lane % WG_PIECE * 33 + 32]);
        if (SCORING != LSA_SCORE_FP8 && nan) {
#pragma unroll
            for (int i = 0; i < 4 * STEPS; i++) a[i / 4][i % 4] = with_nan(a[i / 4][i % 4]);
        }
        __syncwarp(); // the stage is free
    }
};

// ---- scores ----

#if LSA_WGMMA

// The score of key `lane` % 16 of a warp's 16, less the key's scale. token: packed queries, in shared memory. All threads of a
// warpgroup.
template <int HEADS, int SCORING>
__device__ static inline float score_piece(const key_fragments<SCORING> &keys, const uint8_t *token,
                                           int lane)
{
    using shape = wg_shape<HEADS, SCORING>;
    constexpr int STEPS = key_fragments<SCORING>::STEPS, TERMS = SCORING == LSA_SCORE_F32 ? 3 : 1;
    float c[HEADS / 2];
    uint64_t b = lsa_rows_of_128(token);
#pragma unroll
    for (int i = 0; i < HEADS / 2; i++) c[i] = 0;
    lsa_pin(c);
    lsa_wgmma_begin();
#pragma unroll
    for (int term = TERMS - 1; term >= 0; term--)
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            int panel = 2 * term + step / 4, more = term < TERMS - 1 || step > 0;
            uint64_t rows = b + panel * (shape::PANEL_BYTES / 16) + step % 4 * 2;
            if (SCORING == LSA_SCORE_FP8)
                lsa_wgmma_e4m3(c, keys.a[step], rows, more);
            else
                lsa_wgmma_bf16(c, keys.a[step], rows, more);
        }
    lsa_wgmma_commit();
    lsa_wgmma_wait();
    lsa_pin(c);

    const float *weights = (const float *)(token + shape::WEIGHTS_AT) + lane % 4 * 2;
    float low[2] = {0, 0}, high[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < HEADS / 8; j++) { // heads 8 j + 2 t and the next, of keys g and g + 8
        float2 w = *(const float2 *)(weights + 8 * j);
        low[0] = fmaf(w.x, relu(c[4 * j]), low[0]);
        low[1] = fmaf(w.y, relu(c[4 * j + 1]), low[1]);
        high[0] = fmaf(w.x, relu(c[4 * j + 2]), high[0]);
        high[1] = fmaf(w.y, relu(c[4 * j + 3]), high[1]);
    }
    float first = low[0] + low[1], second = high[0] + high[1];
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
        first += __shfl_xor_sync(0xffffffff, first, step);
        second += __shfl_xor_sync(0xffffffff, second, step);
    }
    first = __shfl_sync(0xffffffff, first, lane % 8 * 4);
    second = __shfl_sync(0xffffffff, second, lane % 8 * 4);
    return lane & 8 ? second : first;
}

#endif

// What a block has in shared memory.
struct wg_room {
    uint8_t *tokens;
    uint64_t *queries_full;
    key_ring ring; // the warp's own
};

// All threads of a block, once.
template <int HEADS, int SCORING> __device__ static wg_room wg_room_of(uint8_t *shared, int tokens)
{
    using shape = wg_shape<HEADS, SCORING>;
    int warp = threadIdx.x / WARP;
    wg_room r;
    r.tokens = shared + (1024 - lsa_shared_address(shared) % 1024) % 1024;
    uint8_t *rings = r.tokens + tokens * shape::TOKEN_BYTES;
    uint64_t *barriers = (uint64_t *)(rings + shape::RING_BYTES);
    r.queries_full = barriers + shape::WARPS * WG_STAGES;
    r.ring = {rings + warp * WG_STAGES * WG_PIECE_BYTES, barriers + warp * WG_STAGES, 0, 0};
    if (threadIdx.x <= shape::WARPS * WG_STAGES) lsa_barrier_init(barriers + threadIdx.x, 1);
    lsa_barrier_init_fence();
    __syncthreads();
    return r;
}

// Scores of `s`: tokens blockIdx.y * group .. of every gridDim.y-th group, and tiles of keys by blocks of the grid's x. packed: what
// pack_all made of its queries in a launch before this one, or NULL: blocks pack theirs, which is sooner done where they are few, and
// have waited for the launch before. Block: shape::THREADS; shared: FIXED_BYTES and `group` tokens.
template <int HEADS, int SCORING>
__device__ static void score_wgmma(const scoring &s, const uint8_t *packed, int group)
{
#if LSA_WGMMA
    using shape = wg_shape<HEADS, SCORING>;
    extern __shared__ uint8_t wg_shared[];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, wg = warp / 4;
    wg_room room = wg_room_of<HEADS, SCORING>(wg_shared, group);
    key_source source = {s.keys, s.blocks, s.n, s.key_stride, s.offset, s.block_shift};
    int64_t step = (int64_t)gridDim.x * shape::GROUPS * WG_KEYS;
    int64_t block0 = (int64_t)blockIdx.x * WG_KEYS, held = -1;
    int64_t within = (int64_t)wg * gridDim.x * WG_KEYS + warp % 4 * WG_PIECE;
    int64_t first = (int64_t)blockIdx.y * group, next = (int64_t)gridDim.y * group;
    uint32_t loads = 0;
    if (block0 >= s.n) return;
    // All tokens for each tile of keys; where the block packs its own, those that it holds for all tiles.
    for (int64_t from = first; from < s.tokens; from = packed ? s.tokens : from + next) {
        int64_t to = packed ? s.tokens : min(from + group, s.tokens), asked = block0;
        for (int i = 0; i < WG_STAGES && asked < s.n; i++, asked += step)
            ask_for_keys(room.ring, source, asked + within, lane);
        lsa_after_previous();
        if (!packed) {
            if (from != first) __syncthreads();
            pack_tokens<HEADS, SCORING>(
                [&](uint32_t at, uint32_t word) { *(uint32_t *)(room.tokens + at) = word; },
                s.q + from * s.heads * WG_DIM, s.w + from * s.heads, s.heads, to - from, warp,
                shape::WARPS);
            lsa_async_fence();
            __syncthreads();
        }
        for (int64_t at = block0; at < s.n;
             at += step) { // the same rounds in all warps, for the barriers
            key_fragments<SCORING> keys;
            keys.take(room.ring, lane);
            if (asked < s.n) {
                ask_for_keys(room.ring, source, asked + within, lane);
                asked += step;
            }
            int64_t own = at + within + lane;
            for (int64_t t0 = from; t0 < to; t0 += next) {
                int count = (int)min((int64_t)group, s.tokens - t0);
                if (packed && t0 != held) {
                    __syncthreads();
                    if (threadIdx.x == 0) {
                        lsa_barrier_expect(room.queries_full, count * shape::TOKEN_BYTES);
                        for (int i = 0; i < count; i++)
                            lsa_bulk_load(room.tokens + i * shape::TOKEN_BYTES,
                                          packed + (t0 + i) * shape::TOKEN_BYTES,
                                          shape::TOKEN_BYTES, room.queries_full);
                    }
                    lsa_barrier_wait(room.queries_full, loads++ & 1);
                    held = t0;
                }
                for (int i = 0; i < count; i++) {
                    float sum = score_piece<HEADS, SCORING>(
                        keys, room.tokens + i * shape::TOKEN_BYTES, lane);
                    if (lane < WG_PIECE && own < s.n)
                        s.scores[(t0 + i) * s.score_stride + own] = sum * keys.scale;
                }
            }
        }
    }
#else
    (void)s, (void)packed, (void)group;
#endif
}

// ---- for launchers ----

// Whether the kernels of this file can run there, and take such a call.
static inline bool wg_takes(int64_t heads, int64_t dim, int32_t format)
{
    if (format != LSA_KV_FP8 || dim != WG_DIM || heads > WG_MOST_HEADS) return false;
    int device, major, minor;
    return cudaGetDevice(&device) == cudaSuccess &&
           cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) ==
               cudaSuccess &&
           cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) ==
               cudaSuccess &&
           major == 9 && minor == 0;
}

// Bytes of a token's packed queries, wherever it runs.
static inline int64_t wg_token_bytes(int64_t heads, int32_t scoring)
{
    int panels = scoring == LSA_SCORE_FP8 ? 1 : scoring == LSA_SCORE_BF16 ? 2 : 6;
    return (heads <= 64 ? 64 : 128) * 128 * panels + WG_WEIGHT_BYTES;
}

// What pack_all does, for score_wgmma or the like behind it.
template <int HEADS, int SCORING>
static cudaError_t launch_pack(uint8_t *to, const scoring &s, cudaStream_t stream)
{
    dim3 parts(HEADS / WG_PACKED_HEADS, (unsigned)(s.tokens < 65535 ? s.tokens : 65535));
    pack_all<HEADS, SCORING><<<parts, 256, 0, stream>>>(to, s);
    return lsa_cuda_last();
}

// How many multiprocessors there are.
static inline cudaError_t processors_of(int64_t *out)
{
    int device, count = 1;
    cudaError_t error = cudaGetDevice(&device);
    if (error == cudaSuccess)
        error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    *out = count;
    return error;
}

#endif
