-- Reductions with every digit, running sums and dot products against loops in Lua.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local support = require "kernel_support"

local INF, NAN = math.huge, 0 / 0
local F32, F64, I64 = C.LSA_F32, C.LSA_F64, C.LSA_I64
local ctype = {[F32] = "float", [F64] = "double", [I64] = "int64_t"}

local function values(dtype, n, seed, with_nan)
  local u, x = support.uniform(seed), support.buffer(ctype[dtype], n)
  for i = 0, n - 1 do x[i] = dtype == I64 and math.floor(u(-50, 50)) or math.floor(u(-50, 50)) / 8 end
  if with_nan and dtype ~= I64 then x[math.floor(n / 2)] = NAN end
  return x
end

local function sum(list)
  local s = 0
  for _, v in ipairs(list) do s = s + v end
  return s
end

local function best(list, better)
  local at
  for i, v in ipairs(list) do
    if v == v and (not at or better(v, list[at])) then at = i end
  end
  return at
end

local function less(a, b) return a < b end
local function more(a, b) return a > b end

local function has_nan(list)
  for _, v in ipairs(list) do if v ~= v then return true end end
  return false
end

local oracles = {
  [C.LSA_FOLD_SUM] = sum,
  [C.LSA_FOLD_MIN] = function(x) return has_nan(x) and NAN or x[best(x, less)] end,
  [C.LSA_FOLD_MAX] = function(x) return has_nan(x) and NAN or x[best(x, more)] end,
  [C.LSA_FOLD_SQUARES] = function(x)
    local s = 0
    for _, v in ipairs(x) do s = s + v * v end
    return s
  end,
  [C.LSA_FOLD_DEVIATIONS] = function(x)
    local mean, s = sum(x) / #x, 0
    for _, v in ipairs(x) do s = s + (v - mean) ^ 2 end
    return s
  end,
  [C.LSA_FOLD_NONZERO] = function(x)
    local n = 0
    for _, v in ipairs(x) do n = n + (v ~= 0 and 1 or 0) end
    return n
  end,
  [C.LSA_FOLD_ARGMIN] = function(x) return (best(x, less) or 0) - 1 end,
  [C.LSA_FOLD_ARGMAX] = function(x) return (best(x, more) or 0) - 1 end,
}

local function is_whole(op, dtype) return op >= C.LSA_FOLD_NONZERO or dtype == I64 and op <= C.LSA_FOLD_MAX end

local shapes = {{1, 1, 1}, {3, 17, 1}, {1, 1000, 1}, {2, 16, 1}, {2, 5, 3}, {1, 33, 70}, {3, 4, 64}, {1, 7, 200}, {0, 4, 1}, {2, 3, 0}}

