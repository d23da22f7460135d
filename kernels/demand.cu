// Chunks on demand on the GPU: a block a session finds who is there, who comes and who leaves; a few blocks then read what is
// missing over the bus. Both follow from tables that lie there, so that steps need no word from the host.
#include "kernels/gather_cuda.h"

extern "C" {
#include "core/base/error.h"
#include "kernels/demand.h"
}

enum { THREADS = 512, WARPS = THREADS / LSA_WARP, FETCH_BLOCKS = 8 };

// ---- helpers ----

__device__ static int64_t now_ns()
{
    int64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
}

__device__ static uint8_t *whole_record(const lsa_records &r, int64_t i)
{
    return r.blocks[i >> r.block_shift] + (i & (((int64_t)1 << r.block_shift) - 1)) * r.stride;
}

// How many threads before this one have the flag; *all: how many there are. A barrier lies between what threads did before the
// call and what they do after it. shared: one number a warp.
__device__ static int rank_of(bool flag, int *all, int *shared)
{
    unsigned votes = __ballot_sync(0xffffffff, flag);
    int lane = threadIdx.x % LSA_WARP, warp = threadIdx.x / LSA_WARP, before = 0;
    __syncthreads(); // the call before has read
    if (lane == 0) shared[warp] = __popc(votes);
    __syncthreads();
    *all = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        before += i < warp ? shared[i] : 0;
        *all += shared[i];
    }
    return before + __popc(votes & ((1u << lane) - 1));
}

__device__ static void use(const lsa_demand &d, int32_t cell, int64_t p)
{
    d.order[p % d.order_room] = cell;
    d.used[cell] = p;
}

// The cell of entry p, where that is before `end` and counts; else -1.
__device__ static int32_t cell_at(const lsa_demand &d, int64_t p, int64_t end)
{
    int32_t cell = p < end ? d.order[p % d.order_room] : -1;
    return cell >= 0 && d.used[cell] == p ? cell : -1;
}

// Entries that count move to the beginning of the others; returns where they end.
__device__ static int64_t pack_order(const lsa_demand &d, int64_t oldest, int64_t newest,
                                     int *shared)
{
    int64_t kept = oldest;
    for (int64_t at = oldest; at < newest; at += THREADS) {
        int all;
        int32_t cell = cell_at(d, at + threadIdx.x, newest);
        int rank = rank_of(cell >= 0, &all, shared);
        if (cell >= 0) use(d, cell, kept + rank);
        kept += all;
    }
    __syncthreads();
    return kept;
}

__device__ static void tell_born(const lsa_span &s, int32_t chunk, int32_t cell)
{
    if (chunk >= s.born_from) s.born_slot[chunk - s.born_from] = cell;
}

// `wanted` cells, the least recently used first, go on the stack from place `top` on; returns which entry is the oldest then.
__device__ static int64_t make_room(const lsa_span &s, int64_t wanted, int64_t top, int64_t oldest,
                                    int64_t newest, int *shared)
{
    const lsa_demand &d = *s.demand;
    __shared__ int64_t after_last;
    int64_t gone = 0;
    for (int64_t at = oldest; gone < wanted && at < newest; at += THREADS) {
        int all;
        int32_t cell = cell_at(d, at + threadIdx.x, newest);
        int64_t rank = gone + rank_of(cell >= 0, &all, shared);
        if (cell >= 0 && rank < wanted) {
            int32_t chunk = d.chunk_in[cell];
            d.cell_of[chunk] = -1;
            tell_born(s, chunk, -1);
            d.free_cells[top + rank] = cell;
            if (rank == wanted - 1) after_last = at + threadIdx.x + 1;
        }
        gone += all;
    }
    __syncthreads();
    return after_last;
}

// ---- kernels ----

