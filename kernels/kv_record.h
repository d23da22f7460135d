/* The records in which compressed entries and index keys are kept. */
#ifndef LSA_KERNELS_KV_RECORD_H
#define LSA_KERNELS_KV_RECORD_H
#include <stdint.h>

enum { LSA_KV_F32 = 0, LSA_KV_BF16 = 1, LSA_KV_FP8 = 2 };

/* Attention KV of one entry, `dim` values, the trailing rope_dim of them rotated.
 *   f32, bf16: the values in order.
 *   fp8: the dim - rope_dim NoPE values as f8_e4m3, in tiles of 64 (the last may be short), then the rope
 *        values as bf16, then one e8m0 scale byte a tile, padded with zero bytes to a multiple of 8.
 *        Tile scale: 2^ceil(log2(max(amax, 1e-4) / 448)); stored value = e4m3(x / scale).
 *        A tile that has a NaN or an infinity is stored as NaN (bytes 0x7f, scale 0xff).
 * V4-Flash (512, 64): 448 + 128 + 7 + 1 = 584 bytes. Unknown formats give 0. */
int64_t lsa_kv_record_bytes(int32_t format, int64_t dim, int64_t rope_dim);

/* Where the records of one layer lie: record i is at
 * blocks[i >> block_shift] + (i & (2^block_shift - 1)) * stride + offset. */
typedef struct lsa_records {
    uint8_t *const *blocks;
    int64_t stride, offset;
    int32_t block_shift;
    int32_t format; /* LSA_KV_F32, LSA_KV_BF16, LSA_KV_FP8 */
} lsa_records;

/* out: n records, `out_stride` bytes apart (at least a record's bytes; those between are left alone);
 * in: [n, dim] contiguous f32. */
typedef int lsa_kv_encode_fn(void *out, const float *in, int64_t n, int64_t dim, int64_t rope_dim,
                             int64_t out_stride, int32_t format, void *stream);
lsa_kv_encode_fn lsa_kv_encode_cpu, lsa_kv_encode_cuda;

/* out: [n, dim] f32; in: n records, `in_stride` bytes apart. */
typedef int lsa_kv_decode_fn(float *out, const void *in, int64_t n, int64_t dim, int64_t rope_dim,
                             int64_t in_stride, int32_t format, void *stream);
lsa_kv_decode_fn lsa_kv_decode_cpu, lsa_kv_decode_cuda;

/* Index key of one chunk, `dim` values.
 *   f32, bf16: the values in order, not rotated.
 *   fp8: Hadamard-rotated, f8_e4m3, then one f32 scale max(amax, 1e-4) / 448 (amax after the rotation):
 *        dim + 4 bytes, 132 at dim 128. LSA_ESHAPE unless dim is a power of two, at most 4096.
 *        A key with a NaN or an infinity is stored as NaN, all of it (bytes 0x7f, a NaN scale). */
int64_t lsa_index_key_bytes(int32_t format, int64_t dim);

typedef int lsa_index_encode_fn(void *out, const float *in, int64_t n, int64_t dim,
                                int64_t out_stride, int32_t format, void *stream);
lsa_index_encode_fn lsa_index_encode_cpu, lsa_index_encode_cuda;

/* Gives the stored values, rotated as they are (fp8): a score needs the query rotated too. */
typedef int lsa_index_decode_fn(float *out, const void *in, int64_t n, int64_t dim,
                                int64_t in_stride, int32_t format, void *stream);
lsa_index_decode_fn lsa_index_decode_cpu, lsa_index_decode_cuda;

/* The arguments, as all of them check them. */
int lsa_kv_check(const char *op, int64_t n, int64_t dim, int64_t rope_dim, int64_t stride,
                 int32_t format);
int lsa_index_key_check(const char *op, int64_t n, int64_t dim, int64_t stride, int32_t format);

#endif
