-- Half of libcachesim_counts.py: writes the traces to DIR/NAME.i32 and prints our hits as CSV.
--     ./lsa experiments/peers/libcachesim_counts.lua DIR N SEED CAPACITY...
local ffi = require "ffi"
local lsa = require "lsa"
package.path = lsa.root .. "/tests/?.lua;" .. package.path
local traces = require "traces"

local directory, n, seed = arg[1], tonumber(arg[2]), tonumber(arg[3])

local policies = {
  FIFO = "fifo", LRU = "lru", SLRU = "slru", LFU = "lfu", Clock = "clock", Clock2 = {"clock", bits = 2},
  Sieve = "sieve", S3FIFO = "s3fifo", ARC = "arc", WTinyLFU = "wtinylfu", Random = "random", Belady = "belady",
}

for _, name in ipairs(traces.names) do
  local trace = traces.make(name, n, seed)
  local file = assert(io.open(directory .. "/" .. name .. ".i32", "wb"))
  file:write(ffi.string(trace.ids, 4 * n))
  file:close()
  for i = 4, #arg do
    local capacity = tonumber(arg[i])
    for peer, evict in pairs(policies) do
      local hits = lsa.cache{pages = trace, capacity = capacity, evict = evict}.hits
      print(("%s,%d,%s,%d"):format(name, capacity, peer, hits))
    end
  end
end
