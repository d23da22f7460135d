-- ARC, the adaptive replacement cache: T1 holds ids seen once, T2 ids seen at least twice, both by recency; the
-- ghost lists B1 and B2 remember what they evicted. p, T1's target size, grows by max(|B2| / |B1|, 1) when an id
-- of B1 comes back and shrinks by max(|B1| / |B2|, 1) when one of B2 does; such an id enters T2. REPLACE evicts
-- T1's oldest when |T1| > p, or |T1| = p and the newcomer is of B2, else T2's. For an unknown id with
-- |T1| + |B1| = c: B1's oldest is forgotten, or, when B1 is empty, T1's oldest leaves without a ghost; with all
-- four lists at 2c, B2's oldest is forgotten.
-- When the chosen list has no id that may leave, the other one is asked.
-- Source: N. Megiddo, D. S. Modha, "ARC: a self-tuning, low overhead replacement cache", FAST 2003, figure 4.
local lists = require "lsa.cycle.slot_lists"

local T1, T2, B1, B2 = 1, 2, 3, 4

local Arc = {}
Arc.__index = Arc

function Arc:hit(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot ~= 0 and ids.list[slot] <= T2 then ids:move(T2, slot) end
end

-- Adapts p when `id` is a ghost, forgets the ghost, and returns the list that it was on, or 0. `incoming` was
-- asked about already when room was made for it.
local function recall(self, id)
  if id == self.incoming then return self.recalled end
  local ids = self.ids
  local slot = ids:find(id)
  if slot == 0 or ids.list[slot] <= T2 then return 0 end
  local list = ids.list[slot]
  local b1, b2 = ids.size[B1], ids.size[B2]
  if list == B1 then
    self.p = math.min(self.p + math.max(b2 / b1, 1), self.capacity)
  else
    self.p = math.max(self.p - math.max(b1 / b2, 1), 0)
  end
  ids:drop(slot)
  return list
end

function Arc:insert(id)
  local ids = self.ids
  local list = recall(self, id)
  self.incoming = nil
  ids:push(list == 0 and T1 or T2, ids:add(id))
end

local function forget(ids, list)
  local slot = ids:back(list)
  if slot ~= 0 then ids:drop(slot) end
end

-- Evicts the oldest of T1 or T2 that may leave, and remembers it.
local function replace(self, allowed, ghost)
  local ids = self.ids
  local t1 = ids.size[T1]
  local list = (t1 > 0 and (t1 > self.p or t1 == self.p and ghost == B2) or ids.size[T2] == 0) and T1 or T2
  local slot = ids:oldest(list, allowed)
  if slot == 0 then
    list = T1 + T2 - list
    slot = ids:oldest(list, allowed)
    if slot == 0 then return nil end
  end
  ids:move(list == T1 and B1 or B2, slot)
  return ids.id[slot]
end

function Arc:victim(allowed, incoming)
  local ids, size = self.ids, self.ids.size
  local ghost = 0
  if incoming then
    ghost = recall(self, incoming)
    self.incoming, self.recalled = incoming, ghost
  end
  if ghost == 0 then
    if size[T1] + size[B1] >= self.capacity then
      if size[B1] == 0 then
        local slot = ids:oldest(T1, allowed)
        if slot ~= 0 then return ids:drop(slot) end
      end
      forget(ids, B1)
    elseif size[T1] + size[T2] + size[B1] + size[B2] >= 2 * self.capacity then
      forget(ids, B2)
    end
  end
  return replace(self, allowed, ghost)
end

function Arc:remove(id)
  local ids = self.ids
  local slot = ids:find(id)
  if slot ~= 0 and ids.list[slot] <= T2 then ids:drop(slot) end
end

function Arc:resize(capacity)
  self.capacity = capacity
  self.p = math.min(self.p, capacity)
end

function Arc:state()
  return {lists = self.ids:state(), p = self.p, incoming = self.incoming, recalled = self.recalled}
end

function Arc:restore(data)
  self.ids:restore(data.lists)
  self.p, self.incoming, self.recalled = data.p, data.incoming, data.recalled
end

return function(capacity)
  return setmetatable({ids = lists.new(4, 2 * capacity), capacity = capacity, p = 0, recalled = 0}, Arc)
end, {}
