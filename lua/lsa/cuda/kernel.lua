-- Owns kernels that a script brings along: k(grid, block, shared, arguments...) on tensors and numbers.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local compiler = require "lsa.cuda.compiler"
local device = require "lsa.tensor.device"
local options = require "lsa.options"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local signature = require "lsa.cuda.signature"
local tensor = require "lsa.tensor.tensor"
local check = raise.check

local M = {options = {file = false}}

-- Of numbers: how they are written, and what fits.
local NUMBERS = {
  float = {"float *"}, double = {"double *"}, bool = {"bool *"},
  ["char"] = {"int8_t *", -2 ^ 7, 2 ^ 7 - 1}, ["signed char"] = {"int8_t *", -2 ^ 7, 2 ^ 7 - 1},
  ["unsigned char"] = {"uint8_t *", 0, 2 ^ 8 - 1}, ["short"] = {"int16_t *", -2 ^ 15, 2 ^ 15 - 1},
  ["unsigned short"] = {"uint16_t *", 0, 2 ^ 16 - 1}, ["int"] = {"int32_t *", -2 ^ 31, 2 ^ 31 - 1},
  ["unsigned int"] = {"uint32_t *", 0, 2 ^ 32 - 1}, ["long"] = {"int64_t *", -2 ^ 53, 2 ^ 53},
  ["unsigned long"] = {"uint64_t *", 0, 2 ^ 53},
}
NUMBERS["long long"], NUMBERS["unsigned long long"] = NUMBERS["long"], NUMBERS["unsigned long"]

-- Of pointers: the dtypes of tensors that they may point to; "set": a set's words, to read.
local POINTERS = {
  float = {"f32"}, double = {"f64"}, int = {"i32"}, ["unsigned int"] = {"i32"}, ["long"] = {"i64"}, ["long long"] = {"i64"},
  ["unsigned long"] = {"i64", "set"}, ["unsigned long long"] = {"i64", "set"}, ["signed char"] = {"i8"}, ["char"] = {"i8", "u8"},
  ["unsigned char"] = {"u8", "f8_e4m3", "f8_e8m0"}, bool = {"u8"}, ["unsigned short"] = {"bf16", "f16"}, ["short"] = {"bf16", "f16"},
  __half = {"f16"}, __nv_bfloat16 = {"bf16"}, __nv_fp8_e4m3 = {"f8_e4m3"}, __nv_fp8_e8m0 = {"f8_e8m0"},
}

local Kernel = {}
Kernel.__index = Kernel

local function said(k, i, text, ...)
  local argument = k.arguments[i]
  raise("%s", ("%s: argument %d (%s) %s"):format(k.name, i, signature.text(argument), text:format(...)))
end

-- Sizes of a grid or a block: a number, or up to three.
local function sizes(k, what, value)
  local out, list = ffi.new("int64_t[3]", 1, 1, 1), type(value) == "table" and value or {value}
  if #list < 1 or #list > 3 then raise("%s: %s is %s; 1 to 3 sizes are wanted", k.name, what, options.shown(value)) end
  for i, n in ipairs(list) do out[i - 1] = options.whole(n, 1, ("%s: %s"):format(k.name, what), 2 ^ 31 - 1) end
  return out
end

local function on_gpu(k, i, t)
  if t:device() == "cuda" then return t end
  if k.arguments[i].constant then return t:to "cuda" end
  said(k, i, 'is written to, and the tensor is in host memory; x:to "cuda" is not')
end

local function accepts(list, wanted)
  for _, dtype in ipairs(list or {}) do
    if dtype == wanted then return true end
  end
  return false
end

-- A set's words, on the GPU.
local function words_of(s)
  local n = math.ceil(s:size() / 64)
  local words = tensor.zeros({n}, "i64")
  ffi.copy(words.c.data, s.c.bits, 8 * n)
  return words:to "cuda"
end

