// Level 1 on the GPU. Where a block can hold the packed queries of all layers, one launch packs them and one goes over the keys: a
// warp has 16 chunks of each layer in turn, joins what it scores, and writes scores and their bits; ids and pages are a
// third launch. Elsewhere a launch a step.
#include <algorithm>

#include "kernels/cuda_launch.h"
#include "kernels/index_score_wgmma.h"
#include "kernels/vector_math.h"

extern "C" {
#include "core/base/try.h"
#include "kernels/ensemble.h"
#include "kernels/lookahead.h"
}

enum {
    STEP_THREADS = 256,
    LIST_WORDS = 64,
    MOST_REQUESTS = 16, // of a launch, whose parameters they are
    MOST_KEYS = 64      // of all of them
};
static_assert((int)MOST_KEYS >= (int)LSA_LOOKAHEAD_MOST_LAYERS, "a request's keys fit");

// A launch's requests, without a memory's latency before the first key.
struct call {
    lsa_lookahead l;
    lsa_lookahead_request requests[MOST_REQUESTS];
    lsa_records keys[MOST_KEYS]; // [requests, layers]
    uint64_t *bits;              // for requests that ask for none: [requests, words]
    int64_t words;
    uint8_t *packed; // queries of [requests, layers]
};

// ---- helpers ----

// The ensemble as it grows: of sigmoids, or of logits whose sigmoid is taken last.
__device__ static float join(float so_far, float logit, int layer, bool max)
{
    f32x16 x = logit;
    if (max) return layer == 0 ? logit : f32x16_larger(f32x16(so_far), x).lane;
    x = f32x16_sigmoid(x);
    return layer == 0 ? x.lane : (f32x16(so_far) + x).lane;
}

__device__ static float joined(float all, int64_t layers, bool max)
{
    f32x16 x = all;
    return max ? f32x16_sigmoid(x).lane : (x / f32x16_set((float)layers)).lane;
}

__device__ static bool reaches(float score, const lsa_lookahead &l)
{
    return l.strict ? score > l.theta : score >= l.theta;
}

__device__ static bool has_lists(const lsa_lookahead_request &r) { return r.ids || r.pages; }

// Ids and pages of the words of a set, 64 a block from blockIdx.x on; what lies before them is counted first. 256 threads.
__device__ static void unpack(const lsa_lookahead_request &r, const uint64_t *bits)
{
    __shared__ int sums[8], places[LIST_WORDS + 1];
    int words = (int)((r.n + 63) / 64), lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int first = blockIdx.x * LIST_WORDS; first < words; first += gridDim.x * LIST_WORDS) {
        int before = 0;
        for (int word = threadIdx.x; word < first; word += blockDim.x)
            before += __popcll(bits[word]);
        before = lsa_block_sum(before, sums);
        if (warp == 0) {
            int even = first + 2 * lane, own = even < words ? __popcll(bits[even]) : 0;
            int next = even + 1 < words ? __popcll(bits[even + 1]) : 0, sum = own + next;
#pragma unroll
            for (int step = 1; step < WARP; step *= 2) {
                int other = __shfl_up_sync(0xffffffff, sum, step);
                if (lane >= step) sum += other;
            }
            places[2 * lane] = before + sum - own - next;
            places[2 * lane + 1] = before + sum - next;
            if (lane == WARP - 1) places[LIST_WORDS] = before + sum;
            if (r.pages && even < words) r.pages[even] = own;
            if (r.pages && even + 1 < words) r.pages[even + 1] = next;
        }
        __syncthreads();
        if (r.ids) {
            for (int i = warp; i < LIST_WORDS && first + i < words; i += blockDim.x / WARP) {
                uint64_t word = bits[first + i];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int bit = half * WARP + lane;
                    if (word >> bit & 1)
                        r.ids[places[i] + __popcll(word & ((1ull << bit) - 1))] =
                            (first + i) * 64 + bit;
                }
            }
            if (first + LIST_WORDS >= words && threadIdx.x == 0) *r.count = places[LIST_WORDS];
        }
        __syncthreads();
    }
    if (r.ids && words == 0 && blockIdx.x == 0 && threadIdx.x == 0) *r.count = 0;
}

