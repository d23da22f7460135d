/* Owns copies between strided views: dimensions that lie alike on both sides are merged first. */
#include <string.h>

#include "core/base/error.h"
#include "kernels/copy_private.h"

/* Drops dimensions of 1, joins neighbours that one stride describes. */
static int merge(lsa_copy_dims *d, int32_t rank, const int64_t *shape, const int64_t *out,
                 const int64_t *in)
{
    d->rank = 0;
    for (int32_t i = 0; i < rank; i++) {
        if (shape[i] == 0) return 0;
        if (shape[i] == 1) continue;
        int32_t last = d->rank - 1;
        if (last >= 0 && d->out[last] == shape[i] * out[i] && d->in[last] == shape[i] * in[i]) {
            d->n[last] *= shape[i];
        } else {
            last = d->rank++;
            d->n[last] = shape[i];
        }
        d->out[last] = out[i];
        d->in[last] = in[i];
    }
    return 1;
}

#define COPY_ROW(type)                                                                             \
    for (int64_t i = 0; i < n; i++)                                                                \
    ((type *)out)[i * out_stride] = ((const type *)in)[i * in_stride]

static void copy_row(char *out, const char *in, int64_t n, int64_t out_stride, int64_t in_stride,
                     int64_t size)
{
    if (out_stride == 1 && in_stride == 1)
        memcpy(out, in, (size_t)(n * size));
    else if (size == 1)
        COPY_ROW(uint8_t);
    else if (size == 2)
        COPY_ROW(uint16_t);
    else if (size == 4)
        COPY_ROW(uint32_t);
    else
        COPY_ROW(uint64_t);
}

int lsa_copy_plan(lsa_copy_dims *d, int64_t size, int32_t rank, const int64_t *shape,
                  const int64_t *out_stride, const int64_t *in_stride)
{
    if (size != 1 && size != 2 && size != 4 && size != 8)
        return lsa_fail(LSA_EARG, "copy: elements of %lld bytes", (long long)size);
    if (rank < 0 || rank > LSA_MAX_RANK)
        return lsa_fail(LSA_ESHAPE, "copy: rank is %d, at most %d", rank, LSA_MAX_RANK);
    return merge(d, rank, shape, out_stride, in_stride);
}

int lsa_copy_cpu(void *out, const void *in, int64_t size, int32_t rank, const int64_t *shape,
                 const int64_t *out_stride, const int64_t *in_stride, void *stream)
{
    (void)stream;
    lsa_copy_dims d;
    int some = lsa_copy_plan(&d, size, rank, shape, out_stride, in_stride);
    if (some <= 0) return some;
    if (d.rank == 0) {
        memcpy(out, in, (size_t)size);
        return LSA_OK;
    }

    /* All dimensions but the last are counted like an odometer. */
    int64_t at[LSA_MAX_RANK] = {0}, out_at = 0, in_at = 0;
    int32_t last = d.rank - 1;
    for (;;) {
        copy_row((char *)out + out_at * size, (const char *)in + in_at * size, d.n[last],
                 d.out[last], d.in[last], size);
        int32_t i = last - 1;
        for (; i >= 0; i--) {
            out_at += d.out[i];
            in_at += d.in[i];
            if (++at[i] < d.n[i]) break;
            out_at -= d.n[i] * d.out[i];
            in_at -= d.n[i] * d.in[i];
            at[i] = 0;
        }
        if (i < 0) return LSA_OK;
    }
}
