-- Owns the pressure that C memory puts on Lua's collector. A tensor of 4 MB is 24 bytes to the collector, which
-- would let thousands of dead ones wait; so whoever makes an object that owns C memory says how much, and a
-- collection runs each time as much has been made as was alive after the last one (at least 256 MB).
local C = require("lsa.ffi").C

local LEAST = 256 * 2 ^ 20
local made, limit = 0, LEAST

local function owned(bytes)
  made = made + bytes
  if made < limit then return end
  collectgarbage()
  made, limit = 0, math.max(LEAST, tonumber(C.lsa_memory_in_use()))
end

return owned