// ---- kernels ----

// Grid: (parts of the heads, layers, requests), block: 256.
template <int HEADS, int SCORING>
__global__ static void __launch_bounds__(STEP_THREADS)
    lookahead_pack(const __grid_constant__ call c)
{
    lsa_let_next_launch_start();
    const lsa_lookahead_request &r = c.requests[blockIdx.z];
    int64_t row = blockIdx.y * c.l.heads, warps = STEP_THREADS / WARP;
    uint8_t *token = c.packed + (blockIdx.z * c.l.layers + blockIdx.y) *
                                    (int64_t)wg_shape<HEADS, SCORING>::TOKEN_BYTES;
    pack_tokens<HEADS, SCORING>(
        [&](uint32_t at, uint32_t word) { *(uint32_t *)(token + at) = word; }, r.q + row * WG_DIM,
        r.w + row, (int)c.l.heads, 1, blockIdx.x * warps + threadIdx.x / WARP, gridDim.x * warps);
}

// Behind lookahead_pack. Grid: (blocks of tiles, requests), block: THREADS, shared: FIXED_BYTES and the layers' queries.
template <int HEADS, int SCORING>
__global__ static void __launch_bounds__(wg_shape<HEADS, SCORING>::THREADS, 1)
    lookahead_score(const __grid_constant__ call c)
{
#if LSA_WGMMA
    using shape = wg_shape<HEADS, SCORING>;
    extern __shared__ uint8_t shared[];
    const lsa_lookahead_request &r = c.requests[blockIdx.y];
    int layers = (int)c.l.layers, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    bool max = c.l.ensemble == LSA_ENSEMBLE_MAX;
    int64_t n = r.n;
    wg_room room = wg_room_of<HEADS, SCORING>(shared, layers); // with a barrier
    int64_t step = (int64_t)gridDim.x * shape::GROUPS * WG_KEYS;
    int64_t within = (int64_t)(warp / 4) * gridDim.x * WG_KEYS + warp % 4 * WG_PIECE;
    int64_t at = (int64_t)blockIdx.x * WG_KEYS, asked = at;
    int asked_layer = 0;
    auto ask = [&] {
        if (asked >= n) return;
        const lsa_records &keys = c.keys[blockIdx.y * layers + asked_layer];
        key_source source = {NULL, keys.blocks, n, keys.stride, keys.offset, keys.block_shift};
        ask_for_keys(room.ring, source, asked + within, lane);
        if (++asked_layer == layers) {
            asked_layer = 0;
            asked += step;
        }
    };
    for (int i = 0; i < WG_STAGES; i++) ask(); // keys are older than the launch before
    lsa_after_previous();
    if (threadIdx.x == 0) {
        const uint8_t *packed = c.packed + (int64_t)blockIdx.y * layers * shape::TOKEN_BYTES;
        lsa_barrier_expect(room.queries_full, layers * shape::TOKEN_BYTES);
        for (int i = 0; i < layers; i++)
            lsa_bulk_load(room.tokens + i * shape::TOKEN_BYTES, packed + i * shape::TOKEN_BYTES,
                          shape::TOKEN_BYTES, room.queries_full);
    }
    lsa_barrier_wait(room.queries_full, 0);
    uint16_t *bits = (uint16_t *)(r.bits ? r.bits : c.bits + blockIdx.y * c.words);
    bool marks = r.bits || has_lists(r);
    for (; at < n; at += step) {
        float all = 0;
        for (int layer = 0; layer < layers; layer++) {
            key_fragments<SCORING> keys;
            keys.take(room.ring, lane);
            ask();
            float sum =
                score_piece<HEADS, SCORING>(keys, room.tokens + layer * shape::TOKEN_BYTES, lane);
            all = join(all, sum * keys.scale, layer, max);
        }
        int64_t own = at + within + lane;
        bool here = lane < WG_PIECE && own < n;
        float score = joined(all, layers, max);
        if (here && r.scores) r.scores[own] = score;
        uint32_t mask = __ballot_sync(0xffffffff, here && reaches(score, c.l));
        // A set's last word is written to its end.
        if (lane == 0 && marks && own < (n + 63) / 64 * 64) bits[own / WG_PIECE] = (uint16_t)mask;
    }
#else
    (void)c;
#endif
}

