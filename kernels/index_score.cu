// Index scoring on the GPU: what index_score_cuda.h does, for one array of keys.
#include "kernels/index_score_cuda.h"

extern "C" {
#include "core/base/error.h"
#include "kernels/index_score.h"
}
#include "kernels/cuda_launch.h"

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

int lsa_index_score_cuda(float *scores, const float *q, const float *w, const void *keys,
                         int64_t tokens, int64_t n, int64_t heads, int64_t dim, int64_t key_stride,
                         int64_t score_stride, int32_t key_format, int32_t compute, void *workspace,
                         void *stream)
{
    int rc =
        lsa_index_score_check(tokens, n, heads, dim, key_stride, score_stride, key_format, compute);
    if (rc || tokens == 0 || n == 0) return rc;
    scoring s = {};
    s.scores = scores, s.q = q, s.w = w, s.keys = (const uint8_t *)keys;
    s.tokens = tokens, s.n = n, s.key_stride = key_stride, s.score_stride = score_stride;
    s.heads = (int32_t)heads, s.dim = (int32_t)dim, s.format = key_format, s.compute = compute;
    int64_t tiles = (heads + 7) / 8, steps = dim <= 32 ? 2 : dim <= 64 ? 4 : 8;
    cudaError_t error;
    if (on_tensor_cores(heads, dim, compute)) {
        error = (key_format == LSA_KV_FP8 ? launch_steps<true>
                                          : launch_steps<false>)(s, (int)steps, (int)tiles,
                                                                 workspace, (cudaStream_t)stream);
    } else {
        dim3 grid((unsigned)((n + PLAIN_KEYS - 1) / PLAIN_KEYS),
                  (unsigned)(tokens < 65535 ? tokens : 65535));
        index_score_plain<<<grid, PLAIN_THREADS, 0, (cudaStream_t)stream>>>(s);
        error = lsa_cuda_last();
    }
    return error == cudaSuccess ? LSA_OK : failed(error);
}
