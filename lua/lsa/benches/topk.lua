-- Top-k: whole rows at once, and streamed in blocks as scoring produces them.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

local BLOCK = 4096

-- What scores can look like: in no order, or rising with the position, so that nearly every one is taken for a while.
local function scores_of(bench, order, rows, n)
  local scores, owner = bench:random("float", rows * n, 5)
  if order == "rising" then
    for i = 0, rows * n - 1 do scores[i] = scores[i] * 0.01 + i % n / n end
  end
  return scores, owner
end

return function(bench)
  local function batch(rows, n, k, order)
    bench:case {
      op = "topk", shape = ("%d of %d, %d rows, %s"):format(k, n, rows, order), bytes = rows * n * 4,
      limit = "read",
      setup = function()
        local s = {}
        s.scores, s.scores_owner = scores_of(bench, order, rows, n)
        s.ids, s.ids_owner = bench:alloc("int32_t", rows * k)
        s.workspace, s.workspace_owner = bench:alloc("uint8_t", tonumber(C.lsa_topk_workspace(rows, k)))
        return s
      end,
      run = function(s) check(C.lsa_topk_cpu(s.ids, nil, nil, s.scores, rows, n, n, k, s.workspace, nil)) end,
    }
  end

  local function stream(n, k, order)
    bench:case {
      op = "topk_push", shape = ("%d of %d, blocks of %d, %s"):format(k, n, BLOCK, order), bytes = n * 4, limit = "read",
      setup = function()
        local s = {state = ffi.new "lsa_topk_state"}
        local capacity = C.lsa_topk_capacity(k)
        s.scores, s.scores_owner = scores_of(bench, order, 1, n)
        s.values, s.values_owner = bench:alloc("float", capacity)
        s.ids, s.ids_owner = bench:alloc("int32_t", capacity)
        s.out, s.out_owner = bench:alloc("int32_t", k)
        return s
      end,
      run = function(s)
        C.lsa_topk_begin(s.state, k, s.values, s.ids)
        for from = 0, n - 1, BLOCK do
          C.lsa_topk_push(s.state, s.scores + from, math.min(BLOCK, n - from), from)
        end
        C.lsa_topk_finish(s.state, s.out, nil)
      end,
    }
  end

  for _, order in ipairs {"random", "rising"} do
    batch(1, 262144, 512, order)
    batch(1, 262144, 35389, order)
    batch(64, 16384, 512, order)
    batch(256, 262144, 512, order)
    batch(512, 2048, 64, order)
    stream(262144, 512, order)
    stream(16384, 64, order)
  end
end
