/* The disk's half of a cold tier: one file, shared by a pool and its forks, made of segments of LSA_COLD_SEGMENT chunks.
 * An item is what one chunk has, in one piece behind its checksum, so that a chunk is one read. The file is set aside in
 * advance and ends with its last holder, however the process ends. A segment is written once, by who took it, and then
 * held by as many as share it. */
#ifndef LSA_COLD_FILE_H
#define LSA_COLD_FILE_H
#include "core/base/io_batch.h"

enum {
    LSA_COLD_SEGMENT = 1024,
    LSA_COLD_PIECE = 262144, /* bytes of a transfer at most, by default */
    LSA_COLD_DEPTH = 32      /* transfers under way, by default */
};

typedef struct lsa_cold_file lsa_cold_file;

typedef struct lsa_cold_file_options {
    int32_t ring;   /* io_uring where the kernel has it */
    int32_t direct; /* past the page cache where the file system takes it */
    int64_t piece;  /* bytes of a transfer at most (an item is one at least); 0: the default */
    int64_t depth;  /* transfers under way; 0: the default */
    int64_t gap;    /* bytes read in vain rather than starting another transfer; -1: the default */
} lsa_cold_file_options;

/* A file in `directory` for items of that many bytes. options: NULL for the defaults. It starts with one holder. */
int lsa_cold_file_new(lsa_cold_file **out, const char *directory, int64_t item,
                      const lsa_cold_file_options *options);
void lsa_cold_file_retain(lsa_cold_file *file);
void lsa_cold_file_release(lsa_cold_file *file);

/* Bytes of the file, what a chunk takes in it, and the file itself. */
int64_t lsa_cold_file_bytes(lsa_cold_file *file);
int64_t lsa_cold_file_stride(const lsa_cold_file *file);
const lsa_file *lsa_cold_file_of(const lsa_cold_file *file);
int lsa_cold_file_is_direct(const lsa_cold_file *file);

/* n segments, their space set aside; all or none. Then holders come and go. */
int lsa_cold_file_take(lsa_cold_file *file, int32_t *segments, int64_t n);
void lsa_cold_file_hold(lsa_cold_file *file, int32_t segment);
void lsa_cold_file_drop(lsa_cold_file *file, int32_t segment);

/* Lays the item of a chunk at `item`. */
typedef void lsa_cold_tier_make(void *context, int64_t chunk, uint8_t *item);

/* Writes n whole segments: segments[i] becomes the chunks from first_chunks[i] on, of which there are counts[i]. */
int lsa_cold_file_write(lsa_cold_file *file, const int32_t *segments, const int64_t *first_chunks,
                        const int64_t *counts, int64_t n, lsa_cold_tier_make *make, void *context);

/* Gets the checked item of chunks[i]. */
typedef void lsa_cold_tier_take(void *context, int64_t i, const uint8_t *item);

/* Reads n chunks, in few large transfers where they ascend. segment_of[c / LSA_COLD_SEGMENT] says where chunk c is. `take`
 * gets them one after another, in no order. LSA_EFORMAT naming file and chunk when a checksum differs; what was taken by
 * then stays taken. */
int lsa_cold_file_read(lsa_cold_file *file, const int32_t *segment_of, const int32_t *chunks,
                       int64_t n, lsa_cold_tier_take *take, void *context);

#endif
