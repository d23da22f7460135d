local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local function options(t)
  local how = ffi.new("lsa_adamw", {rate = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, decay = 0.1, gradient_scale = 0.5})
  for key, value in pairs(t or {}) do how[key] = value end
  return how
end

describe("lsa_adamw", function()
  it("follows its formula over several steps on every code path", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs{1, 15, 16, 37, 200} do
        local x, m, v = support.normals(n, 1), support.buffer("float", n), support.buffer("float", n)
        local wx, wm, wv = {}, {}, {}
        for i = 0, n - 1 do wx[i], wm[i], wv[i] = x[i], 0, 0 end
        for step = 1, 4 do
          local g, how = support.normals(n, 10 + step), options{step = step}
          check(C.lsa_adamw_cpu(x, m, v, g, n, how, nil))
          for i = 0, n - 1 do
            local d = 0.5 * g[i]
            wm[i] = 0.9 * wm[i] + 0.1 * d
            wv[i] = 0.999 * wv[i] + 0.001 * d * d
            wx[i] = wx[i] * (1 - 0.01 * 0.1) -
              0.01 * (wm[i] / (1 - 0.9 ^ step)) / (math.sqrt(wv[i] / (1 - 0.999 ^ step)) + 1e-8)
            assert.is_true(math.abs(x[i] - wx[i]) <= 3e-6 * math.max(1, math.abs(wx[i])))
            assert.is_true(math.abs(m[i] - wm[i]) <= 1e-6)
            assert.is_true(math.abs(v[i] - wv[i]) <= 1e-6)
          end
        end
      end
    end)
  end)

  it("moves a weight by the rate at its first step, whatever the gradient", function()
    local x, m, v = support.array("float", {1, 1, 1}), support.buffer("float", 3), support.buffer("float", 3)
    check(C.lsa_adamw_cpu(x, m, v, support.array("float", {1e-3, -50, 0}), 3, options{step = 1, decay = 0}, nil))
    assert.is_true(math.abs(x[0] - 0.99) <= 1e-6)
    assert.is_true(math.abs(x[1] - 1.01) <= 1e-6)
    assert.equal(1, x[2])
  end)

  it("takes any number of threads to the same bits", function()
    local n, first = 300000, nil
    for threads = 1, 2 do
      C.lsa_threads_set(threads)
      local x, m, v = support.normals(n, 1), support.buffer("float", n), support.buffer("float", n)
      check(C.lsa_adamw_cpu(x, m, v, support.normals(n, 2), n, options{step = 3}, nil))
      first = first or ffi.string(x, n * 4)
      assert.is_true(first == ffi.string(x, n * 4))
    end
    C.lsa_threads_set(0)
  end)

  it("takes no weights, and refuses step 0", function()
    check(C.lsa_adamw_cpu(nil, nil, nil, nil, 0, options{step = 1}, nil))
    assert.equal(C.LSA_EARG, C.lsa_adamw_cpu(nil, nil, nil, nil, 0, options{step = 0}, nil))
  end)
end)

describe("lsa_square_sum", function()
  it("is the sum of squares, in the same bits for any number of threads", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs{0, 1, 31, 32, 33, 1000, 200001} do
        local x, want = support.normals(n, n + 1), 0
        for i = 0, n - 1 do want = want + x[i] * x[i] end
        local first
        for threads = 1, 2 do
          C.lsa_threads_set(threads)
          local sum = ffi.new "double[1]"
          check(C.lsa_square_sum_cpu(sum, x, n, support.workspace(C.lsa_square_sum_workspace(n)), nil))
          first = first or sum[0]
          assert.equal(first, sum[0])
          assert.is_true(math.abs(sum[0] - want) <= 1e-12 * math.max(1, want))
        end
        C.lsa_threads_set(0)
      end
    end)
  end)

  it("does not overflow where f32 would, and passes NaN on", function()
    local sum, workspace = ffi.new "double[1]", support.workspace(C.lsa_square_sum_workspace(2))
    check(C.lsa_square_sum_cpu(sum, support.array("float", {2 ^ 100, 0}), 2, workspace, nil))
    assert.equal(2 ^ 200, sum[0])
    check(C.lsa_square_sum_cpu(sum, support.array("float", {1, 0 / 0}), 2, workspace, nil))
    assert.is_true(sum[0] ~= sum[0])
  end)
end)