describe("fold", function()
  it("is what a loop gives, on every code path", function()
    support.for_each_cpu_level(function()
      for dtype in pairs(ctype) do
        for op, f in pairs(oracles) do
          for _, shape in ipairs(shapes) do
            for _, with_nan in ipairs {false, true} do
              local outer, n, inner = unpack(shape)
              local x = values(dtype, outer * n * inner, 3, with_nan and outer * n * inner > 0)
              local out = support.buffer(is_whole(op, dtype) and "int64_t" or "double", outer * inner)
              assert.equal(0, C.lsa_fold_cpu(out, x, outer, n, inner, op, dtype, nil))
              for o = 0, outer - 1 do
                for i = 0, inner - 1 do
                  local list = {}
                  for j = 0, n - 1 do list[j + 1] = tonumber(x[(o * n + j) * inner + i]) end
                  local got, want = tonumber(out[o * inner + i]), f(list)
                  local close = got == want or got ~= got and want ~= want or math.abs(got - want) <= 1e-12 * math.abs(want)
                  if not close then error(("op %d dtype %d [%d, %d, %d]: %.17g, not %.17g"):format(op, dtype, outer, n, inner, got, want)) end
                end
              end
            end
          end
        end
      end
    end)
  end)

  it("adds floats in the order of reduce", function()
    local n = 1003
    local x, rounded, exact = support.normals(n, 4), support.buffer("float", 1), support.buffer("double", 1)
    assert.equal(0, C.lsa_reduce_cpu(rounded, x, 1, n, 1, C.LSA_REDUCE_SUM, nil))
    support.for_each_cpu_level(function()
      assert.equal(0, C.lsa_fold_cpu(exact, x, 1, n, 1, C.LSA_FOLD_SUM, F32, nil))
      assert.equal(rounded[0], tonumber(ffi.new("float", exact[0])))
    end)
  end)

  it("is exact in integers beyond what f64 has, and says what does not fit", function()
    local most = 0x7fffffffffffffffLL
    local out = support.buffer("int64_t", 2)
    local function sum_of(list, inner)
      return C.lsa_fold_cpu(out, support.array("int64_t", list), 1, #list / inner, inner, C.LSA_FOLD_SUM, I64, nil)
    end
    support.for_each_cpu_level(function()
      assert.equal(0, sum_of({most, most, -most, -most, 5LL, -6LL}, 1))
      assert.is_true(out[0] == -1LL)
      assert.equal(0, sum_of({most, -most - 1, 0LL, 0LL}, 2))
      assert.is_true(out[0] == most and out[1] == -most - 1)
      assert.equal(C.LSA_EARG, sum_of({most, 1LL}, 1))
      assert.equal("sum: a sum does not fit 64 bits", ffi.string(C.lsa_error()))
      assert.equal(0, C.lsa_fold_cpu(out, support.array("int64_t", {most - 1, most, most}), 1, 3, 1, C.LSA_FOLD_ARGMAX, I64, nil))
      assert.equal(1, tonumber(out[0]))
    end)
  end)

  it("finds the lowest of equal places, infinities, and nothing in NaN", function()
    local out = support.buffer("int64_t", 1)
    local function place(list, op)
      assert.equal(0, C.lsa_fold_cpu(out, support.array("float", list), 1, #list, 1, op, F32, nil))
      return tonumber(out[0])
    end
    assert.equal(1, place({NAN, 3, 3, 1, 3}, C.LSA_FOLD_ARGMAX))
    assert.equal(1, place({NAN, -INF, -INF}, C.LSA_FOLD_ARGMAX))
    assert.equal(0, place({INF, INF, NAN}, C.LSA_FOLD_ARGMIN))
    assert.equal(-1, place({NAN, NAN}, C.LSA_FOLD_ARGMIN))
    assert.equal(-1, place({}, C.LSA_FOLD_ARGMAX))
  end)

  it("does not depend on the number of threads", function()
    local outer, n, inner = 4, 500, 200
    local x = support.normals(outer * n * inner, 5)
    local one, many = support.buffer("double", outer * inner), support.buffer("double", outer * inner)
    for _, shape in ipairs {{outer, n, inner}, {outer * inner, n, 1}} do
      C.lsa_threads_set(1)
      assert.equal(0, C.lsa_fold_cpu(one, x, shape[1], shape[2], shape[3], C.LSA_FOLD_DEVIATIONS, F32, nil))
      C.lsa_threads_set(3)
      assert.equal(0, C.lsa_fold_cpu(many, x, shape[1], shape[2], shape[3], C.LSA_FOLD_DEVIATIONS, F32, nil))
      C.lsa_threads_set(0)
      assert.is_true(support.same_bits(one, many, outer * inner * 8))
    end
  end)

  it("refuses what it does not know, and minima of nothing", function()
    local out = support.buffer("double", 1)
    assert.equal(C.LSA_EARG, C.lsa_fold_cpu(out, nil, 1, 1, 1, 8, F32, nil))
    assert.equal(C.LSA_EDTYPE, C.lsa_fold_cpu(out, nil, 1, 1, 1, 0, C.LSA_I32, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_fold_cpu(out, nil, 1, -1, 1, 0, F32, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_fold_cpu(out, nil, 1, 0, 1, C.LSA_FOLD_MIN, F32, nil))
    assert.equal("no elements to take the minimum of", ffi.string(C.lsa_error()))
    assert.equal(0, C.lsa_fold_cpu(out, nil, 1, 0, 1, C.LSA_FOLD_SUM, F32, nil))
    assert.equal(0, out[0])
  end)
end)

describe("cumsum", function()
  it("is what a loop gives, in place too", function()
    for dtype in pairs(ctype) do
      for _, shape in ipairs(shapes) do
        local outer, n, inner = unpack(shape)
        local count = outer * n * inner
        local x, out = values(dtype, count, 6), support.buffer(ctype[dtype], count)
        assert.equal(0, C.lsa_cumsum_cpu(out, x, outer, n, inner, dtype, nil))
        for o = 0, outer - 1 do
          for i = 0, inner - 1 do
            local s = 0
            for j = 0, n - 1 do
              s = s + tonumber(x[(o * n + j) * inner + i])
              assert.equal(dtype == F32 and tonumber(ffi.new("float", s)) or s, tonumber(out[(o * n + j) * inner + i]))
            end
          end
        end
        assert.equal(0, C.lsa_cumsum_cpu(x, x, outer, n, inner, dtype, nil))
        assert.is_true(support.same_bits(x, out, count * ffi.sizeof(ctype[dtype])))
      end
    end
  end)

  it("sums f32 in f64", function()
    local x, out = support.array("float", {2 ^ 24, 1, 1, 1, 1}), support.buffer("float", 5)
    assert.equal(0, C.lsa_cumsum_cpu(out, x, 1, 5, 1, F32, nil))
    assert.equal(2 ^ 24 + 4, out[4])
  end)

  it("says that an integer does not fit", function()
    local x = support.array("int64_t", {0x7fffffffffffffffLL, 1LL, -1LL})
    assert.equal(C.LSA_EARG, C.lsa_cumsum_cpu(support.buffer("int64_t", 3), x, 1, 3, 1, I64, nil))
    assert.equal("cumsum: a sum does not fit 64 bits", ffi.string(C.lsa_error()))
  end)
end)

describe("dot", function()
  it("sums exact products in f64, the same on every code path", function()
    for _, n in ipairs {0, 1, 15, 16, 17, 1003} do
      local a, b, out = support.normals(n, 7), support.normals(n, 8), support.buffer("double", 1)
      local want, size, first = 0, 0, nil
      for i = 0, n - 1 do want, size = want + a[i] * b[i], size + math.abs(a[i] * b[i]) end
      support.for_each_cpu_level(function()
        assert.equal(0, C.lsa_dot_cpu(out, a, b, n, nil))
        assert.is_true(math.abs(out[0] - want) <= 1e-14 * size)
        first = first or out[0]
        assert.equal(first, out[0])
      end)
    end
  end)
end)
