// Index scoring on the GPU: what index_score_cuda.h does, for one array of keys.
#include "kernels/index_score_wgmma.h"

extern "C" {
#include "core/base/error.h"
}

// ---- kernels ----

// Grid: (ceil(n / 64), tokens up to 65535), block: 128, shared: 14.3 KB.
__global__ static void __launch_bounds__(PLAIN_THREADS) index_score_plain(scoring s)
{
    score_plain(s);
}

// Grid: (tiles, tokens up to 65535), block: 32 STEPS.
template <int STEPS, bool FP8> __global__ static void index_score_pack(uint2 *to, scoring s)
{
    pack_queries<STEPS, FP8>(to, s);
}

// Grid: (blocks of 256 keys, groups of tokens: up to what fills the GPU), block: 256, shared: 256 keys and `group` tokens.
template <int STEPS, bool FP8>
__global__ static void __launch_bounds__(MMA_THREADS, 2)
    index_score_mma(scoring s, const uint4 *packed, int group, int tiles, bool direct)
{
    score_mma<STEPS, FP8>(s, packed, group, tiles, direct);
}

// Grid: (blocks), block: 256.
__global__ static void index_score_round(float *to, float *weights, scoring s)
{
    round_queries(to, weights, s);
}

// Grid: (blocks of tiles, groups of tokens), block and shared: as score_wgmma says.
template <int HEADS, int SCORING>
__global__ static void __launch_bounds__(wg_shape<HEADS, SCORING>::THREADS, 1)
    index_score_wgmma(scoring s, const uint8_t *packed, int group)
{
    if (!packed) lsa_wait_for_launch_before();
    score_wgmma<HEADS, SCORING>(s, packed, group);
}

// ---- launcher ----

static int failed(cudaError_t error) { return lsa_cuda_failed("index_score", error); }

template <int STEPS, bool FP8>
static cudaError_t launch_mma(const scoring &s, int tiles, void *workspace, cudaStream_t stream)
{
    int64_t token_bytes = packed_bytes(s.heads, s.dim), group = held_tokens(s.tokens, token_bytes),
            room;
    int bytes;
    cudaError_t error =
        prepare_mma<STEPS, FP8>(index_score_mma<STEPS, FP8>, group * token_bytes, &bytes, &room);
    if (error != cudaSuccess) return error;
    int64_t wanted = (s.n + MMA_WARPS * MMA_KEYS - 1) / (MMA_WARPS * MMA_KEYS);
    int64_t groups = (s.tokens + group - 1) / group;
    int64_t across = wanted < room ? wanted : room, down = (room + across - 1) / across;
    dim3 grid((unsigned)across, (unsigned)(groups < down ? groups : down));
    dim3 pack_grid((unsigned)tiles, (unsigned)(s.tokens < 65535 ? s.tokens : 65535));
    index_score_pack<STEPS, FP8><<<pack_grid, WARP * STEPS, 0, stream>>>((uint2 *)workspace, s);
    error = lsa_cuda_last();
    if (error != cudaSuccess) return error;
    index_score_mma<STEPS, FP8><<<grid, MMA_THREADS, bytes, stream>>>(
        s, (const uint4 *)workspace, (int)group, tiles, rows_already(s.format, s.dim, STEPS));
    return lsa_cuda_last();
}

template <bool FP8>
static cudaError_t launch_steps(const scoring &s, int steps, int tiles, void *workspace,
                                cudaStream_t stream)
{
    if (steps == 2) return launch_mma<2, FP8>(s, tiles, workspace, stream);
    if (steps == 4) return launch_mma<4, FP8>(s, tiles, workspace, stream);
    return launch_mma<8, FP8>(s, tiles, workspace, stream);
}

