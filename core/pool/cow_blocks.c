/* Owns copy-on-write block arrays. Large blocks are pages of their own, so that memory which is let go of is free at
 * once; their items begin on a page, which is why who shares a block is noted apart from it. */
#include "core/pool/cow_blocks.h"

#include <stdatomic.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"

enum { LARGE = 16 << 10 };

struct lsa_block {
    atomic_int references;
    int64_t bytes;
    int32_t memory;
    uint8_t *data;
};

static int64_t block_bytes(const lsa_cow_blocks *b) { return b->item << b->shift; }

static struct lsa_block *block_new(const lsa_cow_blocks *b)
{
    struct lsa_block *block = lsa_alloc(sizeof *block);
    if (!block) return NULL;
    atomic_init(&block->references, 1);
    block->bytes = block_bytes(b);
    block->memory = b->memory;
    if (b->memory == LSA_MEMORY_HOST && block->bytes >= LARGE)
        block->data = lsa_pages_alloc(block->bytes);
    else
        block->data = lsa_alloc_in(b->memory, block->bytes);
    if (block->data) return block;
    lsa_free(block);
    return NULL;
}

static void block_release(struct lsa_block *block)
{
    if (!block || atomic_fetch_sub(&block->references, 1) != 1) return;
    if (block->memory == LSA_MEMORY_HOST && block->bytes >= LARGE)
        lsa_pages_free(block->data, block->bytes);
    else
        lsa_free_in(block->memory, block->data);
    lsa_free(block);
}

/* Where n blocks lie, in the table that kernels read. */
static int tell(const lsa_cow_blocks *b, uint8_t **data, int64_t from, int64_t n)
{
    enum { AT_A_TIME = 64 };
    uint8_t *some[AT_A_TIME];
    for (int64_t m; n > 0; from += m, n -= m) {
        m = n < AT_A_TIME ? n : AT_A_TIME;
        for (int64_t i = 0; i < m; i++)
            some[i] = b->held[from + i] ? b->held[from + i]->data : NULL;
        LSA_TRY(lsa_copy_in(b->memory, data + from, some, m * (int64_t)sizeof *some));
    }
    return LSA_OK;
}

/* Puts a block, or none, at its place. */
static int place(lsa_cow_blocks *b, int64_t i, struct lsa_block *block)
{
    b->held[i] = block;
    return tell(b, b->data, i, 1);
}

void lsa_cow_blocks_init(lsa_cow_blocks *b, int64_t item_bytes, int32_t shift)
{
    memset(b, 0, sizeof *b);
    b->item = item_bytes;
    b->shift = shift;
}

void lsa_cow_blocks_init_in(lsa_cow_blocks *b, int64_t item_bytes, int32_t shift, int32_t memory)
{
    lsa_cow_blocks_init(b, item_bytes, shift);
    b->memory = memory;
}

void lsa_cow_blocks_free(lsa_cow_blocks *b)
{
    for (int64_t i = 0; i < b->blocks; i++) block_release(b->held[i]);
    lsa_free_in(b->memory, b->data);
    lsa_free(b->held);
    lsa_cow_blocks_init_in(b, b->item, b->shift, b->memory);
}

static int room_for(lsa_cow_blocks *b, int64_t blocks)
{
    if (blocks <= b->room) return LSA_OK;
    int64_t room = blocks > 2 * b->room ? blocks : 2 * b->room;
    struct lsa_block **held = lsa_realloc(b->held, room * (int64_t)sizeof *held);
    if (!held) return LSA_ENOMEM;
    b->held = held;
    uint8_t **data = lsa_alloc_in(b->memory, room * (int64_t)sizeof *data);
    if (!data) return LSA_ENOMEM;
    if (tell(b, data, 0, b->blocks)) {
        lsa_free_in(b->memory, data);
        return LSA_ENOMEM;
    }
    lsa_free_in(b->memory, b->data);
    b->data = data;
    b->room = room;
    return LSA_OK;
}

int lsa_cow_blocks_fork(lsa_cow_blocks *out, const lsa_cow_blocks *b)
{
    lsa_cow_blocks_init_in(out, b->item, b->shift, b->memory);
    int64_t blocks =
        (b->count + ((int64_t)1 << b->shift) - 1) >> b->shift; /* without what is reserved */
    if (!blocks) return LSA_OK;
    if (room_for(out, blocks)) {
        lsa_cow_blocks_free(out);
        return LSA_ENOMEM;
    }
    out->blocks = blocks;
    out->count = b->count;
    out->dirty = b->dirty;
    for (int64_t i = 0; i < blocks; i++) {
        out->held[i] = b->held[i];
        if (b->held[i]) atomic_fetch_add(&b->held[i]->references, 1);
    }
    if (!tell(out, out->data, 0, blocks)) return LSA_OK;
    lsa_cow_blocks_free(out);
    return LSA_ENOMEM;
}

static int clear_bytes(const lsa_cow_blocks *b, void *at, int64_t bytes)
{
    if (b->memory == LSA_MEMORY_GPU) return lsa_device_clear(at, bytes);
    memset(at, 0, (size_t)bytes);
    return LSA_OK;
}

