/* Token embedding. */
#ifndef LSA_KERNELS_EMBED_H
#define LSA_KERNELS_EMBED_H
#include "kernels/linear.h"

/* streams[i, j] = row tokens[i] of the table, scaled, as f32, for every one of the hc streams.
 *
 * streams [n, hc, hidden]; tokens [n], each a row of the table; table [vocab, hidden]: any weight
 *   that lsa_linear takes. LSA_ESHAPE, LSA_EDTYPE. */
typedef int lsa_embed_fn(float *streams, const int32_t *tokens, const lsa_weight *table, int64_t n,
                         int64_t hc, int64_t hidden, void *stream);
lsa_embed_fn lsa_embed_cpu, lsa_embed_cuda;

/* The arguments, as both halves check them. */
int lsa_embed_check(const lsa_weight *table, int64_t n, int64_t hc, int64_t hidden);

#endif
