/* Records on their way into the cells of a GPU's pool, in one of two ways. To gather: a few multiprocessors read them where they
 * lie in host memory, over the bus. To pack: processors lay them side by side in a ring of pinned memory of fixed size, and the
 * GPU's copy engine fetches that; what comes from a disk is packed in any case. The first transfer of either mode finds out which
 * way serves it better on this machine: alone, the faster; beside decoding, the one that costs decoding less for its bytes. */
#ifndef LSA_GPU_TRANSFER_H
#define LSA_GPU_TRANSFER_H
#include <stdint.h>

enum {
    LSA_TRANSFER_UNKNOWN = 0, /* not measured yet */
    LSA_TRANSFER_GATHER = 1,
    LSA_TRANSFER_PACK = 2
};

/* What was measured, of transfers alone and of those beside decoding: bytes in a nanosecond, and the share of their time by which
 * work that ran beside them took longer (of the latter alone). */
typedef struct lsa_transfer_mode {
    int32_t way;
    double gather_rate, pack_rate, gather_cost, pack_cost;
} lsa_transfer_mode;

/* beside: 0 or 1. choose: by hand; LSA_TRANSFER_UNKNOWN measures again. */
void lsa_transfer_mode_of(lsa_transfer_mode *out, int32_t beside);
void lsa_transfer_choose(int32_t beside, int32_t way);

#endif
