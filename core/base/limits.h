/* What the system lets this process have: its control group's share of the processors, and the memory that is left. */
#ifndef LSA_LIMITS_H
#define LSA_LIMITS_H
#include <stdint.h>

/* Both read the files of /proc and /sys under `root`: "" for the machine's own. A process is bound by its control group and
 * by all those that this one is in, of either version. */

/* Processors that the quota is worth, rounded up; 0 without a quota. */
int64_t lsa_limits_processors(const char *root);

/* Bytes that can still be had without taking any from others, or INT64_MAX where the system does not say. */
int64_t lsa_limits_memory(const char *root);

#endif
