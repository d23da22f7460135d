/* Scores of pages out of scores of chunks. */
#ifndef LSA_KERNELS_PAGES_H
#define LSA_KERNELS_PAGES_H
#include "kernels/reduce.h"

/* out[r, p] = op (LSA_REDUCE_*) over in[r, p * size .. p * size + size - 1], the last page
 * ending with the row. in: [rows, n] f32; out: [rows, ceil(n / size)]. Each page is summed as a
 * row of lsa_reduce. size >= 1. */
typedef int lsa_pages_fn(float *out, const float *in, int64_t rows, int64_t n, int64_t size,
                         int32_t op, void *stream);
lsa_pages_fn lsa_pages_cpu, lsa_pages_cuda;

/* out[p] = how many of the ids p * size .. p * size + size - 1 are in the set `bits`
 * (core/base/set.h) of n ids. out: [ceil(n / size)] f32, exact. With bits out of lsa_select_above,
 * the page density of scores. */
typedef int lsa_density_fn(float *out, const uint64_t *bits, int64_t n, int64_t size, void *stream);
lsa_density_fn lsa_density_cpu, lsa_density_cuda;

/* The sizes, as both halves check them. */
int lsa_pages_check(int64_t rows, int64_t n, int64_t size);
int lsa_density_check(int64_t n, int64_t size);

#endif
