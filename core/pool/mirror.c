/* Owns mirrors: a GPU's own copy of the cold tier's records. */
#include "core/pool/mirror.h"

#include <stddef.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"

enum { SPARE = 32 /* one part in so many of a GPU's memory is left for others */ };

void lsa_mirror_drop(lsa_pool *p)
{
    lsa_cow_blocks_free(&p->mirror);
    if (p->mirrored > 0) p->mirrored = 0;
}

static void give_up(lsa_pool *p)
{
    lsa_mirror_drop(p);
    p->mirror_refused++;
}

/* Memory that host and GPU share is had even where the GPU is full, and then moves to and fro: so it is asked before. */
static int has_room(const lsa_cow_blocks *b, int64_t chunks)
{
    int64_t block = (int64_t)1 << b->shift, free_bytes, total;
    int64_t more = (chunks + block - 1) / block - b->blocks;
    if (more <= 0) return 1;
    if (lsa_device_describe(lsa_device_current(), NULL, 0, &free_bytes, &total)) return 0;
    return free_bytes - more * block * b->item >= total / SPARE;
}

void lsa_mirror_reserve(lsa_pool *p, int64_t chunks)
{
    if (p->mirrored <= 0) return;
    if (!has_room(&p->mirror, chunks) || lsa_cow_blocks_reserve(&p->mirror, chunks)) give_up(p);
}

void lsa_mirror_resize(lsa_pool *p)
{
    if (p->mirrored > 0 && lsa_cow_blocks_resize(&p->mirror, p->cold.count)) give_up(p);
}

void lsa_mirror_fork(lsa_pool *to, const lsa_pool *from)
{
    if (from->mirrored <= 0) return;
    to->mirrored = !lsa_cow_blocks_fork(&to->mirror, &from->mirror);
    to->mirror_refused = !to->mirrored;
}

/* What the cold tier has; a block of it lies within one of the mirror. */
static int copy_up(lsa_pool *p)
{
    const lsa_cow_blocks *from = &p->cold.plane[LSA_RECORDS].blocks;
    int64_t block = (int64_t)1 << from->shift;
    for (int64_t i = 0; i < p->cold.count; i += block) {
        int64_t n = p->cold.count - i < block ? p->cold.count - i : block;
        LSA_TRY(lsa_device_copy((uint8_t *)lsa_cow_blocks_at(&p->mirror, i),
                                lsa_cow_blocks_at(from, i), n * from->item));
    }
    return LSA_OK;
}

void lsa_pool_set_mirror(lsa_pool *p, int32_t on)
{
    if (on <= 0) {
        lsa_mirror_drop(p);
        if (on == LSA_MIRROR_NEVER) p->mirrored = on;
        return;
    }
    if (p->mirrored || p->mirror.memory == LSA_MEMORY_HOST || !p->record || p->cold.away_count)
        return;
    int64_t reserved = p->cold.plane[LSA_RECORDS].blocks.reserved;
    p->mirrored = 1;
    lsa_mirror_reserve(p, reserved > p->cold.count ? reserved : p->cold.count);
    lsa_mirror_resize(p);
    if (p->mirrored > 0 && copy_up(p)) give_up(p);
}

int64_t lsa_pool_mirror_refused(const lsa_pool *p) { return p->mirror_refused; }
int64_t lsa_pool_mirror_bytes(const lsa_pool *p) { return lsa_cow_blocks_bytes(&p->mirror); }
