local ffi = require "ffi"
local binding = require "lsa.ffi"
local support = require "kernel_support"
local C = binding.C

local library, root = os.tmpname(), binding.root
local compile = "cc -std=c11 -O2 -Wall -Wextra -Werror -Wno-psabi -fno-math-errno -fno-trapping-math -fPIC -shared -I%s -o %s %s"
assert(os.execute(compile:format(root, library, root .. "/tests/number_formats.c")) == 0)
local V = ffi.load(library)
os.remove(library)

-- Conversion, type of the result, type of the argument, numbers per argument.
local conversions = {
  { "bf16_to_f32", "uint32_t", "uint16_t", 1 }, { "f32_to_bf16", "uint16_t", "uint32_t", 1 },
  { "f16_to_f32", "uint32_t", "uint16_t", 1 }, { "f32_to_f16", "uint16_t", "uint32_t", 1 },
  { "e4m3_to_f32", "uint32_t", "uint8_t", 1 }, { "e4m3_to_bf16", "uint16_t", "uint8_t", 1 },
  { "e2m1_to_f32", "uint32_t", "uint8_t", 2 }, { "e2m1_to_bf16", "uint16_t", "uint8_t", 2 },
}
local paths = {
  { "avx2", C.LSA_CPU_AVX2, { bf16_to_f32 = 1, f32_to_bf16 = 1, f16_to_f32 = 1, f32_to_f16 = 1, e4m3_to_f32 = 1, e2m1_to_f32 = 1 } },
  { "avx512", C.LSA_CPU_AVX512, { bf16_to_f32 = 1, f32_to_bf16 = 1, e4m3_to_f32 = 1, e4m3_to_bf16 = 1, e2m1_to_f32 = 1,
                                  e2m1_to_bf16 = 1 } },
  { "avx512_bf16", C.LSA_CPU_AVX512_BF16, { e4m3_to_bf16 = 1 } },
}

-- Every code of 8 and 16 bits; of f32, ties and their neighbours under every sign and exponent.
local function inputs(ctype)
  if ctype ~= "uint32_t" then
    local n = 256 ^ ffi.sizeof(ctype)
    local all = support.buffer(ctype, n)
    for c = 0, n - 1 do all[c] = c end
    return all, n
  end
  local list = {}
  for high = 0, 0xffff, 3 do
    for _, low in ipairs { 0, 1, 0x7fff, 0x8000, 0x8001, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0xffff } do
      list[#list + 1] = high * 65536 + low
    end
  end
  for _, special in ipairs { 0x7f800000, 0xff800000, 0x7f800001, 0xff800001, 0x7fffffff, 0x7f7fffff, 0x80000001 } do
    list[#list + 1] = special
  end
  while #list % 64 ~= 0 do list[#list + 1] = 0 end
  return support.array("uint32_t", list), #list
end

local function declared(path, conversion)
  local name = path .. "_" .. conversion[1]
  ffi.cdef(("void %s(%s *, const %s *, int64_t);"):format(name, conversion[2], conversion[3]))
  return V[name]
end

describe("number formats", function()
  for _, conversion in ipairs(conversions) do
    local scalar = declared("scalar", conversion)
    for _, path in ipairs(paths) do
      if path[3][conversion[1]] and path[2] <= C.lsa_cpu_best() then
        it(("gives with %s the bits of the scalar %s, for every code"):format(path[1], conversion[1]), function()
          local input, n = inputs(conversion[3])
          n = n * conversion[4]
          local want, got = support.buffer(conversion[2], n), support.buffer(conversion[2], n)
          scalar(want, input, n)
          declared(path[1], conversion)(got, input, n)
          assert.is_true(support.same_bits(want, got, n * ffi.sizeof(conversion[2])))
        end)
      end
    end
  end
end)
