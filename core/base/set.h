/* Sets of ids 0..n-1 as bitmaps: residents, candidates, what a policy selects. */
#ifndef LSA_SET_H
#define LSA_SET_H
#include <stdint.h>

typedef struct lsa_set {
    int64_t n;      /* ids are 0..n-1 */
    uint64_t *bits; /* (n + 63) / 64 words; the bits past n are zero, always */
} lsa_set;

int lsa_set_new(lsa_set **out, int64_t n); /* empty */
int lsa_set_make(lsa_set **out,
                 int64_t n); /* its bits undefined: for a result, which is written whole */
void lsa_set_free(lsa_set *set);
void lsa_set_drop(lsa_set **set); /* frees *set, which is NULL from here on */

int lsa_set_add(lsa_set *set, int64_t id); /* LSA_EARG out of range, in all of these */
int lsa_set_remove(lsa_set *set, int64_t id);
int lsa_set_has(const lsa_set *set, int64_t id);               /* 1, 0; 0 out of range */
int lsa_set_add_range(lsa_set *set, int64_t from, int64_t to); /* from .. to - 1 */
int lsa_set_add_every(lsa_set *set, int64_t step); /* 0, step, 2 step ..; LSA_EARG below 1 */
int lsa_set_add_ids(lsa_set *set, const int32_t *ids, int64_t n);
/* Adds the first of each of `count` lists, then their second ids, and so on, until `most` were added that were not there. Lists of
 * lengths[i] ids, those that `without` has left out: of the same n, else LSA_ESHAPE. */
int lsa_set_add_in_turn(lsa_set *set, const int32_t *const *lists, const int64_t *lengths,
                        int64_t count, int64_t most, const lsa_set *without);
int64_t lsa_set_count(const lsa_set *set);
int64_t lsa_set_ids(const lsa_set *set, int32_t *ids); /* ascending; returns how many */
void lsa_set_clear(lsa_set *set);

/* out = a op b; all three of the same n, else LSA_ESHAPE naming both. out may be a or b. */
int lsa_set_union(lsa_set *out, const lsa_set *a, const lsa_set *b);
int lsa_set_intersect(lsa_set *out, const lsa_set *a, const lsa_set *b);
int lsa_set_minus(lsa_set *out, const lsa_set *a, const lsa_set *b);
void lsa_set_invert(lsa_set *set);
int lsa_set_copy(lsa_set *out, const lsa_set *in); /* out->n may be larger */
int64_t lsa_set_intersect_count(const lsa_set *a, const lsa_set *b);

/* out: every id within `radius` of a member. */
int lsa_set_dilate(lsa_set *out, const lsa_set *in, int64_t radius);

/* pages: out (n = ceil(in->n / page)) has page p where in has any of its ids; chunks: the reverse, out->n given. */
int lsa_set_pages(lsa_set *out, const lsa_set *in, int64_t page);
int lsa_set_chunks(lsa_set *out, const lsa_set *in, int64_t page);

#endif
