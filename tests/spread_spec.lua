local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0

local function oracle(x, n, radius)
  local out = {}
  for i = 0, n - 1 do
    local most = -INF
    for j = math.max(0, i - radius), math.min(n - 1, i + radius) do
      if x[j] ~= x[j] or most ~= most then most = NAN else most = math.max(most, x[j]) end
    end
    out[i] = most
  end
  return out
end

local function run(x, n, radius)
  local out = support.poison(support.buffer("float", n), n)
  check(C.lsa_spread_cpu(out, x, n, radius, nil))
  return out
end

local function assert_same(x, n, radius)
  local want, got = oracle(x, n, radius), run(x, n, radius)
  for i = 0, n - 1 do
    assert.is_true(got[i] == want[i] or (got[i] ~= got[i] and want[i] ~= want[i]), ("%d of %d, radius %d"):format(i, n, radius))
  end
end

describe("spread", function()
  it("equals the definition on every code path, with NaN and infinities", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {0, 1, 2, 15, 16, 17, 100, 1023, 1024, 1025, 2500} do
        local u, x = support.uniform(n + 1), support.buffer("float", n)
        for i = 0, n - 1 do
          local kind = u()
          x[i] = kind < 0.002 and NAN or kind < 0.01 and INF or kind < 0.3 and -INF or u(-1, 1)
        end
        for _, radius in ipairs {0, 1, 2, 3, 16, 31, 200, 512} do assert_same(x, n, radius) end
      end
    end)
  end)

  it("refuses radii out of range", function()
    local x = support.buffer("float", 1)
    assert.equal(C.LSA_EARG, C.lsa_spread_cpu(x, x, 0, -1, nil))
    assert.equal(C.LSA_EARG, C.lsa_spread_cpu(x, x, 0, 513, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_spread_cpu(x, x, -1, 1, nil))
  end)

  it("is the same with threads, and of larger radii when repeated", function()
    local n = 100003
    local u, x = support.uniform(5), support.buffer("float", n)
    for i = 0, n - 1 do x[i] = u() end
    local twice, half = run(run(x, n, 100), n, 77), run(x, n, 177)
    for i = 0, n - 1 do assert(twice[i] == half[i], i) end
    C.lsa_threads_set(1)
    local alone = run(x, n, 177)
    C.lsa_threads_set(0)
    for i = 0, n - 1 do assert(alone[i] == half[i], i) end
  end)
end)
