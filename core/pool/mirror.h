/* Private: the mirror of a GPU's pool, its records once more in the GPU's own memory, where attention among all chunks reads them.
 * While there is one, it has every chunk that the cold tier has, with the same bytes. It can be had and let go of at any time
 * between passes: where the GPU has no room for it, attention reads the cold tier over the bus, and pools count that. */
#ifndef LSA_MIRROR_H
#define LSA_MIRROR_H
#include "core/pool/pool_state.h"

void lsa_mirror_drop(lsa_pool *p);

/* As the cold tier grows: room for so many chunks; as many as it has. Shared blocks are copied first. */
void lsa_mirror_reserve(lsa_pool *p, int64_t chunks);
void lsa_mirror_resize(lsa_pool *p);

/* `to` gets what `from` has, shared. */
void lsa_mirror_fork(lsa_pool *to, const lsa_pool *from);

#endif
