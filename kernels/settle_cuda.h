// Private to CUDA files: what precedes attention, of a span of one row, by blocks of 256 threads that have roles: a warp a head of
// the queries, a block the window's key, the record, the key.
#ifndef LSA_SETTLE_CUDA_H
#define LSA_SETTLE_CUDA_H
#include "kernels/extend_cuda.h"

extern "C" {
#include "kernels/hadamard.h"
#include "kernels/settle.h"
}

enum { HEADS = THREADS / LSA_WARP, MOST_DIM = 512, MOST_INDEX_DIM = 256 };

struct settling {
    lsa_settling s;
    extending records, keys;
    int64_t layer;
    float transform; // 1 / sqrt(index_dim)
    int32_t query_blocks, index_blocks;
};

// ---- roles ----

// A warp norms and rotates a row x, which is in `held` [dim] of the warp then, too.
__device__ __noinline__ static void norm_and_turn(float *to, const float *x, const float *weight,
                                                  int dim, const float *table, int half, float eps,
                                                  float *held)
{
    int lane = threadIdx.x % LSA_WARP;
    bool whole = dim % 4 == 0 && ((uintptr_t)to | (uintptr_t)x | (uintptr_t)weight) % 16 == 0;
    float4 v[MOST_DIM / (4 * LSA_WARP)], w[MOST_DIM / (4 * LSA_WARP)];
    float sum = 0;
#pragma unroll
    for (int n = 0; n < MOST_DIM / (4 * LSA_WARP); n++) {
        int i = 4 * (lane + n * LSA_WARP);
        if (i >= dim) break;
        v[n] = lsa_load4(x, i, dim, whole);
        w[n] = weight ? lsa_load4(weight, i, dim, whole) : make_float4(1, 1, 1, 1);
        sum = fmaf(v[n].w, v[n].w,
                   fmaf(v[n].z, v[n].z, fmaf(v[n].y, v[n].y, fmaf(v[n].x, v[n].x, sum))));
    }
    float scale = 1.0f / sqrtf(lsa_warp_sum(sum) / (float)dim + eps);
#pragma unroll
    for (int n = 0; n < MOST_DIM / (4 * LSA_WARP); n++) {
        int i = 4 * (lane + n * LSA_WARP);
        if (i >= dim) break;
        lsa_store4(held, i, dim, dim % 4 == 0,
                   make_float4(v[n].x * scale * w[n].x, v[n].y * scale * w[n].y,
                               v[n].z * scale * w[n].z, v[n].w * scale * w[n].w));
    }
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < half; i += LSA_WARP)
        lsa_rope_pair(held + dim - 2 * half + 2 * i, table[2 * i], table[2 * i + 1]);
    __syncwarp();
#pragma unroll 1
    for (int i = 4 * lane; i < dim; i += 4 * LSA_WARP)
        lsa_store4(to, i, dim, whole, lsa_load4(held, i, dim, dim % 4 == 0));
}

// A warp's index query: rotated, transformed and kept. held: [index_dim] of the warp.
__device__ static void settle_query(float *to, const float *x, const settling &c,
                                    const float *table, float *kept, float *held)
{
    const lsa_settling &s = c.s;
    int lane = threadIdx.x % LSA_WARP, dim = (int)s.index_dim, half = (int)s.rope_dim / 2;
#pragma unroll 1
    for (int i = lane; i < dim; i += LSA_WARP) held[i] = x[i];
    __syncwarp();
#pragma unroll 1
    for (int i = lane; i < half; i += LSA_WARP)
        lsa_rope_pair(held + dim - 2 * half + 2 * i, table[2 * i], table[2 * i + 1]);
    __syncwarp();
#pragma unroll 1
    for (int h = 1; s.transformed && h < dim; h *= 2) {
#pragma unroll 1
        for (int p = lane; p < dim / 2; p += LSA_WARP) {
            int i = 2 * p - (p & (h - 1));
            float low = held[i], high = held[i + h];
            held[i] = low + high;
            held[i + h] = low - high;
        }
        __syncwarp();
    }
#pragma unroll 1
    for (int i = lane; i < dim; i += LSA_WARP)
        to[i] = kept[i] = held[i] * (s.transformed ? c.transform : 1.0f);
}

// A row as products left it; NULL: the layer has none.
struct settle_row {
    const float *q, *window, *kv, *gate, *index_kv, *index_gate, *index_q, *index_w, *hidden;
};

