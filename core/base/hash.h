/* Checksums of bytes, for files that say what they hold. */
#ifndef LSA_HASH_H
#define LSA_HASH_H
#include <stdint.h>

/* XXH3 of `bytes` bytes. A long run is hashed piece by piece, each with the hash before it as its seed; equal pieces
 * then give equal hashes. */
uint64_t lsa_hash(const void *data, int64_t bytes, uint64_t seed);

#endif
