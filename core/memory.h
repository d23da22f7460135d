/* The only door to the heap. Everything the library allocates comes from here, so that every
 * allocation can be counted and made to fail by a test. */
#ifndef LSA_MEMORY_H
#define LSA_MEMORY_H
#include <stdint.h>

/* `bytes` bytes on a 64-byte boundary (contents undefined), or NULL with a message that names the
 * size. Zero bytes give a valid pointer. lsa_alloc_zero clears them. */
void *lsa_alloc(int64_t bytes);
void *lsa_alloc_zero(int64_t bytes);

/* Grows or shrinks; on failure the old block is untouched and NULL is returned. */
void *lsa_realloc(void *block, int64_t bytes);

void lsa_free(void *block);

/* A copy of a NUL-terminated string. */
char *lsa_strdup(const char *text);

/* Bytes now allocated. */
int64_t lsa_memory_in_use(void);

/* Fault injection: the n-th allocation from now fails (0: the next one), once. -1 turns it off. */
void lsa_memory_fail_after(int64_t n);

#endif
