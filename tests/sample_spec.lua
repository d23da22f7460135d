local ffi = require "ffi"
local lsa = require "lsa"
local rng = require "lsa.cycle.rng"
local support = require "kernel_support"
local C = require("lsa.ffi").C
local check = require("lsa.raise").check
local inf, nan = math.huge, 0 / 0

local function sample(logits, states, temperatures, n, vocab)
  local tokens = support.buffer("int32_t", n)
  check(C.lsa_sample_cpu(tokens, logits, states, temperatures, n, vocab, nil))
  return tokens
end

-- The contract in Lua, with a generator of rng.lua.
local function oracle(p, random, temperature, n)
  local most, at = -inf, -1
  for i = 0, n - 1 do
    if p[i] ~= p[i] then return -1 end
    if p[i] > most then most, at = p[i], i end
  end
  if math.abs(most) == inf then return -1 end
  if temperature == 0 then return at end
  local sum = 0
  for i = 0, n - 1 do sum = sum + math.exp((p[i] - most) / temperature) end
  local left = random() * sum
  for i = 0, n - 1 do
    left = left - math.exp((p[i] - most) / temperature)
    if left < 0 then return i end
  end
  return n - 1
end

local function state_of(random) return random.state[0] end

describe("sample", function()
  it("draws the oracle's tokens, and leaves the generators where it does", function()
    for _, shape in ipairs {{1, 1}, {3, 2}, {7, 33}, {64, 200}, {4, 5000}} do
      local n, vocab = unpack(shape)
      local logits = support.normals(n * vocab, vocab, 3)
      if vocab > 2 then logits[1] = -inf end
      local states, temperatures, random = support.buffer("uint64_t", n), support.buffer("double", n), {}
      for r = 0, n - 1 do
        random[r] = rng.new(r + 5)
        states[r], temperatures[r] = state_of(random[r]), ({0.7, 0, 1, 1e-3, 20})[r % 5 + 1]
      end
      for draw = 1, 20 do
        local tokens = sample(logits, states, temperatures, n, vocab)
        for r = 0, n - 1 do
          assert.equal(oracle(logits + r * vocab, random[r], temperatures[r], vocab), tokens[r], "draw " .. draw)
          assert.is_true(states[r] == state_of(random[r]), "state of row " .. r)
        end
      end
    end
  end)

  it("draws ids as often as softmax says", function()
    local n, p = 40000, {0.5, 0.3, 0.15, 0.05}
    local logits, states = support.buffer("float", n * 4), support.buffer("uint64_t", n)
    local temperatures, counts = support.buffer("double", n), {0, 0, 0, 0}
    for r = 0, n - 1 do
      states[r], temperatures[r] = state_of(rng.new(r)), 2
      for i = 0, 3 do logits[r * 4 + i] = 2 * math.log(p[i + 1]) + 3 end
    end
    local tokens = sample(logits, states, temperatures, n, 4)
    for r = 0, n - 1 do counts[tokens[r] + 1] = counts[tokens[r] + 1] + 1 end
    for i = 1, 4 do
      assert.is_true(math.abs(counts[i] - n * p[i]) <= 5 * math.sqrt(n * p[i] * (1 - p[i])), "id " .. i - 1)
    end
  end)

  it("takes the lowest of the largest at temperature 0, and no number", function()
    local logits = support.array("float", {1, 3, 3, -inf, 0, -0.0, 0, 0, -2, -2, -2, -2})
    local states = support.array("uint64_t", {7, 8, 9})
    local tokens = sample(logits, states, support.array("double", {0, 0, 0}), 3, 4)
    for r, want in ipairs {1, 0, 0} do assert.equal(want, tokens[r - 1]) end
    for r = 0, 2 do assert.is_true(states[r] == r + 7) end
  end)

  it("gives -1 for rows that no token can be drawn from, whatever the others do", function()
    local logits = support.array("float", {
      1, nan, 3,   nan, nan, nan,   -inf, -inf, -inf,   1, inf, 0,   1, 2, 3,   -inf, 5, -inf,
    })
    for _, temperature in ipairs {0, 1} do
      local states, temperatures = support.buffer("uint64_t", 6), support.buffer("double", 6)
      for r = 0, 5 do states[r], temperatures[r] = 99, temperature end
      local tokens = sample(logits, states, temperatures, 6, 3)
      for r = 0, 3 do
        assert.equal(-1, tokens[r])
        assert.is_true(states[r] == 99)
      end
      assert.is_true(tokens[4] >= 0 and tokens[4] <= 2)
      assert.equal(1, tokens[5])
    end
  end)

  it("gives the same tokens for any number of threads", function()
    local n, vocab = 40, 3000
    local logits, temperatures, states = support.normals(n * vocab, 2), support.buffer("double", n), {}
    for i = 1, 2 do states[i] = support.buffer("uint64_t", n) end
    for r = 0, n - 1 do temperatures[r], states[1][r], states[2][r] = 1, r * 77 + 1, r * 77 + 1 end
    C.lsa_threads_set(1)
    local one = sample(logits, states[1], temperatures, n, vocab)
    C.lsa_threads_set(3)
    local three = sample(logits, states[2], temperatures, n, vocab)
    C.lsa_threads_set(0)
    assert.is_true(support.same_bits(one, three, 4 * n) and support.same_bits(states[1], states[2], 8 * n))
  end)

  it("takes no rows, and refuses rows of nothing", function()
    assert.equal(0, C.lsa_sample_cpu(nil, nil, nil, nil, 0, 5, nil))
    assert.equal(C.LSA_ESHAPE, C.lsa_sample_cpu(nil, nil, nil, nil, 1, 0, nil))
    assert.equal("sample: 1 rows of 0 logits", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, C.lsa_sample_cpu(nil, nil, nil, nil, -1, 5, nil))
  end)

  it("is a call on tensors", function()
    local random, states = rng.new(3), lsa.zeros({2}, "i64")
    states:pointer()[0], states:pointer()[1] = state_of(random), 1
    local logits = lsa.tensor {{1, 2, 3, 1}, {0, 0, 9, 0}}
    local same, tokens = lsa.kernels.sample(logits, states, 1.5)
    assert.equal(states, same)
    assert.equal(oracle(logits:pointer(), random, 1.5, 4), tokens:get(0))
    assert.is_true(ffi.cast("uint64_t *", states:pointer())[0] == state_of(random))
    assert.same({2, 2}, select(2, lsa.kernels.sample(logits, states)):totable())
    local ok, message = pcall(lsa.kernels.sample, logits, states, -1)
    assert.is_false(ok)
    assert.is_truthy(message:find("sample: temperature is -1, a finite number of at least 0 is wanted", 1, true))
  end)
end)
