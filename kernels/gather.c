/* Moving records on the CPU. */
#include "kernels/gather.h"

#include <string.h>

#include "core/base/error.h"
#include "kernels/record_at.h"

int lsa_gather_cpu(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                   const int32_t *chunks, int64_t n, int64_t bytes, void *stream)
{
    (void)stream;
    for (int64_t i = 0; i < n; i++)
        memcpy(lsa_record_at(to, slots[i]), lsa_record_at(from, chunks[i]), (size_t)bytes);
    return LSA_OK;
}
