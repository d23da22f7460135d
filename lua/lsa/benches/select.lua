-- Selection out of the scores of a million chunks: thresholds, top-k, top-p, page densities.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

local N = 2 ^ 20
local WORDS, PAGE = N / 64, 64

-- Scores as the Memory Indexer gives them: sigmoids, nearly all of them small; or with many ties.
local function scores_of(bench, kind)
  local scores, owner = bench:random("float", N, 5)
  for i = 0, N - 1 do
    local v = 1 / (1 + math.exp(6 - 8 * scores[i]))
    scores[i] = kind == "tied" and math.floor(v * 16) / 16 or v
  end
  return scores, owner
end

return function(bench)
  local function case(op, kind, shape, run)
    bench:case {
      op = op, shape = shape .. (" of %d, %s"):format(N, kind), bytes = N * 4, limit = "read",
      setup = function()
        local s = {}
        s.scores, s.scores_owner = scores_of(bench, kind)
        s.bits, s.bits_owner = bench:alloc("uint64_t", WORDS)
        s.out, s.out_owner = bench:alloc("float", N)
        s.low = ffi.new("float[1]", -math.huge)
        s.pages, s.pages_owner = bench:alloc("float", N / PAGE)
        s.workspace, s.workspace_owner = bench:alloc("uint8_t", tonumber(C.lsa_select_workspace(N)))
        return s
      end,
      run = run,
    }
  end

  for _, kind in ipairs {"sigmoids", "tied"} do
    case("select_above", kind, "> 0.5", function(s) check(C.lsa_select_above_cpu(s.bits, s.scores, N, 0.5, 1, nil)) end)
    for _, k in ipairs {512, 35389, 135000} do
      case("select_topk", kind, tostring(k), function(s)
        check(C.lsa_select_topk_cpu(s.bits, s.scores, N, k, s.workspace, nil))
      end)
    end
    for _, mass in ipairs {0.6, 0.95} do
      case("select_topp", kind, tostring(mass), function(s)
        check(C.lsa_select_topp_cpu(s.bits, s.scores, N, mass, s.workspace, nil))
      end)
    end
  end
  case("density", "sigmoids", "> 0.5, pages of 64", function(s)
    check(C.lsa_select_above_cpu(s.bits, s.scores, N, 0.5, 1, nil))
    check(C.lsa_density_cpu(s.pages, s.bits, N, PAGE, nil))
  end)
  for how, op in pairs {max = C.LSA_REDUCE_MAX, sum = C.LSA_REDUCE_SUM} do
    case("pages", "sigmoids", how .. " of 64", function(s)
      check(C.lsa_pages_cpu(s.pages, s.scores, 1, N, PAGE, op, nil))
    end)
  end

  case("where", "sigmoids", "a set's scores", function(s)
    check(C.lsa_where_cpu(s.out, s.bits, s.scores, s.low, N, 0, nil))
  end)
  case("uniform", "random", "numbers", function(s) check(C.lsa_uniform_cpu(s.out, N, 7, nil)) end)

  -- The whole of a policy's share: Lua, its objects, and the kernels.
  bench:case {
    op = "policy", shape = ("scores:topk(35389) of %d"):format(N), bytes = N * 4, limit = "read",
    setup = function()
      local scores = require("lsa.tensor.tensor").zeros {N}
      local values, owner = scores_of(bench, "sigmoids")
      ffi.copy(scores:pointer(), values, N * 4)
      return {scores = scores, owner = owner}
    end,
    run = function(s) return s.scores:topk(35389) end,
  }
end
