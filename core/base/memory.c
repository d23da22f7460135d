/* Owns every heap allocation of the library: aligned, counted, and failing on demand. */
#define _DEFAULT_SOURCE
#include "core/base/memory.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/arenas.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/limits.h"

#ifdef LSA_SYSTEM_MALLOC /* sanitizers want to see the C library's own allocator */
#include <malloc.h>
#define raw_alloc(bytes) aligned_alloc(ALIGN, ((bytes) + ALIGN - 1) / ALIGN * ALIGN)
#define raw_free free
#define raw_size malloc_usable_size
#define raw_give_back() malloc_trim(0)
#else
#include <mimalloc.h>
#include <sys/mman.h>
#define raw_alloc(bytes) mi_malloc_aligned((bytes), ALIGN)
#define raw_free mi_free
#define raw_size mi_usable_size
#define raw_give_back() mi_collect(true)
#endif

enum { ALIGN = 64, LARGE = 64 << 20 };

/* Freed blocks that are likely to be wanted again soon: a tensor of scores each cycle, say. The
 * allocator would give such blocks back to the system at once, and a page fault for each 4 KB costs
 * more than most kernels do with them. New blocks displace the oldest. Sanitizers keep none, to see
 * their use after free. */
#ifdef LSA_SYSTEM_MALLOC
enum { KEPT_BLOCKS = 0 };
#else
enum { KEPT_BLOCKS = 128 };
#endif
static const size_t kept_least = 128 << 10, kept_most = 16 << 20, kept_in_all = 64 << 20;

static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static void *kept[KEPT_BLOCKS + 1]; /* oldest first */
static int kept_count;
static size_t kept_bytes;

static void *remove_kept(int at)
{
    void *block = kept[at];
    memmove(kept + at, kept + at + 1, (size_t)(--kept_count - at) * sizeof *kept);
    kept_bytes -= raw_size(block);
    return block;
}

/* The smallest kept block of at least `bytes`, not much larger, or NULL. */
static void *take_kept(size_t bytes)
{
    if (bytes < kept_least || bytes > kept_most) return NULL;
    size_t best = bytes + bytes / 4 + 1;
    int at = -1;
    pthread_mutex_lock(&kept_lock);
    for (int i = 0; i < kept_count; i++) {
        size_t size = raw_size(kept[i]);
        if (size < bytes || size >= best) continue;
        best = size;
        at = i;
    }
    void *block = at >= 0 ? remove_kept(at) : NULL;
    pthread_mutex_unlock(&kept_lock);
    return block;
}

static void free_or_keep(void *block)
{
    size_t size = raw_size(block);
    if (!KEPT_BLOCKS || size < kept_least || size > kept_most) {
        raw_free(block);
        return;
    }
    pthread_mutex_lock(&kept_lock);
    while (kept_count && (kept_count == KEPT_BLOCKS || kept_bytes + size > kept_in_all))
        raw_free(remove_kept(0));
    kept[kept_count++] = block;
    kept_bytes += size;
    pthread_mutex_unlock(&kept_lock);
}

static atomic_llong in_use;
static atomic_llong fail_countdown = -1;

static int fault(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) < 0) return 0;
    return atomic_fetch_sub(&fail_countdown, 1) == 0;
}

/* A block that the system grants, and that takes the machine's last memory when it is written, is refused. Looking takes as
 * long as a page fault or ten. */
static int too_large(int64_t bytes) { return bytes >= LARGE && bytes > lsa_limits_memory(""); }

void *lsa_alloc(int64_t bytes)
{
    void *block = NULL;
    if (too_large(bytes)) {
        lsa_fail(LSA_ENOMEM,
                 "out of memory: %lld bytes could not be allocated; the system has %lld",
                 (long long)bytes, (long long)lsa_limits_memory(""));
        return NULL;
    }
    if (bytes >= 0 && bytes < INT64_MAX / 2 && !fault()) {
        block = take_kept((size_t)bytes);
        if (!block) block = raw_alloc((size_t)(bytes ? bytes : 1));
    }
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
    free_or_keep(block);
}

void *lsa_alloc_in(int32_t kind, int64_t bytes)
{
    void *block = NULL;
    if (kind == LSA_MEMORY_HOST) return lsa_alloc_zero(bytes);
    if (fault()) {
        lsa_fail(LSA_ENOMEM, "out of memory: %lld bytes of the GPU could not be allocated",
                 (long long)bytes);
        return NULL;
    }
    if (kind != LSA_MEMORY_READ) return lsa_arena_alloc(kind, bytes);
    return lsa_device_alloc_shared(&block, bytes, 2) ? NULL : block;
}

void lsa_free_in(int32_t kind, void *block)
{
    if (kind == LSA_MEMORY_HOST)
        lsa_free(block);
    else if (block && !lsa_arena_free(block))
        lsa_device_free(block);
}

int lsa_copy_in(int32_t kind, void *to, const void *from, int64_t bytes)
{
    if (bytes < 1) return LSA_OK;
    if (kind == LSA_MEMORY_GPU) return lsa_device_copy(to, from, bytes);
    memcpy(to, from, (size_t)bytes);
    return LSA_OK;
}

#ifdef LSA_SYSTEM_MALLOC
void *lsa_pages_alloc(int64_t bytes) { return lsa_alloc_zero(bytes); }

void lsa_pages_free(void *pages, int64_t bytes)
{
    (void)bytes;
    lsa_free(pages);
}
#else
enum { HUGE = 1 << 19 };

void *lsa_pages_alloc(int64_t bytes)
{
    void *pages = MAP_FAILED;
    if (bytes > 0 && bytes < INT64_MAX / 2 && !too_large(bytes) && !fault())
        pages =
            mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) {
        lsa_fail(LSA_ENOMEM, "out of memory: %lld bytes could not be allocated", (long long)bytes);
        return NULL;
    }
    /* Records of a few pages each, anywhere: with small pages a fetch waits for the tables. */
    if (bytes >= HUGE) madvise(pages, (size_t)bytes, MADV_HUGEPAGE);
    atomic_fetch_add_explicit(&in_use, (long long)bytes, memory_order_relaxed);
    return pages;
}

void lsa_pages_free(void *pages, int64_t bytes)
{
    if (!pages) return;
    atomic_fetch_sub_explicit(&in_use, (long long)bytes, memory_order_relaxed);
    munmap(pages, (size_t)bytes);
}
#endif

char *lsa_strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = lsa_alloc((int64_t)bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

void lsa_memory_give_back(void)
{
    pthread_mutex_lock(&kept_lock);
    while (kept_count) raw_free(remove_kept(0));
    pthread_mutex_unlock(&kept_lock);
    raw_give_back();
}

int64_t lsa_memory_in_use(void) { return atomic_load(&in_use); }

void lsa_memory_fail_after(int64_t n) { atomic_store(&fail_countdown, n); }
