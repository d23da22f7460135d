/* Owns the path of several tokens and small numbers: a tile of the weight is decoded once, into the cache, and multiplied by all tokens
 * there. */
#include "kernels/linear_tiles.h"

#include <stddef.h>
#include <string.h>

#include "core/base/cpu.h"
#include "core/base/parallel.h"

enum {
    TOKENS = 96, /* that a decoded tile serves */
    /* Rows that go through a stretch of columns before the next, so that many tokens' x is read seldom. */
    GROUP_ROWS = 96,
    KEPT_X = 256 << 10, /* bytes of x that a cache keeps: then a tile goes through all columns */
    ROWS_AT_ONCE = 4,   /* that are decoded side by side into memory */
    NUMBERS_PER_NS = 16,
    PREPARED_PER_NS = 2
};

static int is_small(const lsa_weight *w)
{
    return w->dtype == LSA_F8_E4M3 || w->dtype == LSA_F4_E2M1;
}

/* Whole units, each of which has one scale, or two of halves. */
static int is_regular(const lsa_weight *w)
{
    if (!is_small(w) || w->cols % LSA_LINEAR_UNIT || w->cols == 0) return 0;
    if (!w->scale || w->block_cols >= w->cols) return 1;
    return w->block_cols % (LSA_LINEAR_UNIT / 2) == 0;
}

const lsa_linear_tiles *lsa_linear_tiles_for(const lsa_weight *w)
{
    if (!is_regular(w)) return NULL;
#if defined(__x86_64__)
    if (lsa_cpu_level() == LSA_CPU_AVX2) return &lsa_linear_tiles_avx2; /* AVX-512 has other ways */
#endif
    return NULL;
}

int lsa_linear_tiles_suit(const lsa_linear_tiles *tiles, const lsa_weight *w, int64_t tokens)
{
    return tokens >= (w->dtype == LSA_F4_E2M1 ? tiles->least_f4 : tiles->least_f8) &&
           tokens <= tiles->most;
}

/* f32 has room for numbers times powers of two, which bf16 has, too. */
static int rounds(const lsa_weight *w, int32_t compute)
{
    return compute == LSA_COMPUTE_BF16 && w->scale && w->scale_dtype == LSA_F32;
}

void lsa_linear_tiles_decode(const lsa_linear_tiles *tiles, void *out, const lsa_weight *w,
                             int64_t row, int64_t rows, int32_t compute)
{
    const int64_t step = w->cols * (int64_t)sizeof(float);
    for (int64_t r = 0; r < rows; r += ROWS_AT_ONCE)
        tiles->decode((uint8_t *)out + r * step, step, w, row + r,
                      rows - r < ROWS_AT_ONCE ? rows - r : ROWS_AT_ONCE, 0,
                      w->cols / LSA_LINEAR_UNIT, rounds(w, compute));
}

static int64_t padded(int64_t tokens)
{
    return (tokens + LSA_TILE_TOKENS - 1) / LSA_TILE_TOKENS * LSA_TILE_TOKENS;
}

int64_t lsa_linear_tiles_workspace(const lsa_weight *w, int64_t tokens)
{
    if (!is_regular(w)) return 0;
    if (tokens > TOKENS) tokens = TOKENS;
    return padded(tokens) * w->cols * (int64_t)sizeof(float);
}

typedef struct tiled_call {
    const lsa_linear_tiles *tiles;
    const lsa_linear_call *call;
    uint8_t *
        x; /* by stretches of a tile's columns, in one by fours of tokens, and of those unit by unit */
    int64_t units, unit_bytes, tokens; /* of a row; of x; padded */
} tiled_call;

/* Where four tokens' x of a stretch begins. */
static uint8_t *x_at(const tiled_call *c, int64_t unit, int64_t units, int64_t token)
{
    return c->x + (unit * c->tokens + units * token) * c->unit_bytes;
}

static int64_t stretch_at(const tiled_call *c, int64_t unit)
{
    return c->units - unit < LSA_TILE_UNITS ? c->units - unit : LSA_TILE_UNITS;
}

