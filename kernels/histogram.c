/* Owns counting of numbers by where they lie. */
#include "kernels/histogram.h"

#include <math.h>
#include <string.h>

#include "core/base/error.h"

int lsa_histogram_cpu(int64_t *counts, const double *x, int64_t n, double low, double high,
                      int64_t bins, void *stream)
{
    (void)stream;
    if (n < 0) return lsa_fail(LSA_ESHAPE, "histogram: %lld elements", (long long)n);
    if (bins < 1) return lsa_fail(LSA_EARG, "histogram: bins is %lld", (long long)bins);
    if (!(low < high && isfinite(high - low)))
        return lsa_fail(LSA_EARG, "histogram: from %g to %g", low, high);
    memset(counts, 0, (size_t)bins * sizeof *counts);
    double width = (high - low) / (double)bins, per = 1 / width;
    for (int64_t i = 0; i < n; i++) {
        double v = x[i];
        if (!(v >= low && v <= high)) continue;
        /* The quotient is off by rounding at most: the edges themselves decide. */
        int64_t b = (int64_t)((v - low) * per);
        if (b >= bins) b = bins - 1;
        while (b > 0 && v < low + (double)b * width) b--;
        while (b < bins - 1 && v >= low + (double)(b + 1) * width) b++;
        counts[b]++;
    }
    return LSA_OK;
}

int lsa_bincount_cpu(int64_t *counts, const int64_t *x, int64_t n, int64_t bins, void *stream)
{
    (void)stream;
    if (n < 0 || bins < 0)
        return lsa_fail(LSA_ESHAPE, "bincount: %lld elements in %lld bins", (long long)n,
                        (long long)bins);
    if (bins) memset(counts, 0, (size_t)bins * sizeof *counts);
    for (int64_t i = 0; i < n; i++) {
        if (x[i] < 0 || x[i] >= bins)
            return lsa_fail(LSA_EARG, "bincount: element %lld is %lld, there are %lld bins",
                            (long long)i, (long long)x[i], (long long)bins);
        counts[x[i]]++;
    }
    return LSA_OK;
}
