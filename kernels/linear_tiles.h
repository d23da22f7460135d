/* Private to linear*.c: tiles of a weight, decoded once for all tokens that they multiply. */
#ifndef LSA_LINEAR_TILES_H
#define LSA_LINEAR_TILES_H
#include "kernels/linear_private.h"

enum {
    LSA_TILE_UNITS = 8,        /* units of 64 columns across a tile */
    LSA_TILE_TOKENS = 4,       /* that a tile's rows multiply at once */
    LSA_TILE_BYTES = 12 << 10, /* leaves room for x in a cache of 32 KiB */
    LSA_TILE_MOST_ROWS = 12,   /* of any path */
    LSA_TILE_COLS = LSA_TILE_UNITS * LSA_LINEAR_UNIT
};

/* Writes units unit .. unit + units - 1 of rows row .. row + rows - 1 of fp8 or fp4, scaled, to out, whose rows are out_step bytes
 * apart; rounds products to bf16 where asked. At most LSA_TILE_MOST_ROWS rows. */
typedef void lsa_linear_decode_tile_fn(void *out, int64_t out_step, const lsa_weight *w,
                                       int64_t row, int64_t rows, int64_t unit, int64_t units,
                                       int round);

/* Adds the products of some rows of a tile, which has LSA_TILE_UNITS units a row, and four tokens to sums [rows][sums_step]. x: unit
 * by unit, and in a unit token by token. */
typedef void lsa_linear_multiply_tile_fn(float *sums, int64_t sums_step, const void *tile,
                                         const void *x, int64_t units);

/* What one kind of processor has; tiles and x are f32. */
typedef struct lsa_linear_tiles {
    int32_t rows, rows_at_once;       /* of a tile; that multiply takes */
    int32_t least_f8, least_f4, most; /* tokens for which nothing else is faster */
    lsa_linear_decode_tile_fn *decode;
    lsa_linear_multiply_tile_fn *multiply;
} lsa_linear_tiles;

extern const lsa_linear_tiles lsa_linear_tiles_avx2;

/* The way for this weight here; NULL where it has none. */
const lsa_linear_tiles *lsa_linear_tiles_for(const lsa_weight *w);

/* Whether it is the one for that many tokens. */
int lsa_linear_tiles_suit(const lsa_linear_tiles *tiles, const lsa_weight *w, int64_t tokens);

/* As decode, for any number of rows and the whole of them; rows are w->cols elements apart. */
void lsa_linear_tiles_decode(const lsa_linear_tiles *tiles, void *out, const lsa_weight *w,
                             int64_t row, int64_t rows, int32_t compute);

/* Any number of tokens; workspace: lsa_linear_tiles_workspace bytes. */
void lsa_linear_by_tiles(const lsa_linear_tiles *tiles, const lsa_linear_call *call,
                         void *workspace);
int64_t lsa_linear_tiles_workspace(const lsa_weight *w, int64_t tokens);

#endif
