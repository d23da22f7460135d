// What precedes attention, on the GPU. In decode, where spans have one row each, it is one launch whose blocks have roles. A prefill
// takes the kernels of each part.
#include "kernels/settle_cuda.h"

extern "C" {
#include "kernels/table.h"

extern const lsa_kernels lsa_kernels_cuda;
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
    lsa_warm(&store, sizeof store, threadIdx.x, THREADS);
    lsa_after_previous();
    int64_t row = span.row;
    settle_row in = {s.q + row * s.heads * s.dim,
                     s.window + row * s.dim,
                     c.records.x.kv + row * store.kv.width,
                     c.records.x.gate + row * store.gate.width,
                     c.keys.x.kv + row * store.index_kv.width,
                     c.keys.x.gate + row * store.index_gate.width,
                     s.index_q + row * s.index_heads * s.index_dim,
                     s.index_w + row * s.index_heads,
                     s.hidden + row * s.hidden_width};
    settle_role(span, c, in, blockIdx.x, held, near);
}

// ---- launcher ----

int lsa_settle_cuda(const lsa_span *spans, int64_t count, int64_t layer,
                    const lsa_settling *settling_, int64_t rows, void *workspace, void *stream)
{
    const lsa_settling &s = *settling_;
    if (rows != count || count > 65535 || !is_short_settle(s))
        return lsa_settle_by(&lsa_kernels_cuda, spans, count, layer, settling_, rows, workspace,
                             stream);
    settling c = {};
    int64_t shared;
    int rc = settling_of(&c, s, layer, rows, &shared);
    if (rc || rows == 0) return rc;
    lsa_launch(settle_spans, dim3((unsigned)settle_roles(c), (unsigned)count), THREADS,
               (size_t)shared, stream, spans, c);
    return lsa_launched("settle", rows, s.heads, s.dim);
}
