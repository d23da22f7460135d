/* Owns the libraries that connect ranks: finds them, loads them, passes calls on. Knows no MPI header. */
#define _GNU_SOURCE
#include "core/train/collective.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "core/base/error.h"
#include "core/base/io.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/train/collective_nccl.h"

struct lsa_collective {
    lsa_collective_backend backend;
};

typedef int open_fn(lsa_collective_backend *out);

/* The entry of liblsa_<name>.so in this library's own directory. It stays loaded. */
static int find_open(open_fn **out, const char *name)
{
    char path[4096], entry[64];
    Dl_info own;
    if (!dladdr((void *)(uintptr_t)find_open, &own) || !own.dli_fname) own.dli_fname = "";
    const char *slash = strrchr(own.dli_fname, '/');
    int directory = slash ? (int)(slash - own.dli_fname) + 1 : 0;
    if (snprintf(path, sizeof path, "%.*sliblsa_%s.so", directory, own.dli_fname, name) >=
        (int)sizeof path)
        return lsa_fail(LSA_EDEVICE, "collective: the library's path is too long");
    /* Open MPI's plug-ins look for its symbols among the global ones. */
    void *library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library)
        return lsa_fail(LSA_EDEVICE, "collective: %s cannot be loaded (%s)", name, dlerror());
    snprintf(entry, sizeof entry, "lsa_collective_open_%s", name);
    void *address = dlsym(library, entry);
    if (!address)
        return lsa_fail(LSA_EDEVICE, "collective: %s has no %s: it is of another build", path,
                        entry);
    memcpy(out, &address, sizeof address);
    return LSA_OK;
}

int lsa_collective_open(lsa_collective **out, const char *name)
{
    open_fn *open;
    if (strcmp(name, "mpi"))
        return lsa_fail(LSA_EARG, "collective: there is no '%s'; there is: mpi", name);
    int rc = find_open(&open, name);
    if (rc) return rc;
    lsa_collective *c = lsa_alloc_zero(sizeof *c);
    if (!c) return LSA_ENOMEM;
    rc = open(&c->backend);
    if (rc)
        lsa_free(c);
    else
        *out = c;
    return rc;
}

/* On all ranks, whether rank 0 has an id or not: the others wait for its word. */
static int id_by_mpi(lsa_nccl_id *id, lsa_collective *ids)
{
    struct {
        lsa_nccl_id id;
        int32_t rc;
    } word = {.rc = LSA_OK};
    if (ids->backend.rank == 0) word.rc = lsa_nccl_new_id(&word.id);
    LSA_TRY(lsa_collective_broadcast(ids, &word, sizeof word));
    *id = word.id;
    if (word.rc && ids->backend.rank)
        return lsa_fail(word.rc, "collective: rank 0 cannot begin a job of NCCL's");
    return word.rc;
}

int lsa_collective_open_nccl(lsa_collective **out, lsa_collective *ids, const char *file,
                             int32_t rank, int32_t size, double seconds, int32_t gpu)
{
    lsa_nccl_id id;
    if (ids) {
        rank = ids->backend.rank;
        size = ids->backend.size;
    }
    if (size < 1 || rank < 0 || rank >= size)
        return lsa_fail(LSA_EARG, "collective: rank %d of %d", rank, size);
    LSA_TRY(ids ? id_by_mpi(&id, ids) : lsa_nccl_share_id(&id, file, rank, seconds));
    lsa_collective *c = lsa_alloc_zero(sizeof *c);
    if (!c) return LSA_ENOMEM;
    int rc = lsa_nccl_open(&c->backend, &id, rank, size, gpu);
    if (!ids && rank == 0) {
        int removed = lsa_file_remove(file);
        if (!rc && (rc = removed)) c->backend.close(c->backend.state);
    }
    if (rc)
        lsa_free(c);
    else
        *out = c;
    return rc;
}

int lsa_collective_close(lsa_collective *c)
{
    if (!c) return LSA_OK;
    int rc = c->backend.close(c->backend.state);
    lsa_free(c);
    return rc;
}

int32_t lsa_collective_rank(const lsa_collective *c) { return c->backend.rank; }

int32_t lsa_collective_size(const lsa_collective *c) { return c->backend.size; }

int lsa_collective_sum_f32(lsa_collective *c, float *x, int64_t n)
{
    return c->backend.sum_f32(c->backend.state, x, n);
}

int lsa_collective_sum_f64(lsa_collective *c, double *x, int64_t n)
{
    return c->backend.sum_f64(c->backend.state, x, n);
}

int lsa_collective_broadcast(lsa_collective *c, void *data, int64_t bytes)
{
    return c->backend.broadcast(c->backend.state, data, bytes);
}
