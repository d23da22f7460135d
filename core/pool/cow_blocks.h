/* Growing arrays of equal items, in reference-counted blocks: a fork shares every block and copies
 * one only when either side writes to it. What a session keeps for each chunk, entry or token. */
#ifndef LSA_COW_BLOCKS_H
#define LSA_COW_BLOCKS_H
#include <stdint.h>

typedef struct lsa_cow_blocks {
    int64_t item;     /* bytes between items */
    int64_t count;    /* items in use */
    int64_t blocks;   /* blocks held */
    int64_t reserved; /* items for which blocks are held whatever the count */
    int64_t room;     /* pointers that `data` has room for */
    int64_t dirty;    /* items from here on are zero in the blocks that are there */
    uint8_t **
        data; /* [blocks], NULL where let go: item i is at data[i >> shift] + (i & (2^shift - 1)) * item */
    struct lsa_block **held; /* [blocks]: who shares them */
    int32_t shift;
    int32_t memory; /* LSA_MEMORY_*: of blocks and of `data` */
} lsa_cow_blocks;

void lsa_cow_blocks_init(lsa_cow_blocks *b, int64_t item_bytes, int32_t shift);
/* The same in memory of a kind; an array that has blocks keeps its own. */
void lsa_cow_blocks_init_in(lsa_cow_blocks *b, int64_t item_bytes, int32_t shift, int32_t memory);
void lsa_cow_blocks_free(lsa_cow_blocks *b);

/* `out` (uninitialised) becomes an equal array that shares all blocks of `b`. */
int lsa_cow_blocks_fork(lsa_cow_blocks *out, const lsa_cow_blocks *b);

/* From here on, until a fork: items below `count` that are new or written to take no memory, so that neither growing up to
 * that many nor writing to the last ones can fail. On failure nothing changes. */
int lsa_cow_blocks_reserve(lsa_cow_blocks *b, int64_t count);

/* Makes `count` items: new ones zeroed; blocks past the end and past what is reserved are let go. On failure nothing changes. */
int lsa_cow_blocks_resize(lsa_cow_blocks *b, int64_t count);

/* Item i, to read. */
const uint8_t *lsa_cow_blocks_at(const lsa_cow_blocks *b, int64_t i);

/* Item i, to write: its block is copied first if it is shared. NULL when memory is out. */
uint8_t *lsa_cow_blocks_write(lsa_cow_blocks *b, int64_t i);

/* Zeroes item i. */
int lsa_cow_blocks_clear(lsa_cow_blocks *b, int64_t i);

/* Lets a block's memory go, or has it again, zeroed; in between only lsa_cow_blocks_fork, _resize and _free may meet it. */
void lsa_cow_blocks_let_go(lsa_cow_blocks *b, int64_t block);
int lsa_cow_blocks_have_again(lsa_cow_blocks *b, int64_t block);

/* Copies items from .. from+n-1, packed to `bytes` each (<= item). */
int lsa_cow_blocks_pack(const lsa_cow_blocks *b, int64_t from, int64_t n, int64_t bytes, void *out);

/* Heap bytes of the blocks, shared ones counted in full. */
int64_t lsa_cow_blocks_bytes(const lsa_cow_blocks *b);

#endif
