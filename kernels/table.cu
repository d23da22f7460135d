// The table of the GPU's kernels: what is not here, it has not.
extern "C" {
#include "kernels/table.h"
}

static lsa_kernels table()
{
    lsa_kernels k = {};
    k.device = LSA_CUDA;
    k.bytes = sizeof k;
    k.index_score = lsa_index_score_cuda;
    k.index_score_workspace = lsa_index_score_workspace;
    return k;
}

extern "C" {
extern const lsa_kernels lsa_kernels_cuda;
const lsa_kernels lsa_kernels_cuda = table();
}