static void prepare_fours(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const tiled_call *c = context;
    const lsa_linear_call *call = c->call;
    const int64_t step = LSA_TILE_TOKENS * c->unit_bytes;
    for (int64_t unit = 0, n; unit < c->units; unit += n) {
        n = stretch_at(c, unit);
        for (int64_t t = LSA_TILE_TOKENS * from; t < LSA_TILE_TOKENS * to; t++) {
            uint8_t *out = x_at(c, unit, n, t / LSA_TILE_TOKENS * LSA_TILE_TOKENS) +
                           t % LSA_TILE_TOKENS * c->unit_bytes;
            if (t < call->tokens)
                lsa_linear_prepare(out, call->x + t * call->x_stride + unit * LSA_LINEAR_UNIT,
                                   n * LSA_LINEAR_UNIT, LSA_LINEAR_X_F32,
                                   call->compute == LSA_COMPUTE_BF16, step);
            else
                for (int64_t u = 0; u < n; u++) memset(out + u * step, 0, (size_t)c->unit_bytes);
        }
    }
}

/* One stretch of a group's rows: row .. row + rows - 1. */
static void add_stretch(const tiled_call *c, float *sums, void *tile, int64_t row, int64_t rows,
                        int64_t unit)
{
    const lsa_linear_tiles *t = c->tiles;
    const lsa_linear_call *call = c->call;
    const int64_t units = stretch_at(c, unit), row_bytes = LSA_TILE_BYTES / t->rows;
    for (int64_t r = 0; r < rows; r += t->rows) {
        int64_t n = rows - r < t->rows ? rows - r : t->rows;
        t->decode(tile, row_bytes, call->w, call->row_from + row + r, n, unit, units,
                  rounds(call->w, call->compute));
        for (int64_t token = 0; token < c->tokens; token += LSA_TILE_TOKENS)
            for (int64_t i = 0; i < n; i += t->rows_at_once)
                t->multiply(sums + (r + i) * c->tokens + token, c->tokens,
                            (const uint8_t *)tile + i * row_bytes, x_at(c, unit, units, token),
                            units);
    }
}

/* Parts are tiles' rows. What multiply takes of a last tile beyond its rows is of another tile, and is dropped. */
static void multiply_tiles(void *context, int64_t from, int64_t to, int thread)
{
    (void)thread;
    const tiled_call *c = context;
    const lsa_linear_call *call = c->call;
    const int64_t tile_rows = c->tiles->rows;
    const int64_t end = to * tile_rows < call->rows ? to * tile_rows : call->rows;
    const int64_t group = c->units * c->unit_bytes * c->tokens > KEPT_X ? GROUP_ROWS : tile_rows;
    uint8_t tile[LSA_TILE_BYTES] __attribute__((aligned(64)));
    float sums[GROUP_ROWS * TOKENS] __attribute__((aligned(64)));
    memset(tile, 0, sizeof tile);
    for (int64_t row = from * tile_rows, rows; row < end; row += rows) {
        rows = end - row < group ? end - row : group;
        memset(sums, 0, sizeof sums);
        for (int64_t unit = 0; unit < c->units; unit += LSA_TILE_UNITS)
            add_stretch(c, sums, tile, row, rows, unit);
        for (int64_t t = 0; t < call->tokens; t++)
            for (int64_t r = 0; r < rows; r++)
                call->y[t * call->y_stride + row + r] = sums[r * c->tokens + t];
    }
}

static void multiply_some(const lsa_linear_tiles *tiles, const lsa_linear_call *call,
                          void *workspace)
{
    const lsa_weight *w = call->w;
    tiled_call c = {tiles,
                    call,
                    workspace,
                    w->cols / LSA_LINEAR_UNIT,
                    LSA_LINEAR_UNIT * (int64_t)sizeof(float),
                    padded(call->tokens)};
    lsa_parallel(lsa_threads_for(c.tokens * w->cols / PREPARED_PER_NS), c.tokens / LSA_TILE_TOKENS,
                 prepare_fours, &c);
    lsa_parallel(lsa_threads_for(call->rows * w->cols / NUMBERS_PER_NS * call->tokens),
                 (call->rows + tiles->rows - 1) / tiles->rows, multiply_tiles, &c);
}

void lsa_linear_by_tiles(const lsa_linear_tiles *tiles, const lsa_linear_call *call,
                         void *workspace)
{
    lsa_linear_call part = *call;
    for (int64_t t = 0; t < call->tokens; t += TOKENS) {
        part.x = call->x + t * call->x_stride;
        part.y = call->y + t * call->y_stride;
        part.tokens = call->tokens - t < TOKENS ? call->tokens - t : TOKENS;
        multiply_some(tiles, &part, workspace);
    }
}
