/* Private to attention.cu: attention with few small heads. */
#ifndef LSA_ATTENTION_HEADS_H
#define LSA_ATTENTION_HEADS_H
#include "kernels/attention_sections.h"

// Few small heads: a block takes one head of a query, a group of its threads a section, a thread a key and then a number of the
// sum. Sections as above; each group's are joined in their order, so the number of groups changes no bit.
enum { HEAD_DIM = 128, HEAD_MOST = 8, HEAD_SECTIONS = 8 };

struct alignas(16) head_shared {
    float q[HEAD_DIM], weights[SECTION], sums[THREADS], maxima[WARPS], totals[WARPS];
    float max, sum; // of the section
    const uint8_t *keys[SECTION];
    bool present, fits[WARPS];
};

// A section's keys, which vectors fit, as rows of the tile; a block's threads have whole keys. Several loads a thread are under way at once: so none of them is in a branch.
template <int FORMAT>
__device__ static void load_section(float *tile, const head_shared &h, int n, int dim, int rope,
                                    int at)
{
    const int together = 4;
    int quads = dim / 4, nope = dim - rope, pitch = dim + 4, step = THREADS / quads;
    int d = 4 * (at % quads); // a thread's numbers are those of each of its keys
    bool small = d < nope;
#pragma unroll 1
    for (int first = at / quads; first < n; first += together * step) {
        uint4 raw[together];
#pragma unroll
        for (int j = 0; j < together; j++) {
            const uint8_t *record = h.keys[min(first + j * step, n - 1)];
            if (FORMAT == LSA_KV_F32) {
                raw[j] = *(const uint4 *)(record + 4 * d);
            } else { // z: the exponent of a number in e4m3; w: whether it is
                const uint32_t *from =
                    (const uint32_t *)(record + (small ? d : nope + 2 * (d - nope)));
                raw[j].x = from[0];
                raw[j].y = from[small ? 0 : 1];
                raw[j].z = record[nope + 2 * rope + (small ? d / 64 : 0)];
                raw[j].w = small;
            }
        }
#pragma unroll
        for (int j = 0; j < together; j++) {
            uint4 r = raw[j];
            float4 v = make_float4(__uint_as_float(r.x), __uint_as_float(r.y), __uint_as_float(r.z),
                                   __uint_as_float(r.w));
            if (FORMAT != LSA_KV_F32)
                v = r.w ? e4m3x4(r.x, e8m0_to_f32((uint8_t)r.z))
                        : make_float4(__uint_as_float(r.x << 16), __uint_as_float(r.x & 0xffff0000),
                                      __uint_as_float(r.y << 16),
                                      __uint_as_float(r.y & 0xffff0000));
            if (first + j * step < n) *(float4 *)(tile + (first + j * step) * pitch + d) = v;
        }
    }
}

