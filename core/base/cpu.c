/* Owns the choice of code path and of the thread count. */
#define _GNU_SOURCE
#include "core/base/cpu.h"

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#include "core/base/limits.h"
#include "core/base/parallel.h"

/* Waking a team costs some microseconds; below this much work for each thread, one does it sooner. */
enum { WORTH_A_THREAD = 10000, UNSET = -1 };

static atomic_int limit = LSA_CPU_AVX512_BF16;
static atomic_int best = UNSET;
static atomic_int threads_wanted = 0;
static atomic_int threads_default = 0;

static int detect(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("f16c"))
        return LSA_CPU_GENERIC;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512cd"))
        return LSA_CPU_AVX2;
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi") ||
        !__builtin_cpu_supports("avx512vnni"))
        return LSA_CPU_AVX512;
    return LSA_CPU_AVX512_BF16;
#else
    return LSA_CPU_GENERIC;
#endif
}

int lsa_cpu_best(void)
{
    int level = atomic_load_explicit(&best, memory_order_relaxed);
    if (level == UNSET) atomic_store(&best, level = detect());
    return level;
}

int lsa_cpu_level(void)
{
    int level = lsa_cpu_best(), most = atomic_load_explicit(&limit, memory_order_relaxed);
    return level < most ? level : most;
}

void lsa_cpu_limit(int level) { atomic_store(&limit, level); }

const char *lsa_cpu_level_name(int level)
{
    static const char *const names[] = {"generic", "avx2", "avx512", "avx512_bf16"};
    return level >= 0 && level <= LSA_CPU_AVX512_BF16 ? names[level] : "unknown";
}

int lsa_threads(void)
{
    if (lsa_in_parallel()) return 1;
    int wanted = atomic_load_explicit(&threads_wanted, memory_order_relaxed);
    if (wanted > 0) return wanted;
    int n = atomic_load_explicit(&threads_default, memory_order_relaxed);
    if (n == 0) {
        cpu_set_t set;
        n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        int64_t asked = omp_get_max_threads(), quota = lsa_limits_processors("");
        if (asked < n) n = (int)asked; /* OMP_NUM_THREADS */
        if (quota && quota < n) n = (int)quota;
        if (n < 1) n = 1;
        atomic_store(&threads_default, n);
    }
    return n;
}

void lsa_threads_set(int n) { atomic_store(&threads_wanted, n); }

int lsa_threads_for(int64_t work)
{
    int64_t useful = work / WORTH_A_THREAD;
    int most = lsa_threads();
    return useful < 1 ? 1 : useful < most ? (int)useful : most;
}
