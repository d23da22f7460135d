/* Owns transfers from host memory and disks to a GPU's cells: the ring that they go through, and which way they go. */
#include "core/pool/gpu_transfer.h"

#include <pthread.h>
#include <string.h>

#include "core/base/clock.h"
#include "core/base/cpu.h"
#include "core/base/device.h"
#include "core/base/error.h"
#include "core/base/memory.h"
#include "core/base/try.h"
#include "core/pool/gpu_fill.h"
#include "core/pool/pool_state.h"
#include "kernels/table.h"

enum {
    HALF = 4 << 20,  /* bytes of one half of a ring */
    LEAST_ITEM = 64, /* between records, and so their number in a half has a bound */
    MOST = HALF / LEAST_ITEM,
    ONE_BLOCK = 40,   /* a shift that no number of records reaches */
    COPY_BYTES_NS = 8 /* of one thread, about: what is worth a second one */
};

/* Two halves, so that one is filled while the other one is on its way. */
typedef struct ring {
    pthread_mutex_t lock;
    int beside;
    void *stream;
    uint8_t *packed[2], *arrived[2]; /* in pinned memory, on the GPU */
    int32_t *slots[2], *in_order;    /* pinned: where records go; 0, 1, 2 ... */
    uint8_t **table;                 /* pinned: packed, then arrived */
    lsa_transfer_mode mode;
} ring;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static ring rings[LSA_MOST_GPUS][2];

static void make_rings(void)
{
    for (int gpu = 0; gpu < LSA_MOST_GPUS; gpu++)
        for (int beside = 0; beside < 2; beside++) {
            pthread_mutex_init(&rings[gpu][beside].lock, NULL);
            rings[gpu][beside].beside = beside;
        }
}

/* That of the GPU in use. */
static ring *ring_of(int beside)
{
    pthread_once(&once, make_rings);
    return &rings[lsa_device_current()][beside != 0];
}

static int pinned(void *pointer, int64_t bytes)
{
    void *block;
    LSA_TRY(lsa_device_alloc_shared(&block, bytes, 1));
    memcpy(pointer, &block, sizeof block);
    return LSA_OK;
}

/* What is there by then stays for the next try. */
static int open_ring(ring *r)
{
    if (r->table) return LSA_OK;
    if (r->beside && !r->stream) LSA_TRY(lsa_device_stream_new(&r->stream));
    for (int h = 0; h < 2; h++) {
        void *block = r->arrived[h];
        if (!r->packed[h]) LSA_TRY(pinned(&r->packed[h], HALF));
        if (!r->slots[h]) LSA_TRY(pinned(&r->slots[h], MOST * (int64_t)sizeof *r->slots[h]));
        if (!block) LSA_TRY(lsa_device_alloc(&block, HALF));
        r->arrived[h] = block;
    }
    if (!r->in_order) LSA_TRY(pinned(&r->in_order, MOST * (int64_t)sizeof *r->in_order));
    for (int32_t i = 0; i < MOST; i++) r->in_order[i] = i;
    uint8_t **table;
    LSA_TRY(pinned(&table, 4 * (int64_t)sizeof *table));
    for (int h = 0; h < 2; h++) {
        table[h] = r->packed[h];
        table[2 + h] = r->arrived[h];
    }
    r->table = table;
    return LSA_OK;
}

/* ---- to gather ---- */

static int gather(ring *r, const lsa_kernels *k, const lsa_cold_tier *from, const lsa_records *to,
                  const int32_t *slots, const int32_t *chunks, int64_t n)
{
    const lsa_cold_tier_plane *plane = &from->plane[LSA_RECORDS];
    lsa_records source = {(uint8_t *const *)plane->blocks.data, plane->blocks.item, 0,
                          plane->blocks.shift, 0};
    int64_t bytes = n * (int64_t)sizeof *slots;
    int32_t *list = lsa_alloc_in(LSA_MEMORY_BOTH, 2 * bytes);
    if (!list) return LSA_ENOMEM;
    memcpy(list, slots, (size_t)bytes);
    memcpy(list + n, chunks, (size_t)bytes);
    int rc = k->gather(to, list, &source, list + n, n, plane->bytes, r->stream);
    int waited = lsa_device_stream_wait(r->stream);
    lsa_free_in(LSA_MEMORY_BOTH, list);
    return rc ? rc : waited;
}

/* ---- to pack ---- */

typedef struct packing {
    uint8_t *to;
    int64_t item, bytes;
} packing;

static void pack_one(void *context, int64_t i, const uint8_t *const *parts)
{
    const packing *p = context;
    memcpy(p->to + i * p->item, parts[LSA_RECORDS], (size_t)p->bytes);
}

