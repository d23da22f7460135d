local ffi = require "ffi"
local lsa = require "lsa"
local support = require "kernel_support"
local C = require("lsa.ffi").C
local check = require("lsa.raise").check
local inf, nan = math.huge, 0 / 0

local function entropy(logits, n, vocab)
  local out = support.buffer("double", n)
  check(C.lsa_entropy_cpu(out, logits, n, vocab, nil))
  return out
end

-- The contract's sums in Lua.
local function oracle(logits, vocab)
  local most, sum, weighted = -inf, 0, 0
  for i = 0, vocab - 1 do most = math.max(most, logits[i]) end
  for i = 0, vocab - 1 do
    local e = math.exp(logits[i] - most)
    sum = sum + e
    weighted = weighted + e * (logits[i] - most)
  end
  return math.log(sum) - weighted / sum
end

describe("entropy", function()
  it("is the oracle's, to the bit", function()
    for _, shape in ipairs {{1, 1}, {3, 2}, {5, 33}, {2, 129280}, {40, 700}} do
      local n, vocab = unpack(shape)
      for scale = 1, 300, 100 do
        local logits = support.normals(n * vocab, vocab, scale)
        local got, want = entropy(logits, n, vocab), support.buffer("double", n)
        for r = 0, n - 1 do want[r] = oracle(logits + r * vocab, vocab) end
        assert.is_true(support.same_bits(got, want, 8 * n), ("[%d, %d] x %d"):format(n, vocab, scale))
      end
    end
  end)

  it("is known for what is even, certain and known", function()
    local got = entropy(support.array("float", {5, 5, 5, 5,   9, -inf, -inf, -inf,   0, -1000, -1000, -1000,
      math.log(2), 0, 0, -inf}), 4, 4)
    assert.is_true(math.abs(got[0] - math.log(4)) <= 1e-15)
    assert.equal(0, got[1])
    assert.equal(0, got[2])
    assert.is_true(math.abs(got[3] - 1.5 * math.log(2)) <= 1e-7)
  end)

  it("is NaN for rows without a distribution, and only for these", function()
    local got = entropy(support.array("float", {1, nan, nan, 1, -inf, -inf, inf, 0, 1, 2}), 5, 2)
    for r = 0, 4 do assert.equal(r < 4, got[r] ~= got[r]) end
  end)

  it("gives the same bits for any number of threads", function()
    local n, vocab = 60, 2000
    local logits = support.normals(n * vocab, 2)
    C.lsa_threads_set(1)
    local one = entropy(logits, n, vocab)
    C.lsa_threads_set(3)
    local three = entropy(logits, n, vocab)
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, three, 8 * n))
  end)

  it("takes no rows, and refuses rows of nothing", function()
    assert.equal(0, C.lsa_entropy_cpu(nil, nil, 0, 5, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_entropy_cpu(nil, nil, 1, 0, nil))
    assert.equal("entropy: 1 rows of 0 logits", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, C.lsa_entropy_cpu(nil, nil, -1, 5, nil))
  end)

  it("is a call on tensors", function()
    local logits = lsa.zeros {2, 3, 4}
    for i = 0, 23 do logits:pointer()[i] = math.sin(i) end
    local got = lsa.kernels.entropy(logits)
    assert.same({2, 3}, got:shape())
    for r = 0, 5 do
      local want = ffi.new("float[1]", oracle(logits:pointer() + 4 * r, 4))
      assert.equal(want[0], got:pointer()[r])
    end
  end)
end)
