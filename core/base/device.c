/* Owns the CUDA library: finds it, loads it, passes calls on. Knows no CUDA header. */
#define _GNU_SOURCE
#include "core/base/device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/try.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;
static char missing[512];

static atomic_int lost;
static char lost_cause[512];
static atomic_llong fail_countdown = -1;

static struct {
    lsa_device_count_fn *count;
    lsa_device_use_fn *use;
    lsa_device_describe_fn *describe;
    lsa_device_alloc_fn *alloc;
    lsa_device_alloc_shared_fn *alloc_shared;
    lsa_device_unpinned_fn *unpinned;
    lsa_device_free_fn *free;
    lsa_device_copy_fn *copy;
    lsa_device_synchronize_fn *synchronize;
    lsa_device_capture_begin_fn *capture_begin;
    lsa_device_capture_end_fn *capture_end;
    lsa_device_graph_launch_fn *graph_launch;
    lsa_device_graph_free_fn *graph_free;
    lsa_device_architecture_fn *architecture;
    lsa_device_clear_fn *clear;
    lsa_device_stream_new_fn *stream_new;
    lsa_device_copy_start_fn *copy_start;
    lsa_device_stream_wait_fn *stream_wait;
    lsa_device_program_load_fn *program_load;
    lsa_device_program_launch_fn *program_launch;
    lsa_device_program_free_fn *program_free;
} cuda;

/* dlsym gives an object pointer; POSIX has it hold a function's address. */
static int bind(void *function, const char *name)
{
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    if (!address)
        snprintf(missing, sizeof missing, "liblsa_cuda.so has no %s: it is of another build", name);
    return address != NULL;
}

static void load(void)
{
    char path[4096];
    Dl_info own;
    void *driver = dlopen("libcuda.so.1", RTLD_LAZY);
    if (!driver) {
        snprintf(missing, sizeof missing, "no NVIDIA driver (libcuda.so.1)");
        return;
    }
    dlclose(driver);
    if (!dladdr((void *)&once, &own)) own.dli_fname = "";
    const char *slash = strrchr(own.dli_fname, '/');
    int directory = slash ? (int)(slash - own.dli_fname) + 1 : 0;
    if (snprintf(path, sizeof path, "%.*sliblsa_cuda.so", directory, own.dli_fname) >=
        (int)sizeof path)
        return;
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(missing, sizeof missing, "the CUDA library cannot be loaded (%s)", dlerror());
        return;
    }
    if (!bind(&cuda.count, "lsa_device_count_cuda") || !bind(&cuda.use, "lsa_device_use_cuda") ||
        !bind(&cuda.describe, "lsa_device_describe_cuda") ||
        !bind(&cuda.alloc, "lsa_device_alloc_cuda") ||
        !bind(&cuda.alloc_shared, "lsa_device_alloc_shared_cuda") ||
        !bind(&cuda.unpinned, "lsa_device_unpinned_cuda") ||
        !bind(&cuda.free, "lsa_device_free_cuda") || !bind(&cuda.copy, "lsa_device_copy_cuda") ||
        !bind(&cuda.synchronize, "lsa_device_synchronize_cuda") ||
        !bind(&cuda.capture_begin, "lsa_device_capture_begin_cuda") ||
        !bind(&cuda.capture_end, "lsa_device_capture_end_cuda") ||
        !bind(&cuda.graph_launch, "lsa_device_graph_launch_cuda") ||
        !bind(&cuda.graph_free, "lsa_device_graph_free_cuda") ||
        !bind(&cuda.architecture, "lsa_device_architecture_cuda") ||
        !bind(&cuda.clear, "lsa_device_clear_cuda") ||
        !bind(&cuda.stream_new, "lsa_device_stream_new_cuda") ||
        !bind(&cuda.copy_start, "lsa_device_copy_start_cuda") ||
        !bind(&cuda.stream_wait, "lsa_device_stream_wait_cuda") ||
        !bind(&cuda.program_load, "lsa_device_program_load_cuda") ||
        !bind(&cuda.program_launch, "lsa_device_program_launch_cuda") ||
        !bind(&cuda.program_free, "lsa_device_program_free_cuda"))
        library = NULL;
}

