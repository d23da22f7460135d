// Sparse multi-query attention on the GPU, in f32; in bf16 where attention_wgmma.cu takes it.
//
// A query's keys are taken in sections of 128, first its window's, then its records': within a section an online softmax
// goes on from tile to tile, and the sections' sums are joined in order, beginning with the sink. Where a call has few
// queries, a block takes one section and a second kernel joins them; where it has many, a block takes a query's sections
// one after the other and joins as it goes. Both do the same operations in the same order, so the bits are the same.
#include <algorithm>

#include "kernels/attention_heads.h"

extern "C" {
#include "kernels/rope.h"
}

// ---- helpers ----

// Keys from .. from + n - 1 of a query's window or records as rows of 128 CHUNKS floats; a warp a key.
template <int CHUNKS>
__device__ static void load_tile(float *tile, const call &c, const query &q, bool records,
                                 int64_t from, int n)
{
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP, dim = (int)c.dim;
#pragma unroll 2
    for (int j = warp; j < n; j += WARPS) {
        const uint8_t *key;
        int format = LSA_KV_F32;
        if (records) {
            key = record_at(q.where, q.ids ? q.ids[from + j] : from + j);
            format = q.where.format;
        } else {
            key = (const uint8_t *)(q.window + (q.first + from + j) % q.room * dim);
        }
        bool aligned = vectors_fit(key, format, dim, (int)c.rope_dim);
        float4 v[CHUNKS];
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            v[i] = numbers_of(key, format, dim, (int)c.rope_dim, i * 128 + lane * 4, aligned);
#pragma unroll
        for (int i = 0; i < CHUNKS; i++)
            *(float4 *)(tile + j * CHUNKS * 128 + i * 128 + lane * 4) = v[i];
    }
}

// Sums of 16 values over a warp: value `lane / 2` comes out in lanes 2 v and 2 v + 1.
__device__ static float sum_of_own(float v[16], int lane)
{
#pragma unroll
    for (int half = 8; half; half /= 2) {
        bool upper = lane & (2 * half);
#pragma unroll
        for (int i = 0; i < half; i++) {
            float give = upper ? v[i] : v[i + half], keep = upper ? v[i + half] : v[i];
            v[i] = keep + __shfl_xor_sync(0xffffffff, give, 2 * half);
        }
    }
    return v[0] + __shfl_xor_sync(0xffffffff, v[0], 1);
}

// A warp's four heads over one section: their sums, in registers.
template <int CHUNKS> struct section_sums {
    float4 acc[WARP_HEADS][CHUNKS];
    float max[WARP_HEADS], sum[WARP_HEADS];
};

// scores: [GROUP, TILE] of the block; p: of the warp, [TILE] of four heads.
template <int CHUNKS>
__device__ static void attend_section(section_sums<CHUNKS> &s,
                                      const float4 (&heads)[WARP_HEADS][CHUNKS], float *tile,
                                      float *scores, float4 *p, const call &c, const query &q,
                                      int64_t row, int first_head, bool records, int64_t from,
                                      int64_t end)
{
    int lane = threadIdx.x % LSA_WARP, present = min((int)c.heads - first_head, (int)WARP_HEADS);
#pragma unroll
    for (int h = 0; h < WARP_HEADS; h++) {
        s.max[h] = -INFINITY;
        s.sum[h] = 0;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) s.acc[h][i] = make_float4(0, 0, 0, 0);
    }
    for (; from < end; from += TILE) {
        int n = (int)min((int64_t)TILE, end - from);
        __syncthreads();
        load_tile<CHUNKS>(tile, c, q, records, from, n);
        __syncthreads();
        if (present <= 0) continue;
        for (int j = 0; j < n; j += QUADS) {
            float v[WARP_HEADS * QUADS] = {};
#pragma unroll
            for (int i = 0; i < CHUNKS; i++)
#pragma unroll
                for (int k = 0; k < QUADS; k++) {
                    float4 key =
                        *(const float4 *)(tile + (j + k) * CHUNKS * 128 + i * 128 + lane * 4);
#pragma unroll
                    for (int h = 0; h < WARP_HEADS; h++)
                        v[h * QUADS + k] = dot4(heads[h][i], key, v[h * QUADS + k]);
                }
            float sum = sum_of_own(v, lane);
            int which = lane / 2;
            if (lane % 2 == 0) scores[which / QUADS * TILE + j + which % QUADS] = sum * c.scale;
        }
        __syncwarp();
        float weights[WARP_HEADS];
#pragma unroll
        for (int h = 0; h < WARP_HEADS; h++) {
            float score = lane < n ? scores[h * TILE + lane] : -INFINITY;
            if (c.kept && records && lane < n && h < present)
                c.kept[(row * c.heads + first_head + h) * c.id_stride + from + lane] = score;
            float larger = fmaxf(s.max[h], warp_max(score)), base = finite_max(larger);
            float shrink = expf(s.max[h] - base);
            weights[h] = lane < n ? expf(score - base) : 0.0f;
            s.sum[h] = fmaf(s.sum[h], shrink, lsa_warp_sum(weights[h]));
            s.max[h] = larger;
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) s.acc[h][i] = times(s.acc[h][i], shrink);
        }
        p[lane] = make_float4(weights[0], weights[1], weights[2], weights[3]);
        __syncwarp();