// One section of a head, by a group: number `at` of its sum is left in h.sums, for those below dim. tile: [128, dim + 4].
__device__ static void head_section(head_shared &h, float *tile, const call &c, const query &q,
                                    int64_t head, bool records, int64_t from, int64_t end,
                                    int group)
{
    int n = (int)(end - from), dim = (int)c.dim, pitch = dim + 4, quads = dim / 4;
    int at = threadIdx.x % THREADS, warp = at / LSA_WARP, lane = at % LSA_WARP;
    const uint8_t *own_key = NULL;
    int format = records ? q.where.format : (int)LSA_KV_F32, rope = (int)c.rope_dim;
    if (at < n)
        own_key = !records ? (const uint8_t *)(q.window + (uint32_t)(q.first + from + at) %
                                                              (uint32_t)q.room * (int64_t)dim)
                           : record_at(q.where, q.ids ? q.ids[from + at] : from + at);
    h.keys[at] = own_key;
    bool fits = __all_sync(0xffffffff, at >= n || vectors_fit(own_key, format, dim, rope));
    if (lane == 0) h.fits[warp] = fits;
    lsa_group_sync(1 + group, THREADS);
    fits = h.fits[0] && h.fits[1] && h.fits[2] && h.fits[3] && THREADS % quads == 0;
    if (format == LSA_KV_F32 && fits)
        load_section<LSA_KV_F32>(tile, h, n, dim, rope, at);
    else if (format == LSA_KV_FP8 && fits)
        load_section<LSA_KV_FP8>(tile, h, n, dim, rope, at);
    else
        for (int i = at; i < n * quads; i += THREADS)
            *(float4 *)(tile + i / quads * pitch + 4 * (i % quads)) =
                numbers_of(h.keys[i / quads], format, dim, rope, 4 * (i % quads),
                           vectors_fit(h.keys[i / quads], format, dim, rope));
    lsa_group_sync(1 + group, THREADS);
    float score = -INFINITY;
    if (at < n) {
        score = 0;
#pragma unroll 4
        for (int d = 0; d < dim; d += 4)
            score =
                dot4(*(const float4 *)(h.q + d), *(const float4 *)(tile + at * pitch + d), score);
        score *= c.scale;
        if (c.kept && records) c.kept[head * c.id_stride + from + at] = score;
    }
    float largest = warp_max(score);
    if (lane == 0) h.maxima[warp] = largest;
    lsa_group_sync(1 + group, THREADS);
    largest = fmaxf(fmaxf(h.maxima[0], h.maxima[1]), fmaxf(h.maxima[2], h.maxima[3]));
    float weight = at < n ? expf(score - finite_max(largest)) : 0.0f;
    h.weights[at] = weight;
    float all = lsa_warp_sum(weight);
    if (lane == 0) h.totals[warp] = all;
    lsa_group_sync(1 + group, THREADS);
    int parts = THREADS / dim, d = at % dim, part = at / dim;
    float own = 0;
    if (part < parts)
#pragma unroll 4
        for (int j = part; j < n; j += parts) own = fmaf(h.weights[j], tile[j * pitch + d], own);
    h.sums[at] = own;
    if (at == 0) {
        h.max = largest;
        h.sum = (h.totals[0] + h.totals[1]) + (h.totals[2] + h.totals[3]);
    }
    lsa_group_sync(1 + group, THREADS);
    for (int i = 1; at < dim && i < parts; i++) own += h.sums[at + i * dim];
    if (at < dim) h.sums[at] = own; // read by its own thread alone until then
}

// A head's number, times what its sum makes of it, rotated back where a table is given. By the first group.
__device__ static void put_head(const call &c, head_shared &h, int64_t head, float value)
{
    int at = threadIdx.x, dim = (int)c.dim, turned = c.table ? (int)c.rope_dim : 0;
    h.sums[at] = value;
    lsa_group_sync(1, THREADS);
    if (at >= dim) return;
    if (at >= dim - turned) {
        int pair = (at - (dim - turned)) / 2, first = dim - turned + 2 * pair;
        const float *turn = c.table + (head / c.heads * (turned / 2) + pair) * 2;
        float two[2] = {h.sums[first], h.sums[first + 1]};
        lsa_rope_pair(two, turn[0], -turn[1]);
        value = two[at - first];
    }
    c.out[head * dim + at] = value;
}

// What a block reads that stays as it is while the pass runs.
__device__ static void look_ahead(const call &c, int64_t row)
{
    if (c.rows == c.count)
        lsa_warm(c.spans[row].layers + c.layer, sizeof *c.spans->layers, threadIdx.x, blockDim.x);
}

