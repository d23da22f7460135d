/* Private to trainer*.c. */
#ifndef LSA_TRAINER_PRIVATE_H
#define LSA_TRAINER_PRIVATE_H
#include "core/train/trainer.h"

struct lsa_trainer {
    lsa_trainer_shape shape;
    float *inv_freq;   /* [rope_dim / 2] */
    float *all[4];     /* LSA_TRAIN_KINDS */
    int64_t offset[5]; /* of a layer's parts, in floats; the last: a layer's size */
    void *scratch;     /* grows to what a call needs */
    int64_t scratch_bytes;
};

/* At least `bytes` bytes on a 64-byte boundary, contents undefined; NULL with a message. */
void *lsa_trainer_scratch(lsa_trainer *trainer, int64_t bytes);

#endif
