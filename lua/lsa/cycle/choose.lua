-- Owns how scores become a set within the budget: what policies call as cycle.top, cycle.top_pages, cycle.newest, cycle.clip.
-- What a cycle keeps anyway is never chosen; nor are NaN and -infinity. Ties go to the lower id.
--
--   top(cycle, scores, most, taken)   the best `most` chunks (what is left of the budget, when nil) outside keep and the
--                                     set `taken`
--   top_pages(cycle, scores)          the best pages that fill the budget; pages with kept chunks come first
--   newest(cycle, most, taken)        the newest chunks
--   clip(cycle, chosen, scores)       the set `chosen`, or the best of it where it is over the budget; under granularity "page" its
--                                     best pages, by their best chunk. The cycle counts as clipped then. scores: cycle.scores when nil, looked
--                                     at only then
--
-- scores: [n] f32, or a list of such, one of each layer say, which are joined by rank since their units differ: a chunk's rank is
-- the best that it has in any of them, and the lower ranks come first; among equals, the earlier of the list.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local M = {}

-- The ids of a row's best `most`, the best first; `chosen` is scratch.
local function ranked(row, most, chosen)
  local ids = row:topk(most, chosen):ids()
  local values = row:index(ids)
  local order = values:argsort(0, {descending = true})   -- ties keep their order
  local out = ids:index(order)
  for _, t in ipairs {ids, values, order} do tensor.release(t) end
  return out
end

-- The best of each one of the list, then the second best, and so on, outside the set `gone`.
local function by_rank(list, gone, most)
  local n, kept = gone:size(), gone:count()
  local ids, lengths, ranks = ffi.new("const int32_t *[?]", #list), ffi.new("int64_t[?]", #list), {}
  local chosen = set.result(n)
  for i, row in ipairs(list) do
    ranks[i] = ranked(row, math.min(n, most + kept), chosen)
    ids[i - 1], lengths[i - 1] = ffi.cast("const int32_t *", ranks[i].c.data), ranks[i]:count()
  end
  set.release(chosen)
  local all = set.new(n)
  raise.check(C.lsa_set_add_in_turn(all.c, ids, lengths, #list, most, gone.c))
  for _, t in ipairs(ranks) do tensor.release(t) end
  return all
end

-- What a policy gives.
local function check(good, name, what, value, wanted)
  if not good then raise("cycle.%s: %s is %s; %s is wanted", name, what, options.shown(value), wanted) end
end

local function check_count(name, most)
  check(type(most) == "nil" or type(most) == "number" and most == math.floor(most) and most < 2 ^ 53, name, "most", most, "a whole number")
end

-- A list of scores, each of n elements.
local function score_list(scores, n, name)
  local list = tensor.is(scores) and {scores} or scores
  check(type(list) == "table", name, "scores", scores, "a tensor or a list of tensors")
  for i, row in ipairs(list) do
    check(tensor.is(row) and #row:shape() == 1 and row:count() == n, name, "scores " .. i - 1,
      tensor.is(row) and "a tensor of " .. row:count() or row, ("a tensor [%d]"):format(n))
  end
  return list
end

-- The best `most` ids of a list of scores outside the set `gone`.
local function best(scores, gone, most)
  most = math.min(most, gone:size())
  if #scores == 0 or most <= 0 then return set.new(gone:size()) end
  if #scores > 1 then return by_rank(scores, gone, most) end
  local open = gone:invert()
  local row = scores[1]:where(open, -math.huge)
  local chosen = row:topk(most)
  tensor.release(row)
  set.release(open)
  return chosen
end

-- What is left of the budget beside keep and `taken`, and the set of both.
local function left(cycle, taken, name)
  if type(taken) == "nil" then return cycle.room, cycle.keep end
  if not set.is(taken) or taken:size() ~= cycle.n then
    raise("cycle.%s: taken is %s; a set over %d is wanted", name, set.is(taken) and "a set over " .. taken:size() or
      options.shown(taken), cycle.n)
  end
  local all = cycle.keep:union(taken)
  return math.max(0, cycle.budget - all:count()), all
end

function M.top(cycle, scores, most, taken)
  local room, gone = left(cycle, taken, "top")
  check_count("top", most)
  local chosen = best(score_list(scores, cycle.n, "top"), gone, math.min(most or room, room))
  if taken then set.release(gone) end
  return chosen
end

-- As the reference deployment has it, the pages of kept chunks are whole and the first; where they do not fit, whole
-- pages fill what is left beside the kept chunks.
function M.top_pages(cycle, scores)
  local kept = cycle.keep:pages(cycle.page)
  scores = score_list(scores, kept:size(), "top_pages")
  local whole = math.floor(cycle.budget / cycle.page) - kept:count()
  local fits = whole >= 0
  local pages = best(scores, kept, fits and whole or math.floor(cycle.room / cycle.page))
  if fits then pages:add(kept) end
  local chosen = pages:chunks(cycle.page, cycle.n)
  set.release(kept)
  set.release(pages)
  return chosen
end

-- The chunks of the best pages of `chosen` that fit beside the pages of kept chunks.
local function best_pages(cycle, chosen, scores, size)
  local kept, list = cycle.keep:pages(size), {}
  local whole = kept:chunks(size, cycle.n)
  for i, row in ipairs(scores) do list[i] = row:where(chosen, -math.huge):pages(size, "max") end
  local pages = best(list, kept, math.floor(math.max(0, cycle.budget - whole:count()) / size))
  return pages:chunks(size, cycle.n):union(whole):intersect(chosen)
end

function M.clip(cycle, chosen, scores)
  if not set.is(chosen) or chosen:size() ~= cycle.n then
    raise("cycle.clip: chosen is %s; a set over %d is wanted", set.is(chosen) and "a set over " .. chosen:size() or
      options.shown(chosen), cycle.n)
  end
  if scores ~= nil then scores = score_list(scores, cycle.n, "clip") end
  local size, all = cycle.unit or 1, chosen:union(cycle.keep)
  local fetched = size > 1 and all:pages(size):chunks(size, cycle.n) or all
  if fetched:count() <= cycle.budget or all:equals(cycle.keep) then return chosen end
  scores = scores or score_list(cycle.scores, cycle.n, "clip")
  local outermost = cycle
  while rawget(outermost, "outer") do outermost = rawget(outermost, "outer") end
  rawset(outermost, "clipped", true)
  if size > 1 then return best_pages(cycle, chosen, scores, size) end
  return best(scores, chosen:invert():add(cycle.keep), cycle.room)
end

-- The start of the run moves back by the ids in it that are there anyway, until none are added.
function M.newest(cycle, most, taken)
  local room, gone = left(cycle, taken, "newest")
  check_count("newest", most)
  most = math.min(most or room, room)
  local n, before = cycle.n, nil
  local from = math.max(0, n - most)
  while from ~= before do
    before = from
    local run = set.new(n):range(from, n)
    from = math.max(0, n - most - run:intersect_count(gone))
    set.release(run)
  end
  local newest = set.new(n):range(from, n):remove(gone)
  if taken then set.release(gone) end
  return newest
end

return M
