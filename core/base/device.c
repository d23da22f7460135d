/* Owns the CUDA library: finds it, loads it, passes calls on. Knows no CUDA header. */
#define _GNU_SOURCE
#include "core/base/device.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library;
static char missing[512];

static struct {
    lsa_device_count_fn *count;
    lsa_device_describe_fn *describe;
    lsa_device_alloc_fn *alloc;
    lsa_device_alloc_shared_fn *alloc_shared;
    lsa_device_free_fn *free;
    lsa_device_copy_fn *copy;
    lsa_device_synchronize_fn *synchronize;
    lsa_device_capture_begin_fn *capture_begin;
    lsa_device_capture_end_fn *capture_end;
    lsa_device_graph_launch_fn *graph_launch;
    lsa_device_graph_free_fn *graph_free;
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
    if (!bind(&cuda.count, "lsa_device_count_cuda") ||
        !bind(&cuda.describe, "lsa_device_describe_cuda") ||
        !bind(&cuda.alloc, "lsa_device_alloc_cuda") ||
        !bind(&cuda.alloc_shared, "lsa_device_alloc_shared_cuda") ||
        !bind(&cuda.free, "lsa_device_free_cuda") || !bind(&cuda.copy, "lsa_device_copy_cuda") ||
        !bind(&cuda.synchronize, "lsa_device_synchronize_cuda") ||
        !bind(&cuda.capture_begin, "lsa_device_capture_begin_cuda") ||
        !bind(&cuda.capture_end, "lsa_device_capture_end_cuda") ||
        !bind(&cuda.graph_launch, "lsa_device_graph_launch_cuda") ||
        !bind(&cuda.graph_free, "lsa_device_graph_free_cuda"))
        library = NULL;
}

static int loaded(void)
{
    pthread_once(&once, load);
    return library ? LSA_OK : lsa_fail(LSA_EDEVICE, "no device: %s", missing);
}

int lsa_device_count(void) { return loaded() ? 0 : cuda.count(); }

int lsa_device_describe(int32_t device, char *name, int64_t bytes, int64_t *free_bytes,
                        int64_t *total_bytes)
{
    int rc = loaded();
    return rc ? rc : cuda.describe(device, name, bytes, free_bytes, total_bytes);
}

int lsa_device_alloc(void **out, int64_t bytes)
{
    int rc = loaded();
    return rc ? rc : cuda.alloc(out, bytes);
}

int lsa_device_alloc_shared(void **out, int64_t bytes, int32_t in_host)
{
    int rc = loaded();
    return rc ? rc : cuda.alloc_shared(out, bytes, in_host);
}

int lsa_device_free(void *block)
{
    if (!block) return LSA_OK;
    int rc = loaded();
    return rc ? rc : cuda.free(block);
}

int lsa_device_copy(void *to, const void *from, int64_t bytes)
{
    int rc = loaded();
    return rc ? rc : cuda.copy(to, from, bytes);
}

int lsa_device_synchronize(void)
{
    int rc = loaded();
    return rc ? rc : cuda.synchronize();
}

int lsa_device_capture_begin(void **stream)
{
    int rc = loaded();
    return rc ? rc : cuda.capture_begin(stream);
}

int lsa_device_capture_end(void **graph)
{
    int rc = loaded();
    return rc ? rc : cuda.capture_end(graph);
}

int lsa_device_graph_launch(void *graph)
{
    int rc = loaded();
    return rc ? rc : cuda.graph_launch(graph);
}

int lsa_device_graph_free(void *graph)
{
    if (!graph) return LSA_OK;
    int rc = loaded();
    return rc ? rc : cuda.graph_free(graph);
}

void *lsa_device_symbol(const char *name)
{
    if (loaded()) return NULL;
    void *address = dlsym(library, name);
    if (!address) lsa_fail(LSA_EDEVICE, "the CUDA library has no %s", name);
    return address;
}
