/* Matrix products through oneDNN, which chooses its code path by the processor itself.
 *
 * Why oneDNN: on an AMD EPYC of the Zen 5 family it runs 512 x [128, 128] at twice the rate of OpenBLAS 0.3.21, which
 * takes Haswell's kernels there, and has bf16 (experiments/peers/gemm_libraries.c measures both).
 *
 * oneDNN multiplies on one thread. A product is cut into blocks by its sizes alone, and the pool's threads take those: its bits do
 * not depend on their number, and no second team of threads waits beside the pool. */
#include "kernels/gemm.h"

#include <dnnl.h>
#include <omp.h>
#include <pthread.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/error.h"
#include "core/base/parallel.h"
#include "kernels/convert.h"

enum {
    FLOPS_PER_NS = 100,
    WIDENED_PER_NS = 4,
    MOST_WIDENED = 1 << 20, /* numbers of a bf16 factor that are f32 at a time: 4 MiB */
    LEAST_WIDENED_ROWS = 64,
    BLOCKS = 4, /* of a product at least, unless it is small: each packs its factors anew, ... */
    LEAST_FLOPS = 8 << 20, /* of a block, ... */
    MOST_FLOPS = 1 << 30,  /* and at most */
    LONG = 16              /* blocks: a product that Ctrl-C may break off */
};

static int check(const char *op, int64_t m, int64_t n, int64_t k, int64_t c_stride,
                 int64_t a_stride, int64_t a_width, int64_t b_stride, int64_t b_width)
{
    if (m < 0 || n < 0 || k < 0)
        return lsa_fail(LSA_ESHAPE, "%s: [%lld, %lld] x [%lld, %lld]", op, (long long)m,
                        (long long)k, (long long)k, (long long)n);
    if (c_stride < n || a_stride < a_width || b_stride < b_width)
        return lsa_fail(LSA_ESHAPE, "%s: strides %lld, %lld, %lld of rows of %lld, %lld, %lld", op,
                        (long long)c_stride, (long long)a_stride, (long long)b_stride, (long long)n,
                        (long long)a_width, (long long)b_width);
    return LSA_OK;
}

/* Whether there is nothing to multiply; c is zeroed where it has elements. */
static int is_empty(float *c, int64_t m, int64_t n, int64_t k, int64_t c_stride)
{
    if (m && n && k) return 0;
    for (int64_t i = 0; n && i < m; i++) memset(c + i * c_stride, 0, (size_t)n * sizeof *c);
    return 1;
}

static int failed(const char *op, dnnl_status_t status)
{
    if (status == dnnl_success) return LSA_OK;
    return lsa_fail(status == dnnl_out_of_memory ? LSA_ENOMEM : LSA_ESTATE,
                    "%s: oneDNN returned status %d", op, (int)status);
}

/* A product in blocks of c. */
typedef struct blocks {
    int64_t rows, columns, across; /* of a block; blocks side by side */
    int64_t count;
} blocks;

static int64_t half(int64_t n) { return ((n + 1) / 2 + 15) / 16 * 16; }

/* Halves the longer side, by whole vectors. */
static blocks blocks_of(int64_t m, int64_t n, int64_t k)
{
    blocks b = {m, n, 1, 1};
    for (;;) {
        double flops = 2.0 * (double)b.rows * (double)b.columns * (double)k;
        if (flops < 2 * LEAST_FLOPS || (b.count >= BLOCKS && flops <= 2.0 * MOST_FLOPS)) return b;
        int64_t rows = b.rows, columns = b.columns;
        if (rows >= columns)
            b.rows = half(rows);
        else
            b.columns = half(columns);
        if (rows == b.rows && columns == b.columns) return b;
        b.across = (n + b.columns - 1) / b.columns;
        b.count = b.across * ((m + b.rows - 1) / b.rows);
    }
}

