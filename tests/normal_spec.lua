-- Normal numbers against Box and Muller in Lua, and their moments.
local C = require("lsa.ffi").C
local bit = require "bit"
local support = require "kernel_support"

-- Output i of SplitMix64, its top 53 bits.
local function bits53(seed, i)
  local z = seed * 1ULL + 0x9e3779b97f4a7c15ULL * (i + 1)
  z = bit.bxor(z, bit.rshift(z, 30)) * 0xbf58476d1ce4e5b9ULL
  z = bit.bxor(z, bit.rshift(z, 27)) * 0x94d049bb133111ebULL
  return tonumber(bit.rshift(bit.bxor(z, bit.rshift(z, 31)), 11))
end

describe("normal", function()
  it("is Box and Muller's at every place", function()
    for _, n in ipairs {0, 1, 2, 7, 1000} do
      for _, seed in ipairs {0, 1, 2 ^ 40 + 3} do
        local out = support.buffer("float", n)
        assert.equal(0, C.lsa_normal_cpu(out, n, seed, nil))
        for i = 0, n - 1 do
          local p = i - i % 2
          local u, v = (bits53(seed, p) + 1) / 2 ^ 53, bits53(seed, p + 1) / 2 ^ 53
          local want = math.sqrt(-2 * math.log(u)) * (i % 2 == 0 and math.cos or math.sin)(2 * math.pi * v)
          assert.is_true(math.abs(out[i] - want) <= 1e-7 * math.abs(want) + 1e-12, ("%.9g, not %.9g"):format(out[i], want))
        end
      end
    end
  end)

  it("has the moments of the normal distribution", function()
    local n = 100000
    local out, sums = support.buffer("float", n), {0, 0, 0, 0}
    assert.equal(0, C.lsa_normal_cpu(out, n, 11, nil))
    for i = 0, n - 1 do
      for k = 1, 4 do sums[k] = sums[k] + out[i] ^ k end
    end
    for k, want in ipairs {0, 1, 0, 3} do
      local got = sums[k] / n
      assert.is_true(math.abs(got - want) <= 0.08, ("moment %d is %g"):format(k, got))
    end
  end)

  it("gives the same bits on every code path", function()
    local want = support.buffer("float", 1001)
    C.lsa_cpu_limit(0)
    assert.equal(0, C.lsa_normal_cpu(want, 1001, 3, nil))
    support.for_each_cpu_level(function()
      local out = support.buffer("float", 1001)
      assert.equal(0, C.lsa_normal_cpu(out, 1001, 3, nil))
      assert.is_true(support.same_bits(want, out, 1001 * 4))
    end)
  end)

  it("does not depend on the number of threads", function()
    local n = 200001
    local one, many = support.buffer("float", n), support.buffer("float", n)
    C.lsa_threads_set(1)
    assert.equal(0, C.lsa_normal_cpu(one, n, 5, nil))
    C.lsa_threads_set(3)
    assert.equal(0, C.lsa_normal_cpu(many, n, 5, nil))
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, many, n * 4))
  end)
end)
