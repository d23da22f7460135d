local support = require "kernel_support"
local C = require("lsa.ffi").C
local ffi = require "ffi"

local INF, NAN = math.huge, 0 / 0

-- Values that arithmetic is easily wrong about, and then ordinary ones.
local function values(n, seed, scale)
  local special = {0, -0.0, INF, -INF, NAN, 1e-41, -1e-41, 3.4e38, -3.4e38, 1, -1, 88.72, -87.3, -103.9, 89}
  local x = support.normals(n, seed, scale or 10)
  for i = 0, math.min(#special, math.floor(n / 2)) - 1 do x[(i * 2) % n] = special[i + 1] end
  return x
end

local binary = {
  [C.LSA_ADD] = function(a, b) return a + b end,
  [C.LSA_SUB] = function(a, b) return a - b end,
  [C.LSA_MUL] = function(a, b) return a * b end,
  [C.LSA_DIV] = function(a, b) return a / b end,
  [C.LSA_MIN] = function(a, b) return (a ~= a or b ~= b) and NAN or math.min(a, b) end,
  [C.LSA_MAX] = function(a, b) return (a ~= a or b ~= b) and NAN or math.max(a, b) end,
}

local unary = {
  [C.LSA_EXP] = math.exp,
  [C.LSA_LOG] = function(a) return a < 0 and NAN or math.log(a) end,
  [C.LSA_SIGMOID] = function(a) return 1 / (1 + math.exp(-a)) end,
}

local lengths = {0, 1, 5, 15, 16, 17, 64, 100, 1003}

-- The float that double arithmetic rounds to: exact for + - * / of floats.
local function rounded(v) return tonumber(ffi.new("float", v)) end

local function same(got, want)
  return got == want or (got ~= got and want ~= want)
end

-- In units of the last place of the float at `want`, denormals as they are.
local function ulps(got, want)
  if same(got, rounded(want)) then return 0 end
  local _, exponent = math.frexp(want)
  return math.abs(got - want) / math.ldexp(1, math.max(exponent - 24, -149))
end

describe("binary", function()
  it("is the float nearest to the result, on every code path", function()
    support.for_each_cpu_level(function()
      for op, f in pairs(binary) do
        for _, n in ipairs(lengths) do
          local a, b, out = values(n, 1), values(n, 2), support.buffer("float", n)
          assert.equal(0, C.lsa_binary_cpu(out, a, b, n, math.max(n, 1), op, nil))
          for i = 0, n - 1 do
            assert.is_true(same(out[i], rounded(f(a[i], b[i]))), ("op %d: %g %g -> %g"):format(op, a[i], b[i], out[i]))
          end
        end
      end
    end)
  end)

  it("repeats b with its period", function()
    support.for_each_cpu_level(function()
      for op, f in pairs(binary) do
        for _, period in ipairs {1, 2, 16, 19} do
          local n = period * 7
          local a, b, out = values(n, 3), support.normals(period, 4), support.buffer("float", n)
          assert.equal(0, C.lsa_binary_cpu(out, a, b, n, period, op, nil))
          for i = 0, n - 1 do assert.is_true(same(out[i], rounded(f(a[i], b[i % period])))) end
        end
      end
    end)
  end)

  it("may write over its operands", function()
    local n = 100
    local a, b, want = support.normals(n, 5), support.normals(n, 6), support.buffer("float", n)
    assert.equal(0, C.lsa_binary_cpu(want, a, b, n, n, C.LSA_SUB, nil))
    local over_a, over_b = support.normals(n, 5), support.normals(n, 6)
    assert.equal(0, C.lsa_binary_cpu(over_a, over_a, b, n, n, C.LSA_SUB, nil))
    assert.equal(0, C.lsa_binary_cpu(over_b, a, over_b, n, n, C.LSA_SUB, nil))
    assert.is_true(support.same_bits(want, over_a, n * 4))
    assert.is_true(support.same_bits(want, over_b, n * 4))
  end)

  it("does not depend on the number of threads", function()
    local n = 300000
    local a, b = support.normals(n, 7), support.normals(n, 8)
    local one, many = support.buffer("float", n), support.buffer("float", n)
    C.lsa_threads_set(1)
    assert.equal(0, C.lsa_binary_cpu(one, a, b, n, n, C.LSA_MUL, nil))
    C.lsa_threads_set(3)
    assert.equal(0, C.lsa_binary_cpu(many, a, b, n, n, C.LSA_MUL, nil))
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, many, n * 4))
  end)

  it("refuses what does not fit", function()
    assert.equal(C.LSA_EARG, C.lsa_binary_cpu(nil, nil, nil, 4, 4, 6, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_binary_cpu(nil, nil, nil, 4, 3, C.LSA_ADD, nil))
    assert.equal("binary: 4 elements meet a period of 3", ffi.string(C.lsa_error()))
  end)
end)

describe("unary", function()
  local limit = {[C.LSA_EXP] = 1, [C.LSA_LOG] = 2, [C.LSA_SIGMOID] = 3}

  it("is within its units in the last place, on every code path", function()
    support.for_each_cpu_level(function()
      for op, f in pairs(unary) do
        for _, n in ipairs(lengths) do
          for _, scale in ipairs {0.01, 1, 30} do
            local a, out = values(n, 9, scale), support.buffer("float", n)
            assert.equal(0, C.lsa_unary_cpu(out, a, n, op, nil))
            for i = 0, n - 1 do
              local got, want = out[i], f(a[i])
              assert.is_true(ulps(got, want) <= limit[op],
                ("op %d of %.9g: %.9g, wanted %.9g"):format(op, a[i], got, want))
            end
          end
        end
      end
    end)
  end)

  it("gives the same bits on every code path and in place", function()
    local n = 777
    for op in pairs(unary) do
      local want = support.buffer("float", n)
      C.lsa_cpu_limit(0)
      assert.equal(0, C.lsa_unary_cpu(want, support.normals(n, 10, 20), n, op, nil))
      support.for_each_cpu_level(function()
        local x = support.normals(n, 10, 20)
        assert.equal(0, C.lsa_unary_cpu(x, x, n, op, nil))
        for i = 0, n - 1 do assert.is_true(same(x[i], want[i])) end
      end)
    end
  end)

  it("refuses an unknown op", function()
    assert.equal(C.LSA_EARG, C.lsa_unary_cpu(nil, nil, 1, 3, nil))
  end)
end)
