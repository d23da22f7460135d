// Extending what sessions keep, on the GPU. What a span adds follows from its progress, so launches are the same whatever
// the step: a fixed number of blocks a span, which share its rows and its new windows.
#include "kernels/extend_cuda.h"

enum { MOST_PARTS = 512 }; // blocks of a span

// ---- kernels ----

// Grid: (spans, parts), block: 256.
__global__ static void keep_rows(const lsa_span *spans, int64_t layer, int32_t what,
                                 const float *rows, int64_t width)
{
    const lsa_span &s = spans[blockIdx.x];
    append(ring_of(s.layers[layer], what), s.progress->tokens, s.rows, rows + s.row * width,
           blockIdx.y, gridDim.y);
}

// Grid: (spans, parts), block: 256, shared: the entry and its record.
__global__ static void __launch_bounds__(THREADS, 2)
    extend_spans(float *entries, const lsa_span *spans, int64_t layer,
                 const __grid_constant__ extending e)
{
    extern __shared__ float held[];
    extend_span(entries, spans[blockIdx.x], layer, e, held, blockIdx.y, gridDim.y);
}

// ---- launchers ----

// Blocks of a span: enough to fill the GPU, whatever the spans' lengths.
static unsigned parts_of(int64_t count)
{
    int64_t parts = MOST_PARTS / count;
    return (unsigned)(parts < 1 ? 1 : parts);
}

int lsa_keep_rows_cuda(const lsa_span *spans, int64_t count, int64_t layer, int32_t what,
                       const float *rows, int64_t width, void *stream)
{
    int rc = lsa_keep_rows_check(what);
    if (rc || count == 0) return rc;
    keep_rows<<<dim3((unsigned)count, parts_of(count)), THREADS, 0, (cudaStream_t)stream>>>(
        spans, layer, what, rows, width);
    return lsa_launched("keep_rows");
}

int64_t lsa_extend_workspace_cuda(int64_t rows, int64_t rate, int64_t dim, int64_t rope_dim,
                                  int32_t overlap)
{
    (void)rows, (void)rate, (void)dim, (void)rope_dim, (void)overlap;
    return 0;
}

int lsa_extend_cuda(float *entries, const lsa_span *spans, int64_t count, int64_t layer,
                    const lsa_extension *extension, void *workspace, void *stream)
{
    (void)workspace;
    extending e;
    int64_t shared;
    int rc = extending_of(&e, *extension, &shared);
    if (rc || count == 0) return rc;
    extend_spans<<<dim3((unsigned)count, parts_of(count)), THREADS, (size_t)shared,
                   (cudaStream_t)stream>>>(entries, spans, layer, e);
    return lsa_launched("extend");
}