static int threads_for(int64_t m, int64_t n, int64_t k)
{
    return lsa_threads_for(2 * m * n * k / FLOPS_PER_NS);
}

/* oneDNN takes the thread count of the calling thread. */
static void multiply_alone(void)
{
    static _Thread_local int alone;
    if (!alone) omp_set_num_threads(1);
    alone = 1;
}

typedef struct product_f32 {
    float *c;
    const float *a, *b;
    int64_t m, n, k, c_stride, a_stride, b_stride;
    int32_t transpose_a, transpose_b;
    blocks blocks;
    lsa_failure failure;
} product_f32;

static void multiply_blocks(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    product_f32 *p = context;
    multiply_alone();
    for (int64_t at = from; at < to; at++) {
        if (p->blocks.count >= LONG && lsa_interrupted()) {
            lsa_failure_note(&p->failure, lsa_fail(LSA_EINTR, "interrupted"));
            return;
        }
        int64_t i = at / p->blocks.across * p->blocks.rows,
                j = at % p->blocks.across * p->blocks.columns;
        int64_t m = p->m - i < p->blocks.rows ? p->m - i : p->blocks.rows;
        int64_t n = p->n - j < p->blocks.columns ? p->n - j : p->blocks.columns;
        const float *a = p->a + i * (p->transpose_a ? 1 : p->a_stride);
        const float *b = p->b + j * (p->transpose_b ? p->b_stride : 1);
        dnnl_status_t status =
            dnnl_sgemm(p->transpose_a ? 'T' : 'N', p->transpose_b ? 'T' : 'N', m, n, p->k, 1, a,
                       p->a_stride, b, p->b_stride, 0, p->c + i * p->c_stride + j, p->c_stride);
        lsa_failure_note(&p->failure, failed("gemm", status));
    }
}

int lsa_gemm_check(int64_t m, int64_t n, int64_t k, int64_t c_stride, int64_t a_stride,
                   int64_t b_stride, int32_t transpose_a, int32_t transpose_b)
{
    return check("gemm", m, n, k, c_stride, a_stride, transpose_a ? m : k, b_stride,
                 transpose_b ? k : n);
}

int lsa_gemm_cpu(float *c, const float *a, const float *b, int64_t m, int64_t n, int64_t k,
                 int64_t c_stride, int64_t a_stride, int64_t b_stride, int32_t transpose_a,
                 int32_t transpose_b, void *stream)
{
    (void)stream;
    int rc = lsa_gemm_check(m, n, k, c_stride, a_stride, b_stride, transpose_a, transpose_b);
    if (rc || is_empty(c, m, n, k, c_stride)) return rc;
    product_f32 p = {c,        a,        b,        m,           n,           k,
                     c_stride, a_stride, b_stride, transpose_a, transpose_b, blocks_of(m, n, k),
                     {0}};
    lsa_parallel(threads_for(m, n, k), p.blocks.count, multiply_blocks, &p);
    return lsa_failure_raise(&p.failure);
}

static dnnl_engine_t engine;
static dnnl_stream_t queue;
static dnnl_status_t engine_status;
static int has_bf16; /* whether oneDNN multiplies bf16 on this processor */

/* A product's sizes: what its oneDNN objects are made for. */
typedef struct sizes {
    int64_t m, n, k, c_stride, a_stride, b_stride;
} sizes;

/* One product as oneDNN objects. */
typedef struct product {
    sizes sizes;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[3];
} product;

/* Products to be used again, the last used one last: making one takes longer than a small product does. Who runs one has taken it out,
 * since its scratch memory serves one thread. */
enum { KEPT = 64 };
static product kept[KEPT];
static int kept_count;
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;

