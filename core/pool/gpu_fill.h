/* Private: fills cells of a GPU's pool. */
#ifndef LSA_GPU_FILL_H
#define LSA_GPU_FILL_H
#include "core/pool/cold_tier.h"
#include "kernels/kv_record.h"

/* Memory for transfers, and the way that they go, once: before a first one beside decoding, so that it is measured in peace. */
int lsa_gpu_prepare(int beside);

/* Copies the records of n chunks of `from` to slots of `to`; done when it returns. beside: 1 where decoding goes on meanwhile, on
 * another thread. */
int lsa_gpu_fill(const lsa_cold_tier *from, const lsa_records *to, const int32_t *slots,
                 const int32_t *chunks, int64_t n, int beside);

#endif
