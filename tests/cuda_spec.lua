-- The GPU as scripts see it: kernels of their own, faults, a GPU that is lost. Without a GPU, what the compiler says of sources, and
-- the rest on a stub (tests/stub_support.lua).
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local compiler = require "lsa.cuda.compiler"
local signature = require "lsa.cuda.signature"
local stub = require "stub_support"

local C = lib.C
local here = C.lsa_device_count() > 0

local function texts(arguments)
  local list = {}
  for i, argument in ipairs(arguments) do list[i] = signature.text(argument) end
  return table.concat(list, ", ")
end

local function fails(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, tostring(message))
  return message
end

local SCALE = [[
// y = a x
extern "C" __global__ void scale(const float *x, float *y, float a, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i];
}
template <typename T> __global__ void fill(T *x, T value, long long n)
{
    for (long long i = threadIdx.x; i < n; i += blockDim.x) x[i] = value;
}
__global__ void count(const unsigned long long *words, int n, int *out)
{
    __shared__ int sums[64];
    extern __shared__ int more[];
    int sum = 0;
    for (int i = threadIdx.x; i < n; i += 64) sum += __popcll(words[i]);
    sums[threadIdx.x] = sum;
    more[20000 + threadIdx.x] = 1;
    __syncthreads();
    for (int i = 1; threadIdx.x == 0 && i < 64; i++) sums[0] += sums[i];
    if (threadIdx.x == 0) out[0] = sums[0];
}
]]

