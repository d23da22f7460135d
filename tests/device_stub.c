/* A CUDA library for machines without a GPU: its memory is the host's and its kernels are the CPU's, so that what stands around
 * kernels can be tested there. A graph runs once, while it is captured. A test sees what programs were launched with, and makes a call fail for good. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/device.h"
#include "core/base/error.h"
#include "kernels/table.h"

enum { MOST_ARGUMENTS = 16 };

lsa_kernels lsa_kernels_cuda;
int64_t stub_grid[3], stub_block[3], stub_shared, stub_arguments[MOST_ARGUMENTS];
int64_t stub_blocks;                   /* of memory that are not freed */
int64_t stub_blocks_on[LSA_MOST_GPUS]; /* the same of each GPU */
int64_t stub_copies;
int64_t stub_free = (int64_t)1 << 30; /* bytes, as it says */
int32_t stub_argument_count, stub_faulty, stub_device, stub_devices = 1;
static char unpinned[64];

static int gather(const lsa_records *to, const int32_t *slots, const lsa_records *from,
                  const int32_t *chunks, int64_t n, int64_t bytes, void *stream)
{
    if (lsa_device_fault()) return lsa_fail(LSA_EDEVICE, "gather: refused, as a test asked for");
    return lsa_kernels_cpu.gather(to, slots, from, chunks, n, bytes, stream);
}

__attribute__((constructor)) static void begin(void)
{
    lsa_kernels_cuda = lsa_kernels_cpu;
    lsa_kernels_cuda.device = LSA_CUDA;
    lsa_kernels_cuda.gather = gather;
    if (getenv("LSA_STUB_GPUS")) stub_devices = atoi(getenv("LSA_STUB_GPUS"));
}

int lsa_device_count_cuda(void) { return stub_devices; }

int lsa_device_use_cuda(int32_t device)
{
    stub_device = device;
    return LSA_OK;
}

int lsa_device_describe_cuda(int32_t device, char *name, int64_t bytes, int64_t *free_bytes,
                             int64_t *total_bytes)
{
    (void)device;
    if (name && bytes > 4) strcpy(name, "stub");
    if (free_bytes) *free_bytes = stub_free;
    if (total_bytes) *total_bytes = (int64_t)1 << 31;
    return LSA_OK;
}

int lsa_device_architecture_cuda(int32_t device, int32_t *major, int32_t *minor)
{
    (void)device;
    *major = 9;
    *minor = 0;
    return LSA_OK;
}

/* A block's head, before what the caller gets. All blocks are in a list: what a lost GPU had is its own, and no leak. */
enum { HEAD = 256 };
typedef struct block {
    struct block *next, *before;
    int32_t gpu;
} block;
static block blocks = {&blocks, &blocks, 0};
static pthread_mutex_t of_blocks = PTHREAD_MUTEX_INITIALIZER;

int lsa_device_alloc_cuda(void **out, int64_t bytes)
{
    if (bytes < 0 || bytes > (int64_t)1 << 30)
        return lsa_fail(LSA_ENOMEM, "device_alloc: %lld bytes: out of memory", (long long)bytes);
    block *b = aligned_alloc(HEAD, HEAD + ((size_t)bytes + HEAD) / HEAD * HEAD);
    *out = NULL;
    if (!b) return lsa_fail(LSA_ENOMEM, "device_alloc: out of memory");
    pthread_mutex_lock(&of_blocks);
    *b = (block){blocks.next, &blocks, lsa_device_current()};
    b->next->before = b->before->next = b;
    stub_blocks++;
    stub_blocks_on[b->gpu]++;
    pthread_mutex_unlock(&of_blocks);
    *out = (uint8_t *)b + HEAD;
    return LSA_OK;
}

int lsa_device_alloc_shared_cuda(void **out, int64_t bytes, int32_t in_host)
{
    if (in_host && lsa_device_fault())
        strcpy(unpinned, "pages could not be pinned (out of memory)");
    int rc = lsa_device_alloc_cuda(out, bytes);
    if (!rc) memset(*out, 0, (size_t)bytes);
    return rc;
}

const char *lsa_device_unpinned_cuda(void) { return unpinned; }

int lsa_device_free_cuda(void *there)
{
    block *b = (block *)((uint8_t *)there - HEAD);
    pthread_mutex_lock(&of_blocks);
    b->before->next = b->next;
    b->next->before = b->before;
    stub_blocks--;
    stub_blocks_on[b->gpu]--;
    pthread_mutex_unlock(&of_blocks);
    free(b);
    return LSA_OK;
}

int lsa_device_copy_cuda(void *to, const void *from, int64_t bytes)
{
    memcpy(to, from, (size_t)bytes);
    stub_copies++;
    return LSA_OK;
}

int lsa_device_clear_cuda(void *block, int64_t bytes)
{
    memset(block, 0, (size_t)bytes);
    return LSA_OK;
}

int lsa_device_synchronize_cuda(void)
{
    return stub_faulty ? lsa_device_lose("device_synchronize: an illegal memory access") : LSA_OK;
}

int lsa_device_stream_new_cuda(void **stream)
{
    *stream = stream; /* any but NULL */
    return LSA_OK;
}

int lsa_device_copy_start_cuda(void *to, const void *from, int64_t bytes, void *stream)
{
    (void)stream;
    return lsa_device_copy_cuda(to, from, bytes);
}

int lsa_device_stream_wait_cuda(void *stream)
{
    (void)stream;
    return lsa_device_synchronize_cuda();
}

int lsa_device_capture_begin_cuda(void **stream)
{
    *stream = stream;
    return LSA_OK;
}

int lsa_device_capture_end_cuda(void **graph)
{
    *graph = NULL; /* so that the next step is captured, too, and runs by that */
    return LSA_OK;
}

int lsa_device_graph_launch_cuda(void *graph)
{
    (void)graph;
    return LSA_OK;
}

int lsa_device_graph_free_cuda(void *graph)
{
    (void)graph;
    return LSA_OK;
}

int lsa_device_program_load_cuda(void **program, const void *image, const char *kernel)
{
    (void)image;
    *program = strdup(kernel);
    return *program ? LSA_OK : LSA_ENOMEM;
}

int lsa_device_program_launch_cuda(void *program, const int64_t *grid, const int64_t *block,
                                   int64_t shared, void **arguments)
{
    (void)program;
    memcpy(stub_grid, grid, sizeof stub_grid);
    memcpy(stub_block, block, sizeof stub_block);
    stub_shared = shared;
    for (int32_t i = 0; i < stub_argument_count; i++)
        memcpy(&stub_arguments[i], arguments[i], sizeof *stub_arguments);
    return LSA_OK;
}

int lsa_device_program_free_cuda(void *program)
{
    free(program);
    return LSA_OK;
}
