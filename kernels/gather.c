/* Moving records on the CPU. */
#include "kernels/gather.h"

#include <string.h>

#include "core/base/error.h"

static uint8_t *record_at(const lsa_records *r, int64_t i)
{
    return r->blocks[i >> r->block_shift] + (i & (((int64_t)1 << r->block_shift) - 1)) * r->stride +
           r->offset;
}

int lsa_gather_cpu(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                   const int32_t *chunks, int64_t n, int64_t bytes, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < n; i++)
        memcpy(record_at(to, slots[i]), record_at(from, chunks[i]), (size_t)bytes);
    return LSA_OK;
}
