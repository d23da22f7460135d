-- Arithmetic, functions and comparisons of f32, f64, i32 and i64 against Lua's.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local support = require "kernel_support"

local INF, NAN = math.huge, 0 / 0
local F32, F64, I32, I64 = C.LSA_F32, C.LSA_F64, C.LSA_I32, C.LSA_I64
local ctype = {[F32] = "float", [F64] = "double", [I32] = "int32_t", [I64] = "int64_t"}
local lengths = {1, 2, 15, 16, 17, 100, 1003}
local special = {0, -0.0, INF, -INF, NAN, 1e-41, 3.4e38, -3.4e38, 1, -1, 0.5, 2.5, -2.5, 1.5}

local function values(dtype, n, seed)
  local u, x = support.uniform(seed), support.buffer(ctype[dtype], n)
  for i = 0, n - 1 do
    if dtype == I32 or dtype == I64 then x[i] = math.floor(u(-1000, 1000)) else x[i] = u(-10, 10) end
  end
  if dtype == F32 or dtype == F64 then
    for i = 0, math.min(#special, math.floor(n / 2)) - 1 do x[(i * 2 + seed) % n] = special[i + 1] end
  end
  return x
end

local function same(got, want) return got == want or (got ~= got and want ~= want) end
local function rounded(dtype, v) return dtype == F32 and tonumber(ffi.new("float", v)) or v end

local binary = {
  [C.LSA_ADD] = function(a, b) return a + b end,
  [C.LSA_SUB] = function(a, b) return a - b end,
  [C.LSA_MUL] = function(a, b) return a * b end,
  [C.LSA_DIV] = function(a, b) return a / b end,
  [C.LSA_MIN] = function(a, b) return (a ~= a or b ~= b) and NAN or math.min(a, b) end,
  [C.LSA_MAX] = function(a, b) return (a ~= a or b ~= b) and NAN or math.max(a, b) end,
}

local compared = {
  [C.LSA_LT] = function(a, b) return a < b end,
  [C.LSA_LE] = function(a, b) return a <= b end,
  [C.LSA_EQ] = function(a, b) return a == b end,
  [C.LSA_NE] = function(a, b) return a ~= b end,
  [C.LSA_GT] = function(a, b) return a > b end,
  [C.LSA_GE] = function(a, b) return a >= b end,
}

-- n elements with every pair of periods that n has room for.
local function each_periods(f)
  for _, n in ipairs(lengths) do f(n, n, n) end
  for _, n in ipairs {17, 100} do
    f(n, 1, n)
    f(n, n, 1)
  end
  f(6 * 35, 6, 6 * 35)
  f(6 * 35, 6 * 35, 35)
  f(3 * 40000, 3 * 40000, 40000)
  f(4 * 7, 4, 7)
  f(6 * 35, 6 * 35, -35)
  f(6 * 35, -3, 5)
  f(6 * 35, 1, -35)
  f(100, -100, 1)
  f(3 * 40000, -40000, 3 * 40000)
end

local function held(n, period) return period < 0 and n / -period or period end
local function place(i, period) return period < 0 and math.floor(i / -period) or i % period end

describe("arith", function()
  it("is the nearest float, or the integer, whatever repeats, on every code path", function()
    support.for_each_cpu_level(function()
      for dtype in pairs(ctype) do
        for op, f in pairs(binary) do
          if op ~= C.LSA_DIV or dtype == F32 or dtype == F64 then
            each_periods(function(n, ap, bp)
              local a, b, out = values(dtype, held(n, ap), 1), values(dtype, held(n, bp), 2), support.buffer(ctype[dtype], n)
              assert.equal(0, C.lsa_arith_cpu(out, a, b, n, ap, bp, op, dtype, nil))
              for i = 0, n - 1, n > 1000 and 37 or 1 do
                local x, y = tonumber(a[place(i, ap)]), tonumber(b[place(i, bp)])
                local got, want = tonumber(out[i]), rounded(dtype, f(x, y))
                if not same(got, want) then error(("op %d dtype %d: %g %g -> %g, not %g"):format(op, dtype, x, y, got, want)) end
              end
            end)
          end
        end
      end
    end)
  end)

  it("raises to powers", function()
    local n = 300
    for _, dtype in ipairs {F32, F64} do
      local a, b, out = values(dtype, n, 3), values(dtype, n, 4), support.buffer(ctype[dtype], n)
      local square = support.array(ctype[dtype], {2})
      assert.equal(0, C.lsa_arith_cpu(out, a, b, n, n, n, C.LSA_POW, dtype, nil))
      for i = 0, n - 1 do
        local got, want = out[i], rounded(dtype, math.pow(a[i], b[i]))
        assert.is_true(same(got, want) or math.abs(got - want) <= 2e-7 * math.abs(want), ("%g ^ %g = %g"):format(a[i], b[i], got))
      end
      assert.equal(0, C.lsa_arith_cpu(out, a, square, n, n, 1, C.LSA_POW, dtype, nil))
      for i = 0, n - 1 do assert.is_true(same(out[i], rounded(dtype, a[i] * a[i]))) end
    end
    local powers = {{3, 4, 81}, {-2, 3, -8}, {-1, 2 ^ 30 + 1, -1}, {0, 0, 1}, {0, 5, 0}, {1, 2 ^ 30, 1}, {2, 30, 2 ^ 30}, {7, 0, 1}}
    for _, dtype in ipairs {I32, I64} do
      for _, case in ipairs(powers) do
        local a, b, out = support.array(ctype[dtype], {case[1]}), support.array(ctype[dtype], {case[2]}), support.buffer(ctype[dtype], 1)
        assert.equal(0, C.lsa_arith_cpu(out, a, b, 1, 1, 1, C.LSA_POW, dtype, nil))
        assert.equal(case[3], tonumber(out[0]))
      end
    end
  end)

  it("is exact in integers, and names the first element that does not fit", function()
    local most = 0x7fffffffffffffffLL
    local function try(dtype, op, x, y)
      local n = 40
      local a, b, out = support.buffer(ctype[dtype], n), support.buffer(ctype[dtype], n), support.buffer(ctype[dtype], n)
      a[23], b[23], a[30], b[30] = x, y, x, y
      local rc = C.lsa_arith_cpu(out, a, b, n, n, n, op, dtype, nil)
      if rc == 0 then return out[23] end
      assert.equal(C.LSA_EARG, rc)
      return ffi.string(C.lsa_error())
    end
    support.for_each_cpu_level(function()
      assert.is_true(try(I64, C.LSA_ADD, most - 1, 1LL) == most)
      assert.is_true(try(I64, C.LSA_SUB, -most, 1LL) == -most - 1)
      assert.is_true(try(I64, C.LSA_MUL, 3037000499LL, 3037000499LL) == 3037000499LL * 3037000499LL)
      assert.equal("add: element 23, of 9223372036854775807 and 1, does not fit i64", try(I64, C.LSA_ADD, most, 1LL))
      assert.equal("sub: element 23, of -9223372036854775807 and 2, does not fit i64", try(I64, C.LSA_SUB, -most, 2LL))
      assert.equal("mul: element 23, of 3037000500 and 3037000500, does not fit i64", try(I64, C.LSA_MUL, 3037000500LL, 3037000500LL))
      assert.equal("pow: element 23, of 3 and 40, does not fit i64", try(I64, C.LSA_POW, 3LL, 40LL))
      assert.equal("pow: element 23, of 3 and -1, does not fit i64", try(I64, C.LSA_POW, 3LL, -1LL))
      assert.equal(2 ^ 31 - 1, try(I32, C.LSA_ADD, 2 ^ 31 - 2, 1))
      assert.equal("add: element 23, of 2147483647 and 1, does not fit i32", try(I32, C.LSA_ADD, 2 ^ 31 - 1, 1))
      assert.equal("sub: element 23, of -2147483648 and 1, does not fit i32", try(I32, C.LSA_SUB, -2 ^ 31, 1))
      assert.equal("mul: element 23, of 65536 and 32768, does not fit i32", try(I32, C.LSA_MUL, 65536, 32768))
    end)
  end)

  it("does not depend on the number of threads", function()
    local n = 300000
    for dtype in pairs(ctype) do
      local a, b = values(dtype, n, 7), values(dtype, n, 8)
      local one, many = support.buffer(ctype[dtype], n), support.buffer(ctype[dtype], n)
      C.lsa_threads_set(1)
      assert.equal(0, C.lsa_arith_cpu(one, a, b, n, n, n, C.LSA_MUL, dtype, nil))
      C.lsa_threads_set(3)
      assert.equal(0, C.lsa_arith_cpu(many, a, b, n, n, n, C.LSA_MUL, dtype, nil))
      C.lsa_threads_set(0)
      assert.is_true(support.same_bits(one, many, n * ffi.sizeof(ctype[dtype])))
    end
  end)

  it("refuses what does not fit", function()
    assert.equal(C.LSA_EARG, C.lsa_arith_cpu(nil, nil, nil, 4, 4, 4, 7, F32, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_arith_cpu(nil, nil, nil, 4, 4, 3, C.LSA_ADD, F64, nil))
    assert.equal("arith: 4 elements meet a period of 3", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, C.lsa_arith_cpu(nil, nil, nil, 4, 0, 4, C.LSA_ADD, F64, nil))
    assert.equal(C.LSA_EDTYPE, C.lsa_arith_cpu(nil, nil, nil, 4, 4, 4, C.LSA_DIV, I64, nil))
    assert.equal(C.LSA_EDTYPE, C.lsa_arith_cpu(nil, nil, nil, 4, 4, 4, C.LSA_ADD, C.LSA_U8, nil))
    assert.equal(0, C.lsa_arith_cpu(nil, nil, nil, 0, 1, 1, C.LSA_ADD, I64, nil))
  end)
end)

describe("compare", function()
  it("is 1 where it holds, NaN unequal to all, on every code path", function()
    support.for_each_cpu_level(function()
      for dtype in pairs(ctype) do
        for op, f in pairs(compared) do
          each_periods(function(n, ap, bp)
            local a, b, out = values(dtype, held(n, ap), 5), values(dtype, held(n, bp), 6), support.buffer("uint8_t", n)
            for i = 0, held(n, bp) - 1, 3 do b[i] = a[i % held(n, ap)] end
            assert.equal(0, C.lsa_compare_cpu(out, a, b, n, ap, bp, op, dtype, nil))
            for i = 0, n - 1, n > 1000 and 37 or 1 do
              local want = f(tonumber(a[place(i, ap)]), tonumber(b[place(i, bp)])) and 1 or 0
              if out[i] ~= want then error(("op %d dtype %d: element %d is %d"):format(op, dtype, i, out[i])) end
            end
          end)
        end
      end
    end)
  end)

  it("tells neighbours of 64 bits apart", function()
    local a, b = support.array("int64_t", {2LL ^ 60, 2LL ^ 60 + 1}), support.array("int64_t", {2LL ^ 60 + 1, 2LL ^ 60 + 1})
    local out = support.buffer("uint8_t", 2)
    assert.equal(0, C.lsa_compare_cpu(out, a, b, 2, 2, 2, C.LSA_EQ, I64, nil))
    assert.same({0, 1}, {out[0], out[1]})
  end)

  it("refuses what it does not know", function()
    assert.equal(C.LSA_EARG, C.lsa_compare_cpu(nil, nil, nil, 4, 4, 4, 6, F32, nil))
    assert.equal(C.LSA_EDTYPE, C.lsa_compare_cpu(nil, nil, nil, 4, 4, 4, 0, C.LSA_BF16, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_compare_cpu(nil, nil, nil, 4, 4, 3, 0, F32, nil))
  end)
end)

describe("map", function()
  local function round(a)
    local low = math.floor(a)
    if a ~= a or a - low < 0.5 then return low end
    if a - low > 0.5 then return low + 1 end
    return low % 2 == 0 and low or low + 1
  end
  local oracles = {
    [C.LSA_MAP_ABS] = math.abs, [C.LSA_MAP_NEG] = function(a) return -a end, [C.LSA_MAP_ROUND] = round, [C.LSA_MAP_FLOOR] = math.floor,
    [C.LSA_MAP_CEIL] = math.ceil, [C.LSA_MAP_SQRT] = function(a) return a < 0 and NAN or math.sqrt(a) end, [C.LSA_MAP_TANH] = math.tanh,
    [C.LSA_MAP_EXP] = math.exp, [C.LSA_MAP_LOG] = function(a) return a < 0 and NAN or math.log(a) end,
    [C.LSA_MAP_SIGMOID] = function(a) return 1 / (1 + math.exp(-a)) end,
  }

  local function ulps(dtype, got, want)
    if same(got, rounded(dtype, want)) then return 0 end
    local _, exponent = math.frexp(want)
    return math.abs(got - want) / math.ldexp(1, dtype == F32 and math.max(exponent - 24, -149) or math.max(exponent - 53, -1074))
  end

  it("is exact, or within its units in the last place, on every code path", function()
    support.for_each_cpu_level(function()
      for _, dtype in ipairs {F32, F64} do
        for op, f in pairs(oracles) do
          local limit = op < C.LSA_MAP_TANH and 0 or 3
          for _, n in ipairs(lengths) do
            for _, scale in ipairs {0.02, 1} do
              local a, out = values(dtype, n, 9), support.buffer(ctype[dtype], n)
              for i = 0, n - 1 do a[i] = a[i] * scale end
              assert.equal(0, C.lsa_map_cpu(out, a, n, op, dtype, nil))
              for i = 0, n - 1 do
                if not (ulps(dtype, out[i], f(a[i])) <= limit) then
                  error(("op %d dtype %d of %.17g: %.17g, wanted %.17g"):format(op, dtype, a[i], out[i], f(a[i])))
                end
              end
            end
          end
        end
      end
    end)
  end)

  it("is odd in tanh, and keeps the sign of 0", function()
    local a, out = support.array("float", {-0.0, 0.7, -0.7, 0.1, -0.1, 50, -50}), support.buffer("float", 7)
    assert.equal(0, C.lsa_map_cpu(out, a, 7, C.LSA_MAP_TANH, F32, nil))
    assert.equal(-INF, 1 / out[0])
    assert.same({-out[2], -out[4], 1, -1}, {out[1], out[3], out[5], out[6]})
  end)

  it("keeps integers, and says which does not fit", function()
    local least = -0x7fffffffffffffffLL - 1
    local a, out = support.array("int64_t", {-3LL, 4LL, 0LL}), support.buffer("int64_t", 3)
    assert.equal(0, C.lsa_map_cpu(out, a, 3, C.LSA_MAP_ABS, I64, nil))
    assert.same({3, 4, 0}, {tonumber(out[0]), tonumber(out[1]), tonumber(out[2])})
    assert.equal(0, C.lsa_map_cpu(out, a, 3, C.LSA_MAP_NEG, I64, nil))
    assert.same({3, -4, 0}, {tonumber(out[0]), tonumber(out[1]), tonumber(out[2])})
    a[1] = least
    assert.equal(C.LSA_EARG, C.lsa_map_cpu(out, a, 3, C.LSA_MAP_ABS, I64, nil))
    assert.equal("abs: element 1, of -9223372036854775808, does not fit 64 bits", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_EDTYPE, C.lsa_map_cpu(out, a, 3, C.LSA_MAP_EXP, I64, nil))
    assert.equal(C.LSA_EDTYPE, C.lsa_map_cpu(out, a, 3, C.LSA_MAP_ABS, C.LSA_I32, nil))
    assert.equal(C.LSA_EARG, C.lsa_map_cpu(out, a, 3, 10, F32, nil))
  end)
end)

describe("sequence", function()
  it("goes on in f64, whatever it ends as", function()
    for dtype, name in pairs(ctype) do
      for _, n in ipairs {0, 1, 17, 1000} do
        local out = support.buffer(name, n)
        assert.equal(0, C.lsa_sequence_cpu(out, n, -3.5, 0.75, dtype, nil))
        for i = 0, n - 1 do
          local v = -3.5 + 0.75 * i
          if dtype == I32 or dtype == I64 then v = v < 0 and math.ceil(v) or math.floor(v) end
          assert.equal(rounded(dtype, v), tonumber(out[i]))
        end
      end
    end
    assert.equal(C.LSA_EDTYPE, C.lsa_sequence_cpu(nil, 0, 0, 1, C.LSA_U8, nil))
  end)
end)

describe("mark", function()
  it("has an id where the mask is not 0", function()
    for _, n in ipairs {0, 1, 63, 64, 65, 200} do
      local u, mask, bits = support.uniform(n + 1), support.buffer("uint8_t", n), support.buffer("uint64_t", math.ceil(n / 64))
      for i = 0, n - 1 do mask[i] = u() < 0.5 and 0 or math.floor(u(1, 256)) end
      for i = 0, math.ceil(n / 64) - 1 do bits[i] = -1ULL end
      assert.equal(0, C.lsa_mark_cpu(bits, mask, n, nil))
      for i = 0, math.ceil(n / 64) * 64 - 1 do
        local has = tonumber(bits[math.floor(i / 64)] / 2ULL ^ (i % 64) % 2)
        assert.equal(i < n and mask[i] ~= 0 and 1 or 0, has)
      end
    end
  end)
end)
