local ffi = require "ffi"
local lsa = require "lsa"
local raw = require "lsa.ffi"
local support = require "kernel_support"
local tensor = require "lsa.tensor"

local C = raw.C
local on_cuda = support.device == "cuda"

local function transferred(t, device)
  local box = ffi.new "lsa_tensor *[1]"
  raw.check(C.lsa_tensor_transfer(box, t.c, device))
  return tensor.wrap(box[0])
end

describe("a transfer", function()
  it("within the host is a copy", function()
    local x = lsa.tensor({{1, 2}, {3, 4}}, "i32")
    local y = transferred(x, C.LSA_CPU)
    x:fill(0)
    assert.same({{1, 2}, {3, 4}}, y:totable())
  end)

  it("refuses views with gaps, unknown devices and impossible shapes", function()
    local box, shape = ffi.new "lsa_tensor *[1]", ffi.new("int64_t[2]", {2, -1})
    local gaps = lsa.zeros {3, 4}:narrow(1, 0, 2)
    assert.equal(C.LSA_ESHAPE, C.lsa_tensor_transfer(box, gaps.c, C.LSA_CPU))
    assert.equal(C.LSA_EARG, C.lsa_tensor_empty_on(box, 7, C.LSA_F32, 1, shape))
    assert.equal(C.LSA_ESHAPE, C.lsa_tensor_empty_on(box, C.LSA_CUDA, C.LSA_F32, 2, shape))
    assert.equal(C.LSA_EDTYPE, C.lsa_tensor_empty_on(box, C.LSA_CUDA, 99, 1, shape))
  end)

  if not on_cuda then
    it("without a device says what is missing, at the caller's line", function()
      if C.lsa_device_count() > 0 then return end
      local ok, message = pcall(function() lsa.zeros(3):to "cuda" end)
      assert.is_false(ok)
      assert.is_truthy(message:find "transfer_spec.lua:%d+: no device: ")
    end)
    return
  end

  it("takes every dtype to the device and back", function()
    for _, dtype in ipairs {"f32", "bf16", "f16", "f8_e4m3", "i8", "u8", "i32", "i64"} do
      local x = lsa.tensor({{1, 2, 3}, {4, 5, 6}}, dtype)
      local y = x:to "cuda"
      assert.equal("cuda", y:device())
      assert.same({2, 3}, y:shape())
      assert.same(x:totable(), y:to "cpu":totable())
      assert.same(x:totable(), y:totable())
    end
    assert.same({0, 3}, lsa.zeros {0, 3}:to "cuda":to "cpu":shape())
  end)

  it("keeps views, elements and conversions working on the device", function()
    local x = lsa.tensor {{1, 2, 3}, {4, 5, 6}}:to "cuda"
    assert.equal(6, x:get(1, 2))
    x:set(1, 2, 60)
    assert.same({4, 5, 60}, x:row(1):totable())
    local gaps = x:narrow(1, 1, 2)
    assert.same({{2, 3}, {5, 60}}, gaps:totable())
    assert.same({{2, 3}, {5, 60}}, gaps:contiguous():totable())
    assert.equal("cuda", gaps:contiguous():device())
    assert.same({{1, 2, 3}, {4, 5, 60}}, x:to "bf16":totable())
    assert.equal("cuda", x:to "bf16":device())
    x:row(0):copy(lsa.tensor {7, 8, 9})
    assert.same({{7, 8, 9}, {4, 5, 60}}, x:copy():totable())
    assert.same({{2, 2, 2}, {2, 2, 2}}, x:fill(2):totable())
    assert.is_truthy(tostring(x):find("tensor f32 [2, 3] cuda  min 2", 1, true))
  end)

  it("brings what is computed with to the host", function()
    local x = lsa.tensor {1, 2, 3, 4}:to "cuda"
    assert.same({2, 3, 4, 5}, x:add(1):totable())
    assert.equal(10, x:sum())
    assert.same({2, 3}, x:topk(2):ids():totable())
  end)

  it("lets kernels run where their tensors are", function()
    local heads, dim, n = 4, 64, 10
    local q, w, keys = lsa.zeros {1, heads, dim}, lsa.zeros {1, heads}, lsa.zeros {n, dim}
    for i, t in ipairs {q, w, keys} do ffi.copy(t:pointer(), support.normals(t:count(), i), t:bytes()) end
    local packed = lsa.kernels.index_encode(keys, "bf16")
    local want = lsa.kernels.index_score(q, w, packed, "bf16", "bf16")
    local got = lsa.kernels.index_score(q:to "cuda", w:to "cuda", packed:to "cuda", "bf16", "bf16")
    assert.equal("cuda", got:device())
    got = got:to "cpu"
    assert.is_true(support.max_error(got:pointer(), want:pointer(), n, 1) <= 1e-3)
    local ok, message = pcall(lsa.kernels.index_score, q:to "cuda", w, packed, "bf16")
    assert.is_false(ok)
    assert.is_truthy(message:find("index_score: w is on cpu, q on cuda", 1, true))
  end)

  it("gives device memory back with the last view", function()
    local function free()
      collectgarbage()
      collectgarbage()
      local bytes = ffi.new "int64_t[1]"
      raw.check(C.lsa_device_describe(0, nil, 0, bytes, nil))
      return tonumber(bytes[0])
    end
    local before = free()
    for _ = 1, 5 do
      local x = lsa.zeros(2 ^ 26):to "cuda"
      assert.equal(0, x:narrow(0, 5, 1):item())
    end
    assert.is_true(free() >= before - 2 ^ 26)
  end)
end)
