/* Work that several threads share: a pool of them, which starts with the first call that wants it and lives as long as the process. */
#ifndef LSA_PARALLEL_H
#define LSA_PARALLEL_H
#include <stdint.h>

/* Does the parts from .. to - 1 of a call. `thread` is who does it, 0 .. threads - 1: for memory that each has of its own. */
typedef void lsa_parts_fn(void *context, int64_t from, int64_t to, int thread);

/* Has `work` do the parts 0 .. n - 1, each once, by at most `threads` threads, of which the caller is number 0; returns when all
 * are done. Whoever is free takes the next piece of the parts, so that a thread that comes late, or not at all, delays nobody.
 * Where `threads` is 1, within a call's work, and while another thread's call is under way, the caller does all of it at once. */
void lsa_parallel(int threads, int64_t n, lsa_parts_fn *work, void *context);

/* Whether this thread is doing a call's work. */
int lsa_in_parallel(void);

#endif
