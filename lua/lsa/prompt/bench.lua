-- `lsa bench [filter] [--csv] [--threads N] [--device cuda]`: times operations and says how close they come to what this
-- machine can do.
-- The machine is measured first. An operation's cases are in lua/lsa/benches/NAME.lua, which returns
--
--   function(bench)
--     bench:case{
--       op = "topk", shape = "512 of 262144",
--       bytes = 4 * 262144, flops = 0,            -- moved and done by one run; either may be left out
--       limit = "read",                           -- "copy" "update" "read" "f32" "bf16" "device copy": what bounds it, or a list,
--                                                    of which the one that takes longest binds; copies, updates in place and reads
--                                                    are of as many bytes, in the caches where those fit; bf16 is f32 where products of bf16 are
--       span = 4 * 262144,                        -- bytes of memory that all runs go over, where those are not `bytes`
--       device = false,                           -- true: run() starts work on the GPU, which is waited for
--       setup = function() return buffers end,    -- only called where the filter wants the case
--       run = function(buffers) end,
--       note = function(ns) return "text" end,    -- beside the rest of the row; may be left out
--     }
--   end
--
-- What takes more than one clock measures itself, and prints its row:
--
--     if bench:wants(op, shape) then bench:row{op =, shape =, ns =, best =, bytes =, limit =, note = "text"} end
--     bench.interleaved(rounds, f, g, …)        the sorted times in ns of each of them, run in turns
--
-- With --device cuda the cases are those of lua/lsa/benches/cuda.lua alone, by bench:gpu_case (below).
--
-- The filter is a part of "op shape". A time is the median over repeats of one run; the CSV has the best one, too. A limit is the best
-- that was seen: where a case comes out faster than its limit, other work slowed the limit's measurement, which is made again, and
-- then the case, too, so that both see the machine alike.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local registry = require "lsa.registry"
local C, check = lsa.C, raise.check

local M = {}

local SAMPLES, LEAST_SAMPLES, SAMPLE_NS, DEVICE_SAMPLE_NS, BUDGET_NS, PEAK_NS = 60, 7, 1e5, 2e6, 5e8, 2e6
local LIMIT_TRIES = 4
local SLICE, SLICES = 2 ^ 22, 20 -- bytes, and the fewest that are measured

local Bench = {}
Bench.__index = Bench

local function now() return tonumber(C.lsa_clock_ns()) end

