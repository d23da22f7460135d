-- Fetches of a pool: records of 21 layers x 584 bytes, 12,288 with padding, a quarter of the chunks at a time: each by itself, or
-- pages of 64. In memory, the limit is a copy of as many bytes; from the disk, reading as many, one after the other, in transfers
-- of the same size, as many under way. Single chunks are beside that set against transfers of a chunk's size in the same places.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local ownership = require "lsa.ownership"
local C, check = lsa.C, require("lsa.raise").check

local LAYERS, RECORD, PARTS = 21, 584, 4
local BYTES = LAYERS * RECORD

-- Chunks that make four times the last cache, in whole segments.
local function chunks_beyond_cache()
  return math.ceil(4 * tonumber(C.lsa_cache_bytes()) / BYTES / C.LSA_COLD_SEGMENT) * C.LSA_COLD_SEGMENT
end

local function new_pool(directory, chunks)
  local pool = ownership.take(C.lsa_pool_free, "lsa_pool", C.lsa_pool_new, LAYERS, RECORD, 1)
  if directory then check(C.lsa_pool_set_disk(pool, directory, nil)) end
  check(C.lsa_pool_resize(pool, chunks))
  check(C.lsa_pool_set_cells(pool, chunks / PARTS))
  return pool
end

-- Every chunk's records, one layer at a time.
local function fill(bench, pool, chunks)
  local ids, id_owner = bench:alloc("int32_t", chunks)
  local records, owner = bench:alloc("uint8_t", chunks * RECORD)
  for i = 0, chunks - 1 do ids[i] = i end
  for i = 0, chunks * RECORD - 1 do records[i] = i * 7 % 251 end
  for layer = 0, LAYERS - 1 do check(C.lsa_pool_write(pool, layer, ids, chunks, records)) end
  return id_owner, owner
end

-- PARTS lists of chunks that have none in common, ascending: runs of `run` chunks.
local function lists_of(chunks, run)
  local lists = {}
  for part = 0, PARTS - 1 do
    lists[part] = ffi.new("int32_t[?]", chunks / PARTS)
    for i = 0, chunks / PARTS - 1 do
      local page = math.floor(i / run)
      lists[part][i] = (PARTS * page + (page * 5 + part) % PARTS) * run + i % run
    end
  end
  return lists
end

local function state_of(bench, directory, chunks)
  local s = {pool = new_pool(directory, chunks), n = chunks / PARTS, round = 0}
  fill(bench, s.pool, chunks)
  check(C.lsa_pool_spill(s.pool))
  return s
end

local function fetch(s)
  if s.round == 0 then check(C.lsa_pool_fetch(s.pool, s.lists[0], s.n)) end
  check(C.lsa_pool_evict(s.pool, s.lists[s.round % PARTS], s.n))
  s.round = s.round + 1
  check(C.lsa_pool_fetch(s.pool, s.lists[s.round % PARTS], s.n))
end

-- A file of so many bytes, past the page cache where the file system takes it.
local function new_file(bench, directory, bytes)
  local data = bench:alloc("uint8_t", bytes)
  local file = ownership.take(C.lsa_file_close, "lsa_file", C.lsa_file_open_unnamed, directory)
  check(C.lsa_file_allocate(file, bytes))
  ffi.fill(data, bytes, 7)
  check(C.lsa_file_write(file, data, bytes, 0))
  check(C.lsa_file_sync(file))
  C.lsa_file_direct(file)
  return file
end

-- Reads n pieces of a file as cold files do, C.LSA_COLD_DEPTH transfers under way: from its beginning, or each `apart` bytes.
local function reader(bench, file, n, piece, apart)
  local depth = C.LSA_COLD_DEPTH
  local memory, owner = bench:alloc("uint8_t", depth * piece + C.LSA_FILE_ALIGN)
  local from = memory + (C.LSA_FILE_ALIGN - tonumber(ffi.cast("uintptr_t", memory) % C.LSA_FILE_ALIGN))
  local batch, slot = ownership.take(C.lsa_io_batch_free, "lsa_io_batch", C.lsa_io_batch_new, depth, 1), ffi.new "int64_t[1]"
  return function()
    local next_one, under_way = 0, 0
    while next_one < n or under_way > 0 do
      if next_one < n and under_way < depth then
        local free = next_one < depth and next_one or slot[0]
        check(C.lsa_io_batch_start(batch, free, file, 0, from + free * piece, piece, next_one * apart))
        next_one, under_way = next_one + 1, under_way + 1
      end
      if under_way == depth or next_one == n then
        check(C.lsa_io_batch_wait(batch, slot))
        under_way = under_way - 1
      end
    end
    return owner
  end
end

local function copier(bench, bytes)
  local from, from_owner = bench:alloc("uint8_t", bytes)
  local to, to_owner = bench:alloc("uint8_t", bytes)
  ffi.fill(from, bytes, 1)
  ffi.fill(to, bytes, 2)
  return function()
    C.lsa_roofline_copy(to, from, bytes, 0)
    return from_owner, to_owner
  end
end

-- ns, and how that compares with each of the limits, which move as many bytes.
local function report(bench, shape, bytes, names, fetches, ...)
  local ns, notes = bench.median(fetches), {}
  for i, times in ipairs {...} do
    local limit = bench.median(times)
    notes[i] = ("%.0f %% of %s, %.1f GB/s"):format(100 * limit / ns, names[i], bytes / limit)
  end
  bench:row{op = "pool_fetch", shape = shape, ns = ns, best = fetches[1], bytes = bytes, note = table.concat(notes, "; ")}
end

local function in_memory(bench, chunks, shapes)
  local s, bytes = nil, chunks / PARTS * BYTES
  for run, shape in pairs(shapes) do
    if bench:wants("pool_fetch", shape) then
      s = s or state_of(bench, nil, chunks)
      s.lists, s.round = lists_of(chunks, run), 0
      report(bench, shape, 2 * bytes, {"a copy"}, bench.interleaved(15, function() fetch(s) end, copier(bench, bytes)))
      check(C.lsa_pool_evict(s.pool, s.lists[s.round % PARTS], s.n))
    end
  end
end

local function on_disk(bench, chunks, shapes)
  local s, file
  local directory, bytes, piece = lsa.root .. "/" .. lsa.build, chunks / PARTS * BYTES, tonumber(C.LSA_COLD_PIECE)
  local single = math.ceil(BYTES / C.LSA_FILE_ALIGN + 1) * C.LSA_FILE_ALIGN -- what a chunk between two others takes
  for run, shape in pairs(shapes) do
    shape = shape .. " from disk"
    if bench:wants("pool_fetch", shape) then
      s = s or state_of(bench, directory, chunks)
      file = file or new_file(bench, directory, chunks * single)
      s.lists, s.round = lists_of(chunks, run), 0
      local read = reader(bench, file, math.ceil(bytes / piece), piece, piece)
      local read_single = run == 1 and reader(bench, file, chunks / PARTS, single, PARTS * single) or nil
      report(bench, shape, bytes, {"a sequential read", "as many single reads"},
        bench.interleaved(5, function() fetch(s) end, read, read_single))
      check(C.lsa_pool_evict(s.pool, s.lists[s.round % PARTS], s.n))
    end
  end
end

return function(bench)
  local chunks, shapes = chunks_beyond_cache(), {}
  for run, how in pairs {[1] = "", [64] = ", pages of 64"} do
    shapes[run] = ("%d of %d records of %d x %d%s"):format(chunks / PARTS, chunks, LAYERS, RECORD, how)
  end
  in_memory(bench, chunks, shapes)
  on_disk(bench, chunks, shapes)
end