static dnnl_status_t make(product *p, const sizes *s)
{
    dnnl_dims_t dims[3] = {{s->m, s->k}, {s->k, s->n}, {s->m, s->n}};
    dnnl_dims_t strides[3] = {{s->a_stride, 1}, {1, s->b_stride}, {s->c_stride, 1}};
    const dnnl_data_type_t types[3] = {dnnl_bf16, dnnl_bf16, dnnl_f32};
    const int slots[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    dnnl_memory_desc_t memory[3];
    dnnl_matmul_desc_t matmul;
    dnnl_status_t status = dnnl_success;
    *p = (product){.sizes = *s};
    for (int i = 0; !status && i < 3; i++)
        status = dnnl_memory_desc_init_by_strides(&memory[i], 2, dims[i], types[i], strides[i]);
    if (!status) status = dnnl_matmul_desc_init(&matmul, &memory[0], &memory[1], NULL, &memory[2]);
    if (!status) status = dnnl_primitive_desc_create(&p->desc, &matmul, NULL, engine, NULL);
    if (!status) status = dnnl_primitive_create(&p->primitive, p->desc);
    for (int i = 0; !status && i < 3; i++) {
        p->args[i].arg = slots[i];
        status = dnnl_memory_create(&p->args[i].memory, &memory[i], engine, DNNL_MEMORY_NONE);
    }
    return status;
}

static void release(product *p)
{
    for (int i = 0; i < 3; i++)
        if (p->args[i].memory) dnnl_memory_destroy(p->args[i].memory);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
    if (p->desc) dnnl_primitive_desc_destroy(p->desc);
}

static product remove_kept(int at)
{
    product p = kept[at];
    memmove(kept + at, kept + at + 1, (size_t)(--kept_count - at) * sizeof *kept);
    return p;
}

/* Takes out a kept product of these sizes; 0 where there is none. */
static int take(product *p, const sizes *s)
{
    int at;
    pthread_mutex_lock(&kept_lock);
    for (at = kept_count - 1; at >= 0 && memcmp(&kept[at].sizes, s, sizeof *s) != 0;) at--;
    if (at >= 0) *p = remove_kept(at);
    pthread_mutex_unlock(&kept_lock);
    return at >= 0;
}

/* Keeps a product; the one that was used longest ago makes room. */
static void keep(const product *p)
{
    product oldest = {0};
    pthread_mutex_lock(&kept_lock);
    if (kept_count == KEPT) oldest = remove_kept(0);
    kept[kept_count++] = *p;
    pthread_mutex_unlock(&kept_lock);
    release(&oldest);
}

static void start_engine(void)
{
    product p = {0};
    engine_status = dnnl_engine_create(&engine, dnnl_cpu, 0);
    if (!engine_status)
        engine_status = dnnl_stream_create(&queue, engine, dnnl_stream_default_flags);
    if (engine_status) return;
    has_bf16 = make(&p, &(sizes){1, 1, 1, 1, 1, 1}) != dnnl_unimplemented;
    release(&p);
}

static int multiplies_bf16(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_engine);
    return engine_status || has_bf16;
}

static int multiply_bf16(float *c, const uint16_t *a, const uint16_t *b, const sizes *s)
{
    void *data[3] = {(void *)(uintptr_t)a, (void *)(uintptr_t)b, c};
    product p = {0};
    dnnl_status_t status = engine_status;
    if (!status && !take(&p, s)) status = make(&p, s);
    for (int i = 0; !status && i < 3; i++)
        status = dnnl_memory_set_data_handle(p.args[i].memory, data[i]);
    if (!status) status = dnnl_primitive_execute(p.primitive, queue, 3, p.args);
    if (!status) status = dnnl_stream_wait(queue);
    if (status)
        release(&p);
    else
        keep(&p);
    return failed("gemm_bf16", status);
}

typedef struct product_bf16 {
    float *c;
    const uint16_t *a, *b;
    sizes sizes;
    blocks blocks;
    lsa_failure failure;
} product_bf16;

