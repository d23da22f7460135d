// Level 2 on the GPU: the scores of as many rows as fit in the workspace's 64 MiB, then an exact selection of each. How many
// rows and candidates a span has only the GPU knows: grids are for the most there can be.
#include <algorithm>

#include "kernels/cuda_launch.h"
#include "kernels/index_score_wgmma.h"
#include "kernels/topk_cuda.h"

extern "C" {
#include "kernels/pick.h"
}

enum { THREADS = 256, LOCATE_BLOCKS = 32, SCORES = 16 << 20 };

// A call, of the pass's rows first .. first + rows - 1.
struct call {
    lsa_picking p;
    const lsa_span *spans;
    int64_t count, layer, key_bytes, first, rows, most_rows, stride;
    float *scores;    // [rows, stride]
    int32_t *lengths; // [rows]
    const uint4 *packed;
    int32_t compute; // what products are in, once queries are rounded
};

// ---- helpers ----

__device__ static int64_t candidates_at(const call &c, const lsa_span &s, int64_t position)
{
    int64_t chunks = (position + 1) / c.p.rate;
    return s.among_residents ? s.residents + chunks - s.chunks : chunks;
}

// A span's rows of the call, counted from its own first: *from .. *to - 1.
__device__ static void rows_of(const call &c, const lsa_span &s, int64_t *from, int64_t *to)
{
    *from = max((int64_t)0, c.first - s.row);
    *to = min(s.rows, c.first + c.rows - s.row);
}

// What a block is to score: a span's rows of the call. All threads call it; no tokens, or no keys, where there are none.
__device__ static int64_t scoring_of(scoring *shared, const call &c, const lsa_span &s)
{
    int64_t from, to;
    rows_of(c, s, &from, &to);
    int64_t row = s.row + from;
    if (threadIdx.x == 0) {
        const lsa_layer_store &store = s.layers[c.layer];
        scoring x = {};
        x.scores = c.scores + (row - c.first) * c.stride;
        x.q = c.p.queries + row * c.p.heads * c.p.dim;
        x.w = c.p.weights + row * c.p.heads;
        x.tokens = max((int64_t)0, to - from);
        x.n = x.tokens ? candidates_at(c, s, s.progress->tokens + to - 1) : 0;
        x.score_stride = c.stride;
        x.heads = (int32_t)c.p.heads, x.dim = (int32_t)c.p.dim;
        x.format = c.p.key_format, x.compute = c.compute;
        if (s.among_residents) {
            x.keys = store.resident_keys;
            x.key_stride = c.key_bytes;
        } else {
            x.blocks = store.keys.blocks;
            x.key_stride = store.keys.stride, x.offset = store.keys.offset;
            x.block_shift = store.keys.block_shift;
        }
        *shared = x;
    }
    __syncthreads();
    return row;
}

// ---- kernels ----

// Candidates of a span's rows, noted by one block of those that score them.
__device__ static void note_lengths(const call &c, const lsa_span &s)
{
    if (blockIdx.x > 0 || blockIdx.y > 0) return;
    int64_t from, to;
    rows_of(c, s, &from, &to);
    for (int64_t t = from + threadIdx.x; t < to; t += blockDim.x)
        c.lengths[s.row + t - c.first] =
            (int32_t)max((int64_t)0, candidates_at(c, s, s.progress->tokens + t));
}

// Grid: (1, 1, spans), block: 256.
__global__ static void __launch_bounds__(THREADS) pick_lengths(call c)
{
    note_lengths(c, c.spans[blockIdx.z]);
}

// Grid: (ceil(most candidates / 128), groups of rows, spans), block: 128, shared: 16 rows' queries.
template <int DIM> __global__ static void __launch_bounds__(FEW_THREADS) pick_score_few(call c)
{
    __shared__ scoring s;
    const lsa_span &span = c.spans[blockIdx.z];
    lsa_warm(span.layers + c.layer, sizeof *span.layers, threadIdx.x, FEW_THREADS);
    lsa_after_previous();
    scoring_of(&s, c, span);
    note_lengths(c, span);
    score_few<DIM>(s);
}

// Grid: (ceil(most candidates / 64), rows, spans), block: 128, shared: 14.4 KB.
__global__ static void __launch_bounds__(PLAIN_THREADS) pick_score_plain(call c)
{
    __shared__ scoring s;
    scoring_of(&s, c, c.spans[blockIdx.z]);
    score_plain(s);
    note_lengths(c, c.spans[blockIdx.z]);
}

// Grid: (tiles, rows of the pass up to 65535), block: 32 STEPS.
template <int STEPS, bool FP8> __global__ static void pick_pack(uint2 *to, scoring s)
{
    pack_queries<STEPS, FP8>(to, s);
}

