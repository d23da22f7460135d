/* Everything: the binding reads this file, follows its includes, and declares what it finds to LuaJIT.
 * So public headers hold C that ffi.cdef parses once preprocessor lines are gone: enums for constants,
 * no macros in declarations. */
#ifndef LSA_H
#define LSA_H
#include "core/error.h"
#include "core/memory.h"
#include "core/cpu.h"
#include "core/device.h"
#include "core/clock.h"
#include "core/peaks.h"
#include "core/tensor.h"
#include "core/io.h"
#include "core/set.h"
#include "core/safetensors.h"
#include "core/config.h"
#include "core/model.h"
#include "kernels/attention.h"
#include "kernels/compress.h"
#include "kernels/convert.h"
#include "kernels/hadamard.h"
#include "kernels/hyper_connection.h"
#include "kernels/index_score.h"
#include "kernels/kv_record.h"
#include "kernels/linear.h"
#include "kernels/moe.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/topk.h"
#endif
