local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local trainer_support = require "trainer_support"
local C, check = lsa.C, require("lsa.raise").check

local function run(z, weights, positives, how)
  local n = #z
  local slope, loss = support.buffer("float", n), ffi.new "double[1]"
  how = ffi.new("lsa_index_loss", how)
  check(C.lsa_index_loss_cpu(loss, slope, support.array("float", z), support.array("float", weights), positives,
    n - positives, how, nil))
  return loss[0], slope, how
end

local NONE, BCE, FOCAL = C.LSA_POINTWISE_NONE, C.LSA_POINTWISE_BCE, C.LSA_POINTWISE_FOCAL
local ALONE, HINGE, BPR = C.LSA_PAIRWISE_NONE, C.LSA_PAIRWISE_HINGE, C.LSA_PAIRWISE_BPR

local function close(got, want)
  assert.is_true(math.abs(got - want) <= 1e-6 * math.max(1, math.abs(want)))
end

describe("lsa_index_loss", function()
  it("has the values worked out by hand", function()
    local ln2, ln3 = math.log(2), math.log(3)
    -- z = 0: p = 1/2. z = ln 3: p = 3/4. One positive of weight 2 at ln 3, one negative at 0.
    local z, w = {ln3, 0}, {2, 1}
    local loss, slope = run(z, w, 1, {BCE, ALONE, 1, 1})
    close(loss, (2 * math.log(4 / 3) + ln2) / 2)
    close(slope[0], -2 * 0.25 / 2)
    close(slope[1], 0.5 / 2)
    loss, slope = run(z, w, 1, {FOCAL, ALONE, 1, 1})
    close(loss, (2 * math.log(4 / 3) / 16 + ln2 / 4) / 2)
    close(slope[0], -2 * (1 / 16) * (2 * 0.75 * math.log(4 / 3) + 0.25) / 2)
    close(slope[1], 0.25 * (ln2 + 0.5) / 2)
    -- Pairs: ln 3 - 0 and, below the margin of 1, 0.5 - 0.
    loss, slope = run({ln3, 0.5, 0}, {2, 1, 1}, 2, {NONE, HINGE, 3, 1})
    close(loss, 3 * 0.5 / 2)
    close(slope[0], 0)
    close(slope[1], -1.5)
    close(slope[2], 1.5)
    loss, slope = run(z, w, 1, {NONE, BPR, 0.5, 0})
    close(loss, 0.5 * 2 * math.log(4 / 3))
    close(slope[0], -0.5 * 2 * 0.25)
    close(slope[1], 0.5 * 2 * 0.25)
  end)

  it("has no slope at the hinge's kink", function()
    local loss, slope = run({1, 0}, {1, 1}, 1, {NONE, HINGE, 1, 1})
    assert.equal(0, loss)
    assert.equal(0, slope[0])
    assert.equal(0, slope[1])
  end)

  it("agrees with the definition and its differences on every code path", function()
    support.for_each_cpu_level(function()
      local uniform = support.uniform(3)
      for _, counts in ipairs{{1, 1}, {5, 40}, {17, 3}, {33, 16}, {0, 20}, {20, 0}} do
        local z, w = {}, {}
        for i = 1, counts[1] + counts[2] do z[i], w[i] = uniform(-4, 4), i <= counts[1] and uniform(0.5, 2) or 1 end
        for pointwise = NONE, FOCAL do
          for pairwise = ALONE, BPR do
            local loss, slope, how = run(z, w, counts[1], {pointwise, pairwise, 0.6, 0.8})
            local want = trainer_support.loss(z, w, counts[1], how)
            assert.is_true(math.abs(loss - want) <= 2e-6 * math.max(1, want))
            for i = 1, #z do
              local kept, step = z[i], 1e-6
              z[i] = kept + step
              local above = trainer_support.loss(z, w, counts[1], how)
              z[i] = kept - step
              local below = trainer_support.loss(z, w, counts[1], how)
              z[i] = kept
              assert.is_true(math.abs(slope[i - 1] - (above - below) / (2 * step)) <= 2e-6)
            end
          end
        end
      end
    end)
  end)

  it("stays finite at large logits, and passes NaN on", function()
    for pointwise = NONE, FOCAL do
      for pairwise = ALONE, BPR do
        local loss, slope = run({-1e30, 1e30, 1e30, -1e30}, {1, 1, 1, 1}, 2, {pointwise, pairwise, 1, 1})
        assert.is_true(math.abs(loss) < math.huge)
        for i = 0, 3 do assert.is_true(math.abs(slope[i]) <= 2) end
        if pointwise + pairwise > 0 then
          loss = run({0, 0 / 0, 1}, {1, 1, 1}, 1, {pointwise, pairwise, 1, 1})
          assert.is_true(loss ~= loss)
        end
      end
    end
  end)

  it("is 0 without logits", function()
    assert.equal(0, (run({}, {}, 0, {BCE, BPR, 1, 1})))
    local loss, slope = run({1, 2}, {1, 1}, 2, {NONE, BPR, 1, 1})
    assert.equal(0, loss)
    assert.equal(0, slope[0])
  end)

  it("names an unknown loss", function()
    local how = ffi.new("lsa_index_loss", {0, 3, 1, 1})
    assert.equal(C.LSA_EARG, C.lsa_index_loss_cpu(ffi.new "double[1]", nil, nil, nil, 0, 0, how, nil))
    assert.equal("index_loss: pairwise loss 3 is not none, hinge or BPR", ffi.string(C.lsa_error()))
    assert.equal(C.LSA_ESHAPE, C.lsa_index_loss_cpu(ffi.new "double[1]", nil, nil, nil, -1, 0, how, nil))
  end)
end)