static int loaded(void)
{
    pthread_once(&once, load);
    return library ? LSA_OK : lsa_fail(LSA_EDEVICE, "no device: %s", missing);
}

/* ---- faults ---- */

int lsa_device_check(void)
{
    if (!atomic_load(&lost)) return LSA_OK;
    return lsa_fail(
        LSA_EDEVICE,
        "the GPU is lost (%s): nothing on it can be used until lsa is started anew; host "
        "memory and files are as they were",
        lost_cause);
}

int lsa_device_lose(const char *cause)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&lock);
    if (!atomic_load(&lost)) {
        snprintf(lost_cause, sizeof lost_cause, "%s", cause);
        atomic_store(&lost, 1);
    }
    pthread_mutex_unlock(&lock);
    return lsa_device_check();
}

int64_t lsa_device_fail_after(int64_t n) { return atomic_exchange(&fail_countdown, n); }

int lsa_device_fault(void)
{
    if (atomic_load_explicit(&fail_countdown, memory_order_relaxed) < 0) return 0;
    return atomic_fetch_sub(&fail_countdown, 1) == 0;
}

/* ---- GPUs by number ---- */

static _Thread_local int32_t in_use = -1, actual; /* actual: what CUDA has */

int32_t lsa_device_in_use(void) { return in_use; }

int32_t lsa_device_current(void) { return in_use < 0 ? 0 : in_use; }

static int use(int32_t gpu)
{
    if (gpu == in_use) return LSA_OK;
    if (in_use >= 0) LSA_TRY(cuda.synchronize());
    if (gpu != actual || in_use < 0) LSA_TRY(cuda.use(gpu));
    in_use = actual = gpu;
    return LSA_OK;
}

/* Where there is no GPU, the driver's reason is told. */
int lsa_device_enter(int32_t gpu, int32_t *before)
{
    *before = in_use;
    LSA_TRY(loaded());
    LSA_TRY(lsa_device_check());
    if (gpu == in_use) return LSA_OK;
    int count = cuda.count();
    if (count <= 0) return LSA_EDEVICE;
    if (count > LSA_MOST_GPUS) count = LSA_MOST_GPUS;
    if (gpu < 0 || gpu >= count)
        return lsa_fail(LSA_EARG, "no device: there is no GPU %d; there are %d, from 0 on", gpu,
                        count);
    return use(gpu);
}

/* A thread that used none before uses none again: so it takes no memory of the first one for nothing. */
int lsa_device_back(int32_t before, int rc)
{
    if (before == in_use || atomic_load(&lost)) return rc;
    if (before >= 0) return rc ? (void)use(before), rc : use(before);
    int waited = cuda.synchronize();
    in_use = -1;
    return rc ? rc : waited;
}

/* Before a call: the library is there, the GPU is not lost, and no test wants the call to fail. `bytes`: what it is about; -1:
 * nothing that has a size. */
static int ready(const char *op, int64_t bytes)
{
    LSA_TRY(loaded());
    LSA_TRY(lsa_device_check());
    if (in_use < 0) LSA_TRY(use(0));
    if (!lsa_device_fault()) return LSA_OK;
    return bytes < 0 ? lsa_fail(LSA_EDEVICE, "%s: refused, as a test asked for", op)
                     : lsa_fail(LSA_EDEVICE, "%s: %lld bytes: refused, as a test asked for", op,
                                (long long)bytes);
}

/* ---- calls ---- */

int lsa_device_count(void) { return loaded() ? 0 : cuda.count(); }

int lsa_device_describe(int32_t device, char *name, int64_t bytes, int64_t *free_bytes,
                        int64_t *total_bytes)
{
    LSA_TRY(ready("device_describe", -1));
    return cuda.describe(device, name, bytes, free_bytes, total_bytes);
}

