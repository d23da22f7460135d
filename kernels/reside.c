/* Residents' index keys side by side, on the CPU. */
#include "kernels/reside.h"

#include <string.h>

#include "core/base/error.h"
#include "kernels/record_at.h"

int lsa_reside_cpu(const lsa_layer_store *layers, int64_t count, const int32_t *chunks,
                   const int32_t *slots, int64_t n, int64_t observed, int64_t bytes, void *stream)
{
    (void)stream;
    for (int64_t layer = 0; layer < count; layer++) {
        const lsa_layer_store *l = &layers[layer];
        int in_cells = l->hot_keys.blocks != NULL;
        if (!l->used) continue;
        for (int64_t i = 0; i < n; i++)
            memcpy(
                l->resident_keys + i * bytes,
                lsa_record_at(in_cells ? &l->hot_keys : &l->keys, in_cells ? slots[i] : chunks[i]),
                (size_t)bytes);
        if (!observed) continue;
        memset(l->used, 0, (size_t)observed * sizeof *l->used);
        memset(l->mass, 0, (size_t)observed * sizeof *l->mass);
    }
    return LSA_OK;
}
