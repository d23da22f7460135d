/* Owns the pool of threads and how a call's pieces get to them.
 *
 * A call is published under a number. What is left of its pieces is one counter that carries the number, so that a thread that
 * wakes late finds nothing to take, and the caller never waits for a thread that has not begun. Between calls a thread looks for
 * the next one for a while, since a pass makes hundreds of them a millisecond, and then sleeps. Where other programs want the
 * processors, a thread can lose its own in the middle of a piece; after a call that waited for such a piece, calls stay with
 * their caller for a while. A thread that was on its processor all along has but had a longer piece than others. */
#define _GNU_SOURCE
#include "core/base/parallel.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "core/base/clock.h"

enum {
    PIECES = 16,         /* of a thread's share: what is left to do at the end is small */
    MOST_THREADS = 1024, /* of the pool */
    STACK_BYTES = 4 << 20,
    LOOKS = 32,      /* between two looks at the clock */
    LOOK_NS = 50000, /* a thread looks for the next call before it sleeps */
    WAIT_NS = 20000, /* a caller waits for the last piece before it sleeps */
    LATE_NS =
        200000, /* a piece that takes so long, and half as long as all others, may have lost its processor */
    LEAST_ALONE_NS = 1000000,
    MOST_ALONE_NS = 64000000
};

/* The call under way. They change when nothing is left of the last one: who reads two calls' fields takes no piece. */
static _Atomic(lsa_parts_fn *) work;
static _Atomic(void *) context;
static _Atomic int64_t parts;
static atomic_uint pieces;
static atomic_int team;

static atomic_uint number;         /* of the call: a futex */
static atomic_uint_least64_t left; /* number << 32 | pieces that nobody has taken */
static atomic_uint done;           /* pieces: a futex */
static atomic_int_least64_t
    lost; /* ns that the pool's threads were off their processors in the middle of pieces, the most of all */
static atomic_int sleeping; /* threads of the pool */
static atomic_int caller_sleeps;

static pthread_mutex_t owner =
    PTHREAD_MUTEX_INITIALIZER; /* who makes a call; guards what follows */
static int started;            /* threads of the pool */
static int64_t alone_until, alone_ns;

static _Thread_local int inside;

int lsa_in_parallel(void) { return inside; }

static void futex_wait(atomic_uint *word, unsigned value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int threads)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Looks until `word` is no longer `value`, for at most `ns`; whether it changed. */
static int changes(const atomic_uint *word, unsigned value, int64_t ns)
{
    int64_t start = 0;
    for (;;) {
        for (int i = 0; i < LOOKS; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != value) return 1;
            relax();
        }
        int64_t now = lsa_clock_ns();
        if (!start) start = now;
        if (now - start >= ns) return 0;
    }
}

/* Takes a piece of call `call`: how many there were before; 0 where there is none. */
static unsigned take(unsigned call)
{
    uint64_t seen = atomic_load_explicit(&left, memory_order_acquire);
    do {
        if ((unsigned)(seen >> 32) != call || !(unsigned)seen) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&left, &seen, seen - 1, memory_order_acq_rel,
                                                    memory_order_acquire));
    return (unsigned)seen;
}

/* This thread's own time. */
static int64_t processor_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Tells what this thread lost of its processor since `start`, when it had had `own` ns of it. */
static void tell_lost(int64_t start, int64_t own)
{
    int64_t off = lsa_clock_ns() - start - (processor_ns() - own);
    int64_t most = atomic_load(&lost);
    while (off > most && !atomic_compare_exchange_weak(&lost, &most, off)) continue;
}

/* Takes part in call `call` until all its pieces are taken. A thread of the pool looks at the clocks where a piece took long. */
static void take_part(unsigned call, int thread)
{
    lsa_parts_fn *f = atomic_load_explicit(&work, memory_order_relaxed);
    void *with = atomic_load_explicit(&context, memory_order_relaxed);
    int64_t n = atomic_load_explicit(&parts, memory_order_relaxed);
    unsigned all = atomic_load_explicit(&pieces, memory_order_relaxed);
    if (thread >= atomic_load_explicit(&team, memory_order_relaxed)) return;
    int64_t start = thread ? lsa_clock_ns() : 0, own = thread ? processor_ns() : 0, began = start;
    for (unsigned before; (before = take(call));) {
        int64_t piece = all - before;
        f(with, n / all * piece + n % all * piece / all,
          n / all * (piece + 1) + n % all * (piece + 1) / all, thread);
        if (thread) {
            int64_t now = lsa_clock_ns();
            if (now - began > LATE_NS) tell_lost(start, own);
            began = now;
        }
        if (atomic_fetch_add(&done, 1) + 1 == all && atomic_load(&caller_sleeps))
            futex_wake(&done, 1);
    }
}

