/* What sessions remember of a pass's picks: how often Level 2 picked each chunk and how much attention it got. */
#ifndef LSA_KERNELS_OBSERVE_H
#define LSA_KERNELS_OBSERVE_H
#include "kernels/span.h"

/* Of one layer: counts the picks of all rows of a span but its last, whose picks are laid aside for lsa_observe: they count once
 * the pass is over. places, mass: [rows of the pass, k], counts: [rows of the pass], as lsa_pick and lsa_attention gave them. */
typedef int lsa_remember_fn(const lsa_span *spans, int64_t count, int64_t layer,
                            const int32_t *places, const float *mass, const int32_t *counts,
                            int64_t k, void *stream);
lsa_remember_fn lsa_remember_cpu, lsa_remember_cuda;

/* After a pass: counts what was laid aside in all of the model's `layers` layers that have picks (`used` is not NULL), where places
 * become chunks; of spans that are `unobserved`, nothing. */
typedef int lsa_observe_fn(const lsa_span *spans, int64_t count, int64_t layers, void *stream);
lsa_observe_fn lsa_observe_cpu, lsa_observe_cuda;

#endif