int lsa_device_architecture(int32_t device, int32_t *major, int32_t *minor)
{
    LSA_TRY(ready("device_architecture", -1));
    return cuda.architecture(device, major, minor);
}

int lsa_device_alloc(void **out, int64_t bytes)
{
    LSA_TRY(ready("device_alloc", bytes));
    return cuda.alloc(out, bytes);
}

int lsa_device_alloc_shared(void **out, int64_t bytes, int32_t in_host)
{
    LSA_TRY(ready("device_alloc_shared", bytes));
    return cuda.alloc_shared(out, bytes, in_host);
}

const char *lsa_device_unpinned(void) { return loaded() ? "" : cuda.unpinned(); }

/* What is freed is gone with a GPU that is lost. */
int lsa_device_free(void *block)
{
    if (!block || atomic_load(&lost)) return LSA_OK;
    LSA_TRY(loaded());
    return cuda.free(block);
}

int lsa_device_copy(void *to, const void *from, int64_t bytes)
{
    LSA_TRY(ready("device_copy", bytes));
    return cuda.copy(to, from, bytes);
}

int lsa_device_copy_back(void *to, const void *from, int64_t bytes)
{
    return lsa_device_copy(to, from, bytes) ? lsa_device_copy(to, from, bytes) : LSA_OK;
}

int lsa_device_synchronize(void)
{
    LSA_TRY(loaded());
    LSA_TRY(lsa_device_check());
    return cuda.synchronize();
}

int lsa_device_clear(void *block, int64_t bytes)
{
    LSA_TRY(ready("device_clear", bytes));
    return cuda.clear(block, bytes);
}

int lsa_device_stream_new(void **stream)
{
    LSA_TRY(ready("stream_new", -1));
    return cuda.stream_new(stream);
}

int lsa_device_copy_start(void *to, const void *from, int64_t bytes, void *stream)
{
    LSA_TRY(ready("copy_start", bytes));
    return cuda.copy_start(to, from, bytes, stream);
}

int lsa_device_stream_wait(void *stream)
{
    LSA_TRY(loaded());
    LSA_TRY(lsa_device_check());
    return cuda.stream_wait(stream);
}

int lsa_device_capture_begin(void **stream)
{
    LSA_TRY(ready("capture_begin", -1));
    return cuda.capture_begin(stream);
}

int lsa_device_capture_end(void **graph)
{
    LSA_TRY(loaded());
    int refused = lsa_device_fault(); /* after the capture: it has to end */
    LSA_TRY(cuda.capture_end(graph));
    if (!refused) return LSA_OK;
    cuda.graph_free(*graph);
    *graph = NULL;
    return lsa_fail(LSA_EDEVICE, "capture_end: refused, as a test asked for");
}

int lsa_device_graph_launch(void *graph)
{
    LSA_TRY(ready("graph_launch", -1));
    return cuda.graph_launch(graph);
}

int lsa_device_graph_free(void *graph)
{
    if (!graph || atomic_load(&lost)) return LSA_OK;
    LSA_TRY(loaded());
    return cuda.graph_free(graph);
}

int lsa_device_program_load(void **program, const void *image, const char *kernel)
{
    LSA_TRY(ready(kernel, -1));
    return cuda.program_load(program, image, kernel);
}

int lsa_device_program_launch(void *program, const int64_t *grid, const int64_t *block,
                              int64_t shared, void **arguments)
{
    LSA_TRY(ready("program_launch", shared));
    return cuda.program_launch(program, grid, block, shared, arguments);
}

int lsa_device_program_free(void *program)
{
    if (!program || atomic_load(&lost)) return LSA_OK;
    LSA_TRY(loaded());
    return cuda.program_free(program);
}

void *lsa_device_symbol(const char *name)
{
    if (loaded() || lsa_device_check()) return NULL;
    void *address = dlsym(library, name);
    if (!address) lsa_fail(LSA_EDEVICE, "the CUDA library has no %s", name);
    return address;
}
