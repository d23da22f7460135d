/* The optimiser's pass over all weights. */
#ifndef LSA_KERNELS_ADAMW_H
#define LSA_KERNELS_ADAMW_H
#include <stdint.h>

typedef struct lsa_adamw {
    float rate; /* of learning, at this step */
    float beta1, beta2, eps, decay;
    float gradient_scale; /* multiplies every gradient first (clipping) */
    int64_t step;         /* from 1 */
} lsa_adamw;

/* AdamW (Loshchilov and Hutter, 2019), with g = gradient_scale * gradient[i]:
 *   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
 *   x = x (1 - rate decay) - rate (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
 * x, m, v, gradient: [n], not overlapping. LSA_EARG when step < 1. */
typedef int lsa_adamw_fn(float *x, float *m, float *v, const float *gradient, int64_t n,
                         const lsa_adamw *how, void *stream);
lsa_adamw_fn lsa_adamw_cpu, lsa_adamw_cuda;

/* The step's constants: rate / (1 - beta1^step) and 1 / sqrt(1 - beta2^step) among them. */
typedef struct lsa_adamw_factors {
    float keep, rate, beta1, beta2, rest1, rest2, eps, root2, gradient_scale;
} lsa_adamw_factors;

/* The arguments, as both halves check them, and what they compute with. */
int lsa_adamw_check(int64_t n, const lsa_adamw *how);
lsa_adamw_factors lsa_adamw_factors_of(const lsa_adamw *how);

/* *sum = sum of x[i]^2 in f64, in an order that depends on n alone; sum lies where the device writes it. workspace: lsa_square_sum_workspace(n) bytes. */
typedef int lsa_square_sum_fn(double *sum, const float *x, int64_t n, void *workspace,
                              void *stream);
lsa_square_sum_fn lsa_square_sum_cpu, lsa_square_sum_cuda;

typedef int64_t lsa_square_sum_workspace_fn(int64_t n);
lsa_square_sum_workspace_fn lsa_square_sum_workspace;

#endif