template <int HEADS, int SCORING>
static cudaError_t launch_wgmma(const scoring &s, void *workspace, cudaStream_t stream)
{
    using shape = wg_shape<HEADS, SCORING>;
    auto kernel = index_score_wgmma<HEADS, SCORING>;
    int64_t group = (WG_MOST_SHARED - shape::FIXED_BYTES) / shape::TOKEN_BYTES, room;
    if (group > s.tokens) group = s.tokens;
    int bytes = shape::FIXED_BYTES + (int)group * shape::TOKEN_BYTES;
    cudaError_t error = processors_of(&room);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    const uint8_t *packed = NULL;
    if (s.tokens > group) {
        error = launch_pack<HEADS, SCORING>((uint8_t *)workspace, s, stream);
        if (error != cudaSuccess) return error;
        packed = (const uint8_t *)workspace;
    }
    int64_t wanted = (s.n + WG_KEYS - 1) / WG_KEYS, groups = (s.tokens + group - 1) / group,
            across = wanted < room ? wanted : room, down = (room + across - 1) / across;
    dim3 grid((unsigned)across, (unsigned)(groups < down ? groups : down));
    return lsa_launch_early(kernel, grid, shape::THREADS, bytes, 1, stream, s, packed, (int)group);
}

template <int HEADS>
static cudaError_t launch_rows(const scoring &s, int32_t how, void *workspace, cudaStream_t stream)
{
    if (how == LSA_SCORE_FP8) return launch_wgmma<HEADS, LSA_SCORE_FP8>(s, workspace, stream);
    if (how == LSA_SCORE_BF16) return launch_wgmma<HEADS, LSA_SCORE_BF16>(s, workspace, stream);
    return launch_wgmma<HEADS, LSA_SCORE_F32>(s, workspace, stream);
}

int lsa_index_score_cuda(float *scores, const float *q, const float *w, const void *keys,
                         int64_t tokens, int64_t n, int64_t heads, int64_t dim, int64_t key_stride,
                         int64_t score_stride, int32_t key_format, int32_t how, void *workspace,
                         void *stream)
{
    int rc =
        lsa_index_score_check(tokens, n, heads, dim, key_stride, score_stride, key_format, how);
    if (rc || tokens == 0 || n == 0) return rc;
    scoring s = {};
    s.scores = scores, s.q = q, s.w = w, s.keys = (const uint8_t *)keys;
    s.tokens = tokens, s.n = n, s.key_stride = key_stride, s.score_stride = score_stride;
    s.heads = (int32_t)heads, s.dim = (int32_t)dim, s.format = key_format;
    s.compute = how == LSA_SCORE_F32 ? LSA_COMPUTE_F32 : LSA_COMPUTE_BF16;
    int64_t tiles = (heads + 7) / 8, steps = dim <= 32 ? 2 : dim <= 64 ? 4 : 8;
    cudaStream_t to = (cudaStream_t)stream;
    cudaError_t error;
    if (wg_takes(heads, dim, key_format)) {
        error = heads <= 64 ? launch_rows<64>(s, how, workspace, to)
                            : launch_rows<128>(s, how, workspace, to);
        return error == cudaSuccess ? LSA_OK : failed(error);
    }
    if (how == LSA_SCORE_FP8) {
        int64_t packed =
            on_tensor_cores(heads, dim, s.compute) ? tokens * packed_bytes(heads, dim) : 0;
        float *rounded = (float *)((uint8_t *)workspace + packed),
              *weights = rounded + tokens * heads * dim;
        index_score_round<<<lsa_blocks(tokens * heads, 8), 256, 0, to>>>(rounded, weights, s);
        error = lsa_cuda_last();
        if (error != cudaSuccess) return failed(error);
        s.q = rounded, s.w = weights;
    }
    if (on_tensor_cores(heads, dim, s.compute)) {
        error = (key_format == LSA_KV_FP8
                     ? launch_steps<true>
                     : launch_steps<false>)(s, (int)steps, (int)tiles, workspace, to);
    } else {
        dim3 grid((unsigned)((n + PLAIN_KEYS - 1) / PLAIN_KEYS),
                  (unsigned)(tokens < 65535 ? tokens : 65535));
        index_score_plain<<<grid, PLAIN_THREADS, 0, to>>>(s);
        error = lsa_cuda_last();
    }
    return error == cudaSuccess ? LSA_OK : failed(error);
}
