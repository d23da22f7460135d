local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

-- sum of dy * rmsnorm(x) in double precision.
local function value(x, dy, weight, rows, n, eps)
  local sum = 0
  for r = 0, rows - 1 do
    local mean = 0
    for i = 0, n - 1 do mean = mean + x[r * n + i] ^ 2 / n end
    for i = 0, n - 1 do sum = sum + dy[r * n + i] * x[r * n + i] / math.sqrt(mean + eps) * weight[i] end
  end
  return sum
end

local function differences(list, count, f)
  local out, step = {}, 1e-5
  for i = 0, count - 1 do
    local kept = list[i]
    list[i] = kept + step
    local above = f()
    list[i] = kept - step
    out[i] = (above - f()) / (2 * step)
    list[i] = kept
  end
  return out
end

describe("lsa_rmsnorm_gradient", function()
  it("agrees with differences on every code path, in place too", function()
    support.for_each_cpu_level(function()
      for seed, shape in ipairs{{1, 1}, {2, 7}, {3, 16}, {1, 33}, {4, 48}} do
        local rows, n = unpack(shape)
        local dy, x, weight = support.normals(rows * n, seed), support.normals(rows * n, seed + 9), support.normals(n, seed + 20)
        local px, pw = {}, {}
        for i = 0, rows * n - 1 do px[i] = x[i] end
        for i = 0, n - 1 do pw[i] = weight[i] end
        local function f() return value(px, dy, pw, rows, n, 1e-3) end
        local wx, ww = differences(px, rows * n, f), differences(pw, n, f)
        local dweight = support.poison(support.buffer("float", n), n)
        local dx = support.buffer("float", rows * n)
        check(C.lsa_rmsnorm_gradient_cpu(dx, dweight, dy, x, weight, rows, n, 1e-3, nil))
        assert.is_true(support.max_error(dx, wx, rows * n, 1) <= 1e-5)
        assert.is_true(support.max_error(dweight, ww, n, 1) <= 1e-5)
        check(C.lsa_rmsnorm_gradient_cpu(dy, dweight, dy, x, weight, rows, n, 1e-3, nil))
        assert.is_true(support.same_bits(dx, dy, rows * n * 4))
      end
    end)
  end)

  it("gives zeros for a row of zeros and for no rows, and refuses no columns", function()
    local dx, dweight = support.buffer("float", 3), support.poison(support.buffer("float", 3), 3)
    check(C.lsa_rmsnorm_gradient_cpu(dx, dweight, support.array("float", {0, 0, 0}), support.array("float", {1, 2, 3}),
      support.array("float", {1, 1, 1}), 1, 3, 1e-6, nil))
    for i = 0, 2 do assert.equal(0, dx[i]) assert.equal(0, dweight[i]) end
    support.poison(dweight, 3)
    check(C.lsa_rmsnorm_gradient_cpu(nil, dweight, nil, nil, nil, 0, 3, 1e-6, nil))
    for i = 0, 2 do assert.equal(0, dweight[i]) end
    assert.equal(C.LSA_ESHAPE, C.lsa_rmsnorm_gradient_cpu(nil, nil, nil, nil, nil, 1, 0, 1e-6, nil))
  end)
end)
