/* Private to trainer*.c. */
#ifndef LSA_TRAINER_PRIVATE_H
#define LSA_TRAINER_PRIVATE_H
#include "core/train/trainer.h"
#include "kernels/table.h"

struct lsa_trainer {
    lsa_trainer_shape shape;
    float *inv_freq;   /* [rope_dim / 2] */
    float *all[4];     /* LSA_TRAIN_KINDS */
    int64_t offset[5]; /* of a layer's parts, in floats; the last: a layer's size */
    const lsa_kernels
        *k; /* of where the rest lies: host memory, or what host and GPU have at one address */
    int32_t memory; /* LSA_MEMORY_HOST or LSA_MEMORY_GPU */
    int32_t gpu;    /* which one; 0 on a CPU */
    void *scratch;  /* grows to what a call needs, as does `pinned`, which is for a GPU alone: */
    int64_t scratch_bytes;
    void *pinned; /* host memory that the GPU reads and writes */
    int64_t pinned_bytes;
};

/* Before a call: what it launches goes to the trainer's GPU. before: for lsa_device_back after it. */
int lsa_trainer_use(const lsa_trainer *trainer, int32_t *before);

/* At least `bytes` bytes on a 64-byte boundary, contents undefined; NULL with a message. */
void *lsa_trainer_scratch(lsa_trainer *trainer, int64_t bytes);
void *lsa_trainer_pinned(lsa_trainer *trainer, int64_t bytes);

/* Until what was launched is done, and with its errors; on a CPU everything is. */
int lsa_trainer_wait(const lsa_trainer *trainer);

#endif
