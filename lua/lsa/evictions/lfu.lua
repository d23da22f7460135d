-- Least frequently used: the victim is the id with the fewest touches since it was inserted (its insertion
-- counts as one), among equals the one that reached that count longest ago.
-- Source: A. V. Aho, P. J. Denning, J. D. Ullman, "Principles of optimal page replacement", Journal of the ACM
-- 18(1), 1971; in constant time: K. Shah, A. Mitra, D. Matani, "An O(1) algorithm for implementing the LFU
-- cache eviction scheme", 2010.
--
-- One list holds all ids by (count, when it was reached), the least at the back. Ids of equal count are a group:
-- its count, its newest slot, and the groups of the next lower and higher counts. mark[slot] is the group.
local ffi = require "ffi"
local lists = require "lsa.cycle.slot_lists"

local Lfu = {}
Lfu.__index = Lfu

local FIELDS = {"count", "newest", "lower", "higher"}

local function room_for_groups(self, room)
  local groups = self.groups
  for _, name in ipairs(FIELDS) do
    local new = ffi.new("int32_t[?]", room)
    if groups.room then ffi.copy(new, groups[name], 4 * groups.room) end
    groups[name] = new
  end
  groups.room = room
end

-- A new group above `lower`; 0 is below all groups and above all, a circle.
local function new_group(self, lower, count)
  local groups = self.groups
  local g = groups.free
  if g ~= 0 then
    groups.free = groups.higher[g]
  else
    g = groups.top + 1
    if g == groups.room then room_for_groups(self, 2 * groups.room) end
    groups.top = g
  end
  local higher = groups.higher[lower]
  groups.count[g], groups.newest[g], groups.lower[g], groups.higher[g] = count, 0, lower, higher
  groups.higher[lower], groups.lower[higher] = g, g
  return g
end

-- Takes a slot out of its group; an empty group is freed.
local function leave(self, slot)
  local ids, groups = self.ids, self.groups
  local g = ids.mark[slot]
  if groups.newest[g] ~= slot then return end
  local older = ids.next[slot]
  if older > ids.lists and ids.mark[older] == g then
    groups.newest[g] = older
    return
  end
  local lower, higher = groups.lower[g], groups.higher[g]
  groups.higher[lower], groups.lower[higher] = higher, lower
  groups.higher[g], groups.free = groups.free, g
end

-- Links a slot that is on no list as the newest of group g, whose neighbours are in place.
local function join(self, slot, g)
  local ids, groups = self.ids, self.groups
  local older = groups.newest[g]
  if older == 0 then
    local lower = groups.lower[g]
    older = lower ~= 0 and groups.newest[lower] or 1
  end
  local prev, next = ids.prev, ids.next
  local newer = prev[older]
  prev[slot], next[slot] = newer, older
  next[newer], prev[older] = slot, slot
  ids.list[slot], ids.mark[slot] = 1, g
  ids.size[1] = ids.size[1] + 1
  groups.newest[g] = slot
end

function Lfu:hit(id)
  local ids, groups = self.ids, self.groups
  local slot = ids:find(id)
  if slot == 0 then return end
  local g = ids.mark[slot]
  local count = groups.count[g] + 1
  local above = groups.higher[g]
  if above == 0 or groups.count[above] ~= count then
    local older = ids.next[slot]
    if groups.newest[g] == slot and (older <= ids.lists or ids.mark[older] ~= g) then
      groups.count[g] = count
      return
    end
    above = new_group(self, g, count)
  end
  leave(self, slot)
  ids:unlink(slot)
  join(self, slot, above)
end

function Lfu:insert(id)
  local ids, groups = self.ids, self.groups
  local slot = ids:add(id)
  local lowest = groups.higher[0]
  if lowest == 0 or groups.count[lowest] ~= 1 then lowest = new_group(self, 0, 1) end
  join(self, slot, lowest)
end

function Lfu:victim(allowed)
  local slot = self.ids:oldest(1, allowed)
  if slot == 0 then return nil end
  leave(self, slot)
  return self.ids:drop(slot)
end

function Lfu:remove(id)
  local slot = self.ids:find(id)
  if slot == 0 then return end
  leave(self, slot)
  self.ids:drop(slot)
end

-- The marks are counts there.
function Lfu:state()
  local data = self.ids:state()
  for i = 0, self.ids.n - 1 do data.marks[i] = self.groups.count[data.marks[i]] end
  return data
end

function Lfu:restore(data)
  local ids, groups, g = self.ids, self.groups, 0
  for i = 0, lists.length(data.ids, "ids") - 1 do
    local count = data.marks[i]
    if g == 0 or count ~= groups.count[g] then g = new_group(self, g, count) end
    join(self, ids:add(data.ids[i]), g)
  end
end

return function(capacity)
  local self = setmetatable({ids = lists.new(1, capacity), groups = {top = 0, free = 0}}, Lfu)
  room_for_groups(self, 64)
  return self
end, {}
