/* Conversion between dtypes, exact to the standard. */
#ifndef LSA_KERNELS_CONVERT_H
#define LSA_KERNELS_CONVERT_H
#include "core/base/tensor.h"

/* out[i] = in[i] as out_dtype, for n contiguous elements. out and in do not overlap.
 *
 * To a narrower float: round to nearest even. NaN stays NaN. f8_e4m3 is e4m3fn: |x| > 448 after rounding
 * (and infinity) saturates to ±448. bf16 and f16 overflow to infinity. f8_e8m0: the nearest power of two
 * in the logarithm's sense of PyTorch (round to nearest even on the mantissa's top bit), negative and NaN
 * give NaN (0xff), zero gives 2^-127. To an integer: truncation toward zero, saturating, NaN gives 0.
 * i64 to f32 rounds to nearest even. Any pair of dtypes below LSA_DTYPES; LSA_EDTYPE otherwise.
 * LSA_F4_E2M1 is accepted as in_dtype only: n values from n/2 bytes, low nibble first. */
typedef int lsa_convert_fn(void *out, const void *in, int64_t n, int32_t out_dtype,
                           int32_t in_dtype, void *stream);
lsa_convert_fn lsa_convert_cpu, lsa_convert_cuda;

/* The arguments, as both check them. */
int lsa_convert_check(int64_t n, int32_t out_dtype, int32_t in_dtype);

#endif
