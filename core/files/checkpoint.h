/* Private to C files: the tensors of a checkpoint's files by name, and the memory that a model made of them holds. */
#ifndef LSA_CHECKPOINT_H
#define LSA_CHECKPOINT_H
#include "core/base/tensor.h"

typedef struct lsa_checkpoint lsa_checkpoint;

/* Opens DIR/model.safetensors or, where there is none, DIR/model.safetensors.index.json with the shards beside it.
 * A tensor in two shards, an entry of the index that its shard does not have, and a shard that is not a plain file
 * name are errors. */
int lsa_checkpoint_open(lsa_checkpoint **out, const char *directory);
void lsa_checkpoint_close(lsa_checkpoint *checkpoint);

/* The file that the checkpoint is, for messages. */
const char *lsa_checkpoint_path(const lsa_checkpoint *checkpoint);

/* Position of the tensor `name` or `model.name`, -1 where there is neither; LSA_EFORMAT where there are both. */
int lsa_checkpoint_find(const lsa_checkpoint *checkpoint, int64_t *place, const char *name);

const char *lsa_checkpoint_name(const lsa_checkpoint *checkpoint, int64_t i);

/* The file that tensor i is in. */
const char *lsa_checkpoint_file(const lsa_checkpoint *checkpoint, int64_t i);

/* A view that outlives the checkpoint. */
int lsa_checkpoint_get(const lsa_checkpoint *checkpoint, int64_t i, lsa_tensor **out);

#endif
