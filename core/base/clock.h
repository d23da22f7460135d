/* Time for measuring. */
#ifndef LSA_CLOCK_H
#define LSA_CLOCK_H
#include <stdint.h>

/* Nanoseconds since some fixed moment; never goes back. */
int64_t lsa_clock_ns(void);

#endif
