-- Lowest score: the victim is the id with the lowest score, among equals the one touched longest ago. Scores are
-- what the selection policy thinks of a chunk or page, so that what it came close to selecting stays.
--   opt.scores    id -> score: a table by id, or a function of the id, asked when an id is inserted
--   opt.default   0: the score of an id that has none
--   self:score(id, value)   gives an id a score, whether it is present or not; it keeps it until it gets another
-- Source: the density and threshold rules of arXiv 2606.09079 order chunks by I(t, s); as an eviction order it is
-- the priority scheme of Mattson et al., IBM Systems Journal 9(2), 1970.
local ffi = require "ffi"
local heap = require "lsa.cycle.slot_heap"
local lists = require "lsa.cycle.slot_lists"

local Score = {}
Score.__index = Score

-- NaN orders below every number: what has no sensible score leaves first.
local function value_of(value)
  return value == value and value or -math.huge
end

local function place(self, slot)
  self.tick = self.tick + 1
  local value = self.given[self.ids.id[slot]]
  self.order:put(slot, value or self.default, self.tick)
end

function Score:score(id, value)
  self.given[id] = value_of(value)
  local slot = self.ids:find(id)
  if slot ~= 0 then self.order:put(slot, self.given[id], self.order:tie_of(slot)) end
end

function Score:hit(id)
  local slot = self.ids:find(id)
  if slot ~= 0 then place(self, slot) end
end

function Score:insert(id)
  local slot = self.ids:add(id)
  local source = self.scores
  if source and self.given[id] == nil then
    local value
    if type(source) == "function" then value = source(id) else value = source[id] end
    if value ~= nil then self.given[id] = value_of(value) end
  end
  place(self, slot)
end

function Score:victim(allowed)
  local ids, order = self.ids, self.order
  local slot = order:least(allowed, ids.id)
  if slot == 0 then return nil end
  order:remove(slot)
  return ids:drop(slot)
end

function Score:remove(id)
  local slot = self.ids:find(id)
  if slot == 0 then return end
  self.order:remove(slot)
  self.ids:drop(slot)
end

-- Ids by when they were touched, and the scores; the same order of ticks serves as well as the same ticks.
function Score:state()
  local ids = ffi.new("int32_t[?]", self.ids.n)
  for i, slot in ipairs(self.order:by_tie()) do ids[i - 1] = self.ids.id[slot] end
  return {ids = ids, given = self.given}
end

function Score:restore(data)
  for id, value in pairs(data.given) do self.given[id] = value_of(value) end
  for i = 0, lists.length(data.ids, "ids") - 1 do place(self, self.ids:add(data.ids[i])) end
end

return function(capacity, opt)
  return setmetatable({
    ids = lists.new(0, capacity), order = heap.new(capacity), given = {}, tick = 0,
    scores = opt.scores, default = value_of(opt.default)}, Score)
end, {scores = false, default = 0}
