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

/* Where memory lies: host memory; or what host and GPU have at one address, on the GPU or pinned in the host (core/base/device.h,
 * core/base/arenas.h). */
enum {
    LSA_MEMORY_HOST = 0,
    LSA_MEMORY_GPU = 1,
    LSA_MEMORY_BOTH = 2,
    LSA_MEMORY_READ = 3 /* near both, which read it; written at the start alone */
};

/* Zeroed memory of a kind, freed as the same kind, or as the other one of the GPU's. */
void *lsa_alloc_in(int32_t kind, int64_t bytes);
void lsa_free_in(int32_t kind, void *block);

/* Copies between memory of a kind and the host's, either way, or within: a GPU's by the GPU, since the host's hands would move its
 * pages to and fro. */
int lsa_copy_in(int32_t kind, void *to, const void *from, int64_t bytes);

/* Zeroed memory in pages of its own, which go back to the operating system when they are freed: for what is large and is
 * let go of to save memory. `bytes` is the same at both ends. */
void *lsa_pages_alloc(int64_t bytes);
void lsa_pages_free(void *pages, int64_t bytes);

/* A copy of a NUL-terminated string. */
char *lsa_strdup(const char *text);

/* Returns memory that was freed to the operating system: what the allocator holds on to, and blocks kept for the next who asks. */
void lsa_memory_give_back(void);

/* Bytes now allocated. */
int64_t lsa_memory_in_use(void);

/* Fault injection: the n-th allocation from now fails (0: the next one), once. -1 turns it off. */
void lsa_memory_fail_after(int64_t n);

#endif