/* Replaces a shared block by a copy of its own. */
static int make_own(lsa_cow_blocks *b, int64_t i)
{
    struct lsa_block *shared = b->held[i];
    if (atomic_load(&shared->references) == 1) return LSA_OK;
    struct lsa_block *own = block_new(b);
    if (!own) return LSA_ENOMEM;
    if (lsa_copy_in(b->memory, own->data, shared->data, own->bytes) || place(b, i, own)) {
        b->held[i] = shared;
        block_release(own);
        return LSA_ENOMEM;
    }
    block_release(shared);
    return LSA_OK;
}

static int64_t blocks_of(const lsa_cow_blocks *b, int64_t count)
{
    return (count + ((int64_t)1 << b->shift) - 1) >> b->shift;
}

/* Blocks past the n-th are let go. */
static void cut(lsa_cow_blocks *b, int64_t n)
{
    while (b->blocks > n) block_release(b->held[--b->blocks]);
}

static int add_blocks(lsa_cow_blocks *b, int64_t n)
{
    int64_t before = b->blocks;
    if (n <= before) return LSA_OK;
    if (room_for(b, n)) return LSA_ENOMEM;
    while (b->blocks < n) {
        struct lsa_block *block = block_new(b);
        if (!block) break;
        b->held[b->blocks++] = block;
    }
    if (b->blocks == n && !tell(b, b->data, before, n - before)) return LSA_OK;
    cut(b, before);
    return LSA_ENOMEM;
}

int lsa_cow_blocks_reserve(lsa_cow_blocks *b, int64_t count)
{
    for (int64_t i = b->count >> b->shift; i < b->blocks; i++)
        if (b->held[i] && make_own(b, i)) return LSA_ENOMEM;
    if (add_blocks(b, blocks_of(b, count))) return LSA_ENOMEM;
    b->reserved = count;
    return LSA_OK;
}

int lsa_cow_blocks_resize(lsa_cow_blocks *b, int64_t count)
{
    int64_t old = b->count, have = b->blocks, need = blocks_of(b, count);
    for (int64_t i = old; i < count && i >> b->shift < have;) { /* items in blocks that are there */
        int64_t block = i >> b->shift, end = (block + 1) << b->shift;
        if (make_own(b, block)) return LSA_ENOMEM;
        if (end > count) end = count;
        int64_t used = b->dirty < end ? b->dirty : end;
        if (used > i && clear_bytes(b, b->held[block]->data + (i - (block << b->shift)) * b->item,
                                    (used - i) * b->item))
            return LSA_ENOMEM;
        i = end;
    }
    if (add_blocks(b, need)) return LSA_ENOMEM;
    int64_t keep = blocks_of(b, b->reserved);
    cut(b, need > keep ? need : keep);
    b->count = count;
    if (b->dirty < count) b->dirty = count;
    if (b->dirty > b->blocks << b->shift) b->dirty = b->blocks << b->shift;
    return LSA_OK;
}

const uint8_t *lsa_cow_blocks_at(const lsa_cow_blocks *b, int64_t i)
{
    return b->held[i >> b->shift]->data + (i & (((int64_t)1 << b->shift) - 1)) * b->item;
}

uint8_t *lsa_cow_blocks_write(lsa_cow_blocks *b, int64_t i)
{
    if (make_own(b, i >> b->shift)) return NULL;
    return (uint8_t *)lsa_cow_blocks_at(b, i);
}

int lsa_cow_blocks_clear(lsa_cow_blocks *b, int64_t i)
{
    uint8_t *item = lsa_cow_blocks_write(b, i);
    return item ? clear_bytes(b, item, b->item) : LSA_ENOMEM;
}

void lsa_cow_blocks_let_go(lsa_cow_blocks *b, int64_t block)
{
    block_release(b->held[block]);
    (void)place(b, block, NULL);
}

int lsa_cow_blocks_have_again(lsa_cow_blocks *b, int64_t block)
{
    if (b->held[block]) return LSA_OK;
    struct lsa_block *own = block_new(b);
    if (!own) return LSA_ENOMEM;
    if (!place(b, block, own)) return LSA_OK;
    b->held[block] = NULL;
    block_release(own);
    return LSA_ENOMEM;
}

int lsa_cow_blocks_pack(const lsa_cow_blocks *b, int64_t from, int64_t n, int64_t bytes, void *out)
{
    uint8_t *to = out;
    for (int64_t i = from, end; i < from + n; i = end) {
        end = bytes == b->item ? ((i >> b->shift) + 1) << b->shift : i + 1;
        if (end > from + n) end = from + n;
        LSA_TRY(lsa_copy_in(b->memory, to, lsa_cow_blocks_at(b, i), (end - i) * bytes));
        to += (end - i) * bytes;
    }
    return LSA_OK;
}

int64_t lsa_cow_blocks_bytes(const lsa_cow_blocks *b)
{
    int64_t held = 0;
    for (int64_t i = 0; i < b->blocks; i++) held += b->held[i] != NULL;
    return held * block_bytes(b);
}
