/* Many transfers at once: through io_uring, or one by one where the kernel refuses it. */
#ifndef LSA_IO_BATCH_H
#define LSA_IO_BATCH_H
#include "core/base/io.h"

typedef struct lsa_io_batch lsa_io_batch;

/* Up to `depth` transfers under way. ring: 0 for one by one. */
int lsa_io_batch_new(lsa_io_batch **out, int64_t depth, int32_t ring);

/* Waits for what is under way, then frees. NULL is legal. */
void lsa_io_batch_free(lsa_io_batch *batch);

/* 1 where transfers go through io_uring. */
int lsa_io_batch_rings(const lsa_io_batch *batch);

/* How many are under way. */
int64_t lsa_io_batch_busy(const lsa_io_batch *batch);

/* Starts transfer number `slot` (0 .. depth-1, none under way there): all of the bytes at that offset, into or (write)
 * out of `data`, which stays untouched until the transfer has been waited for. */
int lsa_io_batch_start(lsa_io_batch *batch, int64_t slot, lsa_file *file, int32_t write, void *data,
                       int64_t bytes, int64_t offset);

/* Waits for one transfer, any; *slot says which ended, however it did. LSA_ESTATE when none is under way. */
int lsa_io_batch_wait(lsa_io_batch *batch, int64_t *slot);

#endif