static void multiply_bf16_blocks(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    product_bf16 *p = context;
    multiply_alone();
    for (int64_t at = from; at < to; at++) {
        int64_t i = at / p->blocks.across * p->blocks.rows,
                j = at % p->blocks.across * p->blocks.columns;
        sizes s = p->sizes;
        s.m = s.m - i < p->blocks.rows ? s.m - i : p->blocks.rows;
        s.n = s.n - j < p->blocks.columns ? s.n - j : p->blocks.columns;
        lsa_failure_note(&p->failure,
                         multiply_bf16(p->c + i * s.c_stride + j, p->a + i * s.a_stride,
                                       p->b + j * s.b_stride, &s));
    }
}

static int by_bf16(float *c, const uint16_t *a, const uint16_t *b, const sizes *s)
{
    product_bf16 p = {c, a, b, *s, blocks_of(s->m, s->n, s->k), {0}};
    lsa_parallel(threads_for(s->m, s->n, s->k), p.blocks.count, multiply_bf16_blocks, &p);
    return lsa_failure_raise(&p.failure);
}

/* Rows of a factor that are f32 at a time. */
static int64_t rows_widened(int64_t rows, int64_t k)
{
    int64_t most = MOST_WIDENED / (k + 1);
    if (most < LEAST_WIDENED_ROWS) most = LEAST_WIDENED_ROWS;
    return rows < most ? rows : most;
}

typedef struct widening {
    float *out;
    const uint16_t *in;
    int64_t k, stride;
} widening;

static void widen_rows(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const widening *w = context;
    for (int64_t r = from; r < to; r++)
        lsa_convert_cpu(w->out + r * w->k, w->in + r * w->stride, w->k, LSA_F32, LSA_BF16, NULL);
}

static void widen(float *out, const uint16_t *in, int64_t rows, int64_t k, int64_t stride)
{
    lsa_parallel(lsa_threads_for(rows * k / WIDENED_PER_NS), rows, widen_rows,
                 &(widening){out, in, k, stride});
}

/* By products of f32. The rows of a factor that fits are widened once. */
static int by_f32(float *c, const uint16_t *a, const uint16_t *b, const sizes *s, float *workspace)
{
    int64_t m = rows_widened(s->m, s->k), n = rows_widened(s->n, s->k);
    float *a_rows = workspace, *b_rows = workspace + m * s->k;
    int rc = LSA_OK;
    for (int64_t j = 0; !rc && j < s->n; j += n) {
        int64_t columns = s->n - j < n ? s->n - j : n;
        widen(b_rows, b + j * s->b_stride, columns, s->k, s->b_stride);
        for (int64_t i = 0; !rc && i < s->m; i += m) {
            int64_t rows = s->m - i < m ? s->m - i : m;
            if (!j || m < s->m) widen(a_rows, a + i * s->a_stride, rows, s->k, s->a_stride);
            rc = lsa_gemm_cpu(c + i * s->c_stride + j, a_rows, b_rows, rows, columns, s->k,
                              s->c_stride, s->k, s->k, 0, 1, NULL);
        }
    }
    return rc;
}

int64_t lsa_gemm_bf16_workspace(int64_t m, int64_t n, int64_t k)
{
    if (multiplies_bf16()) return 0;
    return (rows_widened(m, k) + rows_widened(n, k)) * k * (int64_t)sizeof(float);
}

int lsa_gemm_bf16_cpu(float *c, const uint16_t *a, const uint16_t *b, int64_t m, int64_t n,
                      int64_t k, int64_t c_stride, int64_t a_stride, int64_t b_stride,
                      void *workspace, void *stream)
{
    (void)stream;
    int rc = check("gemm_bf16", m, n, k, c_stride, a_stride, k, b_stride, k);
    if (rc || is_empty(c, m, n, k, c_stride)) return rc;
    const sizes s = {m, n, k, c_stride, a_stride, b_stride};
    return multiplies_bf16() ? by_bf16(c, a, b, &s) : by_f32(c, a, b, &s, workspace);
}