/* m records of a half, which are packed by now, to their slots; under way when it returns. */
static int send(ring *r, const lsa_kernels *k, const lsa_records *to, int half,
                const int32_t *slots, int64_t m, int64_t item, int64_t bytes)
{
    lsa_records from = {r->table + 2 + half, item, 0, ONE_BLOCK, 0};
    memcpy(r->slots[half], slots, (size_t)m * sizeof *slots);
    LSA_TRY(lsa_device_copy_start(r->arrived[half], r->packed[half], m * item, r->stream));
    return k->gather(to, r->slots[half], &from, r->in_order, m, bytes, r->stream);
}

static int pack(ring *r, const lsa_kernels *k, const lsa_cold_tier *from, const lsa_records *to,
                const int32_t *slots, const int32_t *chunks, int64_t n)
{
    const lsa_cold_tier_plane *plane = &from->plane[LSA_RECORDS];
    int64_t item = plane->blocks.item, room = HALF / item;
    if (room < 1)
        return lsa_fail(LSA_ESHAPE, "pool: a chunk's records are %lld bytes, a GPU's ring has %d",
                        (long long)item, HALF);
    int rc = LSA_OK, half = 0;
    for (int64_t at = 0; !rc && at < n; at += room, half ^= 1) {
        int64_t m = n - at < room ? n - at : room;
        packing p = {r->packed[half], item, plane->bytes};
        int threads = r->beside ? 1 : lsa_threads_for(m * plane->bytes / COPY_BYTES_NS);
        rc = lsa_cold_tier_read(from, chunks + at, m, threads, pack_one, &p);
        if (!rc) rc = lsa_device_stream_wait(r->stream); /* the other half has arrived */
        if (!rc) rc = send(r, k, to, half, slots + at, m, item, plane->bytes);
    }
    int waited = lsa_device_stream_wait(r->stream);
    return rc ? rc : waited;
}

/* ---- which way ---- */

enum {
    TRIAL = 4 << 20,      /* bytes that a trial moves */
    TRIAL_RECORD = 12288, /* V4-Flash's */
    TRIAL_RECORDS = TRIAL / TRIAL_RECORD,
    SPREAD = 4, /* one record in so many */
    ROUNDS = 5,
    WIDTH = 4096, /* of the work beside a transfer */
    LAUNCHES = 100
};

/* What a trial moves, and where to. */
typedef struct trial {
    ring *r;
    const lsa_kernels *k;
    lsa_cold_tier from;
    lsa_records to;
    uint8_t *cells, **cell_table;
    float *work;
    int32_t slots[TRIAL_RECORDS], chunks[TRIAL_RECORDS];
    int32_t way, gpu;
    int rc;
    int64_t ns;
    char message[256];
} trial;

static int move(trial *t)
{
    return t->way == LSA_TRANSFER_GATHER
               ? gather(t->r, t->k, &t->from, &t->to, t->slots, t->chunks, TRIAL_RECORDS)
               : pack(t->r, t->k, &t->from, &t->to, t->slots, t->chunks, TRIAL_RECORDS);
}

/* The least time of several. */
static int time_alone(trial *t, int64_t *least)
{
    *least = INT64_MAX;
    for (int i = 0; i < ROUNDS; i++) {
        int64_t start = lsa_clock_ns();
        LSA_TRY(move(t));
        int64_t took = lsa_clock_ns() - start;
        if (took < *least) *least = took;
    }
    return LSA_OK;
}

/* Small kernels, each of which waits for the one before, as in decoding. */
static int work(trial *t, int64_t *ns)
{
    int64_t start = lsa_clock_ns();
    for (int i = 0; i < LAUNCHES; i++)
        LSA_TRY(t->k->rmsnorm(t->work, t->work, NULL, 1, WIDTH, 1e-6f, NULL));
    LSA_TRY(lsa_device_stream_wait(NULL));
    *ns = lsa_clock_ns() - start;
    return LSA_OK;
}

static void *move_on_thread(void *context)
{
    trial *t = context;
    int32_t before;
    t->rc = lsa_device_enter(t->gpu, &before);
    if (!t->rc) t->rc = time_alone(t, &t->ns);
    if (t->rc) strncpy(t->message, lsa_error(), sizeof t->message - 1);
    return NULL;
}

/* By how much of a transfer's time the work beside it is late. */
static int cost_beside(trial *t, double *cost)
{
    int64_t alone = INT64_MAX, took, begin = lsa_clock_ns(), runs = 0;
    pthread_t thread;
    for (int i = 0; i < ROUNDS; i++) {
        LSA_TRY(work(t, &took));
        if (took < alone) alone = took;
    }
    begin = lsa_clock_ns();
    if (pthread_create(&thread, NULL, move_on_thread, t))
        return lsa_fail(LSA_ENOMEM, "pool: no thread for a transfer");
    int rc = LSA_OK;
    for (; !rc && runs < ROUNDS; runs++) rc = work(t, &took);
    int64_t beside = lsa_clock_ns() - begin;
    pthread_join(thread, NULL);
    LSA_TRY(rc);
    if (t->rc) return lsa_fail(t->rc, "%s", t->message);
    double late = (double)beside - (double)runs * (double)alone;
    *cost = late > 0 ? late / (double)(ROUNDS * t->ns) : 0;
    return LSA_OK;
}