static void *serve(void *thread)
{
    unsigned seen = 0;
    inside = 1;
    for (;;) {
        if (!changes(&number, seen, LOOK_NS)) {
            atomic_fetch_add(&sleeping, 1);
            while (atomic_load(&number) == seen) futex_wait(&number, seen);
            atomic_fetch_sub(&sleeping, 1);
        }
        seen = atomic_load(&number);
        take_part(seen, (int)(intptr_t)thread);
    }
    return NULL;
}

/* Starts what `threads` lack. Where the system has no more, there are fewer. */
static void start(int threads)
{
    static const int own[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
    sigset_t mask,
        before; /* but for its own faults, a thread of the pool leaves signals to the program's threads */
    sigfillset(&mask);
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sigdelset(&mask, own[i]);
    pthread_sigmask(SIG_SETMASK, &mask, &before);
    pthread_attr_t
        attributes; /* kernels have tiles on their stacks, whatever the shell's limit is */
    int known = !pthread_attr_init(&attributes);
    if (known) pthread_attr_setstacksize(&attributes, STACK_BYTES);
    while (started < threads - 1 && started < MOST_THREADS) {
        pthread_t thread;
        if (pthread_create(&thread, known ? &attributes : NULL, serve,
                           (void *)(intptr_t)(started + 1)))
            break;
        pthread_detach(thread);
        started++;
    }
    if (known) pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void wait_for_rest(unsigned all)
{
    for (unsigned seen; (seen = atomic_load(&done)) != all;) {
        if (changes(&done, seen, WAIT_NS)) continue;
        atomic_store(&caller_sleeps, 1);
        if (atomic_load(&done) == seen) futex_wait(&done, seen);
        atomic_store(&caller_sleeps, 0);
    }
}

/* After a call that began at `start`, took its last piece at `last`, and is done now. */
static void judge(int64_t began, int64_t last, int64_t now)
{
    if (now - last > LATE_NS && now - last > (last - began) / 2 &&
        atomic_load(&lost) > (now - last) / 2) {
        alone_ns = alone_ns ? 2 * alone_ns : LEAST_ALONE_NS;
        if (alone_ns > MOST_ALONE_NS) alone_ns = MOST_ALONE_NS;
        alone_until = now + alone_ns;
    } else if (now - alone_until > alone_ns) {
        alone_ns = 0;
    }
}

static void share_out(int threads, int64_t n, lsa_parts_fn *f, void *with, int64_t began)
{
    unsigned all = n < PIECES * threads ? (unsigned)n : (unsigned)(PIECES * threads);
    unsigned call = atomic_load(&number) + 1;
    atomic_store_explicit(&work, f, memory_order_relaxed);
    atomic_store_explicit(&context, with, memory_order_relaxed);
    atomic_store_explicit(&parts, n, memory_order_relaxed);
    atomic_store_explicit(&pieces, all, memory_order_relaxed);
    atomic_store_explicit(&team, threads, memory_order_relaxed);
    atomic_store_explicit(&done, 0, memory_order_relaxed);
    atomic_store_explicit(&lost, 0, memory_order_relaxed);
    atomic_store_explicit(&left, (uint64_t)call << 32 | all, memory_order_release);
    atomic_store(&number, call);
    if (atomic_load(&sleeping)) futex_wake(&number, INT_MAX);
    inside = 1;
    take_part(call, 0);
    inside = 0;
    if (atomic_load_explicit(&done, memory_order_acquire) == all) return;
    int64_t last = lsa_clock_ns();
    wait_for_rest(all);
    judge(began, last, lsa_clock_ns());
}

void lsa_parallel(int threads, int64_t n, lsa_parts_fn *f, void *with)
{
    if (n < 1) return;
    if (threads > n) threads = (int)n;
    if (threads > 1 && !inside && !pthread_mutex_trylock(&owner)) {
        int64_t now = lsa_clock_ns();
        int alone = alone_ns && now < alone_until;
        if (!alone) {
            start(threads);
            share_out(threads, n, f, with, now);
        }
        pthread_mutex_unlock(&owner);
        if (!alone) return;
    }
    f(with, 0, n, 0);
}