// What a block is to score: a layer of a request. All threads call it.
__device__ static void scoring_of(scoring *shared, const call &c, const float *q, const float *w,
                                  float *logits, int64_t request, int64_t layer)
{
    const lsa_lookahead_request &r = c.requests[request];
    if (threadIdx.x == 0) {
        const lsa_records &keys = c.keys[request * c.l.layers + layer];
        scoring x = {};
        x.scores = logits + layer * r.n, x.q = q, x.w = w, x.tokens = 1, x.n = r.n;
        x.score_stride = r.n, x.heads = (int32_t)c.l.heads, x.dim = (int32_t)c.l.dim;
        x.format = c.l.key_format;
        x.compute = c.l.scoring == LSA_SCORE_F32 ? LSA_COMPUTE_F32 : LSA_COMPUTE_BF16;
        x.blocks = keys.blocks, x.key_stride = keys.stride, x.offset = keys.offset;
        x.block_shift = keys.block_shift;
        *shared = x;
    }
    __syncthreads();
}

// Grid: (ceil(n / 64), 1), block: 128.
__global__ static void __launch_bounds__(PLAIN_THREADS)
    lookahead_plain(const __grid_constant__ call c, const float *q, const float *w, float *logits,
                    int64_t request, int64_t layer)
{
    __shared__ scoring s;
    scoring_of(&s, c, q, w, logits, request, layer);
    score_plain(s);
}

// Grid: (blocks of tiles), block: THREADS, shared: FIXED_BYTES and a token.
template <int HEADS, int SCORING>
__global__ static void __launch_bounds__(wg_shape<HEADS, SCORING>::THREADS, 1)
    lookahead_layer(const __grid_constant__ call c, float *logits, int64_t request, int64_t layer)
{
    __shared__ scoring s;
    const lsa_lookahead_request &r = c.requests[request];
    int64_t row = layer * c.l.heads;
    lsa_wait_for_launch_before();
    scoring_of(&s, c, r.q + row * WG_DIM, r.w + row, logits, request, layer);
    score_wgmma<HEADS, SCORING>(s, NULL, 1);
}

// Queries of a layer, in e4m3 numbers where scoring is fp8. Grid: (blocks), block: 256.
__global__ static void __launch_bounds__(STEP_THREADS)
    lookahead_queries(const __grid_constant__ call c, float *q, float *w, int64_t request,
                      int64_t layer)
{
    const lsa_lookahead_request &r = c.requests[request];
    scoring s = {};
    s.q = r.q + layer * c.l.heads * c.l.dim, s.w = r.w + layer * c.l.heads, s.tokens = 1;
    s.heads = (int32_t)c.l.heads, s.dim = (int32_t)c.l.dim;
    if (c.l.scoring == LSA_SCORE_FP8) {
        round_queries(q, w, s);
        return;
    }
    for (int64_t i = lsa_thread(); i < c.l.heads * c.l.dim; i += lsa_threads()) q[i] = s.q[i];
    for (int64_t i = lsa_thread(); i < c.l.heads; i += lsa_threads()) w[i] = s.w[i];
}

// Grid: (blocks), block: 256.
__global__ static void __launch_bounds__(STEP_THREADS)
    lookahead_join(const __grid_constant__ call c, const float *logits, int64_t request)
{
    const lsa_lookahead_request &r = c.requests[request];
    bool max = c.l.ensemble == LSA_ENSEMBLE_MAX;
    uint32_t *bits = (uint32_t *)(r.bits ? r.bits : c.bits + request * c.words);
    for (int64_t i = lsa_thread(); i < (r.n + 63) / 64 * 64; i += lsa_threads()) {
        float all = 0;
        for (int64_t layer = 0; layer < c.l.layers && i < r.n; layer++)
            all = join(all, logits[layer * r.n + i], (int)layer, max);
        float score = i < r.n ? joined(all, c.l.layers, max) : NAN;
        if (i < r.n && r.scores) r.scores[i] = score;
        uint32_t mask = __ballot_sync(0xffffffff, reaches(score, c.l));
        if (i % WARP == 0 && (r.bits || has_lists(r))) bits[i / WARP] = mask;
    }
}

