/* Owns the calls of NCCL, NVIDIA's library for GPUs that work together. It is loaded when ranks are first joined by it, and knows no
 * header of it: these few calls are the same in all of its versions 2. */
#define _GNU_SOURCE
#include "core/train/collective_nccl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "core/base/clock.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"
#include "core/base/try.h"

enum { PIECE = 1 << 24 }; /* numbers of one call */
enum { NCCL_SUM = 0, NCCL_INT8 = 0, NCCL_FLOAT32 = 7, NCCL_FLOAT64 = 8 };

typedef lsa_nccl_id nccl_id;

static struct {
    int (*id)(nccl_id *id);
    int (*init)(void **ranks, int size, nccl_id id, int rank);
    int (*reduce)(const void *from, void *to, size_t n, int type, int op, void *ranks,
                  void *stream);
    int (*broadcast)(const void *from, void *to, size_t n, int type, int root, void *ranks,
                     void *stream);
    int (*destroy)(void *ranks);
    const char *(*error)(int code);
} nccl;

typedef struct nccl_job {
    void *ranks;
    void *piece; /* memory of the GPU, of PIECE doubles at most */
    int64_t bytes;
    int32_t gpu;
} nccl_job;

static int bind(void *library, void *function, const char *name)
{
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address ? LSA_OK : lsa_fail(LSA_EDEVICE, "collective: libnccl.so.2 has no %s", name);
}

