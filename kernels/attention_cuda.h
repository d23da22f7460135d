/* Private to attention's CUDA files: a call, one query of it, and its keys. */
#ifndef LSA_ATTENTION_CUDA_H
#define LSA_ATTENTION_CUDA_H
#include <cuda_fp8.h>

#include "kernels/cuda_launch.h"
#include "kernels/number_formats.h"
#include "kernels/rope_cuda.h"

extern "C" {
#include "kernels/attention.h"
}

/* A call: of spans, or of one span's rows as lsa_attention has them. */
struct call {
    float *out, *mass;
    const float *q, *sinks;
    const int32_t *ids;
    int32_t *counts;
    int64_t heads, dim, rope_dim, window_size, id_stride, rows, most;
    float scale;
    int32_t source, compute;
    const lsa_span *spans; // NULL: one
    int64_t count, layer, rate;
    const float *window;
    int64_t room, own;
    lsa_records records;
    // workspace
    float *parts, *part_sums, *finals, *kept; // as layout_of has them
    int64_t sections, window_sections;
    bool bounded;       // records by `most`
    const float *table; // NULL, or what out is rotated back by
};

/* One query. */
struct query {
    const float *window;
    int64_t room, position, first; // the oldest position it sees
    int64_t records;               // how many
    const int32_t *ids;            // NULL: all of them
    lsa_records where;
};

/* The span that has a row, found by all threads of a block. */
__device__ static inline const lsa_span *span_of(const call &c, int64_t row)
{
    __shared__ int64_t found;
    if (c.rows == c.count) return c.spans + row; // in decode each has one
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < c.count; i += blockDim.x)
        if (row >= c.spans[i].row && row < c.spans[i].row + c.spans[i].rows) found = i;
    __syncthreads();
    return c.spans + found;
}

__device__ static inline query query_at(const call &c, int64_t row)
{
    query q = {c.window, c.room, c.own + row, 0, 0, NULL, c.records};
    if (c.spans) {
        const lsa_span *s = span_of(c, row);
        const lsa_layer_store *store = s->layers + c.layer;
        q.window = store->window.data;
        q.room = store->window.room;
        q.position = s->progress->tokens + row - s->row;
        q.where = c.source == LSA_ATTEND_PICKED && s->in_cells ? store->hot
                  : store->mirror.blocks                       ? store->mirror
                                                               : store->cold;
    }
    if (c.source == LSA_ATTEND_PICKED) {
        q.records = c.counts[row];
        if (c.ids) q.ids = c.ids + row * c.id_stride;
    }
    if (c.source == LSA_ATTEND_ENTRIES) q.records = (q.position + 1) / c.rate;
    int64_t end = q.position + 1;
    q.first = end > c.window_size ? end - c.window_size : 0;
    return q;
}

__device__ static inline uint32_t bytes_at(const uint8_t *p, int count)
{
    uint32_t u = 0;
    for (int i = 0; i < count; i++) u |= (uint32_t)p[i] << (8 * i);
    return u;
}

__device__ static inline float4 e4m3x4(uint32_t codes, float scale)
{
    float v[4];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        __half2_raw pair =
            __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(codes >> 16 * i), __NV_E4M3);
        float2 f = __half22float2(pair);
        v[2 * i] = f.x * scale;
        v[2 * i + 1] = f.y * scale;
    }
    return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ static inline float number_of(const uint8_t *record, int format, int nope, int rope,
                                         int d)
{
    if (format == LSA_KV_F32) return __uint_as_float(bytes_at(record + 4 * d, 4));
    if (format == LSA_KV_FP8 && d < nope)
        return e4m3x4(record[d], e8m0_to_f32(record[nope + 2 * rope + d / 64])).x;
    const uint8_t *half = format == LSA_KV_FP8 ? record + nope + 2 * (d - nope) : record + 2 * d;
    return __uint_as_float(bytes_at(half, 2) << 16);
}

/* Numbers d .. d + 3 of a record, zeros beyond dim. `aligned`: vectors can be read where they lie. */
__device__ static inline float4 numbers_of(const uint8_t *record, int format, int dim, int rope,
                                           int d, bool aligned)
{
    int nope = dim - rope;
    if (aligned && d + 4 <= dim) {
        if (format == LSA_KV_F32) return *(const float4 *)(record + 4 * d);
        if (format == LSA_KV_FP8 && d < nope)
            return e4m3x4(*(const uint32_t *)(record + d),
                          e8m0_to_f32(record[nope + 2 * rope + d / 64]));
        const uint8_t *halves =
            format == LSA_KV_FP8 ? record + nope + 2 * (d - nope) : record + 2 * d;
        uint2 u = *(const uint2 *)halves;
        return make_float4(__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000),
                           __uint_as_float(u.y << 16), __uint_as_float(u.y & 0xffff0000));
    }
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = d + i < dim ? number_of(record, format, nope, rope, d + i) : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ static inline bool vectors_fit(const uint8_t *record, int format, int dim, int rope)
{
    uintptr_t at = (uintptr_t)record;
    if (format == LSA_KV_F32) return at % 16 == 0;
    if (format == LSA_KV_BF16) return at % 8 == 0;
    return at % 8 == 0 && (dim - rope) % 8 == 0;
}

__device__ static inline const uint8_t *record_at(const lsa_records &r, int64_t i)
{
    int64_t within = i & (((int64_t)1 << r.block_shift) - 1);
    return r.blocks[i >> r.block_shift] + within * r.stride + r.offset;
}

/* What exponents are taken against: of nothing but -inf, nothing is left. */
__device__ static inline float finite_max(float max) { return max == -INFINITY ? 0.0f : max; }

__device__ static inline float factor_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

__device__ static inline float4 times(float4 v, float f)
{
    return make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
}

/* In attention_wgmma.cu: whether a call is its own, where it can run; floats of the workspace for calls of at most so many;
 * and the launch. */
bool lsa_attention_wgmma_takes(const call &c);
int64_t lsa_attention_wgmma_floats(int64_t rows, int64_t heads, int64_t dim, int64_t window_size,
                                   int64_t records);
cudaError_t lsa_attention_wgmma(const call &c, void *workspace, cudaStream_t stream);

#endif