#pragma unroll 2
        for (int j = 0; j < n; j++) {
            float4 four = p[j];
            float w[WARP_HEADS] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int i = 0; i < CHUNKS; i++) {
                float4 key = *(const float4 *)(tile + j * CHUNKS * 128 + i * 128 + lane * 4);
#pragma unroll
                for (int h = 0; h < WARP_HEADS; h++) {
                    s.acc[h][i].x = fmaf(w[h], key.x, s.acc[h][i].x);
                    s.acc[h][i].y = fmaf(w[h], key.y, s.acc[h][i].y);
                    s.acc[h][i].z = fmaf(w[h], key.z, s.acc[h][i].z);
                    s.acc[h][i].w = fmaf(w[h], key.w, s.acc[h][i].w);
                }
            }
        }
        __syncwarp();
    }
}

// ---- kernels ----

// SPLIT: a block has one section of a query, for 16 heads, and leaves its sums in the workspace; else all of them, joined
// in shared memory. Grid: (queries times groups of heads, sections or 1), block: 128, shared: 32 keys of 128 CHUNKS
// floats, scores and weights, and what is joined.
template <int CHUNKS, bool SPLIT>
__global__ static void __launch_bounds__(THREADS, 2) attend_keys(call c)
{
    extern __shared__ float4 shared[];
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    float *tile = (float *)shared, *scores = tile + TILE * CHUNKS * 128 + warp * WARP_HEADS * TILE;
    float4 *p = (float4 *)(tile + TILE * CHUNKS * 128 + GROUP * TILE) + warp * TILE;
    float4 *total = (float4 *)(tile + TILE * CHUNKS * 128 + 2 * GROUP * TILE) +
                    warp * WARP_HEADS * CHUNKS * LSA_WARP;
    lsa_after_previous();
    int64_t groups = (c.heads + GROUP - 1) / GROUP, row = blockIdx.x / groups;
    int first_head = (int)(blockIdx.x % groups) * GROUP + warp * WARP_HEADS;
    int present = min((int)c.heads - first_head, (int)WARP_HEADS), dim = (int)c.dim;
    query q = query_at(c, row);
    if (c.source == LSA_ATTEND_ENTRIES && blockIdx.x % groups == 0 && blockIdx.y == 0 &&
        threadIdx.x == 0)
        c.counts[row] = (int32_t)q.records;

    bool records;
    int64_t from, end;
    if (SPLIT && !section_at(c, q, blockIdx.y, &records, &from, &end)) return;
    float4 heads[WARP_HEADS][CHUNKS];
    float max[WARP_HEADS], sum[WARP_HEADS];
#pragma unroll
    for (int h = 0; h < WARP_HEADS; h++) {
        const float *mine = c.q + (row * c.heads + first_head + h) * dim;
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            heads[h][i] = make_float4(0, 0, 0, 0);
            if (h < present)
                heads[h][i] = lsa_load4(mine, i * 128 + lane * 4, dim, (uintptr_t)mine % 16 == 0);
            if (!SPLIT) total[(h * CHUNKS + i) * LSA_WARP + lane] = make_float4(0, 0, 0, 0);
        }
        max[h] = h < present ? c.sinks[first_head + h] : 0.0f;
        sum[h] = max[h] == -INFINITY ? 0.0f : 1.0f;
    }

    int64_t sections = c.window_sections + sections_for(q.records);
    for (int64_t index = SPLIT ? blockIdx.y : 0; index < (SPLIT ? blockIdx.y + 1 : sections);
         index++) {
        if (!section_at(c, q, index, &records, &from, &end)) continue;
        section_sums<CHUNKS> s;
        attend_section<CHUNKS>(s, heads, tile, scores, p, c, q, row, first_head, records, from,
                               end);
        if (SPLIT) {
            int64_t part = (row * c.sections + index) * c.heads + first_head;
#pragma unroll
            for (int h = 0; h < WARP_HEADS; h++) {
                if (h >= present) break;
                float4 *to = (float4 *)(c.parts + (part + h) * CHUNKS * 128);
#pragma unroll
                for (int i = 0; i < CHUNKS; i++) to[i * LSA_WARP + lane] = s.acc[h][i];
                if (lane == 0) {
                    c.part_sums[(part + h) * 2] = s.max[h];
                    c.part_sums[(part + h) * 2 + 1] = s.sum[h];
                }
            }
        } else {
#pragma unroll
            for (int h = 0; h < WARP_HEADS; h++) {
                float mine, other;
                join(max[h], sum[h], s.max[h], s.sum[h], &mine, &other);
#pragma unroll
                for (int i = 0; i < CHUNKS; i++) {
                    float4 &at = total[(h * CHUNKS + i) * LSA_WARP + lane];
                    at = joined4(at, mine, s.acc[h][i], other);
                }
            }
        }
    }
    if constexpr (!SPLIT) {
#pragma unroll
        for (int h = 0; h < WARP_HEADS; h++) {
            if (h >= present) break;
            int64_t head = row * c.heads + first_head + h;
            float *out = c.out + head * dim, factor = factor_of(sum[h]);
#pragma unroll
            for (int i = 0; i < CHUNKS; i++)
                lsa_store4(out, i * 128 + lane * 4, dim, (uintptr_t)out % 16 == 0,
                           times(total[(h * CHUNKS + i) * LSA_WARP + lane], factor));
            if (c.kept && lane == 0) {
                c.finals[head * 2] = max[h];
                c.finals[head * 2 + 1] = sum[h];
            }
        }
    }
}