static int open_trial(trial *t)
{
    void *block;
    t->k = lsa_kernels_on(LSA_CUDA);
    if (!t->k) return LSA_EDEVICE;
    LSA_TRY(lsa_cold_tier_add(&t->from, TRIAL_RECORD, TRIAL_RECORD, 8));
    lsa_cow_blocks_init_in(&t->from.plane[LSA_RECORDS].blocks, TRIAL_RECORD, 8, LSA_MEMORY_BOTH);
    LSA_TRY(lsa_cold_tier_resize(&t->from, SPREAD * TRIAL_RECORDS));
    LSA_TRY(lsa_device_alloc(&block, TRIAL));
    t->cells = block;
    LSA_TRY(lsa_device_alloc_shared(&block, WIDTH * (int64_t)sizeof *t->work, 0));
    t->work = block;
    t->cell_table = lsa_alloc_in(LSA_MEMORY_BOTH, sizeof *t->cell_table);
    if (!t->cell_table) return LSA_ENOMEM;
    t->cell_table[0] = t->cells;
    t->to = (lsa_records){t->cell_table, TRIAL_RECORD, 0, ONE_BLOCK, 0};
    for (int32_t i = 0; i < TRIAL_RECORDS; i++) {
        t->slots[i] = i;
        t->chunks[i] = i * SPREAD + i * 7 % SPREAD;
    }
    return LSA_OK;
}

static int measure(trial *t)
{
    lsa_transfer_mode *m = &t->r->mode;
    int64_t ns[3];
    double cost[3] = {0};
    for (t->way = LSA_TRANSFER_GATHER; t->way <= LSA_TRANSFER_PACK; t->way++) {
        LSA_TRY(time_alone(t, &ns[t->way]));
        if (t->r->beside) LSA_TRY(cost_beside(t, &cost[t->way]));
    }
    const double bytes = (double)TRIAL_RECORDS * TRIAL_RECORD;
    m->gather_rate = bytes / (double)ns[LSA_TRANSFER_GATHER];
    m->pack_rate = bytes / (double)ns[LSA_TRANSFER_PACK];
    m->gather_cost = cost[LSA_TRANSFER_GATHER];
    m->pack_cost = cost[LSA_TRANSFER_PACK];
    int packs = t->r->beside ? m->pack_cost / m->pack_rate < m->gather_cost / m->gather_rate
                             : m->pack_rate > m->gather_rate;
    m->way = packs ? LSA_TRANSFER_PACK : LSA_TRANSFER_GATHER;
    return LSA_OK;
}

static int find_way(ring *r)
{
    if (r->mode.way != LSA_TRANSFER_UNKNOWN) return LSA_OK;
    trial *t = lsa_alloc_zero(sizeof *t);
    if (!t) return LSA_ENOMEM;
    t->r = r;
    t->gpu = lsa_device_current();
    int rc = open_trial(t);
    if (!rc) rc = measure(t);
    lsa_cold_tier_free(&t->from);
    lsa_device_free(t->cells);
    lsa_device_free(t->work);
    lsa_free_in(LSA_MEMORY_BOTH, t->cell_table);
    lsa_free(t);
    return rc;
}

void lsa_transfer_mode_of(lsa_transfer_mode *out, int32_t beside)
{
    ring *r = ring_of(beside);
    pthread_mutex_lock(&r->lock);
    *out = r->mode;
    pthread_mutex_unlock(&r->lock);
}

void lsa_transfer_choose(int32_t beside, int32_t way)
{
    ring *r = ring_of(beside);
    pthread_mutex_lock(&r->lock);
    r->mode = (lsa_transfer_mode){.way = way};
    pthread_mutex_unlock(&r->lock);
}

/* ---- both ---- */

static int prepare(ring *r)
{
    LSA_TRY(open_ring(r));
    return find_way(r);
}

int lsa_gpu_prepare(int beside)
{
    ring *r = ring_of(beside);
    pthread_mutex_lock(&r->lock);
    int rc = prepare(r);
    pthread_mutex_unlock(&r->lock);
    return rc;
}

int lsa_gpu_fill(const lsa_cold_tier *from, const lsa_records *to, const int32_t *slots,
                 const int32_t *chunks, int64_t n, int beside)
{
    const lsa_kernels *k = lsa_kernels_on(LSA_CUDA);
    if (!k) return LSA_EDEVICE;
    ring *r = ring_of(beside);
    pthread_mutex_lock(&r->lock);
    int rc = prepare(r);
    if (!rc)
        rc = from->away_count || r->mode.way == LSA_TRANSFER_PACK
                 ? pack(r, k, from, to, slots, chunks, n)
                 : gather(r, k, from, to, slots, chunks, n);
    pthread_mutex_unlock(&r->lock);
    return rc;
}
