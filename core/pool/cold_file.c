/* Owns the layout of cold files: segments of items, an item's checksum before it. */
#include "core/pool/cold_file.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <xxhash.h>

#include "core/base/error.h"
#include "core/base/memory.h"

enum { CHECKSUM = 8, STRIDE_ALIGN = 64, WRITE_PIECE = 1 << 20, GAP = 32 << 10 };

struct lsa_cold_file {
    atomic_int references;
    lsa_file *file;
    int64_t item, stride, segment_bytes;
    lsa_cold_file_options options;
    int direct;
    pthread_mutex_t lock; /* of what follows: forks may live on other threads */
    int32_t *holders;     /* [segments] */
    int64_t segments, room, unheld;
};

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int64_t piece_bytes(const lsa_cold_file *f)
{
    int64_t least = f->stride + 2 * LSA_FILE_ALIGN;
    return round_up(f->options.piece > least ? f->options.piece : least, LSA_FILE_ALIGN);
}

int lsa_cold_file_new(lsa_cold_file **out, const char *directory, int64_t item,
                      const lsa_cold_file_options *options)
{
    lsa_cold_file_options o = options ? *options : (lsa_cold_file_options){1, 1, 0, 0, -1};
    if (item < 1) return lsa_fail(LSA_EARG, "cold file: items of %lld bytes", (long long)item);
    lsa_cold_file *f = lsa_alloc_zero(sizeof *f);
    if (!f) return LSA_ENOMEM;
    int rc = lsa_file_open_unnamed(&f->file, directory);
    if (rc) {
        lsa_free(f);
        return rc;
    }
    atomic_init(&f->references, 1);
    pthread_mutex_init(&f->lock, NULL);
    if (!o.piece) o.piece = LSA_COLD_PIECE;
    if (!o.depth) o.depth = LSA_COLD_DEPTH;
    if (o.gap < 0) o.gap = GAP;
    f->options = o;
    f->item = item;
    f->stride = round_up(CHECKSUM + item, STRIDE_ALIGN);
    f->segment_bytes = LSA_COLD_SEGMENT * f->stride; /* a multiple of LSA_FILE_ALIGN */
    f->direct = o.direct && lsa_file_direct(f->file);
    *out = f;
    return LSA_OK;
}

void lsa_cold_file_retain(lsa_cold_file *f) { atomic_fetch_add(&f->references, 1); }

void lsa_cold_file_release(lsa_cold_file *f)
{
    if (!f || atomic_fetch_sub(&f->references, 1) != 1) return;
    lsa_file_close(f->file); /* its contents go with it, so a late error says nothing */
    pthread_mutex_destroy(&f->lock);
    lsa_free(f->holders);
    lsa_free(f);
}

int64_t lsa_cold_file_bytes(lsa_cold_file *f)
{
    pthread_mutex_lock(&f->lock);
    int64_t bytes = f->segments * f->segment_bytes;
    pthread_mutex_unlock(&f->lock);
    return bytes;
}

int64_t lsa_cold_file_stride(const lsa_cold_file *f) { return f->stride; }
const lsa_file *lsa_cold_file_of(const lsa_cold_file *f) { return f->file; }
int lsa_cold_file_is_direct(const lsa_cold_file *f) { return f->direct; }

/* ---- segments ---- */

static int grow(lsa_cold_file *f, int64_t segments)
{
    if (segments > INT32_MAX)
        return lsa_fail(LSA_EARG, "cold file: %lld segments", (long long)segments);
    if (segments > f->room) {
        int64_t room = segments > 2 * f->room ? segments : 2 * f->room;
        int32_t *holders = lsa_realloc(f->holders, room * (int64_t)sizeof *holders);
        if (!holders) return LSA_ENOMEM;
        f->holders = holders;
        f->room = room;
    }
    int rc = lsa_file_allocate(f->file, segments * f->segment_bytes);
    if (rc) return rc;
    f->unheld += segments - f->segments;
    for (; f->segments < segments; f->segments++) f->holders[f->segments] = 0;
    return LSA_OK;
}

int lsa_cold_file_take(lsa_cold_file *f, int32_t *segments, int64_t n)
{
    pthread_mutex_lock(&f->lock);
    int rc = n > f->unheld ? grow(f, f->segments + n - f->unheld) : LSA_OK;
    int64_t got = 0;
    for (int64_t s = 0; !rc && got < n; s++)
        if (!f->holders[s]) {
            f->holders[s] = 1;
            segments[got++] = (int32_t)s;
        }
    f->unheld -= got;
    pthread_mutex_unlock(&f->lock);
    return rc;
}

