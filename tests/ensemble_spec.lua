local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "kernel_support"
local C, check = lsa.C, require("lsa.raise").check

local INF, NAN = math.huge, 0 / 0

-- The definition, in double precision: max or mean over layers of the sigmoids; NaN in a chunk's logits gives NaN.
local function oracle(rows, n, how)
  local out = {}
  for s = 1, n do
    local best, sum = -INF, 0
    for _, row in ipairs(rows) do
      local p = 1 / (1 + math.exp(-row[s]))
      sum = sum + p
      if p ~= p or best ~= best then best = NAN else best = math.max(best, p) end
    end
    out[s] = how == C.LSA_ENSEMBLE_MAX and best or sum / #rows
  end
  return out
end

local function run(rows, n, how)
  local logits, out = support.buffer("float", #rows * n), support.poison(support.buffer("float", n), n)
  for l, row in ipairs(rows) do
    for s = 1, n do logits[(l - 1) * n + s - 1] = row[s] end
  end
  check(C.lsa_ensemble_cpu(out, logits, #rows, n, how, nil))
  return out
end

local function random_rows(layers, n, seed, spoiled)
  local u, rows = support.uniform(seed), {}
  for l = 1, layers do
    rows[l] = {}
    for s = 1, n do
      local dice = spoiled and u() or 1
      rows[l][s] = dice < 0.1 and NAN or dice < 0.2 and INF or dice < 0.3 and -INF or
        tonumber(ffi.new("float", dice < 0.4 and u(-200, 200) or u(-8, 8)))
    end
  end
  return rows
end

for level = 0, C.lsa_cpu_best() do
  describe("ensemble on " .. ffi.string(C.lsa_cpu_level_name(level)), function()
    setup(function() C.lsa_cpu_limit(level) end)
    teardown(function() C.lsa_cpu_limit(C.lsa_cpu_best()) end)

    for name, how in pairs {max = C.LSA_ENSEMBLE_MAX, mean = C.LSA_ENSEMBLE_MEAN} do
      it("equals the definition of " .. name, function()
        for _, layers in ipairs {1, 2, 3, 21} do
          for _, n in ipairs {0, 1, 7, 15, 16, 17, 64, 1000} do
            for seed, spoiled in ipairs {false, true} do
              local rows = random_rows(layers, n, 100 * seed + layers + n, spoiled)
              local got, want = run(rows, n, how), oracle(rows, n, how)
              local error = support.max_error(got, support.array("float", want), n, 1e-3)
              assert.is_true(error <= 1e-6, ("%d layers, %d chunks: %g"):format(layers, n, error))
            end
          end
        end
      end)
    end

    it("of max is the sigmoid of the largest logit, so that thresholds can be on logits", function()
      local rows = random_rows(3, 200, 9, false)
      local got = run(rows, 200, C.LSA_ENSEMBLE_MAX)
      for s = 1, 200 do
        local most = math.max(rows[1][s], rows[2][s], rows[3][s])
        assert.equal(most > 0, got[s - 1] > 0.5)
      end
    end)

    it("refuses no layers, and what is neither max nor mean", function()
      local out = support.buffer("float", 4)
      assert.equal(C.LSA_ESHAPE, C.lsa_ensemble_cpu(out, out, 0, 4, C.LSA_ENSEMBLE_MAX, nil))
      assert.equal(C.LSA_EARG, C.lsa_ensemble_cpu(out, out, 1, 4, 2, nil))
    end)
  end)
end

describe("ensemble", function()
  it("gives the same bits on every code path", function()
    local rows, first = random_rows(3, 333, 4, true), nil
    support.for_each_cpu_level(function()
      for _, how in ipairs {C.LSA_ENSEMBLE_MAX, C.LSA_ENSEMBLE_MEAN} do
        local got = run(rows, 333, how)
        first = first or {}
        first[how] = first[how] or got
        for s = 0, 332 do assert.is_true(got[s] == first[how][s] or (got[s] ~= got[s] and first[how][s] ~= first[how][s])) end
      end
    end)
  end)
end)
