/* Which library multiplies matrices faster here: y [tokens, rows] = x [tokens, cols] . w [rows,
 * cols]^T. cc -O2 -fopenmp gemm_libraries.c -o gemm_libraries -lopenblas -ldnnl &&
 * ./gemm_libraries */
#include <cblas-openblas.h>
#include <dnnl.h>
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double best_of(void (*run)(void *), void *context)
{
    double best = 1e9, start = omp_get_wtime();
    run(context);
    for (int i = 0; i < 5 || (i < 10000 && omp_get_wtime() - start < 0.7); i++) {
        double t = omp_get_wtime();
        run(context);
        t = omp_get_wtime() - t;
        if (t < best) best = t;
    }
    return best;
}

typedef struct gemm {
    int tokens, rows, cols;
    float *x, *w, *y;
    uint16_t *x16, *w16;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[3];
    dnnl_stream_t stream;
} gemm;

static void openblas_f32(void *p)
{
    gemm *g = p;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, g->tokens, g->rows, g->cols, 1, g->x,
                g->cols, g->w, g->cols, 0, g->y, g->rows);
}

static void onednn_sgemm(void *p)
{
    gemm *g = p;
    dnnl_sgemm('N', 'T', g->tokens, g->rows, g->cols, 1, g->x, g->cols, g->w, g->cols, 0, g->y,
               g->rows);
}

static void onednn_matmul(void *p)
{
    gemm *g = p;
    dnnl_primitive_execute(g->primitive, g->stream, 3, g->args);
    dnnl_stream_wait(g->stream);
}

static void prepare_matmul(gemm *g, dnnl_engine_t engine, dnnl_data_type_t type, void *x, void *w)
{
    dnnl_dims_t xd = {g->tokens, g->cols}, wd = {g->cols, g->rows}, yd = {g->tokens, g->rows};
    dnnl_dims_t xs = {g->cols, 1}, ws = {1, g->cols}, ys = {g->rows, 1};
    dnnl_memory_desc_t xm, wm, ym;
    dnnl_memory_desc_init_by_strides(&xm, 2, xd, type, xs);
    dnnl_memory_desc_init_by_strides(&wm, 2, wd, type, ws);
    dnnl_memory_desc_init_by_strides(&ym, 2, yd, dnnl_f32, ys);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_matmul_desc_init(&desc, &xm, &wm, NULL, &ym);
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, engine, NULL) ||
        dnnl_primitive_create(&g->primitive, pd))
        exit(1);
    const char *name;
    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
    printf(" [%s]", name);
    const int slot[3] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST};
    const dnnl_memory_desc_t *descs[3] = {&xm, &wm, &ym};
    void *data[3] = {x, w, g->y};
    for (int i = 0; i < 3; i++) {
        g->args[i].arg = slot[i];
        dnnl_memory_create(&g->args[i].memory, descs[i], engine, data[i]);
    }
}

int main(void)
{
    static const int shapes[][3] = {{16, 128, 128},   {512, 128, 128},  {512, 128, 64},
                                    {16, 4096, 1024}, {64, 4096, 1024}, {512, 4096, 1024},
                                    {512, 1024, 4096}};
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_engine_create(&engine, dnnl_cpu, 0);
    dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    printf("openblas: %s, %s, threads %d\n", openblas_get_config(), openblas_get_corename(),
           omp_get_max_threads());
    for (unsigned s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        gemm g = {
            .tokens = shapes[s][0], .rows = shapes[s][1], .cols = shapes[s][2], .stream = stream};
        int64_t nx = (int64_t)g.tokens * g.cols, nw = (int64_t)g.rows * g.cols,
                ny = (int64_t)g.tokens * g.rows;
        g.x = malloc(nx * 4), g.w = malloc(nw * 4), g.y = malloc(ny * 4);
        g.x16 = malloc(nx * 2), g.w16 = malloc(nw * 2);
        for (int64_t i = 0; i < nx; i++) {
            g.x[i] = (i * 37 % 101) / 101.0f;
            memcpy(&g.x16[i], (char *)&g.x[i] + 2, 2);
        }
        for (int64_t i = 0; i < nw; i++) {
            g.w[i] = (i * 53 % 103) / 103.0f;
            memcpy(&g.w16[i], (char *)&g.w[i] + 2, 2);
        }
        double flops = 2.0 * g.tokens * g.rows * g.cols;
        printf("%4d x %4d x %4d:", g.tokens, g.rows, g.cols);
        printf(" openblas f32 %.0f", flops / best_of(openblas_f32, &g) * 1e-9);
        printf(" dnnl_sgemm %.0f", flops / best_of(onednn_sgemm, &g) * 1e-9);
        prepare_matmul(&g, engine, dnnl_f32, g.x, g.w);
        printf(" %.0f", flops / best_of(onednn_matmul, &g) * 1e-9);
        double created = omp_get_wtime();
        prepare_matmul(&g, engine, dnnl_bf16, g.x16, g.w16);
        created = omp_get_wtime() - created;
        printf(" %.0f GFLOP/s, made in %.1f ms\n", flops / best_of(onednn_matmul, &g) * 1e-9,
               created * 1e3);
        free(g.x), free(g.w), free(g.y), free(g.x16), free(g.w16);
    }
    return 0;
}