static int load(void)
{
    if (nccl.error) return LSA_OK;
    char why[256];
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(why, sizeof why, "%s", dlerror());
        library = dlopen("/usr/local/cuda/lib64/libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    }
    if (!library) return lsa_fail(LSA_EDEVICE, "collective: NCCL cannot be loaded (%s)", why);
    LSA_TRY(bind(library, &nccl.id, "ncclGetUniqueId"));
    LSA_TRY(bind(library, &nccl.init, "ncclCommInitRank"));
    LSA_TRY(bind(library, &nccl.reduce, "ncclAllReduce"));
    LSA_TRY(bind(library, &nccl.broadcast, "ncclBroadcast"));
    LSA_TRY(bind(library, &nccl.destroy, "ncclCommDestroy"));
    return bind(library, &nccl.error, "ncclGetErrorString");
}

static int told(int code, const char *what)
{
    return code ? lsa_fail(LSA_EDEVICE, "collective: nccl: %s: %s", what, nccl.error(code))
                : LSA_OK;
}

/* ---- sums ---- */

static int call(nccl_job *j, void *x, int64_t n, int64_t size, int type, int reduces)
{
    LSA_TRY(lsa_device_copy(j->piece, x, n * size));
    if (reduces)
        LSA_TRY(told(nccl.reduce(j->piece, j->piece, (size_t)n, type, NCCL_SUM, j->ranks, NULL),
                     "sum"));
    else
        LSA_TRY(told(nccl.broadcast(j->piece, j->piece, (size_t)n, type, 0, j->ranks, NULL),
                     "broadcast"));
    return lsa_device_copy(x, j->piece, n * size);
}

/* By pieces, in memory of the GPU: what comes may lie anywhere. */
static int by_pieces(nccl_job *j, void *x, int64_t n, int64_t size, int type, int reduces)
{
    int64_t most = n < PIECE ? n : PIECE;
    if (most * size > j->bytes) {
        void *larger;
        LSA_TRY(lsa_device_alloc(&larger, most * size));
        lsa_device_free(j->piece);
        j->piece = larger;
        j->bytes = most * size;
    }
    for (int64_t at = 0; at < n; at += most)
        LSA_TRY(call(j, (char *)x + at * size, n - at < most ? n - at : most, size, type, reduces));
    return LSA_OK;
}

static int on_its_gpu(void *state, void *x, int64_t n, int64_t size, int type, int reduces)
{
    nccl_job *j = state;
    int32_t before;
    LSA_TRY(lsa_device_enter(j->gpu, &before));
    return lsa_device_back(before, by_pieces(j, x, n, size, type, reduces));
}

static int sum_f32(void *state, float *x, int64_t n)
{
    return on_its_gpu(state, x, n, sizeof *x, NCCL_FLOAT32, 1);
}

static int sum_f64(void *state, double *x, int64_t n)
{
    return on_its_gpu(state, x, n, sizeof *x, NCCL_FLOAT64, 1);
}

static int broadcast(void *state, void *data, int64_t bytes)
{
    return on_its_gpu(state, data, bytes, 1, NCCL_INT8, 0);
}

static int leave(void *state)
{
    nccl_job *j = state;
    int32_t before;
    int rc = lsa_device_enter(j->gpu, &before);
    if (!rc) rc = told(nccl.destroy(j->ranks), "destroy");
    lsa_device_free(j->piece);
    lsa_free(j);
    return lsa_device_back(before, rc);
}

/* ---- joining ---- */

int lsa_nccl_new_id(lsa_nccl_id *id)
{
    LSA_TRY(load());
    return told(nccl.id(id), "id");
}

static int write_id(const lsa_nccl_id *id, const char *path)
{
    lsa_replace *file;
    LSA_TRY(lsa_replace_begin(&file, path));
    int rc = lsa_replace_write(file, id, sizeof *id);
    if (!rc) return lsa_replace_commit(file);
    lsa_replace_abandon(file);
    return rc;
}

static int read_id(lsa_nccl_id *id, const char *path)
{
    char *text;
    int64_t bytes;
    LSA_TRY(lsa_file_read_all(&text, &bytes, path, sizeof *id));
    if (bytes == (int64_t)sizeof *id) memcpy(id, text, sizeof *id);
    lsa_free(text);
    return bytes == (int64_t)sizeof *id
               ? LSA_OK
               : lsa_fail(LSA_EFORMAT, "collective: %s has %lld bytes, a job's id has %zu", path,
                          (long long)bytes, sizeof *id);
}

int lsa_nccl_share_id(lsa_nccl_id *id, const char *path, int32_t rank, double seconds)
{
    const struct timespec a_while = {0, 5000000};
    int there = lsa_file_exists(path);
    if (there < 0) return there;
    if (rank == 0) {
        if (there)
            return lsa_fail(LSA_EARG,
                            "collective: %s is there already: of a job that begins just now, or of "
                            "one that did not come to begin; then remove it",
                            path);
        LSA_TRY(lsa_nccl_new_id(id));
        return write_id(id, path);
    }
    LSA_TRY(load());
    int64_t until = lsa_clock_ns() + (int64_t)(seconds * 1e9);
    while (!there) {
        if (lsa_interrupted()) return lsa_fail(LSA_EINTR, "interrupted");
        if (lsa_clock_ns() > until)
            return lsa_fail(LSA_ESTATE,
                            "collective: rank %d has waited %g s for rank 0 to write %s", rank,
                            seconds, path);
        nanosleep(&a_while, NULL);
        if ((there = lsa_file_exists(path)) < 0) return there;
    }
    return read_id(id, path);
}

static int join(nccl_job *j, const lsa_nccl_id *id, int32_t rank, int32_t size)
{
    int code = nccl.init(&j->ranks, size, *id, rank);
    if (!code) return LSA_OK;
    return lsa_fail(
        LSA_EDEVICE,
        "collective: nccl: rank %d of %d on GPU %d: %s; each rank wants a GPU of its own", rank,
        size, j->gpu, nccl.error(code));
}

int lsa_nccl_open(lsa_collective_backend *out, const lsa_nccl_id *id, int32_t rank, int32_t size,
                  int32_t gpu)
{
    int32_t before;
    LSA_TRY(load());
    nccl_job *j = lsa_alloc_zero(sizeof *j);
    if (!j) return LSA_ENOMEM;
    j->gpu = gpu;
    int rc = lsa_device_enter(gpu, &before);
    if (!rc) rc = join(j, id, rank, size);
    if (rc)
        lsa_free(j);
    else
        *out = (lsa_collective_backend){rank, size, sum_f32, sum_f64, broadcast, leave, j};
    return lsa_device_back(before, rc);
}
