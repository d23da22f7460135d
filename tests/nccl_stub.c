/* A libnccl.so.2 for machines without GPUs, beside tests/device_stub.c, whose device memory is the host's: ranks meet in shared
 * memory, whose name is the job's id. */
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ROOM = 1 << 24, MOST_RANKS = 8, FAILED = 1, INVALID_USAGE = 5 };

typedef struct id {
    char name[128];
} id;

typedef struct meeting {
    pthread_barrier_t barrier;
    volatile int ready;
    int size, gpu[MOST_RANKS];
    char data[MOST_RANKS][ROOM];
} meeting;

typedef struct ranks {
    meeting *m;
    int rank, size;
} ranks;

extern int32_t lsa_device_current(void);

int ncclGetUniqueId(id *out)
{
    memset(out, 0, sizeof *out);
    snprintf(out->name, sizeof out->name, "/lsa_nccl_stub_%d_%d", (int)getpid(), rand());
    return 0;
}

static meeting *map(const char *name, int rank)
{
    int file = -1;
    if (rank == 0) file = shm_open(name, O_CREAT | O_EXCL | O_RDWR, 0600);
    if (rank == 0 && (file < 0 || ftruncate(file, sizeof(meeting)))) return NULL;
    while (file < 0) file = shm_open(name, O_RDWR, 0600);
    while (rank && lseek(file, 0, SEEK_END) < (off_t)sizeof(meeting)) continue;
    void *m = mmap(NULL, sizeof(meeting), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return m == MAP_FAILED ? NULL : m;
}

int ncclCommInitRank(void **out, int size, id name, int rank)
{
    meeting *m = size <= MOST_RANKS ? map(name.name, rank) : NULL;
    if (!m) return FAILED;
    if (rank == 0) {
        pthread_barrierattr_t shared;
        pthread_barrierattr_init(&shared);
        pthread_barrierattr_setpshared(&shared, PTHREAD_PROCESS_SHARED);
        pthread_barrier_init(&m->barrier, &shared, (unsigned)size);
        m->size = size;
        m->ready = 1;
    }
    while (!m->ready) usleep(1000);
    m->gpu[rank] = lsa_device_current();
    pthread_barrier_wait(&m->barrier);
    if (rank == 0) shm_unlink(name.name);
    for (int i = 0; i < size; i++)
        for (int j = 0; j < i; j++)
            if (m->gpu[i] == m->gpu[j]) return INVALID_USAGE;
    ranks *r = calloc(1, sizeof *r);
    *r = (ranks){m, rank, size};
    *out = r;
    return 0;
}

int ncclAllReduce(const void *from, void *to, size_t n, int type, int op, void *comm, void *stream)
{
    ranks *r = comm;
    size_t bytes = n * (type == 7 ? sizeof(float) : sizeof(double));
    if (op || stream || (type != 7 && type != 8) || bytes > ROOM) return FAILED;
    memcpy(r->m->data[r->rank], from, bytes);
    pthread_barrier_wait(&r->m->barrier);
    for (size_t i = 0; i < n; i++) {
        double sum = 0;
        float sum_f32 = 0;
        for (int k = 0; k < r->size; k++) {
            if (type == 7) sum_f32 += ((float *)r->m->data[k])[i];
            if (type == 8) sum += ((double *)r->m->data[k])[i];
        }
        if (type == 7) ((float *)to)[i] = sum_f32;
        if (type == 8) ((double *)to)[i] = sum;
    }
    pthread_barrier_wait(&r->m->barrier);
    return 0;
}

int ncclBroadcast(const void *from, void *to, size_t n, int type, int root, void *comm,
                  void *stream)
{
    ranks *r = comm;
    if (type || root || stream || n > ROOM) return FAILED;
    if (r->rank == 0) memcpy(r->m->data[0], from, n);
    pthread_barrier_wait(&r->m->barrier);
    memcpy(to, r->m->data[0], n);
    pthread_barrier_wait(&r->m->barrier);
    return 0;
}

int ncclCommDestroy(void *comm)
{
    ranks *r = comm;
    munmap(r->m, sizeof *r->m);
    free(r);
    return 0;
}

const char *ncclGetErrorString(int code)
{
    return code == INVALID_USAGE ? "invalid usage" : "unhandled system error";
}