// Grid: (blocks of 256 keys, groups of rows, spans), block: 256, shared: 256 keys and `group` rows' queries.
template <int STEPS, bool FP8>
__global__ static void __launch_bounds__(MMA_THREADS, 2)
    pick_score_mma(call c, int group, int tiles, bool direct)
{
    __shared__ scoring s;
    int64_t row = scoring_of(&s, c, c.spans[blockIdx.z]);
    score_mma<STEPS, FP8>(s, c.packed + row * tiles * (STEPS / 2 * WARP + 2), group, tiles, direct);
    note_lengths(c, c.spans[blockIdx.z]);
}

// Grid: (blocks of tiles, groups of rows, spans), block and shared: as score_wgmma says.
template <int HEADS, int SCORING>
__global__ static void __launch_bounds__(wg_shape<HEADS, SCORING>::THREADS, 1)
    pick_score_wgmma(call c, int group, bool packed)
{
    __shared__ scoring s;
    if (!packed) lsa_wait_for_launch_before();
    int64_t row = scoring_of(&s, c, c.spans[blockIdx.z]);
    const uint8_t *queries =
        (const uint8_t *)c.packed + row * wg_shape<HEADS, SCORING>::TOKEN_BYTES;
    score_wgmma<HEADS, SCORING>(s, packed ? queries : NULL, group);
    note_lengths(c, c.spans[blockIdx.z]);
}

// Grid: (blocks), block: 256.
__global__ static void pick_round(float *to, float *weights, scoring s)
{
    round_queries(to, weights, s);
}

// Grid: (blocks of a span's picks, spans), block: 256.
__global__ static void __launch_bounds__(THREADS)
    locate_picks(int32_t *ids, const int32_t *places, const int32_t *counts, const lsa_span *spans,
                 int64_t k)
{
    lsa_after_previous();
    const lsa_span &s = spans[blockIdx.y];
    for (int64_t i = lsa_thread(); i < s.rows * k; i += lsa_threads()) {
        int64_t at = s.row * k + i;
        if (i % k >= counts[s.row + i / k]) continue;
        int32_t place = places[at];
        ids[at] = s.among_residents ? s.slot[place] : place;
    }
}

// ---- launchers ----

static int failed(const char *op, cudaError_t error) { return lsa_cuda_failed(op, error); }

static int64_t round_up(int64_t n) { return (n + 63) / 64 * 64; }

static int64_t stride_of(int64_t most) { return round_up(most > 0 ? most : 1); }

// Rows that are scored before they are selected from.
static int64_t rows_together(int64_t rows, int64_t most)
{
    int64_t n = SCORES / stride_of(most);
    return n < 1 ? 1 : n < rows ? n : rows;
}

// Bytes of a row's queries as scoring takes them: packed, or rounded and then packed.
static int64_t query_bytes(int64_t heads, int64_t dim, int32_t key_format, int32_t how)
{
    int64_t rounded = how == LSA_SCORE_FP8 ? heads * (dim + 1) * 4 : 0;
    int32_t compute = how == LSA_SCORE_F32 ? LSA_COMPUTE_F32 : LSA_COMPUTE_BF16;
    int64_t packed = on_tensor_cores(heads, dim, compute) ? packed_bytes(heads, dim) : 0;
    int64_t most = round_up(rounded) + packed;
    if (dim == WG_DIM && heads <= WG_MOST_HEADS && key_format == LSA_KV_FP8)
        most = std::max(most, wg_token_bytes(heads, how));
    return round_up(most);
}

int64_t lsa_pick_workspace_cuda(int64_t rows, int64_t most, int64_t k, int64_t heads, int64_t dim,
                                int32_t key_format, int32_t how)
{
    (void)k;
    if (rows < 1 || heads < 1 || dim < 1) return 0;
    int64_t stride = stride_of(most),
            scores = rows * stride; // no call of fewer rows or candidates takes more
    if (scores > SCORES) scores = stride > SCORES ? stride : (int64_t)SCORES;
    return round_up(scores * 4) + round_up(rows * 4) +
           rows * query_bytes(heads, dim, key_format, how);
}

template <int STEPS, bool FP8> static cudaError_t pack_mma(const call &c, cudaStream_t stream)
{
    scoring s = {};
    s.q = c.p.queries, s.w = c.p.weights, s.tokens = c.p.rows, s.heads = (int32_t)c.p.heads,
    s.dim = (int32_t)c.p.dim;
    dim3 grid((unsigned)((c.p.heads + 7) / 8), (unsigned)(c.p.rows < 65535 ? c.p.rows : 65535));
    pick_pack<STEPS, FP8><<<grid, WARP * STEPS, 0, stream>>>((uint2 *)c.packed, s);
    return lsa_cuda_last();
}

