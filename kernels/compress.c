/* Compressors on the CPU: vectors of channels, windows and channel blocks over the threads. */
#include "kernels/compress.h"

#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/vector_math.h"

/* m slots of one series: rows `stride` floats apart, the biases `bias_stride`. */
typedef struct series {
    const float *kv, *gate, *bias;
} series;

typedef struct mix {
    f32x16 max, sum, out;
} mix;

enum { BLOCK = 64 }; /* channels of one task */

static inline LSA_BODY void find_max(mix *a, const series *s, int64_t m, int64_t stride, int64_t c,
                                     int64_t lanes)
{
    if (!s->kv) return;
    for (int64_t i = 0; i < m; i++) {
        int64_t at = i * stride + c;
        f32x16 g = lanes == 16
                       ? f32x16_load(s->gate + at) + f32x16_load(s->bias + at)
                       : f32x16_load_n(s->gate + at, lanes) + f32x16_load_n(s->bias + at, lanes);
        a->max = f32x16_select(f32x16_below(a->max, g), g, a->max);
    }
}

static inline LSA_BODY void add_slots(mix *a, const series *s, int64_t m, int64_t stride, int64_t c,
                                      int64_t lanes)
{
    if (!s->kv) return;
    for (int64_t i = 0; i < m; i++) {
        int64_t at = i * stride + c;
        f32x16 g = lanes == 16
                       ? f32x16_load(s->gate + at) + f32x16_load(s->bias + at)
                       : f32x16_load_n(s->gate + at, lanes) + f32x16_load_n(s->bias + at, lanes);
        f32x16 kv = lanes == 16 ? f32x16_load(s->kv + at) : f32x16_load_n(s->kv + at, lanes);
        f32x16 p = f32x16_exp(g - a->max);
        a->sum += p;
        a->out += p * kv;
    }
}

/* Channels c .. c + lanes - 1 of one entry; `before` comes first in the order of summation. */
static inline LSA_BODY void mix_channels(float *out, const series *before, const series *now,
                                         int64_t m, int64_t stride, int64_t c, int64_t lanes)
{
    mix a = {f32x16_set(-INFINITY), {0}, {0}};
    find_max(&a, before, m, stride, c, lanes);
    find_max(&a, now, m, stride, c, lanes);
    add_slots(&a, before, m, stride, c, lanes);
    add_slots(&a, now, m, stride, c, lanes);
    a.out /= a.sum;
    if (lanes == 16)
        f32x16_store(out + c, a.out);
    else
        f32x16_store_n(out + c, a.out, lanes);
}

static inline LSA_BODY void mix_block_body(float *out, const series *before, const series *now,
                                           int64_t m, int64_t stride, int64_t from, int64_t to)
{
    int64_t c = from;
    for (; c + 16 <= to; c += 16) mix_channels(out, before, now, m, stride, c, 16);
    if (c < to) mix_channels(out, before, now, m, stride, c, to - c);
}

LSA_PATHS(mix_block,
          (float *out, const series *before, const series *now, int64_t m, int64_t stride,
           int64_t from, int64_t to),
          (out, before, now, m, stride, from, to))

/* What the tasks of a call share; a task is one window's BLOCK channels. */
typedef struct call {
    float *out;
    const float *kv, *gate, *prev_kv, *prev_gate, *bias;
    int64_t m, dim, width, blocks;
    int32_t overlap;
} call;

static void mix_tasks(const call *c, int64_t first, int64_t last)
{
    for (int64_t task = first; task < last; task++) {
        int64_t w = task / c->blocks, from = task % c->blocks * BLOCK, row = c->m * c->width;
        int64_t to = from + BLOCK < c->dim ? from + BLOCK : c->dim;
        series before = {0}, now = {c->kv + w * row, c->gate + w * row, c->bias};
        if (c->overlap) {
            now = (series){now.kv + c->dim, now.gate + c->dim, now.bias + c->dim};
            if (w > 0)
                before = (series){c->kv + (w - 1) * row, c->gate + (w - 1) * row, c->bias};
            else if (c->prev_kv && c->prev_gate)
                before = (series){c->prev_kv, c->prev_gate, c->bias};
        }
        mix_block(c->out + w * c->dim, &before, &now, c->m, c->width, from, to);
    }
}

int lsa_compress_check(int64_t n, int64_t m, int64_t dim)
{
    if (n >= 0 && m >= 1 && dim >= 1) return LSA_OK;
    return lsa_fail(LSA_ESHAPE, "compress: %lld windows of %lld tokens, %lld channels",
                    (long long)n, (long long)m, (long long)dim);
}

static void mix_part(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    mix_tasks(context, from, to);
}

int lsa_compress_cpu(float *out, const float *kv, const float *gate, const float *prev_kv,
                     const float *prev_gate, const float *position_bias, int64_t n, int64_t m,
                     int64_t dim, int32_t overlap, void *stream)
{
    (void)stream;
    int rc = lsa_compress_check(n, m, dim);
    if (rc) return rc;
    call c = {out, kv, gate, prev_kv, prev_gate, position_bias, m, dim, dim, 0, overlap};
    if (overlap) c.width = 2 * dim;
    c.blocks = (dim + BLOCK - 1) / BLOCK;
    lsa_parallel(lsa_threads_for(n * m * c.width * 3 / 4), n * c.blocks, mix_part, &c);
    return LSA_OK;
}
