/* Private to the files of sets: words of bitmaps, and how results are written. */
#ifndef LSA_SET_WORDS_H
#define LSA_SET_WORDS_H
#include <stdint.h>

#include "core/base/set.h"
#include "core/base/simd.h"

/* Words: they fit the first cache beside what they are made of. LANES: those of a vector. */
enum { LSA_SET_BLOCK = 512, LSA_SET_LANES = 8 };

static inline int64_t lsa_set_words(int64_t n) { return (n + 63) / 64; }

/* Bits from..63 of a word (0 <= from <= 63); bits 0..to-1 of it (1 <= to <= 64). */
static inline uint64_t lsa_set_high_bits(int64_t from) { return ~0ull << from; }
static inline uint64_t lsa_set_low_bits(int64_t to) { return ~0ull >> (64 - to); }

static inline void lsa_set_clear_past_end(lsa_set *set)
{
    if (set->n % 64) set->bits[set->n / 64] &= lsa_set_low_bits(set->n % 64);
}

/* Room that a smeared array of so many words takes. */
#define LSA_SET_SMEAR_ROOM(words) ((words) + 2 * LSA_SET_LANES)

typedef uint64_t lsa_set_vector
    __attribute__((vector_size(8 * LSA_SET_LANES), aligned(8), may_alias));

/* Every bit also where a bit up to `reach` (0..126) places above it was. What is above the last
 * word counts only where it is there: whoever wants it there has as many words more. The words up
 * to LSA_SET_SMEAR_ROOM(words) are overwritten. */
static inline LSA_BODY void lsa_set_smear(uint64_t *y, int64_t words, int64_t reach)
{
    memset(y + words, 0, 2 * LSA_SET_LANES * sizeof *y);
    for (int64_t done = 0, step; done < reach; done += step) {
        step = done + 1 < reach - done ? done + 1 : reach - done;
        for (int64_t i = 0; i < words; i += LSA_SET_LANES) {
            lsa_set_vector here, next;
            memcpy(&here, y + i, sizeof here);
            memcpy(&next, y + i + 1, sizeof next);
            here |= here >> step | next << (64 - step);
            memcpy(y + i, &here, sizeof here);
        }
    }
}

/* Writes words from .. end-1 of a result to `to`. *state: -1 at first, then what the previous call
 * left that wrote the words before these. */
typedef void lsa_set_fill_fn(uint64_t *to, int64_t from, int64_t end, const void *how,
                             int64_t *state);

/* All words of a result, LSA_SET_BLOCK at most at a time, in multiples of 8 * unit (unit <= 64)
 * but for the last ones; by several threads where that is worth it. work: words that are read or
 * written, whichever are more. */
void lsa_set_write(uint64_t *out, int64_t words, int64_t unit, int64_t work, lsa_set_fill_fn *fill,
                   const void *how);

#endif