template <int STEPS, bool FP8> static cudaError_t score_rows_mma(const call &c, cudaStream_t stream)
{
    int64_t token_bytes = packed_bytes(c.p.heads, c.p.dim),
            group = held_tokens(c.rows, token_bytes), room;
    int bytes;
    cudaError_t error =
        prepare_mma<STEPS, FP8>(pick_score_mma<STEPS, FP8>, group * token_bytes, &bytes, &room);
    if (error != cudaSuccess) return error;
    int64_t wanted = (c.p.most + MMA_WARPS * MMA_KEYS - 1) / (MMA_WARPS * MMA_KEYS),
            each = (room + c.count - 1) / c.count;
    int64_t across = wanted < each ? wanted : each, groups = (c.rows + group - 1) / group,
            down = each / across;
    if (down < 1) down = 1;
    dim3 grid((unsigned)across, (unsigned)(groups < down ? groups : down), (unsigned)c.count);
    pick_score_mma<STEPS, FP8><<<grid, MMA_THREADS, bytes, stream>>>(
        c, (int)group, (int)((c.p.heads + 7) / 8), rows_already(c.p.key_format, c.p.dim, STEPS));
    return lsa_cuda_last();
}

template <bool FP8> static cudaError_t on_mma(const call &c, bool pack, cudaStream_t stream)
{
    if (c.p.dim <= 32)
        return pack ? pack_mma<2, FP8>(c, stream) : score_rows_mma<2, FP8>(c, stream);
    if (c.p.dim <= 64)
        return pack ? pack_mma<4, FP8>(c, stream) : score_rows_mma<4, FP8>(c, stream);
    return pack ? pack_mma<8, FP8>(c, stream) : score_rows_mma<8, FP8>(c, stream);
}

template <int HEADS, int SCORING>
static cudaError_t on_wgmma(const call &c, bool pack, cudaStream_t stream)
{
    using shape = wg_shape<HEADS, SCORING>;
    auto kernel = pick_score_wgmma<HEADS, SCORING>;
    int64_t group = (WG_MOST_SHARED - shape::FIXED_BYTES) / shape::TOKEN_BYTES, room;
    bool packed =
        c.p.rows - c.count >= group; // else a span has no more rows than blocks can pack at once
    if (pack) {
        scoring s = {};
        s.q = c.p.queries, s.w = c.p.weights, s.tokens = c.p.rows, s.heads = (int32_t)c.p.heads;
        return packed ? launch_pack<HEADS, SCORING>((uint8_t *)c.packed, s, stream) : cudaSuccess;
    }
    if (group > c.most_rows) group = c.most_rows;
    if (!packed) group = std::min(group, std::max((int64_t)1, c.p.rows - c.count + 1));
    int bytes = shape::FIXED_BYTES + (int)group * shape::TOKEN_BYTES;
    cudaError_t error = processors_of(&room);
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    // No more blocks than run at once: a second round would be a whole one for few of them.
    int64_t wanted = (c.p.most + WG_KEYS - 1) / WG_KEYS,
            each = std::max((int64_t)1, room / c.count), across = wanted < each ? wanted : each,
            groups = (c.most_rows + group - 1) / group, down = each / across;
    if (down < 1) down = 1;
    dim3 grid((unsigned)across, (unsigned)(groups < down ? groups : down), (unsigned)c.count);
    return lsa_launch_early(kernel, grid, shape::THREADS, bytes, 1, stream, c, (int)group, packed);
}

template <int HEADS> static cudaError_t on_warpgroups(const call &c, bool pack, cudaStream_t stream)
{
    if (c.p.compute == LSA_SCORE_FP8) return on_wgmma<HEADS, LSA_SCORE_FP8>(c, pack, stream);
    if (c.p.compute == LSA_SCORE_BF16) return on_wgmma<HEADS, LSA_SCORE_BF16>(c, pack, stream);
    return on_wgmma<HEADS, LSA_SCORE_F32>(c, pack, stream);
}