// Joins the sections of a query's head. Grid: (queries times heads), block: 128.
__global__ static void __launch_bounds__(THREADS) attend_join(call c, int pitch)
{
    lsa_after_previous();
    int64_t head = blockIdx.x, row = head / c.heads;
    int dim = (int)c.dim, i = threadIdx.x;
    query q = query_at(c, row);
    float max = c.sinks[head % c.heads], sum = max == -INFINITY ? 0.0f : 1.0f;
    float4 total = make_float4(0, 0, 0, 0);
    int64_t sections = c.window_sections + sections_for(q.records), from, end;
    for (int64_t index = 0; index < sections; index++) {
        bool records;
        if (!section_at(c, q, index, &records, &from, &end)) continue;
        int64_t part = (row * c.sections + index) * c.heads + head % c.heads;
        float mine, other;
        join(max, sum, c.part_sums[part * 2], c.part_sums[part * 2 + 1], &mine, &other);
        if (4 * i < dim)
            total = joined4(total, mine, ((const float4 *)(c.parts + part * pitch))[i], other);
    }
    float *out = c.out + head * dim;
    if (4 * i < dim)
        lsa_store4(out, 4 * i, dim, (uintptr_t)out % 16 == 0, times(total, factor_of(sum)));
    if (c.kept && i == 0) {
        c.finals[head * 2] = max;
        c.finals[head * 2 + 1] = sum;
    }
}

