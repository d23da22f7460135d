local support = require "kernel_support"
local C = require("lsa.ffi").C
local ffi = require "ffi"

local INF, NAN = math.huge, 0 / 0
local SUM, MEAN, MIN, MAX = C.LSA_REDUCE_SUM, C.LSA_REDUCE_MEAN, C.LSA_REDUCE_MIN, C.LSA_REDUCE_MAX

local function oracle(list, op)
  local sum, low, high = 0, INF, -INF
  for _, v in ipairs(list) do
    if v ~= v then return NAN end
    sum, low, high = sum + v, math.min(low, v), math.max(high, v)
  end
  if op == SUM then return sum end
  if op == MEAN then return sum / #list end
  return op == MIN and low or high
end

local function reduce(x, outer, n, inner, op)
  local out = support.buffer("float", outer * inner)
  assert.equal(0, C.lsa_reduce_cpu(out, x, outer, n, inner, op, nil))
  return out
end

local function close(got, want, size)
  return got == want or (got ~= got and want ~= want) or math.abs(got - want) <= 1e-7 * size
end

-- NaN and infinities in some rows.
local function rows_with_trouble(total, seed)
  local x = support.normals(total, seed)
  for i = 0, total - 1, 37 do x[i] = ({NAN, INF, -INF, 0})[i / 37 % 4 + 1] end
  return x
end

describe("reduce", function()
  it("agrees with a loop over every row and column, on every code path", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {1, 2, 15, 16, 17, 31, 33, 64, 200} do
        for _, inner in ipairs {1, 2, 7, 8, 9, 20, 64, 130} do
          for _, make in ipairs {support.normals, rows_with_trouble} do
            local outer = 3
            local x = make(outer * n * inner, n + inner)
            for _, op in ipairs {SUM, MEAN, MIN, MAX} do
              local out = reduce(x, outer, n, inner, op)
              for o = 0, outer - 1 do
                for i = 0, inner - 1 do
                  local column = {}
                  for j = 0, n - 1 do column[j + 1] = x[(o * n + j) * inner + i] end
                  local want = oracle(column, op)
                  assert.is_true(close(out[o * inner + i], want, n), ("n %d inner %d op %d"):format(n, inner, op))
                end
              end
            end
          end
        end
      end
    end)
  end)

  it("propagates a NaN from any place", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {1, 16, 31, 40} do
        for at = 0, n - 1 do
          local x = support.normals(n, 3)
          x[at] = NAN
          for _, op in ipairs {SUM, MEAN, MIN, MAX} do
            local rows, columns = reduce(x, 1, n, 1, op)[0], reduce(x, 1, 1, n, op)[at]
            assert.is_true(rows ~= rows and columns ~= columns)
          end
        end
      end
    end)
  end)

  it("sums a million small numbers without drift", function()
    local n = 2 ^ 20
    local x = support.buffer("float", n)
    for i = 0, n - 1 do x[i] = 0.1 end
    assert.equal(tonumber(ffi.new("float", n * tonumber(ffi.new("float", 0.1)))), reduce(x, 1, n, 1, SUM)[0])
  end)

  it("gives the same bits on every code path and thread count", function()
    local outer, n = 700, 611
    local x = support.normals(outer * n, 4)
    for _, op in ipairs {SUM, MEAN, MIN, MAX} do
      local want
      support.for_each_cpu_level(function()
        for threads = 1, 3 do
          C.lsa_threads_set(threads)
          local out = reduce(x, outer, n, 1, op)
          want = want or out
          assert.is_true(support.same_bits(want, out, outer * 4))
        end
        C.lsa_threads_set(0)
      end)
    end
  end)

  it("knows what nothing sums to", function()
    local none = support.buffer("float", 0)
    assert.equal(0, reduce(none, 1, 0, 1, SUM)[0])
    local mean = reduce(none, 1, 0, 1, MEAN)[0]
    assert.is_true(mean ~= mean)
    assert.equal(0, reduce(none, 1, 0, 3, SUM)[2])
    reduce(none, 0, 5, 1, MAX)
    reduce(none, 5, 5, 0, MAX)
    local out = support.buffer("float", 1)
    assert.equal(C.LSA_ESHAPE, C.lsa_reduce_cpu(out, none, 1, 0, 1, MAX, nil))
    assert.equal("reduce: no elements to take the maximum of", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_EARG, C.lsa_reduce_cpu(out, none, 1, 0, 1, 4, nil))
  end)
end)

describe("argmax", function()
  local function argmax(list)
    local id = support.buffer("int32_t", 1)
    assert.equal(0, C.lsa_argmax_cpu(id, support.array("float", list), 1, #list, nil))
    return id[0]
  end

  it("finds the first largest, which NaN never is, on every code path", function()
    support.for_each_cpu_level(function()
      assert.equal(-1, argmax {})
      assert.equal(-1, argmax {NAN, NAN})
      assert.equal(1, argmax {NAN, -INF, NAN})
      assert.equal(2, argmax {1, 2, 3, 3, 0})
      for _, n in ipairs {1, 15, 16, 17, 47, 100} do
        for at = 0, n - 1 do
          local list = {}
          for i = 1, n do list[i] = i % 5 end
          list[at + 1] = 9
          if at + 4 <= n then list[at + 4] = 9 end
          if at > 0 then list[at] = NAN end
          assert.equal(at, argmax(list))
        end
      end
    end)
  end)

  it("takes rows one by one", function()
    local ids = support.buffer("int32_t", 3)
    assert.equal(0, C.lsa_argmax_cpu(ids, support.array("float", {1, 2, NAN, NAN, 5, 4}), 3, 2, nil))
    assert.same({1, -1, 0}, {ids[0], ids[1], ids[2]})
  end)
end)