describe("kernels of a script's own", function()
  it("have argument types that their mangled names tell", function()
    assert.equal("const float *, float *, const float *, int, long, double, __half *, const __nv_bfloat16 *, __nv_bfloat16 *, " ..
      "unsigned char *, signed char *, bool, unsigned long, float, two, const __nv_fp8_e4m3 *, long long, unsigned int *",
      texts(signature.of "_Z13lsa_signatureIPFvPKfPfS1_ildP6__halfPK13__nv_bfloat16PS5_PhPabmf3twoPK13__nv_fp8_e4m3xPjEE"))
    assert.equal("", texts(signature.of "_Z13lsa_signatureIPFvvEE"))
    assert.equal("q::box<…>, q::plain *, q::box<…> *, const q::plain *, float **",
      texts(signature.of "_Z13lsa_signatureIPFvN1q3boxIfEEPNS0_5plainEPNS1_IiEEPKS3_PPfEE"))
  end)

  if compiler.version() then
    local function compile(source, name, file) return compiler.compile(source, name, {architecture = "sm_90a", file = file}) end

    it("are compiled, templates too", function()
      local made = compile(SCALE, "scale")
      assert.equal("scale", made.name)
      assert.equal("const float *, float *, float, int", texts(made.arguments))
      assert.is_true(made.bytes > 1000)
      assert.equal("double *, double, long long", texts(compile(SCALE, "fill<double>").arguments))
      assert.equal("const __nv_fp8_e4m3 *, __half *, long long, unsigned char",
        texts(compile("#include <cuda_fp8.h>\n#include <cuda_fp16.h>\n#include <stdint.h>\n" ..
          "__global__ void k(const __nv_fp8_e4m3 *a, __half *b, int64_t n, uint8_t c) {}", "k").arguments))
    end)

    it("that are wrong are errors with the source's lines", function()
      local message = fails("mine.cu does not compile", compile, "\n\n__global__ void f(float *x) { x[0] = wrong; }", "f", "mine.cu")
      assert.matches('mine.cu%(3%): error: identifier "wrong" is undefined', message)
      assert.matches("x%[0%] = wrong;", message)
      fails('%f[%w]f.cu has no __global__ function other', compile, "__global__ void f(float *x) {}", "other", "f.cu")
      fails("host", compile, "__device__ void host(float *x) {}", "host")
    end)
  end

  it("without a GPU are errors that say in one line what is missing", function()
    if here then return end
    local missing = lsa.cuda.missing()
    assert.matches("^no device: ", missing)
    assert.is_nil(missing:find "\n")
    assert.equal(missing, tostring(lsa.cuda))
    fails("no device: ", lsa.cuda.kernel, SCALE, "scale")
    fails("no device: ", lsa.cuda.synchronize)
    fails("CUDA C%+%+ text is wanted", lsa.cuda.kernel, 3, "scale")
    fails("the kernel's name is nil", lsa.cuda.kernel, SCALE)
    fails("no option 'flags'", lsa.cuda.kernel, SCALE, "scale", {flags = 1})
  end)

  if not here then
    it("and what else stands around a GPU, on a stub", function() assert.is_nil(stub.failure_of "cuda_spec.lua") end)
    return
  end

  it("have their arguments checked", function()
    if not compiler.version() then return end
    local k = lsa.cuda.kernel(SCALE, "scale")
    assert.equal("scale(grid, block, shared, const float *, float *, float, int)", tostring(k))
    local x, y = lsa.arange(100):to "f32", lsa.zeros({100}):to "cuda"
    fails("scale: 3 arguments are given, it takes 4", k, 1, 128, 0, x, y, 2)
    fails("scale: argument 1 %(const float %*%) is given a number; a tensor or nil is wanted", k, 1, 128, 0, 3, y, 2, 100)
    fails("scale: argument 1 %(const float %*%) is given f64, f32 is wanted", k, 1, 128, 0, x:to "f64", y, 2, 100)
    fails('scale: argument 2 %(float %*%) is written to, and the tensor is in host memory', k, 1, 128, 0, x, x, 2, 100)
    fails("scale: argument 2 .* view with gaps", k, 1, 128, 0, x, lsa.zeros({4, 4}):transpose(0, 1), 2, 100)
    fails("scale: argument 3 %(float%) is given a string; a number is wanted", k, 1, 128, 0, x, y, "2", 100)
    fails("scale: argument 4 %(int%) is given 1.5; a whole number", k, 1, 128, 0, x, y, 2, 1.5)
    fails("scale: argument 4 %(int%) is given 2147483648; a whole number from %-2147483648 to 2147483647", k, 1, 128, 0, x, y, 2, 2 ^ 31)
    fails("scale: grid is 0; a whole number from 1", k, 0, 128, 0, x, y, 2, 100)
    fails("scale: block is a table; 1 to 3 sizes are wanted", k, 1, {1, 2, 3, 4}, 0, x, y, 2, 100)
    fails("scale: shared memory, in bytes, is %-1", k, 1, 128, -1, x, y, 2, 100)
    fails("argument 1 %(const float %*%) is given a set", k, 1, 128, 0, lsa.set(10), y, 2, 100)
    fails("k: argument 1 is two; numbers and pointers to numbers can be given", lsa.cuda.kernel,
      "struct two { int a, b; }; __global__ void k(two x) {}", "k")
  end)

  if stub.here then
    it("get what they were given", function()
      if not compiler.version() then return end
      ffi.cdef "extern int64_t stub_grid[3], stub_block[3], stub_shared, stub_arguments[16], stub_blocks; extern int32_t stub_argument_count, stub_faulty;"
      local S = ffi.load(lib.root .. "/" .. lib.build .. "/liblsa_cuda.so")
      local x, y = lsa.arange(100):to "f32", lsa.zeros({100}):to "cuda"
      S.stub_argument_count = 4
      lsa.cuda.kernel(SCALE, "scale")({2, 3}, 128, 7, x, y, 0.5, -9)
      assert.same({2, 3, 1, 128, 1, 1, 7}, {tonumber(S.stub_grid[0]), tonumber(S.stub_grid[1]), tonumber(S.stub_grid[2]),
        tonumber(S.stub_block[0]), tonumber(S.stub_block[1]), tonumber(S.stub_block[2]), tonumber(S.stub_shared)})
      assert.equal(ffi.cast("int64_t", ffi.cast("intptr_t", y.c.data)), S.stub_arguments[1])
      assert.equal(0.5, ffi.cast("float *", S.stub_arguments + 2)[0])
      assert.equal(-9, ffi.cast("int32_t *", S.stub_arguments + 3)[0])
      local words = lsa.set(70):add {0, 69}
      S.stub_argument_count = 3
      lsa.cuda.kernel(SCALE, "count")(1, 64, 0, words, 2, nil)
      assert.equal(0, S.stub_arguments[2])
    end)
  else
    it("run", function()
      local x, y = lsa.arange(1000):to "f32", lsa.zeros({1000}):to "cuda"
      lsa.cuda.kernel(SCALE, "scale")(4, 256, 0, x, y, 0.5, 1000)
      local host = y:to "cpu"
      for i = 0, 999 do assert.equal(i / 2, host:get(i)) end
      local z = lsa.zeros({77}, "i64"):to "cuda"
      lsa.cuda.kernel(SCALE, "fill<long long>")(1, 32, 0, z, -5, 77)
      assert.equal(-5 * 77, tonumber(z:to "cpu":sum()))
      local out = lsa.zeros({1}, "i32"):to "cuda"
      lsa.cuda.kernel(SCALE, "count")(1, 64, 100000, lsa.set(5000):range(7, 4007), 79, out)
      assert.equal(4000, out:get(0))
    end)

    it("that cannot be launched are errors with their sizes", function()
      local k = lsa.cuda.kernel(SCALE, "count")
      fails("count: grid 1 x 1 x 1, block 2048 x 1 x 1, 0 bytes of shared memory: invalid", k, 1, 2048, 0, nil, 0, nil)
      fails("count: .*1000000 bytes of shared memory: ", k, 1, 64, 1e6, nil, 0, nil)
      lsa.cuda.synchronize()
    end)
  end
end)