// SPLIT: one section a block, whose sums go to the workspace. Grid: (queries times heads, sections or 1), block: 128 GROUPS,
// shared: 128 keys a group.
template <bool SPLIT, int GROUPS>
__global__ static void __launch_bounds__(THREADS *GROUPS, 1)
    attend_head(const __grid_constant__ call c)
{
    extern __shared__ float4 shared[];
    __shared__ head_shared groups[GROUPS];
    int64_t head = blockIdx.x, row = head / c.heads, from, end;
    int at = threadIdx.x % THREADS, group = threadIdx.x / THREADS, dim = (int)c.dim;
    head_shared &h = groups[group];
    float *tile = (float *)shared + group * SECTION * (dim + 4);
    look_ahead(c, row);
    lsa_after_previous();
    query q = query_at(c, row);
    if (at < dim) h.q[at] = c.q[head * dim + at];
    if (c.source == LSA_ATTEND_ENTRIES && head % c.heads == 0 && blockIdx.y == 0 &&
        threadIdx.x == 0)
        c.counts[row] = (int32_t)q.records;
    float max = c.sinks[head % c.heads], sum = max == -INFINITY ? 0.0f : 1.0f, total = 0;
    int64_t first = SPLIT ? blockIdx.y : 0,
            sections = SPLIT ? first + 1 : c.window_sections + sections_for(q.records);
    bool present;
    do {
        bool records = false;
        __syncthreads(); // what groups left is read; h.q is there
        present =
            first + group < sections && section_at(c, q, first + group, &records, &from, &end);
        if (present) head_section(h, tile, c, q, head, records, from, end, group);
        if (at == 0) h.present = present;
        __syncthreads();
        for (int i = 0; i < GROUPS && group == 0 && !SPLIT; i++) {
            if (!groups[i].present) continue;
            float mine, other;
            join(max, sum, groups[i].max, groups[i].sum, &mine, &other);
            total = joined(total, mine, at < dim ? groups[i].sums[at] : 0.0f, other);
        }
    } while (!SPLIT && (first += GROUPS) < sections);
    if constexpr (SPLIT) {
        if (!present) return;
        int64_t place = (row * c.sections + first) * c.heads + head % c.heads;
        if (at < dim) c.parts[place * HEAD_DIM + at] = h.sums[at];
        if (at == 0) c.part_sums[place * 2] = h.max, c.part_sums[place * 2 + 1] = h.sum;
    } else if (group == 0) {
        put_head(c, h, head, total * factor_of(sum));
        if (c.kept && at == 0) c.finals[head * 2] = max, c.finals[head * 2 + 1] = sum;
    }
}

// Joins the sections of a head. Grid: (queries times heads), block: 128.
__global__ static void __launch_bounds__(THREADS) attend_join_head(const __grid_constant__ call c)
{
    __shared__ head_shared h;
    lsa_after_previous();
    int64_t head = blockIdx.x, row = head / c.heads, from, end;
    int at = threadIdx.x;
    query q = query_at(c, row);
    float max = c.sinks[head % c.heads], sum = max == -INFINITY ? 0.0f : 1.0f, total = 0;
    int64_t sections = c.window_sections + sections_for(q.records);
    for (int64_t index = 0; index < sections; index++) {
        bool records;
        if (!section_at(c, q, index, &records, &from, &end)) continue;
        int64_t place = (row * c.sections + index) * c.heads + head % c.heads;
        float mine, other;
        join(max, sum, c.part_sums[place * 2], c.part_sums[place * 2 + 1], &mine, &other);
        if (at < c.dim) total = joined(total, mine, c.parts[place * HEAD_DIM + at], other);
    }
    put_head(c, h, head, total * factor_of(sum));
    if (c.kept && at == 0) c.finals[head * 2] = max, c.finals[head * 2 + 1] = sum;
}

// ---- launchers ----

// Few small heads; whatever the pass, so that a row has the same bits in each.
static bool is_by_heads(const call &c)
{
    return c.spans && c.dim <= HEAD_DIM && c.dim % 4 == 0 && c.heads <= HEAD_MOST;
}

template <bool SPLIT, int GROUPS>
static cudaError_t launch_groups(const call &c, cudaStream_t stream)
{
    size_t bytes = GROUPS * SECTION * (c.dim + 4) * sizeof(float);
    auto kernel = attend_head<SPLIT, GROUPS>;
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return error;
    dim3 grid((unsigned)(c.rows * c.heads), SPLIT ? (unsigned)c.sections : 1);
    lsa_launch(kernel, grid, THREADS * GROUPS, bytes, stream, c);
    if (SPLIT) lsa_launch(attend_join_head, dim3(grid.x), THREADS, 0, stream, c);
    return lsa_cuda_last();
}

// Many queries fill the processors by themselves; of few, sections go side by side.
static cudaError_t launch_heads(const call &c, cudaStream_t stream)
{
    if (c.rows > c.count || c.sections <= 1) return launch_groups<false, 1>(c, stream);
    if (c.rows <= SPLIT_ROWS && c.sections > HEAD_SECTIONS && c.sections <= 65535)
        return launch_groups<true, 1>(c, stream);
    return c.sections <= 2 || c.dim > 64 ? launch_groups<false, 2>(c, stream)
                                         : launch_groups<false, 4>(c, stream);
}

#endif
