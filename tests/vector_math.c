/* What tests/vector_math_spec.lua compiles: the private functions over arrays, n a multiple of
 * 16. */
#include "kernels/vector_math.h"

#define OVER_ARRAYS(op)                                                                            \
    static inline LSA_BODY void op##_all_body(float *y, const float *x, int64_t n)                 \
    {                                                                                              \
        for (int64_t i = 0; i < n; i += 16) f32x16_store(y + i, f32x16_##op(f32x16_load(x + i)));  \
    }                                                                                              \
    LSA_PATHS(op##_all, (float *y, const float *x, int64_t n), (y, x, n))                          \
    void vector_math_##op(float *y, const float *x, int64_t n) { op##_all(y, x, n); }

OVER_ARRAYS(exp)
OVER_ARRAYS(sigmoid)
OVER_ARRAYS(log1p_unit)
OVER_ARRAYS(softplus)
