-- Seeded page traces for eviction specs and experiments; integers only, so that every machine makes the same.
local bit = require "bit"
local ffi = require "ffi"

local M = {}

-- Xorshift32: uniform(n) is 0 .. n - 1.
local function generator(seed)
  local x = seed
  return function(n)
    x = bit.bxor(x, bit.lshift(x, 13))
    x = bit.bxor(x, bit.rshift(x, 17))
    x = bit.bxor(x, bit.lshift(x, 5))
    return math.floor((x + 2147483648) * (n / 4294967296))
  end
end
M.generator = generator

-- Popular ids are small: the number of bits is even, so an id's frequency falls as 1 / id.
local function popular(uniform, bits)
  local n = 2 ^ uniform(bits + 1)
  return n - 1 + uniform(n)
end

-- name -> function(i, uniform) -> id of access i
local makers = {
  -- 2^13 - 1 ids, Zipf-like.
  zipf = function(_, uniform) return popular(uniform, 12) end,
  -- A cycle longer than small caches.
  loop = function(i) return i % 300 end,
  -- Popular ids, and every 1000 accesses a scan of 400 ids, most never seen again.
  scan = function(i, uniform)
    if i % 1000 < 400 then return 10000 + math.floor(i / 1000) % 7 * 100 + i end
    return popular(uniform, 10)
  end,
  -- What is popular changes every 5000 accesses.
  drift = function(i, uniform) return math.floor(i / 5000) * 200 + popular(uniform, 10) end,
  -- A document read front to back again and again, with looks back: pages of a long decode.
  decode = function(i, uniform)
    local newest = 200 + math.floor(i / 64)
    local back = popular(uniform, 10)
    return uniform(4) == 0 and uniform(40) or math.max(newest - back, 0)
  end,
  -- Sessions times chunks: ids up to 2^31, far apart.
  sparse = function(_, uniform) return uniform(16) * 134217728 + popular(uniform, 9) * 65536 end,
}

M.names = {"zipf", "loop", "scan", "drift", "decode", "sparse"}

-- {ids = int32_t[n], n = n}, which lsa.cache and eviction options take.
function M.make(name, n, seed)
  local uniform = generator(seed or 2463534242)
  local ids = ffi.new("int32_t[?]", n)
  for i = 0, n - 1 do ids[i] = makers[name](i, uniform) end
  return {ids = ids, n = n}
end

return M
