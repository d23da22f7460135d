/* Owns copy-on-write block arrays. A block is a 64-byte header (its reference count), then its items. */
#include "core/blocks.h"

#include <stdatomic.h>
#include <string.h>

#include "core/error.h"
#include "core/memory.h"

enum { HEADER = 64 };

static atomic_int *references(const uint8_t *block) { return (atomic_int *)(void *)(block - HEADER); }

static int64_t block_bytes(const lsa_blocks *b) { return b->item << b->shift; }

static uint8_t *block_new(const lsa_blocks *b)
{
    uint8_t *memory = lsa_alloc_zero(HEADER + block_bytes(b));
    if (!memory) return NULL;
    atomic_init((atomic_int *)(void *)memory, 1);
    return memory + HEADER;
}

static void block_release(uint8_t *block)
{
    if (atomic_fetch_sub(references(block), 1) == 1) lsa_free(block - HEADER);
}

void lsa_blocks_init(lsa_blocks *b, int64_t item_bytes, int32_t shift)
{
    memset(b, 0, sizeof *b);
    b->item = item_bytes;
    b->shift = shift;
}

void lsa_blocks_free(lsa_blocks *b)
{
    for (int64_t i = 0; i < b->blocks; i++) block_release(b->data[i]);
    lsa_free(b->data);
    lsa_blocks_init(b, b->item, b->shift);
}

int lsa_blocks_fork(lsa_blocks *out, const lsa_blocks *b)
{
    lsa_blocks_init(out, b->item, b->shift);
    if (!b->blocks) return LSA_OK;
    out->data = lsa_alloc(b->blocks * (int64_t)sizeof *out->data);
    if (!out->data) return LSA_ENOMEM;
    out->room = out->blocks = b->blocks;
    out->count = b->count;
    for (int64_t i = 0; i < b->blocks; i++) {
        out->data[i] = b->data[i];
        atomic_fetch_add(references(b->data[i]), 1);
    }
    return LSA_OK;
}

/* Replaces a shared block by a copy of its own. */
static int make_own(lsa_blocks *b, int64_t block)
{
    uint8_t *shared = b->data[block];
    if (atomic_load(references(shared)) == 1) return LSA_OK;
    uint8_t *own = block_new(b);
    if (!own) return LSA_ENOMEM;
    memcpy(own, shared, (size_t)block_bytes(b));
    b->data[block] = own;
    block_release(shared);
    return LSA_OK;
}

static int room_for(lsa_blocks *b, int64_t blocks)
{
    if (blocks <= b->room) return LSA_OK;
    int64_t room = blocks > 2 * b->room ? blocks : 2 * b->room;
    uint8_t **data = lsa_realloc(b->data, room * (int64_t)sizeof *data);
    if (!data) return LSA_ENOMEM;
    b->data = data;
    b->room = room;
    return LSA_OK;
}

int lsa_blocks_resize(lsa_blocks *b, int64_t count)
{
    int64_t per_block = (int64_t)1 << b->shift;
    int64_t need = (count + per_block - 1) >> b->shift;
    int64_t old = b->count;
    if (count > old && old < b->blocks << b->shift) { /* the rest of the last block becomes items */
        int64_t block = old >> b->shift;
        if (make_own(b, block)) return LSA_ENOMEM;
        int64_t end = (block + 1) << b->shift;
        int64_t stop = count < end ? count : end;
        memset(b->data[block] + (old - (block << b->shift)) * b->item, 0, (size_t)((stop - old) * b->item));
    }
    if (room_for(b, need)) return LSA_ENOMEM;
    while (b->blocks < need) {
        uint8_t *block = block_new(b);
        if (!block) { /* as before: blocks beyond the old count hold nothing */
            while (b->blocks > (old + per_block - 1) >> b->shift) block_release(b->data[--b->blocks]);
            return LSA_ENOMEM;
        }
        b->data[b->blocks++] = block;
    }
    while (b->blocks > need) block_release(b->data[--b->blocks]);
    b->count = count;
    return LSA_OK;
}

const uint8_t *lsa_blocks_at(const lsa_blocks *b, int64_t i)
{
    return b->data[i >> b->shift] + (i & (((int64_t)1 << b->shift) - 1)) * b->item;
}

uint8_t *lsa_blocks_write(lsa_blocks *b, int64_t i)
{
    if (make_own(b, i >> b->shift)) return NULL;
    return (uint8_t *)lsa_blocks_at(b, i);
}

void lsa_blocks_pack(const lsa_blocks *b, int64_t from, int64_t n, int64_t bytes, void *out)
{
    uint8_t *to = out;
    for (int64_t i = from; i < from + n;) {
        int64_t end = ((i >> b->shift) + 1) << b->shift;
        if (end > from + n) end = from + n;
        if (bytes == b->item) {
            memcpy(to, lsa_blocks_at(b, i), (size_t)((end - i) * bytes));
            to += (end - i) * bytes;
            i = end;
        } else {
            for (; i < end; i++, to += bytes) memcpy(to, lsa_blocks_at(b, i), (size_t)bytes);
        }
    }
}

int64_t lsa_blocks_bytes(const lsa_blocks *b) { return b->blocks * (HEADER + block_bytes(b)); }
