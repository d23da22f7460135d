/* Owns every heap allocation of the library: aligned, counted, and failing on demand. */
#include "core/memory.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"

#ifdef LSA_SYSTEM_MALLOC /* sanitizers want to see the C library's own allocator */
#include <malloc.h>
#define raw_alloc(bytes) aligned_alloc(ALIGN, ((bytes) + ALIGN - 1) / ALIGN * ALIGN)
#define raw_free free
#define raw_size malloc_usable_size
#else
#include <mimalloc.h>
#define raw_alloc(bytes) mi_malloc_aligned((bytes), ALIGN)
#define raw_free mi_free
#define raw_size mi_usable_size
#endif

enum { ALIGN = 64 };

static atomic_llong in_use;
static atomic_llong fail_countdown = -1;

static int fault(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) < 0) return 0;
    return atomic_fetch_sub(&fail_countdown, 1) == 0;
}

void *lsa_alloc(int64_t bytes)
{
    void *block = NULL;
    if (bytes >= 0 && bytes < INT64_MAX / 2 && !fault())
        block = raw_alloc((size_t)(bytes ? bytes : 1));
    if (!block) {
        lsa_fail(LSA_ENOMEM, "out of memory: %lld bytes could not be allocated", (long long)bytes);
        return NULL;
    }
    atomic_fetch_add_explicit(&in_use, (long long)raw_size(block), memory_order_relaxed);
    return block;
}

void *lsa_alloc_zero(int64_t bytes)
{
    void *block = lsa_alloc(bytes);
    if (block) memset(block, 0, (size_t)(bytes > 0 ? bytes : 0));
    return block;
}

void *lsa_realloc(void *block, int64_t bytes)
{
    void *grown = lsa_alloc(bytes);
    if (!grown || !block) return grown;
    size_t old = raw_size(block);
    memcpy(grown, block, old < (size_t)bytes ? old : (size_t)bytes);
    lsa_free(block);
    return grown;
}

void lsa_free(void *block)
{
    if (!block) return;
    atomic_fetch_sub_explicit(&in_use, (long long)raw_size(block), memory_order_relaxed);
    raw_free(block);
}

char *lsa_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = lsa_alloc((int64_t)bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

int64_t lsa_memory_in_use(void) { return atomic_load(&in_use); }

void lsa_memory_fail_after(int64_t n) { atomic_store(&fail_countdown, n); }
