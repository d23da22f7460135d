-- Owns seeded random numbers: the same on every machine, and copied by a session's fork.
--
--   r = rng.new(seed)   r() in [0, 1)   r(n) in 0 .. n-1   r(a, b) in a .. b   r:shuffle(list)   r:clone()
--
-- xorshift64* (S. Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled", 2016).
local ffi = require "ffi"
local bit = require "bit"
local plain = require "lsa.files.plain_data"

local Rng = {}
Rng.__index = Rng

local function step(self)
  local x = self.state[0]
  x = bit.bxor(x, bit.rshift(x, 12))
  x = bit.bxor(x, bit.lshift(x, 25))
  x = bit.bxor(x, bit.rshift(x, 27))
  self.state[0] = x
  return tonumber(bit.rshift(x * 2685821657736338717ULL, 11)) / 2 ^ 53
end

function Rng:__call(a, b)
  local u = step(self)
  if not a then return u end
  if not b then return math.floor(u * a) end
  return a + math.floor(u * (b - a + 1))
end

function Rng:shuffle(list)
  for i = #list, 2, -1 do
    local j = 1 + self(i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

function Rng:clone()
  return setmetatable({state = ffi.new("uint64_t[1]", self.state[0])}, Rng)
end

local M = {}

plain.class("rng", Rng, function(r) return ffi.string(r.state, 8) end, function(bytes)
  if #bytes ~= 8 then error("a generator's state has 8 bytes", 0) end
  local state = ffi.new "uint64_t[1]"
  ffi.copy(state, bytes, 8)
  return setmetatable({state = state}, Rng)
end)

function M.new(seed)
  -- Any seed, small ones too, must give a state with bits set all over.
  local self = setmetatable({state = ffi.new("uint64_t[1]", (seed or 1) * 2 + 1)}, Rng)
  self.state[0] = self.state[0] * 0x9e3779b97f4a7c15ULL
  for _ = 1, 8 do step(self) end
  return self
end

return M
