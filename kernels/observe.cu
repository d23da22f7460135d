// Observing picks on the GPU. A row's picks are different chunks, so threads never meet; of many rows, a warp has every so-manieth
// chunk and goes through all rows one after the other, so that a chunk's mass is summed in their order.
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/observe.h"
}

enum { THREADS = 512, PARTS = 8, WARPS = PARTS * THREADS / LSA_WARP, TOGETHER = 4 };

// ---- helpers ----

__device__ static int32_t chunk_at(const lsa_span &s, int32_t place)
{
    return s.among_residents ? s.resident[place] : place;
}

__device__ static void count_picks(const lsa_span &s, const lsa_layer_store &store,
                                   const int32_t *places, const float *mass, int32_t n)
{
    for (int32_t j = threadIdx.x; j < n; j += THREADS) {
        int32_t at = s.observed_by_chunk ? chunk_at(s, places[j]) : places[j];
        store.used[at]++;
        store.mass[at] += mass[j];
    }
}

// ---- kernels ----

// A warp's share of the picks of rows from .. to - 1.
__device__ static void count_rows(const lsa_span &s, const lsa_layer_store &store,
                                  const int32_t *places, const float *mass, const int32_t *counts,
                                  int64_t k, int64_t from, int64_t to, int warp)
{
    int lane = threadIdx.x % LSA_WARP;
    int64_t step = k <= LSA_WARP ? (int64_t)TOGETHER : 1; // rows of which a lane has all its picks
    for (int64_t first = from; first < to; first += step)
        for (int64_t j = lane; j - lane < k; j += LSA_WARP) {
            int32_t at[TOGETHER];
            float own[TOGETHER];
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) { // asked for together
                bool there = i < step && first + i < to;
                int64_t t = there ? first + i : first;
                at[i] = there && j < counts[t] ? places[t * k + j] : -1;
                own[i] = j < k ? mass[t * k + j] : 0.0f;
            }
#pragma unroll
            for (int i = 0; i < TOGETHER; i++) {
                if (at[i] >= 0 && s.observed_by_chunk) at[i] = chunk_at(s, at[i]);
                if (at[i] >= 0 && at[i] % WARPS == warp) {
                    store.used[at[i]]++;
                    store.mass[at[i]] += own[i];
                }
                __syncwarp();
            }
        }
}

// Grid: (spans, 8), block: 512.
__global__ static void __launch_bounds__(THREADS)
    remember_span(const lsa_span *spans, int64_t layer, const int32_t *places, const float *mass,
                  const int32_t *counts, int64_t k)
{
    lsa_after_previous();
    const lsa_span &s = spans[blockIdx.x];
    const lsa_layer_store &store = s.layers[layer];
    int64_t last = s.row + s.rows - 1, next = (s.progress->passes + 1) & 1;
    count_rows(s, store, places, mass, counts, k, s.row, last,
               (int)(blockIdx.y * THREADS + threadIdx.x) / LSA_WARP);
    if (blockIdx.y > 0) return;
    int32_t n = counts[last], *picked = store.picked[next];
    float *picked_mass = store.picked_mass[next];
    if (threadIdx.x == 0) *store.picked_count[next] = n;
    for (int32_t j = threadIdx.x; j < n; j += THREADS) {
        picked[j] = places[last * k + j];
        picked_mass[j] = mass[last * k + j];
    }
}

// Grid: (spans, layers), block: 512.
__global__ static void observe_span(const lsa_span *spans)
{
    lsa_after_previous();
    const lsa_span &s = spans[blockIdx.x];
    const lsa_layer_store &store = s.layers[blockIdx.y];
    if (s.unobserved || !store.used) return;
    int64_t next = (s.progress->passes + 1) & 1;
    int32_t n = *store.picked_count[next], *picked = store.picked[next];
    count_picks(s, store, picked, store.picked_mass[next], n);
    for (int32_t j = threadIdx.x; j < n; j += THREADS) picked[j] = chunk_at(s, picked[j]);
}

// ---- launchers ----

int lsa_remember_cuda(const lsa_span *spans, int64_t count, int64_t layer, const int32_t *places,
                      const float *mass, const int32_t *counts, int64_t k, void *stream)
{
    if (count == 0) return LSA_OK;
    lsa_launch(remember_span, dim3((unsigned)count, PARTS), THREADS, 0, (cudaStream_t)stream, spans,
               layer, places, mass, counts, k);
    return lsa_launched("remember", count, k);
}

int lsa_observe_cuda(const lsa_span *spans, int64_t count, int64_t layers, void *stream)
{
    if (count == 0 || layers == 0) return LSA_OK;
    lsa_launch(observe_span, dim3((unsigned)count, (unsigned)layers), THREADS, 0,
               (cudaStream_t)stream, spans);
    return lsa_launched("observe", count, layers);
}
