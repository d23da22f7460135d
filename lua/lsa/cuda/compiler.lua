-- Owns NVRTC, the CUDA toolkit's compiler at run time: source text becomes machine code for one GPU.
--
--   compiler.compile(source, kernel, {architecture = "sm_90a", file = "name in messages"})
--       {image = machine code, name = the kernel's linkage name, arguments = see signature.lua}; raises with what NVRTC says,
--       which quotes the source's lines
local ffi = require "ffi"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local signature = require "lsa.cuda.signature"

ffi.cdef [[
typedef struct lsa_nvrtc_program lsa_nvrtc_program;
int nvrtcVersion(int *major, int *minor);
const char *nvrtcGetErrorString(int code);
int nvrtcCreateProgram(lsa_nvrtc_program **, const char *source, const char *name, int headers, const char *const *texts,
                       const char *const *names);
int nvrtcDestroyProgram(lsa_nvrtc_program **);
int nvrtcCompileProgram(lsa_nvrtc_program *, int count, const char *const *options);
int nvrtcGetCUBINSize(lsa_nvrtc_program *, size_t *);
int nvrtcGetCUBIN(lsa_nvrtc_program *, char *);
int nvrtcGetProgramLogSize(lsa_nvrtc_program *, size_t *);
int nvrtcGetProgramLog(lsa_nvrtc_program *, char *);
int nvrtcAddNameExpression(lsa_nvrtc_program *, const char *);
int nvrtcGetLoweredName(lsa_nvrtc_program *, const char *, const char **);
]]

local TOOLKIT = "/usr/local/cuda"
local LIBRARIES = {"libnvrtc.so.13", TOOLKIT .. "/lib64/libnvrtc.so.13", "libnvrtc.so.12", TOOLKIT .. "/lib64/libnvrtc.so.12"}

-- What NVRTC has under another name.
local HEADERS = {["stdint.h"] = "#include <cuda/std/cstdint>\n", ["math.h"] = "\n", ["stddef.h"] = "#include <cuda/std/cstddef>\n"}

-- Stands behind the source. Its instance for a kernel's type has that type in its name.
local SIGNATURE = "\n#line 1 \"what lsa asks\"\ntemplate <typename T> __device__ char lsa_signature;\n"

local M = {}
local library

local function nvrtc()
  if library then return library end
  local why
  for _, name in ipairs(LIBRARIES) do
    local ok, found = pcall(ffi.load, name)
    if ok then
      library = found
      return library
    end
    why = why or found
  end
  raise("a kernel of your own is compiled by NVRTC, a library of the CUDA toolkit, which is not here: %s", why)
end

-- NVRTC's version, or nil.
function M.version()
  local major, minor = ffi.new "int[1]", ffi.new "int[1]"
  local ok, lib = pcall(nvrtc)
  if not ok or lib.nvrtcVersion(major, minor) ~= 0 then return nil end
  return ("%d.%d"):format(major[0], minor[0])
end

local function strings(list)
  return ffi.new("const char *[?]", math.max(#list, 1), list)
end

local function text_of(lib, program, size_of, get)
  local size = ffi.new "size_t[1]"
  lib[size_of](program, size)
  local text = ffi.new("char[?]", tonumber(size[0]) + 1)
  return text, lib[get](program, text) == 0 and tonumber(size[0]) or nil
end

local function new_program(lib, source, file)
  local names, texts = {}, {}
  for name, text in pairs(HEADERS) do names[#names + 1], texts[#texts + 1] = name, text end
  local function make(out)
    local rc = lib.nvrtcCreateProgram(out, source .. SIGNATURE, file, #names, strings(texts), strings(names))
    if rc ~= 0 then raise("%s: %s", file, ffi.string(lib.nvrtcGetErrorString(rc))) end
    return rc
  end
  local function free(program) lib.nvrtcDestroyProgram(ffi.new("lsa_nvrtc_program *[1]", program)) end
  return ownership.take(free, "lsa_nvrtc_program", make)
end

local function lowered(lib, program, expression)
  local name = ffi.new "const char *[1]"
  if lib.nvrtcGetLoweredName(program, expression, name) ~= 0 then return nil end
  return ffi.string(name[0])
end

function M.compile(source, kernel, options)
  local lib, file = nvrtc(), options.file or kernel .. ".cu"
  local program = new_program(lib, source, file)
  local type_of = ("&lsa_signature<decltype(&%s)>"):format(kernel)
  for _, expression in ipairs {kernel, type_of} do lib.nvrtcAddNameExpression(program, expression) end
  local flags = {"--gpu-architecture=" .. options.architecture, "-lineinfo", "-I" .. TOOLKIT .. "/include",
    "-I" .. TOOLKIT .. "/include/cccl"}
  local rc = lib.nvrtcCompileProgram(program, #flags, strings(flags))
  if rc ~= 0 then
    local log = ffi.string((text_of(lib, program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")))
    if log:find("__nv_name_map", 1, true) and not log:find(file .. "(", 1, true) then
      raise("%s", ("cuda.kernel: %s has no __global__ function %s"):format(file, kernel))
    end
    raise("%s", ("cuda.kernel: %s does not compile: %s\n%s"):format(file, ffi.string(lib.nvrtcGetErrorString(rc)), log))
  end
  local name, mangled = lowered(lib, program, kernel), lowered(lib, program, type_of)
  local image, bytes = text_of(lib, program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
  if not name or not mangled or not bytes then raise("%s: NVRTC does not say what it made of it", kernel) end
  local ok, arguments = pcall(signature.of, mangled)
  if not ok then raise("%s: its arguments cannot be told (%s)", kernel, mangled) end
  return {image = image, bytes = bytes, name = name, arguments = arguments, owner = program}
end

return M
