-- Owns the pressure that C memory puts on Lua's collector. A tensor of 4 MB is 24 bytes to the collector, which
-- would let thousands of dead ones wait; so whoever makes an object that owns C memory says how much, and a
-- collection runs whenever enough was made since the last one: 64 MB, or 16 times what Lua's own heap holds, since
-- a collection takes as long as that heap is large.
local LEAST, MOST, TIMES = 2 ^ 26, 2 ^ 28, 16
local made, limit = 0, LEAST

local M = {}

-- Collects when that many bytes were made since the last time.
function M.collect(bytes)
  if made < bytes then return end
  collectgarbage()
  made, limit = 0, math.min(MOST, math.max(LEAST, TIMES * 1024 * collectgarbage "count"))
end

-- That many bytes are free again without a collection.
function M.give_back(bytes)
  made = math.max(0, made - bytes)
end

return setmetatable(M, {
  __call = function(_, bytes)
    made = made + bytes
    if made >= limit then M.collect(limit) end
  end,
})
