local C = require("lsa.ffi").C
local lsa = require "lsa"
local support = require "kernel_support"

-- SplitMix64, a step at a time.
local function oracle(seed)
  local state = seed + 0ULL
  return function()
    state = state + 0x9e3779b97f4a7c15ULL
    local z = state
    z = bit.bxor(z, bit.rshift(z, 30)) * 0xbf58476d1ce4e5b9ULL
    z = bit.bxor(z, bit.rshift(z, 27)) * 0x94d049bb133111ebULL
    return tonumber(bit.rshift(bit.bxor(z, bit.rshift(z, 31)), 40)) / 2 ^ 24
  end
end

describe("uniform", function()
  it("is SplitMix64 at every place, on every code path", function()
    support.for_each_cpu_level(function()
      for _, n in ipairs {0, 1, 15, 16, 33, 1000} do
        for _, seed in ipairs {0, 1, 2 ^ 40 + 3} do
          local out, step = support.buffer("float", n), oracle(seed)
          assert.equal(0, C.lsa_uniform_cpu(out, n, seed, nil))
          for i = 0, n - 1 do assert.equal(step(), out[i]) end
        end
      end
    end)
  end)

  it("fills [0, 1) evenly", function()
    local x = lsa.kernels.uniform(100000, 7)
    assert.is_true(x:min() >= 0 and x:max() < 1)
    for tenth = 0, 9 do
      local count = x:ge(tenth / 10):count() - x:ge((tenth + 1) / 10):count()
      assert.is_true(math.abs(count - 10000) <= 500, ("%d numbers in tenth %d"):format(count, tenth))
    end
  end)
end)