// Grid: (blocks of 64 words, requests), block: 256.
__global__ static void __launch_bounds__(STEP_THREADS)
    lookahead_lists(const __grid_constant__ call c, int64_t first)
{
    int64_t request = first + blockIdx.y;
    const lsa_lookahead_request &r = c.requests[request];
    lsa_wait_for_launch_before();
    if (has_lists(r)) unpack(r, r.bits ? r.bits : c.bits + request * c.words);
}

// ---- launchers ----

static int64_t round_up(int64_t n) { return (n + 255) / 256 * 256; }

// Whether a block can hold the queries of all layers.
static bool is_fused(const lsa_lookahead *l)
{
    int64_t panels = l->scoring == LSA_SCORE_FP8 ? 1 : l->scoring == LSA_SCORE_BF16 ? 2 : 6;
    int64_t groups = l->heads > 64 && panels > 1 ? 3 : 4, warps = groups * 4;
    int64_t fixed = warps * WG_STAGES * (WG_PIECE_BYTES + 8) + 8 + 1024;
    return fixed + l->layers * wg_token_bytes(l->heads, l->scoring) + 4096 <= WG_MOST_SHARED;
}

struct layout {
    int64_t packed, q, w, logits, bytes; // behind the bits
};

static layout layout_of(const lsa_lookahead *l)
{
    layout o = {};
    o.packed = o.q = round_up(l->count * ((l->most + 63) / 64) * 8);
    if (l->dim == WG_DIM && l->heads <= WG_MOST_HEADS)
        o.q += round_up(l->count * l->layers * wg_token_bytes(l->heads, l->scoring));
    o.w = o.q + round_up(l->heads * l->dim * 4);
    o.logits = o.w + round_up(l->heads * 4);
    o.bytes = o.logits + round_up(l->layers * l->most * 4);
    return o;
}

int64_t lsa_lookahead_workspace_cuda(const lsa_lookahead *l) { return layout_of(l).bytes; }

// Ids and pages of requests first .. first + count - 1, where any asks for them.
static cudaError_t list(const call &c, int64_t first, int64_t count, cudaStream_t stream)
{
    if (!c.l.lists) return cudaSuccess;
    int64_t blocks = (c.words + LIST_WORDS - 1) / LIST_WORDS;
    return lsa_launch_early(lookahead_lists,
                            dim3((unsigned)std::max(blocks, (int64_t)1), (unsigned)count),
                            STEP_THREADS, 0, 1, stream, c, first);
}

// What follows from the logits of all layers.
static cudaError_t finish(const call &c, const float *logits, int64_t request, cudaStream_t stream)
{
    lookahead_join<<<lsa_blocks(c.l.most + 1, STEP_THREADS), STEP_THREADS, 0, stream>>>(c, logits,
                                                                                        request);
    cudaError_t error = lsa_cuda_last();
    return error == cudaSuccess ? list(c, request, 1, stream) : error;
}

