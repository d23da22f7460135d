/* What this machine can do at most: work without any purpose, for a benchmark to time. */
#ifndef LSA_ROOFLINE_H
#define LSA_ROOFLINE_H
#include <stdint.h>

/* Multiply-adds in registers, `rounds` rounds in each of lsa_threads() threads; give the FLOPs
 * done. lsa_roofline_bf16 sums products of bf16 pairs in f32 and gives 0 where the processor has no
 * such instruction. */
int64_t lsa_roofline_f32(int64_t rounds);
int64_t lsa_roofline_bf16(int64_t rounds);

/* Moves, or reads, `bytes` bytes with as many threads as that is worth. past_caches: what is written goes straight to memory, where
 * `to` and `bytes` are whole cache lines. */
void lsa_roofline_copy(void *to, const void *from, int64_t bytes, int32_t past_caches);
void lsa_roofline_read(const void *from, int64_t bytes);

/* Reads and writes `bytes` / 8 words in place: each becomes its complement. data: 8-byte aligned. */
void lsa_roofline_update(void *data, int64_t bytes);

/* Bytes of the last level of cache, 32 MiB where the system does not say. */
int64_t lsa_cache_bytes(void);

#endif
