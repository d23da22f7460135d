/* Owns checksums. */
#include "core/base/hash.h"

#include <xxhash.h>

uint64_t lsa_hash(const void *data, int64_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, (size_t)bytes, seed);
}
