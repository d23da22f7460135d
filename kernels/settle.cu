// What precedes attention, on the GPU. In decode, where spans have one row each, it is one launch whose blocks have roles: a warp
// a head of the queries, a block a window key, a record, a key. A prefill takes the kernels of each part.
#include "kernels/extend_cuda.h"

extern "C" {
#include "kernels/hadamard.h"
#include "kernels/settle.h"
#include "kernels/table.h"

extern const lsa_kernels lsa_kernels_cuda;
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

// A warp norms and rotates a row, which is in `held` [dim] of the warp then, too.
__device__ static void norm_and_turn(float *x, const float *weight, int dim, const float *table,
                                     int half, float eps, float *held)
{
    int lane = threadIdx.x % LSA_WARP;
    bool whole = dim % 4 == 0 && ((uintptr_t)x | (uintptr_t)weight) % 16 == 0;
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
    for (int i = lane; i < half; i += LSA_WARP)
        lsa_rope_pair(held + dim - 2 * half + 2 * i, table[2 * i], table[2 * i + 1]);
    __syncwarp();
    for (int i = 4 * lane; i < dim; i += 4 * LSA_WARP)
        lsa_store4(x, i, dim, whole, lsa_load4(held, i, dim, dim % 4 == 0));
}

// A warp's index query: rotated, transformed and kept. held: [index_dim] of the warp.
__device__ static void settle_query(float *x, const settling &c, const float *table, float *kept,
                                    float *held)
{
    const lsa_settling &s = c.s;
    int lane = threadIdx.x % LSA_WARP, dim = (int)s.index_dim, half = (int)s.rope_dim / 2;
    for (int i = lane; i < dim; i += LSA_WARP) held[i] = x[i];
    __syncwarp();
    for (int i = lane; i < half; i += LSA_WARP)
        lsa_rope_pair(held + dim - 2 * half + 2 * i, table[2 * i], table[2 * i + 1]);
    __syncwarp();
    for (int h = 1; s.transformed && h < dim; h *= 2) {
        for (int p = lane; p < dim / 2; p += LSA_WARP) {
            int i = 2 * p - (p & (h - 1));
            float low = held[i], high = held[i + h];
            held[i] = low + high;
            held[i + h] = low - high;
        }
        __syncwarp();
    }
    for (int i = lane; i < dim; i += LSA_WARP)
        x[i] = kept[i] = held[i] * (s.transformed ? c.transform : 1.0f);
}

// ---- kernel ----

// Grid: (roles, spans), block: 256, shared: an entry and its record.
__global__ static void __launch_bounds__(THREADS, 1)
    settle_spans(const lsa_span *spans, const __grid_constant__ settling c)
{
    extern __shared__ float held[];
    __shared__ float4 near[HEADS][MOST_DIM / 4];
    const lsa_settling &s = c.s;
    const lsa_span &span = spans[blockIdx.y];
    const lsa_layer_store &store = span.layers[c.layer];
    int warp = threadIdx.x / LSA_WARP, role = blockIdx.x;
    float *own = (float *)near[warp];
    lsa_warm(&store, sizeof store, threadIdx.x, THREADS);
    lsa_after_previous();
    int64_t row = span.row, position = span.progress->tokens;
    int half = (int)s.rope_dim / 2;
    const float *table = s.table + row * 2 * half;
    if (role < c.query_blocks) {
        int64_t head = role * HEADS + warp;
        if (head < s.heads)
            norm_and_turn(s.q + (row * s.heads + head) * s.dim, NULL, (int)s.dim, table, half,
                          s.norm_eps, own);
        return;
    }
    role -= c.query_blocks;
    if (role == 0) {
        float *x = s.window + row * s.dim;
        if (warp == 0) norm_and_turn(x, s.window_norm, (int)s.dim, table, half, s.norm_eps, own);
        __syncthreads();
        append(store.window, position, 1, (const float *)near[0], 0, 1);
        return;
    }
    if (role == 1 && s.records) {
        extend_span(s.entries, span, c.layer, c.records, held, 0, 1);
        return;
    }
    role -= s.records ? 2 : 1;
    if (!s.index_q) return;
    if (role == 0) {
        extend_span(s.key_entries, span, c.layer, c.keys, held, 0, 1);
        return;
    }
    role--;
    float *queries_row = store.queries.data + position % store.queries.room * store.queries.width;
    if (role < c.index_blocks) {
        int64_t head = role * HEADS + warp, dim = s.index_dim;
        if (head < s.index_heads)
            settle_query(s.index_q + (row * s.index_heads + head) * dim, c,
                         s.index_table + row * 2 * half, queries_row + head * dim, own);
        return;
    }
    float *weights =
        store.query_weights.data + position % store.query_weights.room * store.query_weights.width;
    for (int64_t i = threadIdx.x; i < s.index_heads; i += THREADS) {
        float w = s.index_w[row * s.index_heads + i] * s.index_scale;
        s.index_w[row * s.index_heads + i] = weights[i] = w;
    }
    float *hidden = store.hidden[(span.progress->passes + 1) & 1];
    for (int64_t i = threadIdx.x; i < s.hidden_width; i += THREADS)
        hidden[i] = s.hidden[row * s.hidden_width + i];
}

// ---- launcher ----

int lsa_settle_cuda(const lsa_span *spans, int64_t count, int64_t layer,
                    const lsa_settling *settling_, int64_t rows, void *workspace, void *stream)
{
    const lsa_settling &s = *settling_;
    bool each_alone = rows == count && count <= 65535 && s.dim <= MOST_DIM &&
                      (!s.index_q || (s.keys && s.index_dim <= MOST_INDEX_DIM && !s.index_seen));
    if (!each_alone)
        return lsa_settle_by(&lsa_kernels_cuda, spans, count, layer, settling_, rows, workspace,
                             stream);
    settling c = {};
    c.s = s, c.layer = layer;
    int64_t shared = 0, more = 0;
    int rc = lsa_rope_check(rows, s.heads, s.dim, s.rope_dim);
    if (!rc) rc = lsa_rmsnorm_check(rows * s.heads, s.dim);
    if (!rc && s.records) rc = extending_of(&c.records, *s.records, &shared);
    if (!rc && s.index_q) rc = extending_of(&c.keys, *s.keys, &more);
    if (!rc && s.index_q) rc = lsa_rope_check(rows, s.index_heads, s.index_dim, s.rope_dim);
    if (!rc && s.transformed) rc = lsa_hadamard_check(rows * s.index_heads, s.index_dim);
    if (rc || rows == 0) return rc;
    c.transform = (float)(1 / sqrt((double)s.index_dim));
    c.query_blocks = (int32_t)((s.heads + HEADS - 1) / HEADS);
    int roles = c.query_blocks + 1 + (s.records ? 1 : 0);
    if (s.index_q) {
        c.index_blocks = (int32_t)((s.index_heads + HEADS - 1) / HEADS);
        roles += 2 + c.index_blocks;
    }
    lsa_launch(settle_spans, dim3((unsigned)roles, (unsigned)count), THREADS,
               (size_t)(shared > more ? shared : more), stream, spans, c);
    return lsa_launched("settle", rows, s.heads, s.dim);
}
