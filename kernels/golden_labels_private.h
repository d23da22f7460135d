/* Private to the golden labels' files: a row cut by AVX-512. */
#ifndef LSA_KERNELS_GOLDEN_LABELS_PRIVATE_H
#define LSA_KERNELS_GOLDEN_LABELS_PRIVATE_H
#include <stdint.h>

enum {
    LSA_GOLDEN_ONE_BITS = 22, /* a row's largest has a weight of 2^22 */
    LSA_GOLDEN_SLACK = 16     /* what a compressing store may write past its end */
};

/* Where a layer's last row was cut, and how far cuts lie apart: the next one is looked for there first. Zeros at first. */
typedef struct lsa_golden_guess {
    float value, spread;
} lsa_golden_guess;

/* Entries around the cut: [k + LSA_GOLDEN_SLACK] each. */
typedef struct lsa_golden_near {
    float *values;
    int32_t *weights, *ids;
} lsa_golden_near;

/* Writes the ids of a row's kept entries, in any order, up to LSA_GOLDEN_SLACK elements more; returns how many, or -1 where it
 * does not decide: no prefix exceeds top_p, the largest is +inf, or k is beyond 8192. The row `ahead` elements further is
 * fetched meanwhile. */
int64_t lsa_golden_row_avx512(int32_t *kept, const lsa_golden_near *near, const int32_t *ids,
                              const float *logits, int64_t k, double top_p, lsa_golden_guess *guess,
                              int64_t ahead);

#endif
