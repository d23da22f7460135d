/* What this processor can do, how much of it to use, and the thread count. */
#ifndef LSA_CPU_H
#define LSA_CPU_H
#include <stdint.h>

/* Code paths, each including the ones before it. */
enum {
    LSA_CPU_GENERIC = 0,
    LSA_CPU_AVX2 = 1,       /* AVX2, FMA, F16C */
    LSA_CPU_AVX512 = 2,     /* AVX-512 F, BW, DQ, VL, CD */
    LSA_CPU_AVX512_BF16 = 3 /* AVX-512 BF16, VBMI, VNNI */
};

/* The path kernels take now: the best one that the processor has, unless limited. */
int lsa_cpu_level(void);

/* The best path that this processor has. */
int lsa_cpu_best(void);

/* Takes at most this path from now on, in the whole process: tests prove every path with it.
 * Levels above lsa_cpu_best() mean the best. */
void lsa_cpu_limit(int level);

/* "generic", "avx2", "avx512", "avx512_bf16" */
const char *lsa_cpu_level_name(int level);

/* Threads that parallel kernels may use: the processors this process may run on, unless set; 1 within a team of threads.
 * `n` < 1 restores the default. */
int lsa_threads(void);
void lsa_threads_set(int n);

/* How many threads are worth waking for `work` units of roughly one nanosecond: 1 for small work. */
int lsa_threads_for(int64_t work);

#endif