template <int HEADS, int SCORING>
static cudaError_t on_wgmma(const call &c, float *logits, cudaStream_t stream)
{
    using shape = wg_shape<HEADS, SCORING>;
    bool whole = is_fused(&c.l);
    int bytes = shape::FIXED_BYTES + (whole ? (int)c.l.layers : 1) * shape::TOKEN_BYTES;
    int64_t room;
    cudaError_t error = processors_of(&room);
    if (error == cudaSuccess)
        error = whole ? cudaFuncSetAttribute(lookahead_score<HEADS, SCORING>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)
                      : cudaFuncSetAttribute(lookahead_layer<HEADS, SCORING>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    int64_t wanted = (c.l.most + WG_KEYS - 1) / WG_KEYS, each = whole ? room / c.l.count : room;
    unsigned across = (unsigned)std::max((int64_t)1, std::min(each, wanted));
    if (whole) {
        dim3 parts(HEADS / WG_PACKED_HEADS, (unsigned)c.l.layers, (unsigned)c.l.count);
        lookahead_pack<HEADS, SCORING><<<parts, STEP_THREADS, 0, stream>>>(c);
        error = lsa_cuda_last();
        if (error == cudaSuccess)
            error =
                lsa_launch_early(lookahead_score<HEADS, SCORING>, dim3(across, (unsigned)c.l.count),
                                 shape::THREADS, bytes, 1, stream, c);
        return error == cudaSuccess ? list(c, 0, c.l.count, stream) : error;
    }
    for (int64_t i = 0; error == cudaSuccess && i < c.l.count; i++) {
        for (int64_t layer = 0; layer < c.l.layers; layer++)
            lookahead_layer<HEADS, SCORING>
                <<<across, shape::THREADS, bytes, stream>>>(c, logits, i, layer);
        error = finish(c, logits, i, stream);
    }
    return error;
}

template <int HEADS>
static cudaError_t by_scoring(const call &c, float *logits, cudaStream_t stream)
{
    if (c.l.scoring == LSA_SCORE_FP8) return on_wgmma<HEADS, LSA_SCORE_FP8>(c, logits, stream);
    if (c.l.scoring == LSA_SCORE_BF16) return on_wgmma<HEADS, LSA_SCORE_BF16>(c, logits, stream);
    return on_wgmma<HEADS, LSA_SCORE_F32>(c, logits, stream);
}

static cudaError_t plainly(const call &c, float *q, float *w, float *logits, cudaStream_t stream)
{
    unsigned tiles = (unsigned)((c.l.most + PLAIN_KEYS - 1) / PLAIN_KEYS);
    cudaError_t error = cudaSuccess;
    for (int64_t i = 0; error == cudaSuccess && i < c.l.count; i++) {
        for (int64_t layer = 0; layer < c.l.layers && tiles; layer++) {
            lookahead_queries<<<lsa_blocks(c.l.heads, 8), STEP_THREADS, 0, stream>>>(c, q, w, i,
                                                                                     layer);
            lookahead_plain<<<tiles, PLAIN_THREADS, 0, stream>>>(c, q, w, logits, i, layer);
        }
        error = finish(c, logits, i, stream);
    }
    return error;
}

int lsa_lookahead_cuda(const lsa_lookahead *l, void *workspace, void *stream)
{
    LSA_TRY(lsa_lookahead_check(l));
    if (l->count == 0) return LSA_OK;
    layout o = layout_of(l);
    uint8_t *at = (uint8_t *)workspace;
    float *q = (float *)(at + o.q), *w = (float *)(at + o.w), *logits = (float *)(at + o.logits);
    cudaStream_t to = (cudaStream_t)stream;
    cudaError_t error = cudaSuccess;
    bool wgmma = wg_takes(l->heads, l->dim, l->key_format);
    int64_t together = std::min((int64_t)MOST_REQUESTS, MOST_KEYS / l->layers);
    call c = {};
    c.l = *l, c.words = (l->most + 63) / 64;
    for (int64_t first = 0; error == cudaSuccess && first < l->count; first += together) {
        c.l.count = std::min(together, l->count - first);
        c.bits = (uint64_t *)at + first * c.words;
        c.packed = at + o.packed + first * l->layers * wg_token_bytes(l->heads, l->scoring);
        for (int64_t i = 0; i < c.l.count; i++) {
            c.requests[i] = l->requests[first + i];
            for (int64_t layer = 0; layer < l->layers; layer++)
                c.keys[i * l->layers + layer] = c.requests[i].keys[layer];
        }
        if (!wgmma)
            error = plainly(c, q, w, logits, to);
        else
            error = l->heads <= 64 ? by_scoring<64>(c, logits, to) : by_scoring<128>(c, logits, to);
    }
    if (error == cudaSuccess) return lsa_launched("lookahead");
    return lsa_cuda_failed("lookahead", error);
}
