/* Private to CUDA files: the vectors of core/base/simd.h with one lane, a thread's own, so that vector_math.h and
 * number_formats.h compile for a GPU as well. The same operations in the same order, each rounded once (nvcc would
 * contract plain ones): a thread's bits are those that a lane of a CPU gives. */
#ifndef LSA_CUDA_LANE_H
#define LSA_CUDA_LANE_H
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LSA_BODY __device__ __attribute__((always_inline))

typedef int32_t i32x16; /* as a mask: -1 or 0 */
typedef uint32_t u32x16;

/* A cast to and from i32x16 keeps the bits, as it does between vectors. */
struct f32x16 {
    float lane;
    f32x16() = default;
    LSA_BODY f32x16(float x) : lane(x) {}
    LSA_BODY explicit f32x16(i32x16 bits) { memcpy(&lane, &bits, sizeof lane); }
    LSA_BODY explicit operator i32x16() const
    {
        i32x16 bits;
        memcpy(&bits, &lane, sizeof bits);
        return bits;
    }
};

static inline LSA_BODY f32x16 operator+(f32x16 a, f32x16 b) { return __fadd_rn(a.lane, b.lane); }
static inline LSA_BODY f32x16 operator-(f32x16 a, f32x16 b) { return __fsub_rn(a.lane, b.lane); }
static inline LSA_BODY f32x16 operator*(f32x16 a, f32x16 b) { return __fmul_rn(a.lane, b.lane); }
static inline LSA_BODY f32x16 operator/(f32x16 a, f32x16 b) { return __fdiv_rn(a.lane, b.lane); }
static inline LSA_BODY f32x16 operator-(f32x16 a) { return -a.lane; }
static inline LSA_BODY f32x16 &operator+=(f32x16 &a, f32x16 b) { return a = a + b; }
static inline LSA_BODY i32x16 operator>(f32x16 a, f32x16 b) { return a.lane > b.lane ? -1 : 0; }

static inline LSA_BODY f32x16 f32x16_set(float x) { return x; }

/* To the nearest float. */
static inline LSA_BODY f32x16 f32x16_of(i32x16 v) { return __int2float_rn(v); }

#endif
