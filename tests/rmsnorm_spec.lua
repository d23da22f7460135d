local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local function oracle(x, weight, rows, n, eps)
  local y = ffi.new("double[?]", rows * n)
  for r = 0, rows - 1 do
    local sum = 0
    for i = 0, n - 1 do sum = sum + x[r * n + i] ^ 2 end
    local scale = 1 / math.sqrt(sum / n + eps)
    for i = 0, n - 1 do y[r * n + i] = x[r * n + i] * scale * (weight and weight[i] or 1) end
  end
  return y
end

local function run(x, weight, rows, n, eps)
  local y = support.buffer("float", rows * n)
  check(C.lsa_rmsnorm_cpu(y, x, weight, rows, n, eps, nil))
  return y
end

describe("rmsnorm", function()
  it("is the definition, for full and ragged rows, with and without weight", function()
    support.for_each_cpu_level(function(_, name)
      for _, shape in ipairs {{1, 1}, {3, 5}, {2, 16}, {5, 40}, {4, 64}, {3, 127}, {300, 257}} do
        local rows, n = shape[1], shape[2]
        local x, weight = support.normals(rows * n, n, 3), support.normals(n, n + 1)
        for _, w in ipairs {weight, false} do
          local y = run(x, w or nil, rows, n, 1e-6)
          local err = support.max_error(y, oracle(x, w, rows, n, 1e-6), rows * n, 1e-3)
          assert.is_true(err <= 1e-6, ("%s [%d, %d]: %g"):format(name, rows, n, err))
        end
      end
    end)
  end)

  it("gives the same bits on every code path and in place", function()
    local rows, n = 70, 333
    local x, weight = support.normals(rows * n, 1), support.normals(n, 2)
    local want
    support.for_each_cpu_level(function(_, name)
      local y = run(x, weight, rows, n, 1e-6)
      want = want or y
      local inplace = support.buffer("float", rows * n)
      ffi.copy(inplace, x, rows * n * 4)
      check(C.lsa_rmsnorm_cpu(inplace, inplace, weight, rows, n, 1e-6, nil))
      assert.is_true(support.same_bits(want, y, rows * n * 4), name)
      assert.is_true(support.same_bits(want, inplace, rows * n * 4), name)
    end)
  end)

  it("gives zeros for zeros, keeps NaN in its row, and takes no rows", function()
    support.for_each_cpu_level(function()
      local n = 21
      local x = support.normals(3 * n, 4)
      for i = 0, n - 1 do x[i] = 0 end
      x[n + 20] = 0 / 0
      local y = run(x, nil, 3, n, 1e-6)
      for i = 0, n - 1 do
        assert.is_true(y[i] == 0)
        assert.is_true(y[n + i] ~= y[n + i])
        assert.is_true(y[2 * n + i] == y[2 * n + i])
      end
      assert.equal(0, C.lsa_rmsnorm_cpu(nil, nil, nil, 0, n, 1e-6, nil))
    end)
  end)

  it("refuses rows of nothing", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_rmsnorm_cpu(nil, nil, nil, 1, 0, 1e-6, nil))
    assert.is_truthy(ffi.string(C.lsa_error()):find "rmsnorm: 1 rows of 0 values")
  end)
end)
