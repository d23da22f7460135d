-- Golden labels out of native top-k logits: 512 steps of Flash's 21 layers at a million tokens.
local lsa = require "lsa.ffi"
local C, check = lsa.C, require("lsa.raise").check

local STEPS, LAYERS, K, N = 512, 21, 512, 262144

-- The logits of a row's best: a tail that falls off exponentially, as best-of-many do; sharp ones keep few entries.
local function logits_of(bench, scale)
  local logits, owner = bench:random("float", STEPS * LAYERS * K, 7)
  for i = 0, STEPS * LAYERS * K - 1 do logits[i] = -scale * math.log(0.5 + 0.4999 * logits[i]) end
  return logits, owner
end

-- Ascending ids: a step's layers have most of them in common.
local function ids_of(bench)
  local ids, owner = bench:alloc("int32_t", STEPS * LAYERS * K)
  local random, random_owner = bench:random("float", STEPS * K, 3)
  local gap = math.floor(N / K)
  for row = 0, STEPS * LAYERS - 1 do
    local common = random + math.floor(row / LAYERS) * K
    for j = 0, K - 1 do
      local own = (j * 7 + row) % 4 == 0 and row % LAYERS or 0
      ids[row * K + j] = j * gap + (math.floor((0.5 + 0.499 * common[j]) * gap) + own) % gap
    end
  end
  return ids, owner, random_owner
end

return function(bench)
  for _, kind in ipairs {{"sharp", 2}, {"usual", 1}, {"flat", 0.2}} do
    for _, setting in ipairs {{0.6, 3}, {0.4, 10}} do
      bench:case {
        op = "golden_labels", shape = ("%d steps, %d x %d of %d, %g / %d, %s"):format(STEPS, LAYERS, K, N, setting[1],
          setting[2], kind[1]),
        bytes = STEPS * LAYERS * K * 8, limit = "copy",
        setup = function()
          local s = {room = tonumber(C.lsa_golden_labels_room(STEPS, LAYERS, K, setting[2]))}
          s.logits, s.logits_owner = logits_of(bench, kind[2])
          s.ids, s.ids_owner = ids_of(bench)
          s.pointers, s.pointers_owner = bench:alloc("int32_t", STEPS + 1)
          s.indices, s.indices_owner = bench:alloc("int32_t", s.room)
          s.scores, s.scores_owner = bench:alloc("int32_t", s.room)
          s.workspace, s.workspace_owner = bench:alloc("uint8_t", tonumber(C.lsa_golden_labels_workspace(LAYERS, K, N)))
          return s
        end,
        run = function(s)
          check(C.lsa_golden_labels_cpu(s.pointers, s.indices, s.scores, s.ids, s.logits, STEPS, LAYERS, K, LAYERS * K, K, N,
            setting[1], 0, setting[2], s.workspace, nil))
        end,
      }
    end
  end
end
