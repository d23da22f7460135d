-- Owns ranges of ids: who asks gets consecutive ids that nobody else has, from the lowest place where they fit; what is given
-- back serves again. Sizes and starts are multiples of 64, so that a range is whole words of a set.
--
--   r = ranges.new()   from, size = r:take(n)   r:give(from)   r:span()
local raise = require "lsa.raise"

local GRAIN = 64
local MOST = 2 ^ 31 -- ids of eviction policies are below

local Ranges = {}
Ranges.__index = Ranges

local M = {}

function M.new()
  return setmetatable({taken = {}}, Ranges) -- {from =, size =}, ascending
end

function Ranges:take(n)
  local size = math.max(1, math.ceil(n / GRAIN)) * GRAIN
  local from, at = 0, 1
  while self.taken[at] and self.taken[at].from - from < size do
    from = self.taken[at].from + self.taken[at].size
    at = at + 1
  end
  if from + size > MOST then raise("ranges: %d ids do not fit below %d", n, MOST) end
  table.insert(self.taken, at, {from = from, size = size})
  return from, size
end

function Ranges:give(from)
  for at, range in ipairs(self.taken) do
    if range.from == from then
      table.remove(self.taken, at)
      return
    end
  end
  raise("ranges: %s is no range that was taken", tostring(from))
end

-- One past the last id that is taken.
function Ranges:span()
  local last = self.taken[#self.taken]
  return last and last.from + last.size or 0
end

return M