// Grid: (spans), block: 512.
__global__ static void __launch_bounds__(THREADS, 1)
    find_cells(int32_t *ids, int32_t *counts, const lsa_span *spans, int64_t k)
{
    __shared__ int shared[WARPS];
    lsa_after_previous();
    const lsa_span &s = spans[blockIdx.x];
    if (!s.demand) return;
    lsa_demand &d = *s.demand;
    if (s.unobserved) {
        if (threadIdx.x == 0) counts[s.row] = 0, d.missing_count = 0;
        return;
    }
    int64_t n = counts[s.row], oldest = d.oldest, newest = d.newest, top = d.free_count;
    int64_t moved = d.count.moves, pass = s.progress->passes, hits = 0, began = now_ns();
    int32_t *own = ids + s.row * k;
    if (newest + n - oldest > d.order_room) newest = pack_order(d, oldest, newest, shared);
    for (int64_t at = 0; at < n; at += THREADS) { // who is there becomes -1 - cell
        int64_t j = at + threadIdx.x;
        int32_t chunk = j < n ? own[j] : -1, cell = j < n ? d.cell_of[chunk] : -1;
        int all;
        int64_t before = hits + rank_of(cell >= 0, &all, shared);
        if (cell >= 0) {
            use(d, cell, newest + before);
            own[j] = -1 - cell;
        } else if (j < n) {
            d.missing[j - before] = chunk;
        }
        hits += all;
    }
    __syncthreads();
    int64_t missing = n - hits;
    if (missing > top) {
        oldest = make_room(s, missing - top, top, oldest, newest, shared);
        top = missing;
    }
    for (int64_t i = threadIdx.x; i < missing; i += THREADS) {
        int32_t chunk = d.missing[i], cell = d.free_cells[top - 1 - i];
        d.cell_of[chunk] = cell;
        d.chunk_in[cell] = chunk;
        use(d, cell, newest + hits + i);
        tell_born(s, chunk, cell);
        d.moves[(moved + i) % d.move_room] = {chunk, cell, pass};
    }
    __syncthreads();
    for (int64_t j = threadIdx.x; j < n; j += THREADS)
        own[j] = own[j] < 0 ? -1 - own[j] : d.cell_of[own[j]];
    if (threadIdx.x > 0) return;
    d.oldest = oldest;
    d.newest = newest + n;
    d.free_count = top - missing;
    d.missing_count = missing;
    d.began_ns = began;
    d.count.hits += hits;
    d.count.moves += missing;
    d.count.fetches += missing > 0;
    *d.counts = d.count;
}

// The records of a span's missing chunks, by warps of which this one is number `warp`.
__device__ static void fetch(const lsa_demand &d, const lsa_layer_store &store, int64_t warp,
                             int64_t warps, int64_t parts)
{
    for (int64_t p = warp; p < d.missing_count * parts; p += warps) {
        int32_t chunk = d.missing[p / parts];
        lsa_copy_part(whole_record(store.hot, d.cell_of[chunk]), whole_record(store.cold, chunk),
                      d.bytes, p % parts);
    }
}

// Grid: 8, block: 512. Spans take turns in having the first warp.
__global__ static void __launch_bounds__(THREADS, 1)
    fetch_missing(const lsa_span *spans, int64_t count, int64_t layer)
{
    lsa_after_previous();
    int64_t warp = lsa_thread() / LSA_WARP, warps = lsa_threads() / LSA_WARP, first = 0;
    for (int64_t i = 0; i < count; i++) {
        const lsa_demand *d = spans[i].demand;
        if (!d || !d->missing_count) continue;
        int64_t parts = lsa_parts_of(d->bytes);
        fetch(*d, spans[i].layers[layer], (warp + warps - first) % warps, warps, parts);
        first = (first + d->missing_count * parts) % warps;
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int64_t i = 0; i < count; i++) {
        lsa_demand *d = spans[i].demand;
        if (!d || !d->missing_count) continue;
        __threadfence();
        if (atomicAdd(&d->blocks_done, 1) < (int)gridDim.x - 1) continue;
        d->blocks_done = 0;
        d->count.stall_ns += now_ns() - d->began_ns;
        d->counts->stall_ns = d->count.stall_ns;
    }
}

// ---- launcher ----

int lsa_demand_cuda(int32_t *ids, int32_t *counts, const lsa_span *spans, int64_t count,
                    int64_t layer, int64_t k, void *stream)
{
    if (count == 0) return LSA_OK;
    lsa_launch(find_cells, (unsigned)count, THREADS, 0, stream, ids, counts, spans, k);
    int rc = lsa_launched("demand", count, k);
    if (rc) return rc;
    lsa_launch(fetch_missing, FETCH_BLOCKS, THREADS, 0, stream, spans, count, layer);
    return lsa_launched("demand's fetch", count, k);
}