if not here then return end

describe("tensors on the GPU", function()
  it("meet those of the host there", function()
    local x, y = lsa.arange(100):to "f32", lsa.arange(100):to "f32":to "cuda"
    for _, sum in ipairs {lsa.kernels.binary(x, y, "add"), lsa.kernels.binary {a = y, b = x, op = "add"}} do
      assert.equal("cuda", sum:device())
      assert.is_true(sum:to "cpu":eq(x:add(x), {mask = true}):all())
    end
    assert.equal("cpu", x:device())
  end)

  it("are read element by element at one copy, until they are written to", function()
    local y, copies = lsa.arange(100):to "f32":to "cuda", nil
    if stub.here then
      ffi.cdef "extern int64_t stub_copies;"
      copies = ffi.load(lib.root .. "/" .. lib.build .. "/liblsa_cuda.so")
    end
    local before = copies and copies.stub_copies
    for i = 0, 99 do assert.equal(i, y:get(i)) end
    if copies then assert.equal(1, tonumber(copies.stub_copies - before)) end
    lsa.kernels.scale(y, 2)
    for i = 0, 99 do assert.equal(2 * i, y:get(i)) end
    y:set(3, -1)
    assert.equal(-1, y:get(3))
    y:fill(5)
    assert.equal(5, y:get(99))
    if compiler.version() and not stub.here then
      lsa.cuda.kernel(SCALE, "fill<float>")(1, 32, 0, y, 7, 100)
      assert.equal(7, y:get(50))
    end
  end)
end)

describe("a call of the GPU that fails", function()
  local function refused(pattern, f, ...)
    C.lsa_device_fail_after(0)
    local message = fails(pattern, f, ...)
    C.lsa_device_fail_after(-1)
    f(...)
    return message
  end

  it("is an error with its size, and the next one goes well", function()
    local x = lsa.arange(100):to "f32"
    refused("device_alloc: 400 bytes: refused", function() return x:to "cuda" end)
    local y = x:to "cuda"
    refused("device_copy: 400 bytes: refused", function() return y:to "cpu" end)
    assert.is_true(y:to "cpu":eq(x, {mask = true}):all())
  end)

  it("to pin memory is named, and memory that the driver moves serves", function()
    assert.equal("", ffi.string(C.lsa_device_unpinned()))
    C.lsa_device_fail_after(1)
    local block = C.lsa_alloc_in(C.LSA_MEMORY_BOTH, 3 * 2 ^ 20)
    C.lsa_device_fail_after(-1)
    assert.is_true(block ~= nil)
    assert.matches("could not be pinned", ffi.string(C.lsa_device_unpinned()))
    assert.matches("could not be pinned .*so transfers are slower", tostring(lsa.cuda))
    C.lsa_free_in(C.LSA_MEMORY_BOTH, block)
  end)
end)

