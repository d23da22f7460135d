/* Private to C files: sixteen floats or integers that a loop carries from turn to turn. There GCC
 * keeps a vector wider than the processor's in memory, but its halves in registers.
 *
 * wide: whether the code path's own vectors have sixteen floats. LSA_PATHS_WIDE is LSA_PATHS for a
 * body that has this parameter before those named. */
#ifndef LSA_SIMD_KEPT_H
#define LSA_SIMD_KEPT_H
#include "core/base/simd.h"

#define LSA_KEPT(type, half)                                                                       \
    typedef struct type##_kept {                                                                   \
        type whole;                                                                                \
        half low, high;                                                                            \
    } type##_kept;                                                                                 \
    static inline LSA_BODY void type##_keep(int wide, type##_kept *k, type v)                      \
    {                                                                                              \
        if (wide) {                                                                                \
            k->whole = v;                                                                          \
        } else {                                                                                   \
            k->low = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);                        \
            k->high = __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);                 \
        }                                                                                          \
    }                                                                                              \
    static inline LSA_BODY type type##_kept_value(int wide, const type##_kept *k)                  \
    {                                                                                              \
        if (wide) return k->whole;                                                                 \
        return (type)__builtin_shufflevector(k->low, k->high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10,    \
                                             11, 12, 13, 14, 15);                                  \
    }                                                                                              \
    static inline LSA_BODY void type##_keep_sum(int wide, type##_kept *k, type v)                  \
    {                                                                                              \
        type##_keep(wide, k, type##_kept_value(wide, k) + v);                                      \
    }

typedef float lsa_f32x8 __attribute__((vector_size(32)));
typedef int32_t lsa_i32x8 __attribute__((vector_size(32)));
LSA_KEPT(f32x16, lsa_f32x8)
LSA_KEPT(i32x16, lsa_i32x8)

#define LSA_THOSE(...) __VA_ARGS__

#if defined(__x86_64__)
#define LSA_PATHS_WIDE(name, params, args)                                                         \
    LSA_TARGET_AVX512 static void name##_avx512 params { name##_body(1, LSA_THOSE args); }         \
    LSA_TARGET_AVX2 static void name##_avx2 params { name##_body(0, LSA_THOSE args); }             \
    static void name##_generic params { name##_body(0, LSA_THOSE args); }                          \
    static void name params                                                                        \
    {                                                                                              \
        int level = lsa_cpu_level();                                                               \
        if (level >= LSA_CPU_AVX512)                                                               \
            name##_avx512 args;                                                                    \
        else if (level == LSA_CPU_AVX2)                                                            \
            name##_avx2 args;                                                                      \
        else                                                                                       \
            name##_generic args;                                                                   \
    }
#else
#define LSA_PATHS_WIDE(name, params, args)                                                         \
    static void name params { name##_body(0, LSA_THOSE args); }
#endif

#endif
