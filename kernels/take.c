/* Owns copies of elements and rows that are named by their places. */
#include "kernels/take.h"

#include <string.h>

#include "core/base/error.h"

#define TAKE(type)                                                                                 \
    for (int64_t j = 0; j < count; j++)                                                            \
    ((type *)to)[j] = ((const type *)from)[ids[j] < 0 ? ids[j] + n : ids[j]]

static void take_row(char *to, const char *from, const int32_t *ids, int64_t n, int64_t count,
                     int64_t bytes)
{
    switch (bytes) {
    case 1:
        TAKE(uint8_t);
        break;
    case 2:
        TAKE(uint16_t);
        break;
    case 4:
        TAKE(uint32_t);
        break;
    case 8:
        TAKE(uint64_t);
        break;
    default:
        for (int64_t j = 0; j < count; j++)
            memcpy(to + j * bytes, from + (ids[j] < 0 ? ids[j] + n : ids[j]) * bytes,
                   (size_t)bytes);
    }
}

int lsa_take_cpu(void *out, const void *in, const int32_t *ids, int64_t outer, int64_t n,
                 int64_t count, int64_t bytes, int64_t id_stride, void *stream)
{
    (void)stream;
    if (outer < 0 || n < 0 || count < 0 || bytes < 0 || (id_stride != 0 && id_stride != count))
        return lsa_fail(LSA_ESHAPE, "take: %lld of [%lld, %lld] elements of %lld bytes",
                        (long long)count, (long long)outer, (long long)n, (long long)bytes);
    for (int64_t i = 0; i < (id_stride ? outer * count : count); i++)
        if (ids[i] < -n || ids[i] >= n)
            return lsa_fail(LSA_EARG, "id %lld is %d, the dimension has %lld", (long long)i, ids[i],
                            (long long)n);
    if (count == 0) return LSA_OK;
    for (int64_t o = 0; o < outer; o++)
        take_row((char *)out + o * count * bytes, (const char *)in + o * n * bytes,
                 ids + o * id_stride, n, count, bytes);
    return LSA_OK;
}