local function pointer(k, i, cell, value, held)
  local argument = k.arguments[i]
  local wanted = argument.type ~= "void" and POINTERS[argument.type]
  if value == nil then return end
  if set.is(value) then
    if not argument.constant or not accepts(wanted or {}, "set") then
      said(k, i, "is given a set, whose words are read through const unsigned long long *")
    end
    value = words_of(value)
  elseif not tensor.is(value) then
    said(k, i, "is given %s; a tensor or nil is wanted", raise.kind(value))
  elseif wanted and not accepts(wanted, value:dtype()) then
    said(k, i, "is given %s, %s is wanted", value:dtype(), (table.concat(wanted, " or "):gsub(" or set", "")))
  elseif not value:is_contiguous() then
    said(k, i, "is given a view with gaps; x:contiguous() has none")
  else
    value = on_gpu(k, i, value)
  end
  held[#held + 1] = value
  ffi.cast("void **", cell)[0] = value.c.data
end

local WIDE = {[tostring(ffi.typeof "int64_t")] = true, [tostring(ffi.typeof "uint64_t")] = true}

local function number(k, i, cell, value)
  local kind = NUMBERS[k.arguments[i].type]
  local is_bool = k.arguments[i].type == "bool"
  if type(value) ~= (is_bool and "boolean" or "number") and not (kind[2] and type(value) == "cdata" and WIDE[tostring(ffi.typeof(value))]) then
    said(k, i, "is given %s; %s is wanted", raise.kind(value), is_bool and "true or false" or "a number")
  end
  if kind[2] and type(value) == "number" and not (value == math.floor(value) and value >= kind[2] and value <= kind[3]) then
    said(k, i, "is given %.17g; a whole number from %.0f to %.0f is wanted", value, kind[2], kind[3])
  end
  ffi.cast(kind[1], cell)[0] = value
end

function Kernel:__call(grid, block, shared, ...)
  local g, b = sizes(self, "grid", grid), sizes(self, "block", block)
  options.whole(shared, 0, self.name .. ": shared memory, in bytes,", 2 ^ 31 - 1)
  local n, given = #self.arguments, select("#", ...)
  if given ~= n then
    raise("%s: %d arguments are given, it takes %d: %s", self.name, given, n, self.text)
  end
  local cells, list, held = ffi.new("uint64_t[?]", math.max(n, 1)), ffi.new("void *[?]", math.max(n, 1)), {}
  for i = 1, n do
    local value = (select(i, ...))
    list[i - 1] = cells + i - 1
    if self.arguments[i].pointer then pointer(self, i, cells + i - 1, value, held) else number(self, i, cells + i - 1, value) end
  end
  device.written()
  if C.lsa_device_program_launch(self.program, g, b, shared, list) < 0 then
    raise("%s", self.name .. ": " .. ffi.string(C.lsa_error()))
  end
end

function Kernel:__tostring() return self.text end

-- "sm_90a" of the first GPU: from Hopper on, with what its generation alone has.
local function architecture()
  local major, minor = ffi.new "int32_t[1]", ffi.new "int32_t[1]"
  check(C.lsa_device_architecture(0, major, minor))
  return ("sm_%d%d%s"):format(major[0], minor[0], major[0] >= 9 and "a" or "")
end

-- Struct arguments and pointers to pointers have no tensor.
local function check_arguments(name, arguments)
  for i, argument in ipairs(arguments) do
    local known = argument.pointer and not argument.deep and (argument.type == "void" or POINTERS[argument.type])
      or not argument.pointer and NUMBERS[argument.type]
    if not known then
      raise("%s", ("%s: argument %d is %s; numbers and pointers to numbers can be given"):format(name, i, signature.text(argument)))
    end
  end
end

local function text_of(name, arguments)
  local list = {}
  for i, argument in ipairs(arguments) do list[i] = signature.text(argument) end
  return ("%s(grid, block, shared%s%s)"):format(name, #list > 0 and ", " or "", table.concat(list, ", "))
end

-- source: CUDA C++; name: of a __global__ function in it, or of an instance of a template, "mine<float>". {file = "mine.cu"}: how
-- messages call the source.
function M.new(source, name, given)
  if type(source) ~= "string" then raise("cuda.kernel: the source is %s; CUDA C++ text is wanted", raise.kind(source)) end
  if type(name) ~= "string" or name == "" or source:find("\0", 1, true) or name:find("[%z\n]") then
    raise("cuda.kernel: the kernel's name is %s; the name of a function in the source is wanted", options.shown(name))
  end
  local opt = options.check(given, M.options, "cuda.kernel")
  if opt.file then options.path(opt.file, "cuda.kernel: file") end
  if C.lsa_device_count() == 0 then raise(ffi.string(C.lsa_error())) end
  local made = compiler.compile(source, name, {architecture = architecture(), file = opt.file})
  check_arguments(name, made.arguments)
  local program = ownership.take(C.lsa_device_program_free, "void", C.lsa_device_program_load, made.image, made.name)
  return setmetatable({name = name, arguments = made.arguments, text = text_of(name, made.arguments), program = program},
    Kernel)
end

return M