// A block has 32 records, and each of its warps a quarter of the heads. Grid: (queries, parts of 32 records), block: 128.
__global__ static void __launch_bounds__(THREADS) attend_mass(call c)
{
    __shared__ float parts[WARPS][LSA_WARP];
    lsa_after_previous();
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP;
    int64_t row = blockIdx.x, n = c.counts[row], each = (c.heads + WARPS - 1) / WARPS;
    int64_t from = warp * each, to = min(c.heads, from + each);
    const float *finals = c.finals + row * c.heads * 2,
                *kept = c.kept + row * c.heads * c.id_stride;
    for (int64_t j0 = blockIdx.y * LSA_WARP; j0 < n; j0 += gridDim.y * LSA_WARP) {
        int64_t j = j0 + lane;
        float total = 0;
#pragma unroll 8
        for (int64_t h = from; h < to; h++) {
            float score = j < n ? kept[h * c.id_stride + j] : -INFINITY;
            total =
                fmaf(expf(score - finite_max(finals[h * 2])), factor_of(finals[h * 2 + 1]), total);
        }
        parts[warp][lane] = total;
        __syncthreads();
        if (warp == 0 && j < n) {
            for (int i = 1; i < WARPS; i++) total += parts[i][lane];
            c.mass[row * c.id_stride + j] = total / (float)c.heads;
        }
        __syncthreads();
    }
}

// ---- launchers ----

static int chunks_of(int64_t dim) { return (int)((dim + 127) / 128); }

// Floats of the workspace: sums of split sections, [rows, sections, heads, dim up to 128s]; then max and sum of each, [.., 2];
// then [rows, heads, 2] and scores [rows, heads, masses] of what gets a mass.
struct layout {
    int64_t parts, part_sums, finals, kept;
};

static layout layout_of(int64_t rows, int64_t heads, int64_t dim, int64_t sections, int64_t masses)
{
    int64_t split = (rows < SPLIT_ROWS ? rows : (int64_t)SPLIT_ROWS) * sections * heads;
    layout l = {split * chunks_of(dim) * 128, split * 2, 0, 0};
    if (masses > 0) {
        l.finals = rows * heads * 2;
        l.kept = rows * heads * masses;
    }
    return l;
}

int64_t lsa_attention_workspace_cuda(int64_t tokens, int64_t heads, int64_t dim,
                                     int64_t window_size, int64_t most_records, int64_t most_masses)
{
    if (tokens < 1 || heads < 1 || dim < 1) return 0;
    layout l = layout_of(tokens, heads, dim, sections_of(window_size) + sections_of(most_records),
                         most_masses);
    int64_t floats =
        std::max(l.parts + l.part_sums + l.finals + l.kept,
                 lsa_attention_wgmma_floats(tokens, heads, dim, window_size, most_records));
    return floats * (int64_t)sizeof(float);
}