describe("memory of host and GPU", function()
  for name, kind in pairs {pinned = C.LSA_MEMORY_BOTH, ["on the GPU"] = C.LSA_MEMORY_GPU} do
    it("comes zeroed, in pieces of arenas that go back: " .. name, function()
      collectgarbage()
      collectgarbage()
      local before, blocks = tonumber(C.lsa_arena_bytes(kind)), {}
      for i = 1, 60 do
        local bytes = i % 2 == 0 and 2 ^ 20 or 300 * i
        local block = ffi.cast("uint8_t *", C.lsa_alloc_in(kind, bytes))
        assert.is_true(block ~= nil)
        assert.equal(0, tonumber(ffi.cast("uintptr_t", block) % 256))
        for at = 0, bytes - 1, 97 do assert.equal(0, block[at]) end
        ffi.fill(block, bytes, i)
        blocks[i] = {block, bytes, i}
      end
      for _, b in ipairs(blocks) do
        for at = 0, b[2] - 1, 61 do assert.equal(b[3], b[1][at]) end
      end
      assert.is_true(tonumber(C.lsa_arena_bytes(kind)) - before >= 30 * 2 ^ 20)
      for i = 1, 60 do C.lsa_free_in(kind, blocks[i % 60 + 1][1]) end
      assert.equal(before, tonumber(C.lsa_arena_bytes(kind)))
    end)
  end
end)

-- The last of all: nothing goes on on the GPU after it.
describe("a GPU that a kernel made the driver give up", function()
  it("refuses everything by name, and the host's tensors and tiers are good", function()
    if not compiler.version() then return end
    local host, there = lsa.arange(50):to "f32", lsa.arange(50):to "f32":to "cuda"
    local cold = ffi.cast("uint8_t *", C.lsa_alloc_in(C.LSA_MEMORY_BOTH, 2 ^ 20))
    ffi.fill(cold, 2 ^ 20, 7)
    local session
    if not stub.here then
      session = lsa.model(lib.root .. "/tests/golden/csa", {device = "cuda"}):session{select = "recency", budget = 4}
      session:prefill {1, 2, 3, 4, 5, 6, 7, 8, 9}
    end
    if stub.here then
      local S = ffi.load(lib.root .. "/" .. lib.build .. "/liblsa_cuda.so")
      S.stub_faulty = 1
    else
      lsa.cuda.kernel("__global__ void wild(float *x) { x[(1ll << 40) + threadIdx.x] = 1; }", "wild")(1, 32, 0, there)
    end
    fails("the GPU is lost %(.*illegal memory access.*%): nothing on it can be used", lsa.cuda.synchronize)
    for _, f in ipairs {function() return there:to "cpu" end, function() return host:to "cuda" end, function() return there:get(3) end,
      function() return lsa.kernels.unary(there, "exp") end, function() return lsa.cuda.kernel(SCALE, "scale") end} do
      fails("the GPU is lost", f)
    end
    if session then
      for _, f in ipairs {function() return session:decode(3) end, function() return session:fork() end, function() return session:resident() end,
        function() return session:save(os.tmpname()) end} do
        fails("the GPU is lost", f)
      end
      session:close()
    end
    assert.matches("the GPU is lost", lsa.cuda.missing())
    assert.equal(49, host:max())
    for at = 0, 2 ^ 20 - 1, 4096 do assert.equal(7, cold[at]) end
    C.lsa_free_in(C.LSA_MEMORY_BOTH, cold)
  end)
end)
