/* An indexed binary heap over slots 1 .. room on arrays that the caller owns: the slot with the least key
 * is first, among equal keys the one with the least tie. Keys and ties are no NaN. For eviction policies
 * that order ids by a number.
 *
 * With n slots in the heap, position i in 1 .. n has slots[i], key[i], tie[i]; at[slot] is a slot's
 * position, 0 when it is not in the heap. Index 0 of all four is unused; each has room + 1 elements. */
#ifndef LSA_HEAP_H
#define LSA_HEAP_H
#include <stdint.h>

/* Adds a slot, or moves it where it is in the heap already. Returns the new n. */
int32_t lsa_heap_put(int32_t *slots, int32_t *at, double *key, double *tie, int32_t n, int32_t slot,
                     double new_key, double new_tie);

/* Removes a slot where it is in the heap. Returns the new n. */
int32_t lsa_heap_remove(int32_t *slots, int32_t *at, double *key, double *tie, int32_t n,
                        int32_t slot);
#endif
