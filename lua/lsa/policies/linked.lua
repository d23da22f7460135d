-- Chunks that the latest text points to, word for word: where its rare n-grams stood before and what follows there – a model that
-- copies reads on from a match – and, hop by hop, where the rare n-grams of what follows stand in turn. The latest come first, each with
-- where it leads. The latest text itself stays. What the links leave of the room goes, up to a share, to the chunks with the highest Memory Indexer scores.
--   opt.n 5       tokens of an n-gram                     opt.w 160     the latest tokens
--   opt.rare 4    one that stands at more earlier places says nothing
--   opt.sure 4    rare n-grams, at least, of a match       opt.ahead 4   chunks behind a match that come along
--   opt.hops 3    from place to place                     opt.indexed 0.25   of the room, for the Memory Indexer
-- Reads cycle.tokens, scores; owns cycle.state.linked, an index of all n-grams that grows with the context.
-- Source: prompt lookup (A. Saxena, 2023), for residency in the place of drafts; and induction (C. Olsson et al., "In-context
-- learning and induction heads", 2022).
local ffi = require "ffi"
local bit = require "bit"
local set = require "lsa.tensor.set"

local HEADS = 2 ^ 16

local function hash_at(tokens, at, n)
  local h = 0
  for i = at, at + n - 1 do h = bit.bxor(bit.rol(h, 5), tokens[i]) * 0x01000193 % 2 ^ 32 end
  h = bit.tobit(h)
  return bit.band(bit.bxor(h, bit.rshift(h, 15)), HEADS - 1)
end

-- Adds the n-grams that begin before `upto` to the index: chains of places by hash, the latest first.
local function index(state, tokens, n, upto)
  if not state.heads then
    state.heads, state.room, state.done = ffi.new("int32_t[?]", HEADS), 0, 0
    ffi.fill(state.heads, HEADS * 4, 255)
  end
  if upto > state.room then
    local room = math.max(1024, 2 * upto)
    local chain = ffi.new("int32_t[?]", room)
    if state.room > 0 then ffi.copy(chain, state.chain, state.done * 4) end
    state.chain, state.room = chain, room
  end
  for at = state.done, upto - 1 do
    local h = hash_at(tokens, at, n)
    state.chain[at], state.heads[h] = state.heads[h], at
  end
  state.done = math.max(state.done, upto)
end

-- Places before `before` where the n-gram at `at` stands; nil where there are none, or more than `rare`.
local function places_of(state, tokens, at, n, before, rare)
  local found, place = nil, state.heads[hash_at(tokens, at, n)]
  while place >= 0 do
    if place < before then
      local same = true
      for i = 0, n - 1 do same = same and tokens[place + i] == tokens[at + i] end
      if same then
        found = found or {}
        found[#found + 1] = place
        if #found > rare then return nil end
      end
    end
    place = state.chain[place]
  end
  return found
end

-- Matches of the n-grams that begin at from .. to - 1 with text before `before`, as {from, to, at = our last n-gram of it, count = how many
-- there are}, each run once, the latest first. first, last: between which places of ours a match may grow.
local function matches(state, tokens, from, to, before, opt, first, last)
  local out, runs = {}, {}
  for at = from, to - 1 do
    for _, place in ipairs(places_of(state, tokens, at, opt.n, before, opt.rare) or {}) do
      local shift = place - at
      local run = runs[shift]
      if run and place + opt.n <= run.to then
        run.count, run.at = run.count + 1, at
      else
        local a, b = at, at + opt.n
        while a > first and a + shift > 0 and tokens[a - 1] == tokens[a - 1 + shift] do a = a - 1 end
        while b < last and b + shift < before and tokens[b] == tokens[b + shift] do b = b + 1 end
        run = {from = a + shift, to = b + shift, count = 1, at = at}
        runs[shift], out[#out + 1] = run, run
      end
    end
  end
  local sure = {}
  for _, run in ipairs(out) do
    if run.count >= opt.sure then sure[#sure + 1] = run end
  end
  table.sort(sure, function(x, y) return x.at > y.at or x.at == y.at and x.from > y.from end)
  return sure
end

return function(cycle, opt)
  local t, n = cycle.t, cycle.n
  if n == 0 then return {} end
  local state, rate = cycle.state.linked or {}, math.floor(t / n)      -- tokens of a chunk: n is t / rate, rounded down
  cycle.state.linked = state
  local tokens = cycle.tokens:pointer()
  local before = math.max(0, t - opt.w)                      -- what is later is in the window, resident anyway
  index(state, tokens, opt.n, math.max(0, t - opt.n + 1))
  local room = math.floor(cycle.room * (1 - opt.indexed))
  local chosen = cycle.newest(math.min(room, math.ceil(opt.w / rate)))   -- what points may have left the sliding window
  local function follow(match, hops)
    local last = math.min(n - 1, math.floor((match.to - 1) / rate) + opt.ahead)
    local new = set.new(n):range(math.floor(match.from / rate), last + 1):minus(chosen)
    local count = new:count()
    if count == 0 or chosen:count() + count > room then return end
    chosen:add(new)
    local to = math.min(before, (last + 1) * rate)
    local from = math.max(match.from, match.to - opt.n + 1)
    for _, way in ipairs(hops > 0 and matches(state, tokens, from, to - opt.n + 1, before, opt, match.from, to) or {}) do
      if way.to <= match.from or way.from >= to then follow(way, hops - 1) end
    end
  end
  for _, match in ipairs(matches(state, tokens, before, t - opt.n + 1, before, opt, before, t)) do follow(match, opt.hops) end
  if opt.indexed > 0 then chosen:add(cycle.top(cycle.scores, math.floor(cycle.room * opt.indexed), chosen)) end
  return chosen
end, {n = 5, w = 160, rare = 4, sure = 4, ahead = 4, hops = 3, indexed = 0.25}
