local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0

local function oracle(x, rows, n)
  local out = {}
  for s = 0, n - 1 do out[s] = 0 end
  for r = 0, rows - 1 do
    local most, sum = -INF, 0
    for s = 0, n - 1 do
      local v = x[r * n + s]
      if v ~= v or most ~= most then most = NAN else most = math.max(most, v) end
    end
    for s = 0, n - 1 do sum = sum + math.exp(x[r * n + s] - most) end
    for s = 0, n - 1 do out[s] = out[s] + math.exp(x[r * n + s] - most) / sum end
  end
  return out
end

local function run(x, rows, n)
  local out = support.poison(support.buffer("float", n), n)
  check(C.lsa_softmax_sum_cpu(out, x, rows, n, nil))
  return out
end

local function rows_of(rows, n, seed, spread)
  local u, x = support.uniform(seed), support.buffer("float", rows * n)
  for i = 0, rows * n - 1 do x[i] = u() < 0.05 and -INF or u(-spread, spread) end
  for r = 0, rows - 1 do if n > 0 then x[r * n + r % n] = spread end end
  return x
end

describe("softmax_sum", function()
  it("equals the definition on every code path", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {0, 1, 2, 15, 16, 17, 100, 1023, 1040} do
        for _, rows in ipairs {0, 1, 3, 65} do
          for _, spread in ipairs {1, 80} do
            local x = rows_of(rows, n, n + rows, spread)
            local want, got = oracle(x, rows, n), run(x, rows, n)
            for s = 0, n - 1 do assert.is_true(math.abs(got[s] - want[s]) <= 3e-6 * (want[s] + 1e-6), n .. " " .. rows) end
          end
        end
      end
    end)
  end)

  it("gives the same bits on every code path and with any number of threads", function()
    local x, first = rows_of(7, 5000, 3, 9), nil
    support.for_each_cpu_level(function()
      for _, threads in ipairs {1, 2, 5} do
        C.lsa_threads_set(threads)
        local got = run(x, 7, 5000)
        C.lsa_threads_set(0)
        first = first or got
        assert.is_true(support.same_bits(first, got, 5000 * 4))
      end
    end)
  end)

  it("is NaN where a row has a NaN or nothing finite at its top", function()
    support.for_each_cpu_level(function()
      for _, bad in ipairs {NAN, INF} do
        for _, n in ipairs {5, 16, 40} do
          local x = rows_of(2, n, 1, 3)
          x[n + n - 1] = bad
          local got = run(x, 2, n)
          for s = 0, n - 1 do assert.is_true(got[s] ~= got[s]) end
        end
      end
      local got = run(support.array("float", {-INF, -INF}), 1, 2)
      assert.is_true(got[0] ~= got[0] and got[1] ~= got[1])
    end)
  end)

  it("refuses sizes below none", function()
    assert.equal(C.LSA_ESHAPE, C.lsa_softmax_sum_cpu(ffi.new "float[1]", ffi.new "float[1]", -1, 1, nil))
  end)
end)
