local support = require "kernel_support"
local C = require("lsa.ffi").C
local ffi = require "ffi"

local types = {[1] = "uint8_t", [2] = "uint16_t", [4] = "uint32_t", [8] = "uint64_t"}

local function dims(list) return ffi.new("int64_t[6]", list) end

-- Element by element, from the definition.
local function walk(shape, fn, at)
  at = at or {}
  if #at == #shape then return fn(at) end
  for i = 0, shape[#at + 1] - 1 do
    at[#at + 1] = i
    walk(shape, fn, at)
    at[#at] = nil
  end
end

local function place(at, stride)
  local p = 0
  for d = 1, #at do p = p + at[d] * stride[d] end
  return p
end

local function check(shape, out_stride, in_stride, size)
  local last_in, last_out, some = 0, 0, true
  for d = 1, #shape do
    some = some and shape[d] > 0
    last_in = last_in + (shape[d] - 1) * in_stride[d]
    last_out = last_out + (shape[d] - 1) * out_stride[d]
  end
  local n_in, n_out = some and last_in + 1 or 0, some and last_out + 1 or 0
  local from, to = support.buffer(types[size], n_in), support.buffer(types[size], n_out)
  for i = 0, n_in - 1 do from[i] = i % 251 + 1 end
  assert.equal(0, C.lsa_copy_cpu(to, from, size, #shape, dims(shape), dims(out_stride), dims(in_stride), nil))
  local want, written = support.buffer(types[size], n_out), 0
  walk(shape, function(at)
    want[place(at, out_stride)] = from[place(at, in_stride)]
    written = written + 1
  end)
  assert.is_true(support.same_bits(want, to, n_out * size))
  return written
end

describe("copy", function()
  it("moves every element and nothing else, whatever the strides", function()
    for _, size in ipairs {1, 2, 4, 8} do
      check({}, {}, {}, size)
      check({5}, {1}, {1}, size)
      check({5}, {3}, {2}, size)
      check({0}, {1}, {1}, size)
      check({4, 0, 3}, {0, 3, 1}, {0, 3, 1}, size)
      check({3, 5}, {5, 1}, {5, 1}, size)
      check({3, 5}, {5, 1}, {1, 3}, size)
      check({3, 5}, {9, 1}, {5, 1}, size)
      check({1, 5, 1}, {77, 1, 99}, {5, 1, 1}, size)
      check({2, 3, 4}, {12, 4, 1}, {1, 2, 6}, size)
      check({2, 3, 4}, {12, 4, 1}, {24, 4, 1}, size)
      assert.equal(64, check({2, 2, 2, 2, 2, 2}, {32, 16, 8, 4, 2, 1}, {1, 2, 4, 8, 16, 32}, size))
    end
  end)

  it("repeats what a stride of 0 points at", function()
    assert.equal(15, check({3, 5}, {5, 1}, {0, 1}, 4))
    assert.equal(15, check({3, 5}, {5, 1}, {1, 0}, 4))
  end)

  it("refuses element sizes and ranks that do not exist", function()
    local d = dims {1}
    assert.equal(C.LSA_EARG, C.lsa_copy_cpu(nil, nil, 3, 1, d, d, d, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_copy_cpu(nil, nil, 4, 7, d, d, d, nil))
  end)
end)
