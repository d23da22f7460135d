/* Memory of a GPU, and of the host that a GPU reads over the bus: pieces of large arenas, since having either from the system takes
 * a thousand times as long. */
#ifndef LSA_ARENAS_H
#define LSA_ARENAS_H
#include <stdint.h>

/* Of a kind, LSA_MEMORY_GPU (of the GPU in use) or LSA_MEMORY_BOTH (core/base/memory.h): zeroed, on a 256-byte boundary. NULL with a message where
 * there is none. */
void *lsa_arena_alloc(int32_t kind, int64_t bytes);

/* 1, and the block is free, where it is one of these; else 0. */
int lsa_arena_free(void *block);

/* Bytes of the arenas of a kind. */
int64_t lsa_arena_bytes(int32_t kind);

#endif
