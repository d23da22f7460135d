/* Owns batched transfers. What a ring does not finish (short reads) is finished by lsa_file_read and _write, so there
 * is one place that knows what an end of file is. */
#define _GNU_SOURCE
#include "core/base/io_batch.h"

#include <errno.h>
#include <liburing.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/memory.h"

typedef struct transfer {
    lsa_file *file; /* NULL: none under way in this slot */
    char *data;
    int64_t bytes, offset;
    int32_t write, ringed;
} transfer;

struct lsa_io_batch {
    transfer *slots;
    int64_t depth, under_way, in_ring;
    int has_ring, ringed; /* ringed: transfers that begin go into it */
    struct io_uring ring;
};

int lsa_io_batch_new(lsa_io_batch **out, int64_t depth, int32_t ring)
{
    if (depth < 1 || depth > 4096)
        return lsa_fail(LSA_EARG, "batch: a depth of %lld", (long long)depth);
    lsa_io_batch *b = lsa_alloc_zero(sizeof *b);
    if (!b) return LSA_ENOMEM;
    b->depth = depth;
    if (!(b->slots = lsa_alloc_zero(depth * (int64_t)sizeof *b->slots))) {
        lsa_free(b);
        return LSA_ENOMEM;
    }
    b->has_ring = b->ringed = ring && io_uring_queue_init((unsigned)depth, &b->ring, 0) == 0;
    *out = b;
    return LSA_OK;
}

void lsa_io_batch_free(lsa_io_batch *b)
{
    if (!b) return;
    int64_t slot;
    while (b->under_way) lsa_io_batch_wait(b, &slot);
    if (b->has_ring) io_uring_queue_exit(&b->ring);
    lsa_free(b->slots);
    lsa_free(b);
}

int lsa_io_batch_rings(const lsa_io_batch *b) { return b->ringed; }
int64_t lsa_io_batch_busy(const lsa_io_batch *b) { return b->under_way; }

/* Hands a transfer to the kernel; 0 where it does not go, and is left to the wait. */
static int submit(lsa_io_batch *b, int64_t slot)
{
    const transfer *t = &b->slots[slot];
    struct io_uring_sqe *entry = io_uring_get_sqe(&b->ring);
    if (!entry) return 0;
    int fd = lsa_file_descriptor(t->file);
    unsigned bytes = t->bytes < 1 << 30 ? (unsigned)t->bytes : 1u << 30;
    if (t->write)
        io_uring_prep_write(entry, fd, t->data, bytes, (uint64_t)t->offset);
    else
        io_uring_prep_read(entry, fd, t->data, bytes, (uint64_t)t->offset);
    entry->user_data = (uint64_t)slot;
    int submitted;
    do submitted = io_uring_submit(&b->ring);
    while (submitted == -EINTR || submitted == -EAGAIN);
    return submitted == 1;
}

int lsa_io_batch_start(lsa_io_batch *b, int64_t slot, lsa_file *file, int32_t write, void *data,
                       int64_t bytes, int64_t offset)
{
    if (slot < 0 || slot >= b->depth || b->slots[slot].file)
        return lsa_fail(LSA_ESTATE, "batch: slot %lld of %lld is taken or unknown", (long long)slot,
                        (long long)b->depth);
    b->slots[slot] = (transfer){file, data, bytes, offset, write, 0};
    /* A kernel may let a ring be made and nothing be put in: what it does not take goes without from here on. */
    if (b->ringed && !(b->slots[slot].ringed = submit(b, slot))) b->ringed = 0;
    b->in_ring += b->slots[slot].ringed;
    b->under_way++;
    return LSA_OK;
}

/* What the first `done` bytes leave. */
static int finish(const transfer *t, int64_t done)
{
    if (done == t->bytes) return LSA_OK;
    if (t->write) return lsa_file_write(t->file, t->data + done, t->bytes - done, t->offset + done);
    return lsa_file_read(t->file, t->data + done, t->bytes - done, t->offset + done);
}

static int fail_transfer(const transfer *t, int code)
{
    char reason[128];
    return lsa_fail(LSA_EIO, "%s: cannot be %s: %s", lsa_file_path(t->file),
                    t->write ? "written" : "read", strerror_r(code, reason, sizeof reason));
}

static int wait_for_ring(lsa_io_batch *b, int64_t *slot, int64_t *done)
{
    struct io_uring_cqe *entry;
    int rc;
    do rc = io_uring_wait_cqe(&b->ring, &entry);
    while (rc == -EINTR);
    if (rc) return rc;
    *slot = (int64_t)entry->user_data;
    *done = entry->res;
    io_uring_cqe_seen(&b->ring, entry);
    return LSA_OK;
}

int lsa_io_batch_wait(lsa_io_batch *b, int64_t *slot)
{
    if (!b->under_way) return lsa_fail(LSA_ESTATE, "batch: nothing is under way");
    int64_t done = 0;
    if (b->in_ring) {
        int rc = wait_for_ring(b, slot, &done);
        if (rc) return lsa_fail(LSA_EIO, "io_uring: %d", rc);
        b->in_ring--;
    } else {
        for (*slot = 0; !b->slots[*slot].file;) ++*slot;
    }
    transfer t = b->slots[*slot];
    b->slots[*slot].file = NULL;
    b->under_way--;
    if (done < 0 && (done == -EINTR || done == -EAGAIN)) done = 0;
    if (lsa_io_fault()) return fail_transfer(&t, errno);
    if (done < 0) return fail_transfer(&t, (int)-done);
    return finish(&t, done);
}
