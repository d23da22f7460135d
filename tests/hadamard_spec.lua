local bit = require "bit"
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

-- Whether entry (i, j) of the Sylvester matrix is -1: the number of common bits is odd.
local function negative(i, j)
  local common = bit.band(i, j)
  for k = 3, 0, -1 do common = bit.bxor(common, bit.rshift(common, 2 ^ k)) end
  return bit.band(common, 1) == 1
end

local function matrix_times(x, rows, dim)
  local out = support.buffer("double", rows * dim)
  for i = 0, dim - 1 do
    for j = 0, dim - 1 do
      local sign = negative(i, j) and -1 or 1
      for r = 0, rows - 1 do out[r * dim + i] = out[r * dim + i] + sign * x[r * dim + j] end
    end
  end
  for i = 0, rows * dim - 1 do out[i] = out[i] / math.sqrt(dim) end
  return out
end

local function copy(x, n)
  local out = support.buffer("float", n)
  ffi.copy(out, x, 4 * n)
  return out
end

local function on_every_path(x, rows, dim)
  local first
  support.for_each_cpu_level(function()
    local out = copy(x, rows * dim)
    check(C.lsa_hadamard_cpu(out, rows, dim, nil))
    first = first or out
    assert.is_true(support.same_bits(first, out, rows * dim * 4))
  end)
  return first
end

describe("hadamard", function()
  for _, dim in ipairs { 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024 } do
    it(("multiplies rows of %d by the Sylvester matrix, the same on every path"):format(dim), function()
      local rows = 3
      local x = support.normals(rows * dim, dim)
      assert.is_true(support.max_error(on_every_path(x, rows, dim), matrix_times(x, rows, dim), rows * dim, 1) <= 2e-6)
    end)
  end

  it("is exact on small integers when sqrt(dim) is", function()
    local u, x = support.uniform(4), support.buffer("float", 256)
    for i = 0, 255 do x[i] = math.floor(u(-100, 101)) end
    assert.are.equal(0, support.max_error(on_every_path(x, 1, 256), matrix_times(x, 1, 256), 256))
  end)

  it("undoes itself and keeps the norm", function()
    for dim = 1, 4096 do
      if bit.band(dim, dim - 1) == 0 then
        local x = support.normals(dim, 7)
        local once = on_every_path(x, 1, dim)
        local a, b = 0, 0
        for i = 0, dim - 1 do a, b = a + x[i] ^ 2, b + once[i] ^ 2 end
        assert.is_true(math.abs(a - b) <= 1e-6 * a)
        assert.is_true(support.max_error(on_every_path(once, 1, dim), x, dim, 1) <= 3e-6)
      end
    end
  end)

  it("treats every row alike, on one thread and on several", function()
    local rows, dim = 3001, 128
    local x = support.normals(rows * dim, 12)
    C.lsa_threads_set(1)
    local alone = copy(x, rows * dim)
    check(C.lsa_hadamard_cpu(alone, rows, dim, nil))
    C.lsa_threads_set(3)
    local together = copy(x, rows * dim)
    check(C.lsa_hadamard_cpu(together, rows, dim, nil))
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(alone, together, rows * dim * 4))
    local last = on_every_path(x + (rows - 1) * dim, 1, dim)
    assert.is_true(support.same_bits(last, alone + (rows - 1) * dim, dim * 4))
  end)

  it("spreads NaN over its row and no further", function()
    local dim = 128
    support.for_each_cpu_level(function()
      local x = support.normals(3 * dim, 2)
      x[dim + 5] = 0 / 0
      check(C.lsa_hadamard_cpu(x, 3, dim, nil))
      for i = 0, 3 * dim - 1 do assert.are.equal(i >= dim and i < 2 * dim, x[i] ~= x[i]) end
    end)
  end)

  it("does nothing with no rows and refuses what is no power of two", function()
    check(C.lsa_hadamard_cpu(nil, 0, 128, nil))
    local x = support.buffer("float", 384)
    for _, dim in ipairs { 0, -4, 3, 96, 127, 384 } do
      assert.are.equal(tonumber(C.LSA_ESHAPE), C.lsa_hadamard_cpu(x, 1, dim, nil))
      assert.are.equal(("hadamard: dim is %d, not a power of two"):format(dim), ffi.string(C.lsa_error()))
    end
    assert.are.equal(tonumber(C.LSA_EARG), C.lsa_hadamard_cpu(x, -1, 128, nil))
  end)
end)