void lsa_cold_file_hold(lsa_cold_file *f, int32_t segment)
{
    pthread_mutex_lock(&f->lock);
    f->holders[segment]++;
    pthread_mutex_unlock(&f->lock);
}

void lsa_cold_file_drop(lsa_cold_file *f, int32_t segment)
{
    pthread_mutex_lock(&f->lock);
    f->unheld += --f->holders[segment] == 0;
    pthread_mutex_unlock(&f->lock);
}

/* ---- transfers ---- */

/* The chunk's number is part of the checksum: an item in another's place is as wrong as a damaged one. */
static uint64_t checksum(const lsa_cold_file *f, int64_t chunk, const uint8_t *item)
{
    return XXH3_64bits_withSeed(item, (size_t)f->item, (uint64_t)chunk);
}

/* One transfer's buffer and what it holds. */
typedef struct piece {
    uint8_t *data;
    int64_t offset;   /* of data[0] in the file */
    int64_t first, n; /* reads: which chunks of the list it covers */
} piece;

typedef struct transfers {
    lsa_io_batch *batch;
    piece *pieces;
    uint8_t *memory;
    int64_t memory_bytes;
    int64_t depth, free_count;
    int64_t *free_slots;
} transfers;

static void transfers_free(transfers *t)
{
    lsa_io_batch_free(t->batch); /* first: what is under way uses the memory */
    lsa_free(t->pieces);
    lsa_pages_free(t->memory, t->memory_bytes);
    lsa_free(t->free_slots);
}

/* For `wanted` transfers of up to `bytes`, as many as fit under way at once. */
static int transfers_open(transfers *t, const lsa_cold_file *f, int64_t wanted, int64_t bytes)
{
    memset(t, 0, sizeof *t);
    t->depth = wanted < f->options.depth ? wanted : f->options.depth;
    t->pieces = lsa_alloc(t->depth * (int64_t)sizeof *t->pieces);
    t->free_slots = lsa_alloc(t->depth * (int64_t)sizeof *t->free_slots);
    t->memory_bytes = t->depth * bytes + LSA_FILE_ALIGN;
    t->memory = lsa_pages_alloc(t->memory_bytes);
    int rc = t->pieces && t->free_slots && t->memory ? LSA_OK : LSA_ENOMEM;
    if (!rc) rc = lsa_io_batch_new(&t->batch, t->depth, f->options.ring);
    if (rc) {
        transfers_free(t);
        return rc;
    }
    uint8_t *aligned = t->memory + (LSA_FILE_ALIGN - (uintptr_t)t->memory % LSA_FILE_ALIGN);
    for (int64_t i = t->depth - 1; i >= 0; i--) {
        t->pieces[i].data = aligned + i * bytes;
        t->free_slots[t->free_count++] = i;
    }
    return LSA_OK;
}

/* Fills a buffer with items; the aligned bytes that they take. */
static int64_t lay_out(const lsa_cold_file *f, uint8_t *data, int64_t first_chunk, int64_t n,
                       lsa_cold_tier_make *make, void *context)
{
    int64_t bytes = round_up(n * f->stride, LSA_FILE_ALIGN), used = CHECKSUM + f->item;
    for (int64_t i = 0; i < n; i++) {
        uint8_t *to = data + i * f->stride;
        make(context, first_chunk + i, to + CHECKSUM);
        uint64_t sum = checksum(f, first_chunk + i, to + CHECKSUM);
        memcpy(to, &sum, CHECKSUM);
        memset(to + used, 0, (size_t)(f->stride - used));
    }
    memset(data + n * f->stride, 0, (size_t)(bytes - n * f->stride));
    return bytes;
}

/* A slot that is free, after waiting where none is. */
static int free_slot(transfers *t, int64_t *slot)
{
    if (!t->free_count) return lsa_io_batch_wait(t->batch, slot);
    *slot = t->free_slots[--t->free_count];
    return LSA_OK;
}

/* The items of a write: as many as a piece takes, a power of two so that a segment is a whole number of pieces, at least
 * so many that pieces are aligned. */
