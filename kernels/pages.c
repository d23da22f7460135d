/* Owns page scores: reductions of consecutive, equally long parts of a row. */
#include "kernels/pages.h"

#include "core/base/error.h"
#include "core/base/simd.h"

int lsa_pages_check(int64_t rows, int64_t n, int64_t size)
{
    if (size < 1) return lsa_fail(LSA_EARG, "pages: size is %lld", (long long)size);
    if (rows < 0 || n < 0)
        return lsa_fail(LSA_ESHAPE, "pages: shape [%lld, %lld]", (long long)rows, (long long)n);
    return LSA_OK;
}

int lsa_density_check(int64_t n, int64_t size)
{
    if (size < 1) return lsa_fail(LSA_EARG, "density: size is %lld", (long long)size);
    if (n < 0) return lsa_fail(LSA_ESHAPE, "density: %lld ids", (long long)n);
    return LSA_OK;
}

int lsa_pages_cpu(float *out, const float *in, int64_t rows, int64_t n, int64_t size, int32_t op,
                  void *stream)
{
    int bad = lsa_pages_check(rows, n, size);
    if (bad) return bad;
    int64_t full = n / size, rest = n % size, pages = full + (rest > 0);
    if (rest == 0) return lsa_reduce_cpu(out, in, rows * full, size, 1, op, stream);
    for (int64_t r = 0; r < rows; r++) {
        int rc = lsa_reduce_cpu(out + r * pages, in + r * n, full, size, 1, op, stream);
        if (rc == 0)
            rc = lsa_reduce_cpu(out + r * pages + full, in + r * n + full * size, 1, rest, 1, op,
                                stream);
        if (rc) return rc;
    }
    return LSA_OK;
}

static inline LSA_BODY void density_words_body(float *out, const uint64_t *bits, int64_t pages,
                                               int64_t words)
{
    for (int64_t p = 0; p < pages; p++, bits += words) {
        int64_t count = 0;
        for (int64_t w = 0; w < words; w++) count += __builtin_popcountll(bits[w]);
        out[p] = (float)count;
    }
}
LSA_PATHS(density_words, (float *out, const uint64_t *bits, int64_t pages, int64_t words),
          (out, bits, pages, words))

/* Members among from .. to-1. */
static int64_t count_range(const uint64_t *bits, int64_t from, int64_t to)
{
    int64_t count = 0;
    while (from < to) {
        int64_t bit = from % 64, m = 64 - bit < to - from ? 64 - bit : to - from;
        count += __builtin_popcountll(bits[from / 64] >> bit << (64 - m));
        from += m;
    }
    return count;
}

int lsa_density_cpu(float *out, const uint64_t *bits, int64_t n, int64_t size, void *stream)
{
    (void)stream;
    int rc = lsa_density_check(n, size);
    if (rc) return rc;
    int64_t pages = (n + size - 1) / size, p = 0;
    if (size % 64 == 0) {
        p = n / size;
        density_words(out, bits, p, size / 64);
    }
    for (; p < pages; p++)
        out[p] = (float)count_range(bits, p * size, n - p * size < size ? n : (p + 1) * size);
    return LSA_OK;
}
