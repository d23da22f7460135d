/* Processes (ranks) that work on one job together. What connects them is MPI, by a library of its own, liblsa_mpi.so beside
 * liblsa.so, or NCCL, libnccl.so.2, between GPUs; either is loaded when it is first asked for, so nothing else needs it, at build
 * or at run time. */
#ifndef LSA_COLLECTIVE_H
#define LSA_COLLECTIVE_H
#include <stdint.h>

/* What such a library gives. Every function returns 0 or an error code with a message. */
typedef struct lsa_collective_backend {
    int32_t rank, size;
    int (*sum_f32)(void *state, float *x, int64_t n);
    int (*sum_f64)(void *state, double *x, int64_t n);
    int (*broadcast)(void *state, void *data, int64_t bytes);
    int (*close)(void *state);
    void *state;
} lsa_collective_backend;

typedef struct lsa_collective lsa_collective;

/* Joins the job that this process was started in. backend: "mpi" (under mpirun; alone, a job of one rank). Once in a
 * process. LSA_EDEVICE where its library is missing, LSA_EARG for another name, LSA_ESTATE the second time. */
int lsa_collective_open(lsa_collective **out, const char *backend);

/* Joins ranks whose GPUs NCCL connects; this one's is number `gpu`, which no other rank may have. ids: a job of MPI whose ranks they
 * are; or NULL for rank `rank` of `size`, which find each other by a file: rank 0 writes it, where it must not be, and takes it
 * away once all are connected; the others wait `seconds` for it. LSA_EDEVICE where there is no GPU, or no NCCL, LSA_EARG, LSA_ESTATE. */
int lsa_collective_open_nccl(lsa_collective **out, lsa_collective *ids, const char *file,
                             int32_t rank, int32_t size, double seconds, int32_t gpu);

/* Leaves the job; all ranks do. NULL is legal. */
int lsa_collective_close(lsa_collective *collective);

int32_t lsa_collective_rank(const lsa_collective *collective);
int32_t lsa_collective_size(const lsa_collective *collective);

/* x becomes the sum of all ranks' x, in the same bits on all of them. All ranks call with the same n, which may be 0. */
int lsa_collective_sum_f32(lsa_collective *collective, float *x, int64_t n);
int lsa_collective_sum_f64(lsa_collective *collective, double *x, int64_t n);

/* data becomes that of rank 0. */
int lsa_collective_broadcast(lsa_collective *collective, void *data, int64_t bytes);

#endif