static int64_t items_a_write(const lsa_cold_file *f)
{
    int64_t items = LSA_COLD_SEGMENT;
    while (items > LSA_FILE_ALIGN / STRIDE_ALIGN && items * f->stride > WRITE_PIECE) items /= 2;
    return items;
}

int lsa_cold_file_write(lsa_cold_file *f, const int32_t *segments, const int64_t *first_chunks,
                        const int64_t *counts, int64_t n, lsa_cold_tier_make *make, void *context)
{
    if (!n) return LSA_OK;
    transfers t;
    int64_t items = items_a_write(f), slot;
    int rc = transfers_open(&t, f, n * (LSA_COLD_SEGMENT / items), items * f->stride);
    if (rc) return rc;
    for (int64_t s = 0; !rc && s < n; s++)
        for (int64_t at = 0; !rc && at < counts[s]; at += items) {
            if ((rc = free_slot(&t, &slot))) break;
            uint8_t *data = t.pieces[slot].data;
            int64_t left = counts[s] - at, offset = segments[s] * f->segment_bytes + at * f->stride;
            int64_t bytes =
                lay_out(f, data, first_chunks[s] + at, left < items ? left : items, make, context);
            rc = lsa_io_batch_start(t.batch, slot, f->file, 1, data, bytes, offset);
        }
    while (!rc && lsa_io_batch_busy(t.batch)) rc = lsa_io_batch_wait(t.batch, &slot);
    transfers_free(&t);
    return rc;
}

static int64_t offset_of(const lsa_cold_file *f, const int32_t *segment_of, int64_t chunk)
{
    return segment_of[chunk / LSA_COLD_SEGMENT] * f->segment_bytes +
           chunk % LSA_COLD_SEGMENT * f->stride;
}

/* Gathers chunks from `first` on into one read; its aligned bytes. */
static int64_t gather(const lsa_cold_file *f, const int32_t *segment_of, const int32_t *chunks,
                      int64_t first, int64_t n, piece *p)
{
    int64_t begin = offset_of(f, segment_of, chunks[first]), end = begin + f->stride, i = first + 1;
    p->offset = begin / LSA_FILE_ALIGN * LSA_FILE_ALIGN;
    for (; i < n; i++) {
        int64_t next = offset_of(f, segment_of, chunks[i]);
        if (next < end || next - end > f->options.gap) break;
        if (round_up(next + f->stride, LSA_FILE_ALIGN) - p->offset > piece_bytes(f)) break;
        end = next + f->stride;
    }
    p->first = first;
    p->n = i - first;
    return round_up(end, LSA_FILE_ALIGN) - p->offset;
}

/* Checks a read's items and hands them on. */
static int deliver(const lsa_cold_file *f, const int32_t *segment_of, const int32_t *chunks,
                   const piece *p, lsa_cold_tier_take *take, void *context)
{
    for (int64_t i = p->first; i < p->first + p->n; i++) {
        const uint8_t *at = p->data + (offset_of(f, segment_of, chunks[i]) - p->offset);
        uint64_t sum;
        memcpy(&sum, at, CHECKSUM);
        if (sum != checksum(f, chunks[i], at + CHECKSUM))
            return lsa_fail(LSA_EFORMAT, "%s: chunk %d is damaged: its checksum differs",
                            lsa_file_path(f->file), chunks[i]);
        take(context, i, at + CHECKSUM);
    }
    return LSA_OK;
}

int lsa_cold_file_read(lsa_cold_file *f, const int32_t *segment_of, const int32_t *chunks,
                       int64_t n, lsa_cold_tier_take *take, void *context)
{
    if (!n) return LSA_OK;
    transfers t;
    int64_t next = 0, slot;
    int rc = transfers_open(&t, f, n, piece_bytes(f));
    if (rc) return rc;
    while (!rc && (next < n || lsa_io_batch_busy(t.batch))) {
        while (!rc && next < n && t.free_count) {
            slot = t.free_slots[--t.free_count];
            piece *p = &t.pieces[slot];
            int64_t bytes = gather(f, segment_of, chunks, next, n, p);
            rc = lsa_io_batch_start(t.batch, slot, f->file, 0, p->data, bytes, p->offset);
            next += p->n;
        }
        if (!rc) rc = lsa_io_batch_wait(t.batch, &slot);
        if (!rc) rc = deliver(f, segment_of, chunks, &t.pieces[slot], take, context);
        if (!rc) t.free_slots[t.free_count++] = slot;
    }
    transfers_free(&t);
    return rc;
}
