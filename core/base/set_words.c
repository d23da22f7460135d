/* Owns how the words of a set's result are shared out among threads. */
#include "core/base/set_words.h"

#include "core/base/parallel.h"

typedef struct writing {
    uint64_t *out;
    int64_t words, block;
    lsa_set_fill_fn *fill;
    const void *how;
} writing;

static void write_blocks(void *context, int64_t first, int64_t end, int thread)
{
    (void)thread;
    const writing *w = context;
    int64_t state = -1;
    for (int64_t b = first; b < end; b++) {
        int64_t from = b * w->block, to = w->words - from < w->block ? w->words : from + w->block;
        w->fill(w->out + from, from, to, w->how, &state);
    }
}

void lsa_set_write(uint64_t *out, int64_t words, int64_t unit, int64_t work, lsa_set_fill_fn *fill,
                   const void *how)
{
    int64_t block = LSA_SET_BLOCK / (8 * unit) * (8 * unit), blocks = (words + block - 1) / block;
    lsa_parallel(lsa_threads_for(work), blocks, write_blocks,
                 &(writing){out, words, block, fill, how});
}
