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
local options = require "lsa.options"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"

local M = {}

-- `all` becomes the union of each one's best k; `one` is scratch.
local function unite(all, one, list, k)
  list[1]:topk(k, all)
  for i = 2, #list do all:add(list[i]:topk(k, one)) end
  return all:count()
end

-- The largest k for which the union of each one's best k has at most `most` ids, and the union; `one` is scratch. Unions grow about
-- evenly with k, the slower the more the lists agree: the next k to try is as far as the last one that fits promises, and once one was
-- too large, where a line between the two says; a try in the middle now and then bounds their number.
local function widest(list, most, one)
  local low, fits, fitting = 0, set.new(list[1]:count()), 0
  local high, count = most + 1, nil                    -- does not fit, or need not be tried
  local tries, all = 0, set.result(list[1]:count())
  while high - low > 1 do
    tries = tries + 1
    local k
    if tries % 4 == 0 then k = (low + high) / 2
    elseif count then k = low + (high - low) * (most + 0.5 - fitting) / (count - fitting)
    else k = low > 0 and low * (most + 0.5) / fitting or most / #list end
    k = math.max(low + 1, math.min(high - 1, math.floor(k)))
    local n = unite(all, one, list, k)
    if n <= most then
      low, fits, fitting, all = k, all, n, fits
    else
      high, count = k, n
    end
  end
  set.release(all)
  return low, fits, fitting
end

-- What is left beside the widest union goes to the next rank, one of the list after the other.
local function by_rank(list, most)
  local next_one = set.result(list[1]:count())
  local k, all, count = widest(list, most, next_one)
  for _, row in ipairs(list) do
    if count == most then break end
    all:add(row:topk(k + 1, next_one))
    count = all:count()
  end
  set.release(next_one)
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
  local open, list = gone:invert(), {}
  for i, row in ipairs(scores) do list[i] = row:where(open, -math.huge) end
  most = math.min(most, open:size())
  local chosen
  if #list == 0 or most <= 0 then chosen = set.new(open:size())
  elseif #list == 1 then chosen = list[1]:topk(most)
  else chosen = by_rank(list, most) end
  for _, row in ipairs(list) do tensor.release(row) end
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
