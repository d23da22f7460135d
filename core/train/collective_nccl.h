/* Private to core/train: ranks that NCCL connects, each with a GPU of its own. */
#ifndef LSA_COLLECTIVE_NCCL_H
#define LSA_COLLECTIVE_NCCL_H
#include "core/train/collective.h"

/* What ranks find each other by: rank 0's, on all of them. */
typedef struct lsa_nccl_id {
    char bytes[128];
} lsa_nccl_id;

/* A new one. LSA_EDEVICE where the library is missing. */
int lsa_nccl_new_id(lsa_nccl_id *id);

/* Rank 0 makes one and writes it to a file, which must not be there; the others wait for the file. LSA_EARG, LSA_ESTATE when the
 * time is up. */
int lsa_nccl_share_id(lsa_nccl_id *id, const char *path, int32_t rank, double seconds);

/* All ranks call it, and all return once they are connected. What is summed may lie in the host's memory or any GPU's. */
int lsa_nccl_open(lsa_collective_backend *out, const lsa_nccl_id *id, int32_t rank, int32_t size,
                  int32_t gpu);

#endif
