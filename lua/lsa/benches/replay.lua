-- A recorded session against its replay: decode of the small real model behind 32,768 tokens under a policy, and lsa.replay of what
-- that recorded, the opening of the file included. Decode of one cycle of 64 and a whole replay take turns. Cycles at other steps than
-- the recorded ones have to be scored anew; the model's own Memory Indexer has more heads than the native one.
local lsa = require "lsa.ffi"

local TOKENS, STEPS, TAU, ROUNDS = 32768, 4096, 64, 30

local function text()
  local file = assert(io.open(lsa.root .. "/README.md"))
  local all = file:read "*a"
  file:close()
  return all:rep(math.ceil(TOKENS / #all)):sub(1, TOKENS)
end

local function decode(session, steps, random)
  for _ = 1, steps do session:decode(random(256)) end
end

return function(bench)
  for _, case in ipairs {{"lsa_topk"}, {"lsa_page_max"}, {"recency"}, {"lsa_topk", nil, 48}, {"lsa_topk", "native", 48}} do
    local policy, indexer, every = case[1], case[2], case[3]
    local shape = ("%s%s%s, %d steps at %d tokens"):format(policy, indexer and " (native)" or "", every and ", every " .. every or "",
      STEPS, TOKENS)
    if bench:wants("replay", shape) then
      local base = require("lsa.model").new(lsa.root .. "/experiments/models/needle"):session{select = "full", indexer = indexer}
      base:prefill(text())
      local random, path = require("lsa.cycle.rng").new(7), os.tmpname()
      local session, live = base:fork{select = policy, every = TAU}, base:fork{select = policy, every = TAU}
      session:record(path)
      decode(session, STEPS, random)
      session:close()
      decode(live, TAU, random)
      local decodes, replays = bench.interleaved(ROUNDS, function() decode(live, TAU, random) end,
        function() require("lsa.replay").new(path, {every = every}) end)
      local file = assert(io.open(path))
      local bytes = file:seek "end"
      file:close()
      os.remove(path)
      local ns, step = bench.median(replays), bench.median(decodes) / TAU
      bench:row{op = "replay", shape = shape, ns = ns, best = replays[1], bytes = bytes, limit = "read",
        note = ("%.2f us a step, decode %.1f us: %.0f x"):format(ns / STEPS / 1e3, step / 1e3, step * STEPS / ns)}
    end
  end
end