// Packs all queries; or scores the call's rows.
static cudaError_t score_rows(const call &c, bool pack, cudaStream_t stream)
{
    if (wg_takes(c.p.heads, c.p.dim, c.p.key_format))
        return c.p.heads <= 64 ? on_warpgroups<64>(c, pack, stream)
                               : on_warpgroups<128>(c, pack, stream);
    if (on_tensor_cores(c.p.heads, c.p.dim, c.compute))
        return c.p.key_format == LSA_KV_FP8 ? on_mma<true>(c, pack, stream)
                                            : on_mma<false>(c, pack, stream);
    if (pack) return cudaSuccess;
    // As many rows as each span has where they are alike: in decode, one.
    int64_t rows = std::min((c.rows + c.count - 1) / c.count, (int64_t)65535);
    if (few_takes(c.p.heads, c.p.dim)) {
        dim3 grid((unsigned)((c.p.most + FEW_THREADS - 1) / FEW_THREADS),
                  (unsigned)((rows + FEW_TOKENS - 1) / FEW_TOKENS), (unsigned)c.count);
        lsa_launch(c.p.dim <= FEW_DIM / 2 ? pick_score_few<FEW_DIM / 2> : pick_score_few<FEW_DIM>,
                   grid, FEW_THREADS, 0, stream, c);
        return lsa_cuda_last();
    }
    dim3 grid((unsigned)((c.p.most + PLAIN_KEYS - 1) / PLAIN_KEYS), (unsigned)rows,
              (unsigned)c.count);
    pick_score_plain<<<grid, PLAIN_THREADS, 0, stream>>>(c);
    return lsa_cuda_last();
}

// Has the call go on with queries in e4m3 numbers, which lie before those that are packed.
static cudaError_t with_rounded(call *c, cudaStream_t stream)
{
    scoring s = {};
    s.q = c->p.queries, s.w = c->p.weights, s.tokens = c->p.rows;
    s.heads = (int32_t)c->p.heads, s.dim = (int32_t)c->p.dim;
    float *rounded = (float *)c->packed, *weights = rounded + c->p.rows * c->p.heads * c->p.dim;
    pick_round<<<lsa_blocks(c->p.rows * c->p.heads, 8), 256, 0, stream>>>(rounded, weights, s);
    c->p.queries = rounded, c->p.weights = weights;
    c->packed =
        (const uint4 *)((uint8_t *)rounded + round_up(c->p.rows * c->p.heads * (c->p.dim + 1) * 4));
    return lsa_cuda_last();
}

int lsa_pick_cuda(int32_t *places, float *values, int32_t *counts, const lsa_span *spans,
                  int64_t count, int64_t layer, const lsa_picking *picking, void *workspace,
                  void *stream)
{
    const lsa_picking *p = picking;
    cudaStream_t to = (cudaStream_t)stream;
    if (count == 0 || p->rows == 0) return LSA_OK;
    call c = {};
    c.p = *p, c.spans = spans, c.count = count, c.layer = layer;
    c.key_bytes = lsa_index_key_bytes(p->key_format, p->dim);
    c.stride = stride_of(p->most);
    int rc = lsa_index_score_check(p->rows, p->most, p->heads, p->dim, c.key_bytes, c.stride,
                                   p->key_format, p->compute);
    if (!rc) rc = lsa_topk_check(p->rows, p->most, (int32_t)p->k);
    if (rc) return rc;
    int64_t together = rows_together(p->rows, p->most);
    c.compute = p->compute == LSA_SCORE_F32 ? LSA_COMPUTE_F32 : LSA_COMPUTE_BF16;
    c.lengths = (int32_t *)workspace;
    c.packed = (const uint4 *)((uint8_t *)workspace + round_up(p->rows * 4));
    c.scores = (float *)((uint8_t *)c.packed +
                         p->rows * query_bytes(p->heads, p->dim, p->key_format, p->compute));
    c.most_rows = p->rows < together ? p->rows : together;
    cudaError_t error = cudaSuccess;
    if (p->compute == LSA_SCORE_FP8 && !wg_takes(p->heads, p->dim, p->key_format))
        error = with_rounded(&c, to);
    if (error == cudaSuccess) error = score_rows(c, true, to);
    for (; error == cudaSuccess && c.first < p->rows; c.first += together) {
        c.rows = p->rows - c.first < together ? p->rows - c.first : together;
        if (p->most > 0) {
            error = score_rows(c, false, to);
        } else {
            pick_lengths<<<dim3(1, 1, (unsigned)count), THREADS, 0, to>>>(c);
            error = lsa_cuda_last();
        }
        if (error != cudaSuccess) break;
        rc = lsa_topk_of_lengths(places + c.first * p->k, values ? values + c.first * p->k : NULL,
                                 counts + c.first, c.scores, c.lengths, c.rows, p->most, c.stride,
                                 (int32_t)p->k, to);
        if (rc) return rc;
    }
    return error == cudaSuccess ? LSA_OK : failed("pick", error);
}

int lsa_locate_cuda(int32_t *ids, const int32_t *places, const int32_t *counts,
                    const lsa_span *spans, int64_t count, int64_t k, void *stream)
{
    if (count == 0 || k == 0) return LSA_OK;
    lsa_launch(locate_picks, dim3(LOCATE_BLOCKS, (unsigned)count), THREADS, 0, stream, ids, places,
               counts, spans, k);
    return lsa_launched("locate", count, k);
}
