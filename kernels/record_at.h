/* Private to kernels: where a record lies, for both sides. */
#ifndef LSA_RECORD_AT_H
#define LSA_RECORD_AT_H
#ifdef __CUDACC__
extern "C" {
#include "kernels/kv_record.h"
}
#define LSA_ON_BOTH __host__ __device__
#else
#include "kernels/kv_record.h"
#define LSA_ON_BOTH
#endif

LSA_ON_BOTH static inline uint8_t *lsa_record_at(const lsa_records *r, int64_t i)
{
    int64_t within = i & (((int64_t)1 << r->block_shift) - 1);
    return r->blocks[i >> r->block_shift] + within * r->stride + r->offset;
}

#endif
