-- `lsa doctor`: what this machine has, what is missing, and what each missing thing costs.
local ffi = require "ffi"
local host = require "lsa.host"

local M = {}

ffi.cdef [[
int mi_version(void);
const char *jansson_version_str(void);
unsigned XXH_versionNumber(void);
const char *zlibVersion(void);
typedef struct { int major, minor, patch; } lsa_dnnl_version;
const lsa_dnnl_version *dnnl_version(void);
int cuDriverGetVersion(int *);
int cudaRuntimeGetVersion(int *);
int ncclGetVersion(int *);
]]

local LABEL = 12
local missing

local function read(path)
  local file = io.open(path)
  if not file then return "" end
  local text = file:read "*a" or ""
  file:close()
  return text
end

local function exists(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

local function output(command)
  local pipe = io.popen(command .. " 2>/dev/null")
  local text = pipe:read "*a"
  pipe:close()
  return text
end

local function line(label, text) print(("%-" .. LABEL .. "s %s"):format(label, text)) end

-- A thing that is there, or the line that says what its absence costs.
local function thing(label, text, cost)
  if text then
    line(label, text)
  else
    line(label, "missing")
    missing[#missing + 1] = ("%s: %s"):format(label, cost)
  end
end

local function gib(bytes) return ("%.1f GiB"):format(tonumber(bytes) / 2 ^ 30) end

-- A library's function through any of `names`, or nil.
local function symbol(name, names)
  for _, library in ipairs(names) do
    local ok, value = pcall(function() return ffi.load(library)[name] end)
    if ok then return value end
  end
end

-- "13.0" from CUDA's 13000.
local function cuda_version(name, libraries)
  local get, version = symbol(name, libraries), ffi.new "int[1]"
  if get and get(version) == 0 and version[0] > 0 then
    return ("%d.%d"):format(version[0] / 1000, version[0] % 1000 / 10)
  end
end

local function processor(lib)
  local info = read "/proc/cpuinfo"
  local flags = " " .. (info:match "\nflags%s*: ([^\n]*)" or "") .. " "
  local has = {}
  for flag in ("avx2 fma f16c avx512f avx512bw avx512_vnni avx512_bf16 amx_bf16 amx_int8"):gmatch "%S+" do
    if flags:find(" " .. flag .. " ", 1, true) then has[#has + 1] = flag end
  end
  local _, count = info:gsub("\nprocessor%s*:", "")
  line("processor", info:match "model name%s*: ([^\n]*)" or jit.arch)
  line("features", #has > 0 and table.concat(has, " ") or "none that lsa knows")
  local level = lib.lsa_cpu_level()
  line("code path", ffi.string(lib.lsa_cpu_level_name(level)))
  if level < lib.LSA_CPU_AVX512_BF16 then
    missing[#missing + 1] = "AVX-512 with BF16: the other code paths are slower, with the same results"
  end
  local asked, quota = os.getenv "OMP_NUM_THREADS", tonumber(lib.lsa_limits_processors "")
  line("threads", ("%d of %d processors%s%s"):format(lib.lsa_threads(), count + 1, asked and (", OMP_NUM_THREADS is %s"):format(asked) or "",
    quota > 0 and (", the control group's quota is worth %d"):format(quota) or ""))
end

local function memory(lib)
  local info = read "/proc/meminfo"
  local function of(name) return gib((tonumber(info:match(name .. ":%s*(%d+)")) or 0) * 1024) end
  line("memory", ("%s, %s available to lsa"):format(of "MemTotal", gib(lib.lsa_limits_memory "")))
  local posix, statvfs = pcall(require, "posix.sys.statvfs")
  local space = posix and statvfs.statvfs(host.root)
  if space then line("disk", ("%s free at %s"):format(gib(space.f_bavail * space.f_frsize), host.root)) end
end

-- The version of a Lua module where it tells one: a field, or a function that gives it.
local function module_version(name, field)
  local ok, module = pcall(require, name)
  if not ok then return nil end
  return type(module) == "table" and tostring(module[field] or "yes") or "yes"
end

-- Libraries that lsa may be linked with: how the loaded file begins, a function that tells the version, where it is,
-- how it is called, and the version's text.
local linked = {
  { "mimalloc", "mi_version", { "libmimalloc.so.2" }, "mimalloc",
    function(v) return ("%d.%d.%d"):format(v / 100, v / 10 % 10, v % 10) end },
  { "jansson", "jansson_version_str", { "libjansson.so.4" }, "jansson", ffi.string },
  { "xxhash", "XXH_versionNumber", { "libxxhash.so.0" }, "xxHash",
    function(v) return ("%d.%d.%d"):format(v / 10000, v / 100 % 100, v % 100) end },
  { "z", "zlibVersion", { "libz.so.1" }, "zlib", ffi.string },
  { "dnnl", "dnnl_version", { "libdnnl.so.2", "libdnnl.so.3" }, "oneDNN",
    function(v) return ("%d.%d.%d"):format(v.major, v.minor, v.patch) end },
}

local installs = {mpi = "./lsa --with-mpi", checks = "./lsa --with-checks", jupyter = "./lsa --with-jupyter"}

local function installed(name)
  local info = "/var/lib/dpkg/info/" .. name
  return exists(info .. ".list") or exists(info .. ":amd64.list") or exists(info .. ":arm64.list") or
    name == "premake4" and output "command -v premake5" ~= ""
end

-- The launcher's list of packages, where there is a dpkg to ask.
local function packages()
  if not exists "/var/lib/dpkg/status" then return line("packages", "unknown without dpkg") end
  local all, there = 0, 0
  for group, name, cost in ("\n" .. read(host.root .. "/.packages")):gmatch "\n(%l+) +(%S+) +([^\n]+)" do
    all = all + 1
    if installed(name) then
      there = there + 1
    else
      missing[#missing + 1] = ("%s: %s; %s"):format(name, installs[group] or "apt-get install " .. name, cost)
    end
  end
  line("packages", ("%d of %d are installed"):format(there, all))
end

local function libraries()
  line("LuaJIT", (jit.version:gsub("^LuaJIT ", "")) .. (jit.status() and "" or ", its compiler is off"))
  for _, library in ipairs(linked) do
    local get = read "/proc/self/maps":find("/lib" .. library[1] .. ".so", 1, true) and symbol(library[2], library[3])
    if get then line(library[4], library[5](get())) end
  end
  line("readline", require "lsa.prompt.readline".version or "missing")
  line("Oniguruma", require "lsa.text.regex".version() or "missing")
  line("busted", module_version("busted", "version") or "missing")
  line("cjson", module_version("cjson", "_VERSION") or "missing")
  line("MPI", output "command -v mpirun" ~= "" and output "mpirun --version":match "^[^\n]+" or "missing")
  packages()
end

local function gpus(lib)
  local devices = lib.lsa_device_count()
  local why = devices <= 0 and ffi.string(lib.lsa_error()) or nil
  thing("driver", cuda_version("cuDriverGetVersion", { "libcuda.so.1" }),
    "no NVIDIA driver: models run on the processor")
  local nvcc = output "/usr/local/cuda/bin/nvcc --version":match "release ([%d.]+)"
  thing("nvcc", nvcc, "no CUDA toolkit in /usr/local/cuda: kernels for the GPU cannot be built")
  thing("cuda", cuda_version("cudaRuntimeGetVersion", { "libcudart.so.13", "libcudart.so.12",
    "/usr/local/cuda/lib64/libcudart.so" }), "no CUDA runtime: kernels for the GPU cannot run")
  thing("NVRTC", require("lsa.cuda.compiler").version(), "no NVRTC, which comes with the CUDA toolkit: no kernels of a script's own")
  local nccl, version = symbol("ncclGetVersion", { "libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2" }), ffi.new "int[1]"
  if nccl then nccl(version) end
  local n = version[0]
  thing("NCCL", nccl and ("%d.%d.%d"):format(n / 10000, n / 100 % 100, n % 100), "no collectives between GPUs")
  for device = 0, devices - 1 do
    local name, free, total = ffi.new "char[256]", ffi.new "int64_t[1]", ffi.new "int64_t[1]"
    if lib.lsa_device_describe(device, name, 256, free, total) == 0 then
      line("GPU " .. device, ("%s, %s, %s free"):format(ffi.string(name), gib(total[0]), gib(free[0])))
    end
  end
  if devices <= 0 then thing("GPU", nil, why) end
end

-- Whether the kernel lets this process use io_uring.
local function rings(lib)
  local batch = ffi.new "lsa_io_batch *[1]"
  if lib.lsa_io_batch_new(batch, 1, 1) ~= 0 then return false end
  local yes = lib.lsa_io_batch_rings(batch[0]) == 1
  lib.lsa_io_batch_free(batch[0])
  return yes
end

local usage = [[
usage: lsa doctor    what this machine has for lsa, what is missing, and what that costs
]]

function M.main(arguments)
  if arguments[1] then
    local asked = arguments[1] == "--help" or arguments[1] == "-h"
    (asked and io.stdout or io.stderr):write(usage)
    return asked and 0 or 2
  end
  local lib = require("lsa.ffi").C
  missing = {}
  line("lsa", require "lsa.version" .. ", " .. host.build)
  processor(lib)
  memory(lib)
  libraries()
  thing("io_uring", rings(lib) and "yes" or nil, "the kernel refuses it: a cold tier on disk reads one piece at a time")
  gpus(lib)
  print(#missing == 0 and "\nNothing is missing." or "\nMissing, and what that costs:")
  for _, cost in ipairs(missing) do print("  " .. cost) end
  return 0
end

return M
