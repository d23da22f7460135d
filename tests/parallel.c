/* For parallel_spec.lua: work that counts who does it. */
#include "core/base/parallel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_THREADS = 64 };

typedef struct counted {
    atomic_int *times;
    atomic_int at_work[MOST_THREADS], together, most_together, wrong;
    int threads, spin, nested;
} counted;

static void count_one(void *context, int64_t from, int64_t to, int thread)
{
    atomic_int *times = context;
    for (int64_t i = from; i < to; i++) times[i]++;
    if (thread != 0) times[from] += 1000; /* a call within a call has one thread */
}

static void count(void *context, int64_t from, int64_t to, int thread)
{
    counted *c = context;
    if (from >= to || thread < 0 || thread >= c->threads) {
        c->wrong++;
        return;
    }
    if (c->threads > 1 && lsa_in_parallel() && c->at_work[thread]++) c->wrong++;
    int together = ++c->together, most = c->most_together;
    while (together > most && !atomic_compare_exchange_weak(&c->most_together, &most, together)) {
    }
    for (int64_t i = from; i < to; i++) {
        for (volatile int j = 0; j < c->spin; j++) {
        }
        if (c->nested)
            lsa_parallel(c->threads, 1, count_one, c->times + i);
        else
            c->times[i]++;
    }
    c->together--;
    if (c->threads > 1 && lsa_in_parallel()) c->at_work[thread]--;
}

/* Faults of a call: parts that were not done once, thread numbers that are none or are two threads'. */
int64_t parallel_faults(int threads, int64_t n, int spin, int nested, int *most_together)
{
    counted *c = calloc(1, sizeof *c);
    c->times = calloc((size_t)n + 1, sizeof *c->times);
    c->threads = threads, c->spin = spin, c->nested = nested;
    lsa_parallel(threads, n, count, c);
    int64_t faults = c->wrong + (lsa_in_parallel() != 0);
    for (int64_t i = 0; i <= n; i++) faults += c->times[i] != (i < n);
    if (c->most_together > *most_together) *most_together = c->most_together;
    free(c->times);
    free(c);
    return faults;
}

static void *call_often(void *calls)
{
    int64_t faults = 0;
    int together = 0;
    for (int i = 0; i < *(int *)calls; i++)
        faults += parallel_faults(2, i % 97, 0, i % 3 == 0, &together);
    return (void *)(intptr_t)faults;
}

/* Faults of several threads that make calls at once. */
int64_t parallel_callers(int callers, int calls)
{
    pthread_t threads[MOST_THREADS];
    int64_t faults = 0;
    for (int i = 0; i < callers; i++)
        faults += pthread_create(&threads[i], NULL, call_often, &calls);
    for (int i = 0; i < callers; i++) {
        void *of_one;
        pthread_join(threads[i], &of_one);
        faults += (intptr_t)of_one;
    }
    return faults;
}

/* The exit status of a child process, which has none of the pool's threads, after calls of its own. */
int parallel_in_child(void)
{
    int status = -1, together = 0;
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(parallel_faults(3, 1000, 10, 0, &together) != 0 || together != 1);
    }
    waitpid(child, &status, 0);
    return status;
}

typedef struct uneven {
    atomic_int begun, helped;
} uneven;

static int64_t time_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* The pool's thread takes a millisecond of its processor, the caller next to nothing as soon as that has begun. */
static void work_unevenly(void *context, int64_t from, int64_t to, int thread)
{
    uneven *u = context;
    (void)from, (void)to;
    int64_t start = time_ns(CLOCK_MONOTONIC), own = time_ns(CLOCK_THREAD_CPUTIME_ID);
    if (thread) {
        u->begun = 1;
        while (time_ns(CLOCK_THREAD_CPUTIME_ID) - own < 1000000) continue;
    } else {
        while (!u->begun && time_ns(CLOCK_MONOTONIC) - start < 300000) continue;
    }
}

static void help(void *context, int64_t from, int64_t to, int thread)
{
    uneven *u = context;
    int64_t start = time_ns(CLOCK_MONOTONIC);
    if (thread) u->helped = 1;
    while (time_ns(CLOCK_MONOTONIC) - start < 20000 * (to - from)) continue;
}

/* How often others took this thread's processor. */
static long times_lost(void)
{
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nivcsw;
}

/* Whether, of so many tries, there was a call that two threads did less than 0.5 ms after one whose caller waited for a long piece. */
int parallel_after_uneven(int tries)
{
    while (tries--) {
        uneven u = {0};
        long before = times_lost();
        lsa_parallel(2, 2, work_unevenly, &u);
        int64_t end = time_ns(CLOCK_MONOTONIC);
        int waited = u.begun && times_lost() == before;
        lsa_parallel(2, 64, help, &u);
        if (waited && u.helped && times_lost() == before &&
            time_ns(CLOCK_MONOTONIC) - end < 1000000)
            return 1;
    }
    return 0;
}