// held: shared memory for an entry and its record; near: for a row of each warp.
__device__ static void settle_role(const lsa_span &span, const settling &c, const settle_row &in,
                                   int role, float *held, float4 (*near)[MOST_DIM / 4])
{
    const lsa_settling &s = c.s;
    const lsa_layer_store &store = span.layers[c.layer];
    int warp = threadIdx.x / LSA_WARP;
    float *own = (float *)near[warp];
    int64_t row = span.row, position = span.progress->tokens;
    int half = (int)s.rope_dim / 2;
    const float *table = s.table + row * 2 * half;
    if (role < c.query_blocks) {
        int64_t head = role * HEADS + warp;
        if (head < s.heads)
            norm_and_turn(s.q + (row * s.heads + head) * s.dim, in.q + head * s.dim, NULL,
                          (int)s.dim, table, half, s.norm_eps, own);
        return;
    }
    role -= c.query_blocks;
    if (role == 0) {
        if (warp == 0)
            norm_and_turn(s.window + row * s.dim, in.window, s.window_norm, (int)s.dim, table, half,
                          s.norm_eps, own);
        __syncthreads();
        append(store.window, position, 1, (const float *)near[0], 0, 1);
        return;
    }
    if (role == 1 && s.records) {
        extend_span(s.entries, span, c.layer, c.records, in.kv, in.gate, held, 0, 1);
        return;
    }
    role -= s.records ? 2 : 1;
    if (!s.index_q) return;
    if (role == 0) {
        extend_span(s.key_entries, span, c.layer, c.keys, in.index_kv, in.index_gate, held, 0, 1);
        return;
    }
    role--;
    float *queries_row =
        store.queries.data + place_in(store.queries, position) * store.queries.width;
    if (role < c.index_blocks) {
        int64_t head = role * HEADS + warp, dim = s.index_dim;
        if (head < s.index_heads)
            settle_query(s.index_q + (row * s.index_heads + head) * dim, in.index_q + head * dim, c,
                         s.index_table + row * 2 * half, queries_row + head * dim, own);
        return;
    }
    float *weights = store.query_weights.data +
                     place_in(store.query_weights, position) * store.query_weights.width;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < s.index_heads; i += THREADS) {
        float w = in.index_w[i] * s.index_scale;
        s.index_w[row * s.index_heads + i] = weights[i] = w;
    }
    float *hidden = store.hidden.data + place_in(store.hidden, position) * store.hidden.width;
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < s.hidden_width; i += THREADS) hidden[i] = in.hidden[i];
}

// ---- host ----

static inline int settle_roles(const settling &c)
{
    return c.query_blocks + 1 + (c.s.records ? 1 : 0) + (c.s.index_q ? 2 + c.index_blocks : 0);
}

// Whether spans that each have one row settle in one launch.
static inline bool is_short_settle(const lsa_settling &s)
{
    return s.dim <= MOST_DIM &&
           (!s.index_q || (s.keys && s.index_dim <= MOST_INDEX_DIM && !s.index_seen));
}

// What such a launch is about, checked; *shared: bytes that a block holds.
static int settling_of(settling *c, const lsa_settling &s, int64_t layer, int64_t rows,
                       int64_t *shared)
{
    int64_t more = 0;
    c->s = s, c->layer = layer, *shared = 0;
    int rc = lsa_rope_check(rows, s.heads, s.dim, s.rope_dim);
    if (!rc) rc = lsa_rmsnorm_check(rows * s.heads, s.dim);
    if (!rc && s.records) rc = extending_of(&c->records, *s.records, shared);
    if (!rc && s.index_q) rc = extending_of(&c->keys, *s.keys, &more);
    if (!rc && s.index_q) rc = lsa_rope_check(rows, s.index_heads, s.index_dim, s.rope_dim);
    if (!rc && s.transformed) rc = lsa_hadamard_check(rows * s.index_heads, s.index_dim);
    if (rc) return rc;
    if (more > *shared) *shared = more;
    c->transform = (float)(1 / sqrt((double)s.index_dim));
    c->query_blocks = (int32_t)((s.heads + HEADS - 1) / HEADS);
    c->index_blocks = s.index_q ? (int32_t)((s.index_heads + HEADS - 1) / HEADS) : 0;
    return LSA_OK;
}

#endif