template <int CHUNKS, bool SPLIT> static cudaError_t launch_keys(const call &c, cudaStream_t stream)
{
    int floats = TILE * CHUNKS * 128 + 2 * GROUP * TILE + (SPLIT ? 0 : GROUP * CHUNKS * 128);
    int bytes = floats * (int)sizeof(float);
    cudaError_t error = cudaFuncSetAttribute(attend_keys<CHUNKS, SPLIT>,
                                             cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return error;
    int64_t groups = (c.heads + GROUP - 1) / GROUP;
    dim3 grid((unsigned)(c.rows * groups), SPLIT ? (unsigned)c.sections : 1);
    lsa_launch(attend_keys<CHUNKS, SPLIT>, grid, THREADS, bytes, stream, c);
    error = lsa_cuda_last();
    if (error != cudaSuccess || !SPLIT) return error;
    lsa_launch(attend_join, (unsigned)(c.rows * c.heads), THREADS, 0, stream, c, CHUNKS * 128);
    return lsa_cuda_last();
}

template <int CHUNKS> static cudaError_t launch_chunks(const call &c, cudaStream_t stream)
{
    bool split = c.bounded && c.rows <= SPLIT_ROWS && c.sections > 0 && c.sections <= 65535;
    return split ? launch_keys<CHUNKS, true>(c, stream) : launch_keys<CHUNKS, false>(c, stream);
}

static int launch(call &c, void *workspace, void *stream)
{
    if (c.dim > MOST_DIM)
        return lsa_fail(LSA_ESHAPE,
                        "attention: heads of %lld numbers, at most %d are possible on a GPU",
                        (long long)c.dim, MOST_DIM);
    if (c.rows == 0) return LSA_OK;
    if (!is_by_heads(c) && lsa_attention_wgmma_takes(c)) {
        cudaError_t error = lsa_attention_wgmma(c, workspace, (cudaStream_t)stream);
        return error == cudaSuccess ? LSA_OK : lsa_cuda_failed("attention", error);
    }
    c.window_sections = sections_of(c.window_size);
    c.sections = c.window_sections + (c.source == LSA_ATTEND_WINDOW ? 0 : sections_of(c.most));
    layout l = layout_of(c.rows, c.heads, c.dim, c.sections, c.mass ? c.id_stride : 0);
    c.parts = (float *)workspace;
    c.part_sums = c.parts + l.parts;
    c.finals = c.part_sums + l.part_sums;
    c.kept = l.kept ? c.finals + l.finals : NULL;
    cudaStream_t s = (cudaStream_t)stream;
    int chunks = chunks_of(c.dim);
    bool by_heads = is_by_heads(c);
    cudaError_t error = by_heads      ? launch_heads(c, s)
                        : chunks == 1 ? launch_chunks<1>(c, s)
                        : chunks == 2 ? launch_chunks<2>(c, s)
                        : chunks == 3 ? launch_chunks<3>(c, s)
                                      : launch_chunks<4>(c, s);
    if (error == cudaSuccess && c.kept) {
        dim3 grid((unsigned)c.rows,
                  (unsigned)std::max((c.id_stride + LSA_WARP - 1) / LSA_WARP, (int64_t)1));
        lsa_launch(attend_mass, grid, THREADS, 0, s, c);
        error = lsa_cuda_last();
    }
    return error == cudaSuccess ? LSA_OK : lsa_cuda_failed("attention", error);
}

int lsa_attention_cuda(float *out, float *mass, const float *q, const float *window,
                       const float *sinks, const lsa_records *records, const int32_t *ids,
                       const int32_t *counts, int64_t tokens, int64_t heads, int64_t dim,
                       int64_t rope_dim, int64_t room, int64_t own, int64_t window_size,
                       int64_t id_stride, float scale, void *workspace, void *stream)
{
    int rc = lsa_attention_check(records, tokens, heads, dim, rope_dim, room, own, window_size);
    if (rc) return rc;
    call c = {};
    c.out = out, c.mass = records && id_stride ? mass : NULL, c.q = q, c.sinks = sinks, c.ids = ids;
    c.counts = (int32_t *)counts; // written only of entries
    c.heads = heads, c.dim = dim, c.rope_dim = rope_dim, c.window_size = window_size,
    c.id_stride = id_stride;
    c.rows = tokens, c.most = id_stride, c.scale = scale;
    c.source = records ? LSA_ATTEND_PICKED : LSA_ATTEND_WINDOW;
    c.window = window, c.room = room, c.own = own, c.bounded = !records || id_stride > 0;
    if (records) c.records = *records;
    return launch(c, workspace, stream);
}

int lsa_attend_cuda(float *out, float *mass, const lsa_span *spans, int64_t count, int64_t layer,
                    const lsa_attending *a, void *workspace, void *stream)
{
    call c = {};
    int picked = a->source == LSA_ATTEND_PICKED;
    c.out = out, c.mass = picked && a->k ? mass : NULL, c.q = a->q, c.sinks = a->sinks,
    c.ids = a->ids, c.counts = a->counts;
    c.heads = a->heads, c.dim = a->dim, c.rope_dim = a->rope_dim, c.window_size = a->window_size;
    c.id_stride = a->k, c.rows = a->rows, c.most = picked ? a->k : a->most, c.scale = a->scale;
    c.source = a->source, c.rate = a->rate, c.spans = spans, c.count = count, c.layer = layer;
    c.bounded = true;
    c.compute = a->compute;
    c.table = a->table;
    int rc = launch(c, workspace, stream);
    if (rc || !c.table || is_by_heads(c)) return rc;
    return lsa_rope_cuda(out, a->table, a->rows, a->heads, a->dim, a->rope_dim, 1, stream);
}
