/* Manifold-constrained hyper-connections (mHC): several residual streams. */
#ifndef LSA_KERNELS_HYPER_CONNECTION_H
#define LSA_KERNELS_HYPER_CONNECTION_H
#include "kernels/linear.h"

/* Opens a block. streams [tokens, hc, dim]; mix [tokens, (2 + hc) * hc]: the raw projection fn . flatten(streams),
 * which this kernel scales by rsqrt(mean(streams^2) + norm_eps) (the unweighted RMSNorm commutes with it).
 *   pre  = sigmoid(mix[0..hc) * scale[0] + base[0..hc)) + hc_eps
 *   post = 2 sigmoid(mix[hc..2hc) * scale[1] + base[hc..2hc))
 *   comb = softmax over the last dim of (mix[2hc..) * scale[2] + base[2hc..)) [hc, hc] + hc_eps; columns
 *          normalised (divided by the sum over rows + hc_eps); then iters - 1 rounds of rows, columns.
 * x [tokens, dim] = sum_k pre[k] streams[k]; post [tokens, hc]; comb [tokens, hc, hc]. All f32. */
typedef int lsa_hc_open_fn(float *x, float *post, float *comb, const float *streams,
                           const float *mix, const float *base, const float *scale, int64_t tokens,
                           int64_t hc, int64_t dim, int64_t iters, float norm_eps, float hc_eps,
                           void *stream);
lsa_hc_open_fn lsa_hc_open_cpu, lsa_hc_open_cuda;

/* Closes it: streams[k] <- post[k] y + sum_j comb[j, k] streams[j], in place. y [tokens, dim]. hc <= 16. */
typedef int lsa_hc_close_fn(float *streams, const float *y, const float *post, const float *comb,
                            int64_t tokens, int64_t hc, int64_t dim, void *stream);
lsa_hc_close_fn lsa_hc_close_cpu, lsa_hc_close_cuda;

/* The head: x = sum_k pre[k] streams[k], pre as above from mix [tokens, hc], base [hc], scale [1]. */
typedef int lsa_hc_head_fn(float *x, const float *streams, const float *mix, const float *base,
                           const float *scale, int64_t tokens, int64_t hc, int64_t dim,
                           float norm_eps, float hc_eps, void *stream);
lsa_hc_head_fn lsa_hc_head_cpu, lsa_hc_head_cuda;

/* From one block to the next. */
typedef struct lsa_hc_turning {
    float *x;           /* out [tokens, dim]: the next block's input, normed */
    float *streams;     /* [tokens, hc, dim] */
    const float *y;     /* [tokens, dim]: the block that is over; NULL: none is */
    float *post, *comb; /* of the block that is over, then of the next; not written where `head` */
    float *mix;         /* [tokens, rows of fn], overwritten */
    const lsa_weight *fn;
    const float *base, *scale;
    const float *norm; /* [dim] */
    int64_t hc, dim, iters;
    float norm_eps, hc_eps;
    int32_t compute;
    int32_t head; /* what is next is the head */
} lsa_hc_turning;

/* lsa_hc_close of y, where there is one; mix = fn streams (lsa_linear); lsa_hc_open, or lsa_hc_head; then x is normed (lsa_rmsnorm).
 * workspace: what lsa_linear wants of fn. What they fail with. */
typedef int lsa_hc_turn_fn(const lsa_hc_turning *turning, int64_t tokens, void *workspace,
                           void *stream);
lsa_hc_turn_fn lsa_hc_turn_cpu, lsa_hc_turn_cuda;

/* The sizes, as all of them check them: LSA_ESHAPE. */
enum { LSA_HC_MOST_STREAMS = 16 };
int lsa_hc_check(const char *op, int64_t tokens, int64_t hc, int64_t dim);
int lsa_hc_turn_check(const lsa_hc_turning *turning, int64_t tokens);

#endif
