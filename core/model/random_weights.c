/* Owns the random weights of models that have no checkpoint: which dtypes, and how large the numbers are. */
#include "core/model/random_weights.h"

#include <math.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/hash.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "kernels/table.h"

enum {
    PIECE = 1 << 20 /* numbers drawn at a time */
};

/* Root mean square of the sixteen values of e2m1. */
static const double FP4_RMS = 2.926;

static uint64_t seed_of(const lsa_random *r, const char *name)
{
    return lsa_hash(name, (int64_t)strlen(name), r->seed);
}

/* What the released checkpoint stores a weight in. */
static int32_t released_dtype(const char *name)
{
    static const struct {
        const char *part;
        int32_t dtype;
    } parts[] = {{"shared_experts", LSA_F8_E4M3},
                 {"experts.", LSA_I8},
                 {"hc_fn", LSA_F32},
                 {"hc.fn", LSA_F32},
                 {"indexer.q_b_proj", LSA_F8_E4M3},
                 {"compressor.", LSA_BF16},
                 {"mlp.gate.", LSA_BF16},
                 {"embed_tokens.", LSA_BF16},
                 {"lm_head.", LSA_BF16}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (strstr(name, parts[i].part)) return parts[i].dtype;
    return LSA_F8_E4M3;
}

static double deviation(int32_t rank, const int64_t *shape)
{
    return 1 / sqrt((double)shape[rank - 1]);
}

/* Normal numbers times `sigma`, as dtype. */
static int draw(lsa_tensor *t, double sigma, uint64_t seed)
{
    int64_t n = lsa_tensor_count(t), size = lsa_dtype_size(t->dtype);
    float *piece = lsa_alloc(PIECE * (int64_t)sizeof *piece);
    int rc = piece ? LSA_OK : LSA_ENOMEM;
    for (int64_t from = 0; !rc && from < n; from += PIECE) {
        int64_t count = n - from < PIECE ? n - from : PIECE;
        if (lsa_interrupted()) rc = lsa_fail(LSA_EINTR, "interrupted");
        if (!rc)
            rc = lsa_kernels_cpu.normal(piece, count, lsa_hash(&from, sizeof from, seed), NULL);
        for (int64_t i = 0; i < count; i++) piece[i] *= (float)sigma;
        if (!rc)
            rc = lsa_kernels_cpu.convert((char *)t->data + from * size, piece, count, t->dtype,
                                         LSA_F32, NULL);
    }
    lsa_free(piece);
    return rc;
}

/* Every bit of a byte at random: both values of packed fp4. */
static int draw_bytes(lsa_tensor *t, uint64_t seed)
{
    uint8_t *bytes = t->data;
    int64_t n = lsa_tensor_count(t);
    for (int64_t from = 0; from < n; from += (int64_t)sizeof seed) {
        if (from % PIECE == 0 && lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
        uint64_t word = lsa_hash(&from, sizeof from, seed);
        memcpy(bytes + from, &word, (size_t)(n - from < 8 ? n - from : 8));
    }
    return LSA_OK;
}

int lsa_random_weight(lsa_tensor **out, const lsa_random *r, const char *name, int32_t rank,
                      const int64_t *shape)
{
    int64_t stored[3];
    int32_t dtype = r->dtype == LSA_RANDOM_RELEASED ? released_dtype(name) : r->dtype;
    memcpy(stored, shape, (size_t)rank * sizeof *shape);
    if (dtype == LSA_I8 && shape[rank - 1] % 2) dtype = LSA_BF16;
    if (dtype == LSA_I8) stored[rank - 1] /= 2;
    LSA_TRY(lsa_tensor_empty(out, dtype, rank, stored));
    double sigma = dtype == LSA_F8_E4M3 ? 1 : deviation(rank, shape);
    int rc =
        dtype == LSA_I8 ? draw_bytes(*out, seed_of(r, name)) : draw(*out, sigma, seed_of(r, name));
    if (rc) lsa_tensor_free(*out);
    return rc;
}

int lsa_random_scale(lsa_tensor **out, const lsa_tensor *weight, int32_t rank, const int64_t *shape)
{
    int fp4 = weight->dtype == LSA_I8;
    int64_t grid[3], rows = fp4 ? 1 : 128, cols = fp4 ? 32 : 128;
    memcpy(grid, shape, (size_t)rank * sizeof *shape);
    grid[rank - 2] = (shape[rank - 2] + rows - 1) / rows;
    grid[rank - 1] = (shape[rank - 1] + cols - 1) / cols;
    LSA_TRY(lsa_tensor_empty(out, LSA_F8_E8M0, rank, grid));
    double sigma = deviation(rank, shape) / (fp4 ? FP4_RMS : 1);
    memset((*out)->data, (int)lround(log2(sigma)) + 127, (size_t)lsa_tensor_count(*out));
    return LSA_OK;
}

int lsa_random_vector(float *out, const lsa_random *r, const char *name, int64_t n)
{
    float middle = strstr(name, "norm") ? 1 : 0;
    LSA_TRY(lsa_kernels_cpu.normal(out, n, seed_of(r, name), NULL));
    for (int64_t i = 0; i < n; i++) out[i] = middle + 0.1F * out[i];
    return LSA_OK;
}

void lsa_random_experts(int32_t *table, const lsa_random *r, const char *name, int64_t tokens,
                        int64_t each, int64_t experts)
{
    uint64_t seed = seed_of(r, name);
    for (int64_t token = 0; token < tokens; token++) {
        int64_t first = (int64_t)(lsa_hash(&token, sizeof token, seed) % (uint64_t)experts);
        for (int64_t i = 0; i < each; i++)
            table[token * each + i] = (int32_t)((first + i) % experts);
    }
}
