/* Observing picks on the CPU. */
#include "kernels/observe.h"

#include <string.h>

#include "core/base/error.h"

static int32_t chunk_at(const lsa_span *s, int32_t place)
{
    return s->among_residents ? s->resident[place] : place;
}

static void count_picks(const lsa_span *s, const lsa_layer_store *store, const int32_t *places,
                        const float *mass, int64_t n)
{
    for (int64_t j = 0; j < n; j++) {
        int32_t at = s->observed_by_chunk ? chunk_at(s, places[j]) : places[j];
        store->used[at]++;
        store->mass[at] += mass[j];
    }
}

int lsa_remember_cpu(const lsa_span *spans, int64_t count, int64_t layer, const int32_t *places,
                     const float *mass, const int32_t *counts, int64_t k, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < count; i++) {
        const lsa_span *s = &spans[i];
        const lsa_layer_store *store = &s->layers[layer];
        int64_t last = s->row + s->rows - 1, next = (s->progress->passes + 1) & 1;
        for (int64_t t = s->row; t < last; t++)
            count_picks(s, store, places + t * k, mass + t * k, counts[t]);
        *store->picked_count[next] = counts[last];
        memcpy(store->picked[next], places + last * k, (size_t)counts[last] * sizeof *places);
        memcpy(store->picked_mass[next], mass + last * k, (size_t)counts[last] * sizeof *mass);
    }
    return LSA_OK;
}

static void observe(const lsa_span *s, const lsa_layer_store *store)
{
    int64_t next = (s->progress->passes + 1) & 1;
    int32_t *picked = store->picked[next];
    count_picks(s, store, picked, store->picked_mass[next], *store->picked_count[next]);
    for (int32_t j = 0; j < *store->picked_count[next]; j++) picked[j] = chunk_at(s, picked[j]);
}

int lsa_observe_cpu(const lsa_span *spans, int64_t count, int64_t layers, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < count; i++)
        for (int64_t layer = 0; layer < layers && !spans[i].unobserved; layer++)
            if (spans[i].layers[layer].used) observe(&spans[i], &spans[i].layers[layer]);
    return LSA_OK;
}
