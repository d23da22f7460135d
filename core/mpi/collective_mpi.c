/* Owns the calls of MPI. Becomes a library of its own, liblsa_mpi.so. */
#include <mpi.h>

#include "core/base/error.h"
#include "core/train/collective.h"

enum { PIECE = 1 << 26 }; /* elements of one call: MPI counts in int */

int lsa_collective_open_mpi(lsa_collective_backend *out);

static int told(int code, const char *what)
{
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int length = 0;
    if (code == MPI_SUCCESS) return LSA_OK;
    MPI_Error_string(code, text, &length);
    return lsa_fail(LSA_EDEVICE, "collective: %s: %s", what, text);
}

/* Summed on rank 0 and sent from there: MPI_Allreduce may add in another order on every rank. */
static int sum(void *x, int64_t n, int64_t size, MPI_Datatype type)
{
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    for (int64_t at = 0; at < n; at += PIECE) {
        int count = n - at < PIECE ? (int)(n - at) : PIECE;
        void *part = (char *)x + at * size;
        int code = rank == 0
                       ? MPI_Reduce(MPI_IN_PLACE, part, count, type, MPI_SUM, 0, MPI_COMM_WORLD)
                       : MPI_Reduce(part, NULL, count, type, MPI_SUM, 0, MPI_COMM_WORLD);
        if (code == MPI_SUCCESS) code = MPI_Bcast(part, count, type, 0, MPI_COMM_WORLD);
        if (code != MPI_SUCCESS) return told(code, "sum");
    }
    return LSA_OK;
}

static int sum_f32(void *state, float *x, int64_t n)
{
    (void)state;
    return sum(x, n, sizeof *x, MPI_FLOAT);
}

static int sum_f64(void *state, double *x, int64_t n)
{
    (void)state;
    return sum(x, n, sizeof *x, MPI_DOUBLE);
}

static int broadcast(void *state, void *data, int64_t bytes)
{
    (void)state;
    for (int64_t at = 0; at < bytes; at += PIECE) {
        int count = bytes - at < PIECE ? (int)(bytes - at) : PIECE;
        int code = MPI_Bcast((char *)data + at, count, MPI_BYTE, 0, MPI_COMM_WORLD);
        if (code != MPI_SUCCESS) return told(code, "broadcast");
    }
    return LSA_OK;
}

static int leave(void *state)
{
    (void)state;
    return told(MPI_Finalize(), "finalize");
}

int lsa_collective_open_mpi(lsa_collective_backend *out)
{
    int began = 0, level = 0, rank = 0, size = 1;
    MPI_Initialized(&began);
    if (began) return lsa_fail(LSA_ESTATE, "collective: this process has joined its job already");
    int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    if (code != MPI_SUCCESS) return told(code, "init");
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    *out = (lsa_collective_backend){rank, size, sum_f32, sum_f64, broadcast, leave, NULL};
    return LSA_OK;
}
