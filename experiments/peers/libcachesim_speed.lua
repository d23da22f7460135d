-- Half of libcachesim_speed.py: writes the trace as libCacheSim reads it, or replays it.
--     ./lsa experiments/peers/libcachesim_speed.lua write FILE N IDS SEED
--     ./lsa experiments/peers/libcachesim_speed.lua replay N IDS SEED CAPACITY RUNS EVICTION...     prints EVICTION,hits,best ns
local ffi = require "ffi"
local lsa = require "lsa"
local C = require("lsa.ffi").C

-- Zipf-like: the logarithm of an id is uniform.
local function trace(n, ids, seed)
  local out, state = ffi.new("int32_t[?]", n), seed
  for i = 0, n - 1 do
    state = state * 16807 % 2147483647
    out[i] = ids ^ (state / 2147483647) - 1
  end
  return {ids = out, n = n}
end

local what = arg[1]
if what == "write" then
  local n = tonumber(arg[3])
  local pages = trace(n, tonumber(arg[4]), tonumber(arg[5]))
  -- oracleGeneral: uint32 time, uint64 id, uint32 bytes, int64 time of the next access, without gaps
  local request = ffi.typeof "struct { uint32_t time; uint64_t id; uint32_t bytes; int64_t next; } __attribute__((packed))"
  local out = ffi.new(ffi.typeof("$[?]", request), n)
  for i = 0, n - 1 do out[i] = request(i, pages.ids[i], 1, -1) end
  local file = assert(io.open(arg[2], "wb"))
  file:write(ffi.string(out, ffi.sizeof(out)))
  file:close()
  return
end

local pages = trace(tonumber(arg[2]), tonumber(arg[3]), tonumber(arg[4]))
local capacity, runs = tonumber(arg[5]), tonumber(arg[6])
for i = 7, #arg do
  local best, hits = math.huge, nil
  for _ = 1, runs do
    local start = C.lsa_clock_ns()
    hits = lsa.cache{pages = pages, capacity = capacity, evict = arg[i]}.hits
    best = math.min(best, tonumber(C.lsa_clock_ns() - start))
  end
  print(("%s,%d,%d"):format(arg[i], hits, best))
end