-- The sorted times of one run of `f`, in ns: repeated within a sample where it is short, and sampled until the time is up.
-- `finish` waits for what runs; once a sample, since waiting takes time too.
local function times(f, finish)
  local sample_ns = finish and DEVICE_SAMPLE_NS or SAMPLE_NS
  finish = finish or function() end
  local function sample(repeats)
    local start = now()
    for _ = 1, repeats do f() end
    finish()
    return (now() - start) / repeats
  end
  sample(1)
  local once, list, begun = sample(1), {}, now()
  local repeats = math.max(math.ceil(sample_ns / math.max(once, 1)), 1)
  while #list < LEAST_SAMPLES or (#list < SAMPLES and now() - begun < BUDGET_NS) do
    list[#list + 1] = sample(repeats)
  end
  table.sort(list)
  return list
end

local function median(list) return list[math.floor((#list + 1) / 2)] end

-- 64-byte aligned memory, freed with the last reference.
function Bench.alloc(_, ctype, n)
  local block = ownership.block(math.max(n, 1) * ffi.sizeof(ctype))
  return ffi.cast(ctype .. " *", block), block
end

-- As alloc, filled with numbers in -1 .. 1, or with bytes that are no e4m3 NaN. Zeros would be fast and prove nothing.
function Bench:random(ctype, n, seed)
  local data, owner = self:alloc(ctype, n)
  local state = seed or 1
  for i = 0, tonumber(n) - 1 do
    state = state * 16807 % 2147483647
    if ctype == "float" then data[i] = state / 1073741823.5 - 1
    else data[i] = math.floor(state / 65536) % 127 + (state % 2) * 128 end
  end
  return data, owner
end

-- A copy in the GPU's memory; or as many bytes of it where there is no host.
function Bench.to_device(_, bytes, host)
  local block = ownership.take(C.lsa_device_free, "uint8_t", function(out) return C.lsa_device_alloc(ffi.cast("void **", out), bytes) end)
  if host then check(C.lsa_device_copy(block, host, bytes)) end
  return block
end

-- What the machine can do: bytes or FLOPs in a ns, the best of what was seen. "copy" and "update" count reads and writes.
local limits = {}

-- Beyond four times the last cache, so that memory is measured.
local function working_set() return 4 * tonumber(C.lsa_cache_bytes()) end

-- How many copies of so many bytes to take turns on, so that each comes from memory.
function Bench.turns(_, bytes) return math.ceil(working_set() / bytes) end

-- ns of one run over so many bytes, move(from, n) being a run over some of them. What comes from memory is measured in slices, of which
-- other work cuts off few, and a slice that the caches happen to have does not count.
local function sweep_ns(bytes, move)
  if bytes < working_set() then return times(function() move(0, bytes) end)[1] end
  local list, begun = {}, now()
  while #list < SLICES or now() - begun < BUDGET_NS do
    for from = 0, bytes - SLICE, SLICE do
      local start = now()
      move(from, SLICE)
      list[#list + 1] = now() - start
    end
  end
  table.sort(list)
  return list[math.ceil(#list / 10)] * bytes / SLICE
end

function limits.copy(bench, moved)
  local bytes, past_caches = math.ceil(moved / 2), moved >= working_set() and 1 or 0
  if past_caches == 1 then bytes = working_set() end
  local from, from_owner = bench:alloc("uint8_t", bytes)
  local to, to_owner = bench:alloc("uint8_t", bytes)
  ffi.fill(from, bytes, 1)
  ffi.fill(to, bytes, 2)
  local best = sweep_ns(bytes, function(at, n) C.lsa_roofline_copy(to + at, from + at, n, past_caches) end)
  return 2 * bytes / best, from_owner, to_owner
end

function limits.update(bench, moved)
  local bytes = math.ceil(moved / 16) * 8
  if moved >= working_set() then bytes = working_set() end
  local data, owner = bench:alloc("uint8_t", bytes)
  ffi.fill(data, bytes, 1)
  return 2 * bytes / sweep_ns(bytes, function(at, n) C.lsa_roofline_update(data + at, n) end), owner
end

function limits.read(bench, bytes)
  local from, owner = bench:alloc("uint8_t", bytes)
  ffi.fill(from, bytes, 1)
  return bytes / sweep_ns(bytes, function(at, n) C.lsa_roofline_read(from + at, n) end), owner
end

local function peak(run)
  local rounds, flops = 1000, tonumber(run(1000))
  local spent = 0
  while flops > 0 and spent < PEAK_NS do   -- long enough that starting the threads takes no share of it
    rounds = 2 * rounds
    local start = now()
    flops = tonumber(run(rounds))
    spent = now() - start
  end
  return flops > 0 and flops / times(function() run(rounds) end)[1] or nil
end

function limits.f32() return peak(C.lsa_roofline_f32) end

function limits.bf16() return peak(C.lsa_roofline_bf16) end

limits["device copy"] = function(bench)
  if C.lsa_device_count() == 0 then return nil end
  local bytes = 2 ^ 28
  local from, to = bench:to_device(bytes), bench:to_device(bytes)
  local best = times(function() check(C.lsa_device_copy(to, from, bytes)) end)[1]
  return 2 * bytes / best, from
end

-- As many bytes as a case has, so that a limit lies in the caches just as far as the case does.
local function measured_bytes(bytes)
  local most = working_set()
  return bytes and bytes < most and math.max(64, math.ceil(bytes / 64) * 64) or most
end

-- What the machine can do of `name`; copies and reads, of so many bytes at a time. With `again`, it is measured once more.
function Bench:limit(name, bytes, again)
  local measure = limits[name] or raise("there is no limit %q", name)
  local size = measured_bytes(bytes)
  local key = (name == "copy" or name == "update" or name == "read") and size < working_set() and name .. size or name
  local known = self.limits[key]
  if known == nil or again and known then
    self.limits[key] = math.max(measure(self, size) or 0, known or 0)
    if self.limits[key] == 0 then self.limits[key] = false end
    collectgarbage()
  end
  return self.limits[key] or nil
end

-- The share of the limit that binds a case, and which one that is; nothing where there is none.
local function share_of(bench, case, again)
  local least, by = 0, nil
  for _, name in ipairs(type(case.limit) == "table" and case.limit or {case.limit}) do
    if name == "bf16" and not bench:limit "bf16" then name = "f32" end
    local amount = (name == "f32" or name == "bf16") and case.flops or case.bytes
    local limit = amount and bench:limit(name, case.span or case.bytes, again)
    if limit and amount / limit > least then least, by = amount / limit, name end
  end
  if by then return least / case.ns, by end
end

local function limit_name(case, name)
  local size = measured_bytes(case.span or case.bytes)
  if name ~= "copy" and name ~= "update" and name ~= "read" or size == working_set() then return name end
  local large = size >= 2 ^ 20
  return ("%s of %.3g %s"):format(name, size / (large and 2 ^ 20 or 2 ^ 10), large and "MiB" or "KiB")
end

local function write_csv(case, share, by)
  local function quoted(s) return '"' .. s:gsub('"', '""') .. '"' end
  local ns = case.ns
  print(table.concat({case.op, quoted(case.shape), ("%.0f"):format(ns), ("%.0f"):format(case.best), case.bytes or 0, case.flops or 0,
    ("%.3f"):format((case.bytes or 0) / ns), ("%.3f"):format((case.flops or 0) / ns), by or "",
    share and ("%.1f"):format(100 * share) or ""}, ","))
end

local function time_text(ns)
  return ns < 1e4 and ("%.2f us"):format(ns / 1e3) or ns < 1e6 and ("%.1f us"):format(ns / 1e3)
    or ("%.2f ms"):format(ns / 1e6)
end

local function write_row(case, share, by)
  local ns = case.ns
  local bytes = case.bytes and ("%.1f GB/s"):format(case.bytes / ns) or ""
  local flops = case.flops and ("%.1f GFLOP/s"):format(case.flops / ns) or ""
  local of = share and ("%.0f %% of %s"):format(100 * share, limit_name(case, by)) or ""
  if case.note then of = of == "" and case.note or of .. ", " .. case.note end
  print(("%-18s %-44s %10s %12s %16s  %s"):format(case.op, case.shape, time_text(ns), bytes, flops, of))
end

-- Whether the filter lets a case through.
function Bench:wants(op, shape)
  local wanted = (op .. " " .. shape):find(self.filter, 1, true) ~= nil
  if wanted then self.cases = self.cases + 1 end
  return wanted
end

-- Prints a measured case's line. time(), where it is given, measures it anew.
function Bench:row(case, time)
  local share, by = share_of(self, case)
  for _ = 2, LIMIT_TRIES do
    if not share or share <= 1 then break end
    share, by = share_of(self, case, true)
    if share > 1 and time then
      time()
      share, by = share_of(self, case)
    end
  end
  local write = self.csv and write_csv or write_row
  write(case, share, by)
  io.stdout:flush()
  collectgarbage()
end

-- Measures one case and prints its line.
function Bench:case(case)
  if not self:wants(case.op, case.shape) then return end
  local state = case.setup and case.setup()
  local run, note = case.run, case.note
  local function time()
    local list = times(function() run(state) end, case.device and function() check(C.lsa_device_synchronize()) end)
    case.ns, case.best = median(list), list[1]
    case.note = note and note(case.ns)
  end
  time()
  self:row(case, time)
end

-- ---- the GPU ----

-- On an H100 80GB HBM3 reading n bytes of memory takes FIRST_NS + n / its rate, and so it does over the bus, of what is cold; what
-- moves a tensor core's e4m3 and bf16 products at most, in FLOP/ns.
local FIRST_NS, BUS_FIRST_NS, BUS, PRODUCTS = 1600, 1600, 55, {fp8 = 1305e3, bf16 = 802e3}
local REPLAY_NS, REPLAYS, MOST_RUNS = 2e6, 31, 4096

local function replay_times(run, copies)
  local function all(rounds, stream)
    for _ = 1, rounds do
      for i = 0, copies - 1 do run(i, stream) end
    end
  end
  local function wait() check(C.lsa_device_synchronize()) end
  all(1)
  wait()
  local start = now()
  all(1)
  wait()
  local rounds = math.max(1, math.min(math.floor(MOST_RUNS / copies), math.ceil(REPLAY_NS / (now() - start))))
  local graph, list = ownership.take(C.lsa_device_graph_free, "void", function(out)
    local stream = ffi.new "void *[1]"
    check(C.lsa_device_capture_begin(stream))
    local ok, problem = pcall(all, rounds, stream[0])
    local ended = C.lsa_device_capture_end(out)
    if not ok then error(problem, 0) end
    return ended
  end), {}
  check(C.lsa_device_graph_launch(graph))
  wait()
  for i = 1, REPLAYS do
    start = now()
    check(C.lsa_device_graph_launch(graph))
    wait()
    list[i] = (now() - start) / (rounds * copies)
  end
  table.sort(list)
  return list
end

-- The least time for a case's bytes and products.
local function least_ns(bench, case)
  local memory = case.bus and BUS_FIRST_NS + case.bytes / BUS or FIRST_NS + case.bytes / bench:limit "device copy"
  local products = case.flops and case.flops / PRODUCTS[case.rate] or 0
  return math.max(memory, products), products > memory and case.rate or case.bus and "bus" or "memory"
end

-- A kernel of the GPU: {op =, shape =, bytes = it reads cold, flops =, rate = "fp8" | "bf16" (of its products), bus = true where the
-- bytes come from the host, copies = what it takes turns on, setup = function(held, copies) return run end, peer = us}: run(i, stream)
-- launches it on copy i; `held` keeps what has to live.
function Bench:gpu_case(case)
  if not self:wants(case.op, case.shape) then return end
  local held = {}
  local list = replay_times(case.setup(held, case.copies), case.copies)
  local ns, least, by = median(list), least_ns(self, case)
  if self.csv then
    print(table.concat({case.op, '"' .. case.shape .. '"', ("%.0f"):format(ns), ("%.0f"):format(list[1]), case.bytes, case.flops or 0,
      ("%.0f"):format(least), by, case.peer and ("%.0f"):format(1e3 * case.peer) or ""}, ","))
  else
    print(("%-12s %-50s %10s %10s %-7s %5.0f %%  %s"):format(case.op, case.shape, time_text(ns), time_text(least), by, 100 * least / ns,
      case.peer and ("%10s  %.2f x"):format(time_text(1e3 * case.peer), ns / 1e3 / case.peer) or ""))
  end
  io.stdout:flush()
  held = nil -- luacheck: ignore
  collectgarbage()
  collectgarbage()
end

local function write_gpu_head(bench)
  if C.lsa_device_count() == 0 then raise(ffi.string(C.lsa_error())) end
  local name = ffi.new "char[128]"
  check(C.lsa_device_describe(0, name, 128, nil, nil))
  if bench.csv then
    print "op,shape,median_ns,best_ns,bytes,flops,least_ns,least_by,peer_ns"
    return
  end
  print(("%s, copies on it %.0f GB/s; peers' times are an H100 80GB HBM3's"):format(ffi.string(name), bench:limit "device copy"))
  print(("%-12s %-50s %10s %10s %-7s %7s  %10s  %s"):format("op", "shape", "time", "limit", "by", "of it", "peer", "of peer"))
end

function Bench.interleaved(rounds, ...)
  local runs, lists = {...}, {}
  for i = 1, #runs do lists[i] = {} end
  for _ = 1, rounds do
    for i, run in ipairs(runs) do
      local start = now()
      run()
      lists[i][#lists[i] + 1] = now() - start
    end
  end
  for _, list in ipairs(lists) do table.sort(list) end
  return unpack(lists)
end

Bench.median = median

local function processor()
  local file = io.open "/proc/cpuinfo"
  if not file then return "unknown processor" end
  local name = file:read "*a":match "model name%s*:%s*([^\n]+)"
  file:close()
  return name or "unknown processor"
end

-- What is printed before the cases: the machine and its limits.
local function write_machine(bench)
  print(("%s, %d threads, %s"):format(processor(), C.lsa_threads(),
    ffi.string(C.lsa_cpu_level_name(C.lsa_cpu_level()))))
  for _, name in ipairs {"copy", "read"} do print(("%-12s %8.1f GB/s"):format(name, bench:limit(name))) end
  for _, name in ipairs {"f32", "bf16"} do
    local limit = bench:limit(name)
    if limit then print(("%-12s %8.1f GFLOP/s"):format(name, limit)) end
  end
  if C.lsa_device_count() > 0 then
    local name = ffi.new "char[128]"
    check(C.lsa_device_describe(0, name, 128, nil, nil))
    print(("%-12s %8.1f GB/s on %s"):format("device copy", bench:limit "device copy", ffi.string(name)))
  end
  print()
end

-- Sets what the arguments say; false where they make no sense.
local function parse(bench, arguments)
  local i = 1
  while arguments[i] do
    local argument = arguments[i]
    if argument == "--csv" then bench.csv = true
    elseif argument == "--threads" then
      local n = tonumber(arguments[i + 1])
      if not n or n < 1 or n % 1 ~= 0 then return false end
      C.lsa_threads_set(n)
      i = i + 1
    elseif argument == "--device" then
      bench.device = arguments[i + 1]
      if bench.device ~= "cpu" and bench.device ~= "cuda" then return false end
      i = i + 1
    elseif argument:sub(1, 1) == "-" then return false
    else bench.filter = argument end
    i = i + 1
  end
  return true
end

local usage = [[
usage: lsa bench [filter] [--csv] [--threads N] [--device cpu | cuda]

Measures the machine – copy, read, arithmetic – and then each case whose "op shape" has the filter in it: the median time, GB/s,
GFLOP/s, and the percentage of the limit that binds it. With --device cuda, the kernels of the
GPU beside limits and what other software takes. Cases are in lua/lsa/benches; there are:

]]

function M.main(arguments)
  for _, argument in ipairs(arguments) do
    if argument == "--help" or argument == "-h" then
      io.write(usage, "  ", table.concat(registry.names "benches", " "), "\n")
      return 0
    end
  end
  local bench = setmetatable({filter = "", csv = false, limits = {}, cases = 0, device = "cpu"}, Bench)
  if not parse(bench, arguments) then
    io.stderr:write "usage: lsa bench [filter] [--csv] [--threads N] [--device cpu | cuda]\n"
    return 2
  end
  if bench.device == "cuda" then write_gpu_head(bench)
  elseif bench.csv then print "op,shape,median_ns,best_ns,bytes,flops,gb_per_s,gflop_per_s,limit,percent_of_limit"
  else write_machine(bench) end
  for _, name in ipairs(bench.device == "cuda" and {"cuda"} or registry.names "benches") do require("lsa.benches." .. name)(bench) end
  if bench.cases > 0 then return 0 end
  io.stderr:write(("lsa: no benchmark's name holds %q\n"):format(bench.filter))
  return 1
end

return M
