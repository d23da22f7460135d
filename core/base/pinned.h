/* Memory of the host that a GPU reads over the bus: pieces of large arenas, since pinning pages takes long. */
#ifndef LSA_PINNED_H
#define LSA_PINNED_H
#include <stdint.h>

/* Zeroed, on a 256-byte boundary. NULL with a message where there is none. */
void *lsa_pinned_alloc(int64_t bytes);

/* 1, and the block is free, where it is one of these; else 0. */
int lsa_pinned_free(void *block);

/* Bytes of the arenas. */
int64_t lsa_pinned_bytes(void);

#endif
