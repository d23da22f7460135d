/* Dense f32 products on the CPU.
 *
 * A thread has a range of c's rows or columns. It packs a block of b, DEPTH rows by as many columns as fit, into strips of
 * WIDTH columns, and blocks of `a` into groups of ROWS rows; a group times a strip is a tile whose sums stay in registers. */
#include "kernels/gemm.h"

#include "core/error.h"
#include "core/simd.h"

enum {
    WIDTH = 32,
    ROWS = 8,
    DEPTH = 64,
    BLOCK = 1 << 15,                         /* floats of b that are packed at once: 128 KiB, for the second cache */
    GROUPS = 64                              /* rows of `a` that are packed at once */
};

typedef struct product {
    float *c;
    const float *a, *b;
    int64_t m, n, k, c_stride, a_stride, b_stride;
    int32_t transpose_a;
} product;

/* [strip][depth][WIDTH], zeros beyond n. */
static inline LSA_BODY void pack_b_body(float *out, const float *b, int64_t stride, int64_t depth, int64_t n)
{
    for (int64_t k = 0; k < depth; k++, b += stride) {
        int64_t j = 0;
        float *to = out + k * WIDTH;
        for (; j + WIDTH <= n; j += WIDTH, to += depth * WIDTH) {
            f32x16_store(to, f32x16_load(b + j));
            f32x16_store(to + 16, f32x16_load(b + j + 16));
        }
        for (int64_t i = 0; j < n && i < WIDTH; i++) to[i] = j + i < n ? b[j + i] : 0;
    }
}

LSA_PATHS(pack_b, (float *out, const float *b, int64_t stride, int64_t depth, int64_t n), (out, b, stride, depth, n))

/* [group][depth][ROWS], zeros beyond m. Element i, k of op(a) is at a + i * row + k * step. */
static void pack_a(float *out, const float *a, int64_t row, int64_t step, int64_t depth, int64_t m)
{
    for (int64_t g = 0; g < m; g += ROWS)
        for (int64_t k = 0; k < depth; k++)
            for (int64_t i = 0; i < ROWS; i++) *out++ = g + i < m ? a[(g + i) * row + k * step] : 0;
}

/* The sums of a tile, after what c holds where `add` is not 0. */
static inline LSA_BODY void tile(float *c, int64_t stride, const float *a, const float *b, int64_t depth, int64_t m,
                                 int64_t n, int add)
{
    f32x16 sum[ROWS][2] = {{{0}}};
    int64_t first = n < 16 ? n : 16, second = n - first;
    for (int64_t i = 0; add && i < m; i++) {
        sum[i][0] = f32x16_load_n(c + i * stride, first);
        sum[i][1] = f32x16_load_n(c + i * stride + 16, second);
    }
    for (int64_t k = 0; k < depth; k++, a += ROWS, b += WIDTH) {
        f32x16 b0 = f32x16_load(b), b1 = f32x16_load(b + 16);
        for (int i = 0; i < ROWS; i++) {
            sum[i][0] += a[i] * b0;
            sum[i][1] += a[i] * b1;
        }
    }
    for (int64_t i = 0; i < m; i++) {
        f32x16_store_n(c + i * stride, sum[i][0], first);
        if (second) f32x16_store_n(c + i * stride + 16, sum[i][1], second);
    }
}

/* A packed block of `a` against one of b: [m, n] of c. */
static inline LSA_BODY void block_body(float *c, int64_t stride, const float *a, const float *b, int64_t depth, int64_t m,
                                       int64_t n, int add)
{
    for (int64_t i = 0; i < m; i += ROWS) {
        for (int64_t j = 0; j < n; j += WIDTH) {
            const float *ai = a + i * depth, *bj = b + j * depth;
            float *to = c + i * stride + j;
            if (i + ROWS <= m && j + WIDTH <= n) tile(to, stride, ai, bj, depth, ROWS, WIDTH, add);
            else tile(to, stride, ai, bj, depth, m - i < ROWS ? m - i : ROWS, n - j < WIDTH ? n - j : WIDTH, add);
        }
    }
}

LSA_PATHS(block,
          (float *c, int64_t stride, const float *a, const float *b, int64_t depth, int64_t m, int64_t n, int add),
          (c, stride, a, b, depth, m, n, add))

/* Rows i0 .. i1-1, columns j0 .. j1-1 of c. */
static void range(const product *p, int64_t i0, int64_t i1, int64_t j0, int64_t j1)
{
    float a[GROUPS * DEPTH] __attribute__((aligned(64))), b[BLOCK] __attribute__((aligned(64)));
    int64_t row = p->transpose_a ? 1 : p->a_stride, step = p->transpose_a ? p->a_stride : 1;
    int64_t deepest = p->k < DEPTH ? p->k : DEPTH, most = BLOCK / deepest / WIDTH * WIDTH;
    for (int64_t j = j0; j < j1; j += most) {
        int64_t n = j1 - j < most ? j1 - j : most;
        for (int64_t k = 0; k < p->k; k += DEPTH) {
            int64_t depth = p->k - k < DEPTH ? p->k - k : DEPTH;
            pack_b(b, p->b + k * p->b_stride + j, p->b_stride, depth, n);
            for (int64_t i = i0; i < i1; i += GROUPS) {
                int64_t m = i1 - i < GROUPS ? i1 - i : GROUPS;
                pack_a(a, p->a + i * row + k * step, row, step, depth, m);
                block(p->c + i * p->c_stride + j, p->c_stride, a, b, depth, m, n, k > 0);
            }
        }
    }
}

static int check(const product *p)
{
    if (p->m < 0 || p->n < 0 || p->k < 0)
        return lsa_fail(LSA_ESHAPE, "gemm: [%lld, %lld] times [%lld, %lld]", (long long)p->m, (long long)p->k,
                        (long long)p->k, (long long)p->n);
    if (p->c_stride < p->n || p->a_stride < (p->transpose_a ? p->m : p->k) || p->b_stride < p->n)
        return lsa_fail(LSA_ESHAPE, "gemm: row strides %lld = %lld x %lld, of m %lld, n %lld, k %lld",
                        (long long)p->c_stride, (long long)p->a_stride, (long long)p->b_stride, (long long)p->m,
                        (long long)p->n, (long long)p->k);
    return LSA_OK;
}

/* Part `i` of `parts` of n, in whole multiples of `unit`. */
static int64_t part(int64_t n, int64_t unit, int64_t i, int64_t parts)
{
    int64_t at = (n + unit - 1) / unit * i / parts * unit;
    return at < n ? at : n;
}

int lsa_gemm_cpu(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k, int64_t c_stride,
                 int64_t a_stride, int64_t b_stride, int32_t transpose_a, void *stream)
{
    (void)stream;
    product p = {c, a, b, m, n, k, c_stride, a_stride, b_stride, transpose_a};
    int rc = check(&p);
    if (rc || m == 0 || n == 0) return rc;
    if (k == 0) {
        for (int64_t i = 0; i < m; i++) memset(c + i * c_stride, 0, (size_t)n * sizeof *c);
        return LSA_OK;
    }
    int threads = lsa_threads_for(m * n * k / 32), rows = m >= n;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < threads; i++) {
        if (rows) range(&p, part(m, ROWS, i, threads), part(m, ROWS, i + 1, threads), 0, n);
        else range(&p, 0, m, part(n, WIDTH, i, threads), part(n, WIDTH, i + 1, threads));
    }
    return LSA_OK;
}
