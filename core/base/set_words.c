/* Owns how the words of a set's result are shared out among threads. */
#include "core/base/set_words.h"

void lsa_set_write(uint64_t *out, int64_t words, int64_t unit, int64_t work, lsa_set_fill_fn *fill,
                   const void *how)
{
    int64_t block = LSA_SET_BLOCK / (8 * unit) * (8 * unit), blocks = (words + block - 1) / block;
    int threads = lsa_threads_for(work);
#pragma omp parallel for num_threads(threads) schedule(static, 1) if (threads > 1)
    for (int t = 0; t < threads; t++) {
        int64_t state = -1;
        for (int64_t b = blocks * t / threads; b < blocks * (t + 1) / threads; b++) {
            int64_t from = b * block, end = words - from < block ? words : from + block;
            fill(out + from, from, end, how, &state);
        }
    }
}
