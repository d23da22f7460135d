// Conversion between dtypes on the GPU, with the CPU's bits: through f32, through i64 from integer to integer, straight from and to f64.
#include "kernels/convert_private.h"
#include "kernels/cuda_launch.h"

extern "C" {
#include "kernels/convert.h"
}

enum { THREADS = 256 };

// ---- helpers ----

__device__ static bool is_integer(int32_t dtype) { return dtype >= LSA_I8 && dtype <= LSA_I64; }

__device__ static int64_t integer_at(const void *in, int64_t i, int32_t dtype)
{
    switch (dtype) {
    case LSA_I8:
        return ((const int8_t *)in)[i];
    case LSA_U8:
        return ((const uint8_t *)in)[i];
    case LSA_I32:
        return ((const int32_t *)in)[i];
    default:
        return ((const int64_t *)in)[i];
    }
}

// odd: the number is rounded again when it is stored.
__device__ static float float_at(const void *in, int64_t i, int32_t dtype, bool odd)
{
    const uint8_t *bytes = (const uint8_t *)in;
    switch (dtype) {
    case LSA_F32:
        return ((const float *)in)[i];
    case LSA_BF16:
        return bf16_to_f32(((const uint16_t *)in)[i]);
    case LSA_F16:
        return f16_to_f32(((const uint16_t *)in)[i]);
    case LSA_F8_E4M3:
        return e4m3_to_f32(bytes[i]);
    case LSA_F8_E8M0:
        return e8m0_to_f32(bytes[i]);
    case LSA_F4_E2M1:
        return e2m1_to_f32((uint8_t)(bytes[i / 2] >> i % 2 * 4));
    }
    int64_t v = integer_at(in, i, dtype);
    return odd ? i64_to_f32_odd(v) : __ll2float_rn(v);
}

__device__ static void put_integer(void *out, int64_t i, int32_t dtype, int64_t v)
{
    switch (dtype) {
    case LSA_I8:
        ((int8_t *)out)[i] = (int8_t)clamp(v, INT8_MIN, INT8_MAX);
        break;
    case LSA_U8:
        ((uint8_t *)out)[i] = (uint8_t)clamp(v, 0, UINT8_MAX);
        break;
    case LSA_I32:
        ((int32_t *)out)[i] = (int32_t)clamp(v, INT32_MIN, INT32_MAX);
        break;
    default:
        ((int64_t *)out)[i] = v;
    }
}

__device__ static void put_float(void *out, int64_t i, int32_t dtype, float v)
{
    switch (dtype) {
    case LSA_F32:
        ((float *)out)[i] = v;
        break;
    case LSA_BF16:
        ((uint16_t *)out)[i] = f32_to_bf16(v);
        break;
    case LSA_F16:
        ((uint16_t *)out)[i] = f32_to_f16(v);
        break;
    case LSA_F8_E4M3:
        ((uint8_t *)out)[i] = f32_to_e4m3(v);
        break;
    case LSA_F8_E8M0:
        ((uint8_t *)out)[i] = f32_to_e8m0(v);
        break;
    case LSA_I64:
        ((int64_t *)out)[i] = f32_to_i64(v);
        break;
    default:
        put_integer(out, i, dtype, f32_to_i32(v));
    }
}

// NaN keeps its sign and the top of its payload, as on a CPU.
__device__ static float narrowed(double v, bool odd)
{
    uint64_t u = (uint64_t)__double_as_longlong(v);
    if (v != v)
        return f32_from_bits((uint32_t)(u >> 32 & 0x80000000) | 0x7fc00000 |
                             (uint32_t)(u >> 29 & 0x3fffff));
    return odd ? f64_to_f32_odd(v) : (float)v;
}

__device__ static double widened(float v)
{
    uint64_t u = f32_bits(v);
    if (v == v) return (double)v;
    return __longlong_as_double(
        (long long)((u & 0x80000000) << 32 | 0x7ff8000000000000 | (u & 0x3fffff) << 29));
}

// ---- kernels ----

// Grid: (ceil(n / 256)), block: 256.
__global__ static void convert_each(void *out, const void *in, int64_t n, int32_t to, int32_t from)
{
    bool integers = is_integer(to) && is_integer(from);
    for (int64_t i = lsa_thread(); i < n; i += lsa_threads())
        if (to == LSA_F64)
            ((double *)out)[i] = is_integer(from) ? (double)integer_at(in, i, from)
                                                  : widened(float_at(in, i, from, false));
        else if (from == LSA_F64 && is_integer(to))
            put_integer(out, i, to, f64_to_i64(((const double *)in)[i]));
        else if (from == LSA_F64)
            put_float(out, i, to, narrowed(((const double *)in)[i], to != LSA_F32));
        else if (integers)
            put_integer(out, i, to, integer_at(in, i, from));
        else
            put_float(out, i, to, float_at(in, i, from, to != LSA_F32));
}

// ---- launcher ----

int lsa_convert_cuda(void *out, const void *in, int64_t n, int32_t out_dtype, int32_t in_dtype,
                     void *stream)
{
    int rc = lsa_convert_check(n, out_dtype, in_dtype);
    if (rc || n == 0) return rc;
    cudaStream_t s = (cudaStream_t)stream;
    if (out_dtype == in_dtype)
        cudaMemcpyAsync(out, in, (size_t)(n * lsa_dtype_size(in_dtype)), cudaMemcpyDeviceToDevice,
                        s);
    else
        convert_each<<<lsa_blocks(n, THREADS), THREADS, 0, s>>>(out, in, n, out_dtype, in_dtype);
    return lsa_launched("convert", n);
}
