/* What this machine can do at most: work without any purpose, for a benchmark to time. */
#ifndef LSA_PEAKS_H
#define LSA_PEAKS_H
#include <stdint.h>

/* Multiply-adds in registers, `rounds` rounds in each of lsa_threads() threads; give the FLOPs
 * done. lsa_peak_bf16 sums products of bf16 pairs in f32 and gives 0 where the processor has no
 * such instruction. */
int64_t lsa_peak_f32(int64_t rounds);
int64_t lsa_peak_bf16(int64_t rounds);

/* Moves, or reads, `bytes` bytes with lsa_threads() threads. */
void lsa_peak_copy(void *to, const void *from, int64_t bytes);
void lsa_peak_read(const void *from, int64_t bytes);

/* Bytes of the last level of cache, 32 MiB where the system does not say. */
int64_t lsa_cache_bytes(void);

#endif
