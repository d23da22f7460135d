-- Owns saved sessions: s:save(path) and model:restore(path, options). A file has everything that decoding on depends on, so
-- that the restored session's logits, resident sets and counts are those of the one that was saved.
--
-- It is a safetensors file, written and read in pieces:
--   about                      what session it is: model, options, and what could not be saved (lua/lsa/files/plain_data.lua)
--   head                       core/session/session_fields.h's numbers
--   tokens, logits, layer.N.*, pool.*      its parts, as the C core names them
--   records [chunks, bytes], keys.L [chunks, bytes]     the cold tier, wherever it was
--   loop, state, eviction      the cycle loop, cycle.state, what the eviction object's state() gives; plain data, too
--   checksums                  of each of these, in the order of their names; metadata.checksum is that of checksums
--
-- Whatever is damaged is found by its checksum before it is used. (Of a file that was forged, checksums and all, the C core
-- checks its numbers, but an eviction policy's arrays are the policy's own affair.)
--
-- What a file cannot hold - a policy, schedule or eviction policy that is a Lua function, a state that is no plain data, a
-- Memory Indexer made of tensors - is left out, and restore wants it given anew. An eviction object without state() and
-- restore(), or whose code is another one now, begins with what is present, and statistics say so.
local ffi = require "ffi"
local files = require "lsa.files.files"
local indexers = require "lsa.indexer"
local interrupts = require "lsa.interrupts"
local lib = require "lsa.ffi"
local loops = require "lsa.cycle.loop"
local named_files = require "lsa.session.named_files"
local options = require "lsa.options"
local plain = require "lsa.files.plain_data"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local tier = require "lsa.cycle.hot_tier"
local writer = require "lsa.files.safetensors_writer"

local C = lib.C

local M = {}

local FORMAT, VERSION = "lsa session ", 3
local PIECE = 2 ^ 20                             -- bytes hashed and moved at a time
local SEGMENT = tonumber(C.LSA_COLD_SEGMENT)     -- chunks moved at a time

local check = raise.check

local function hex(x) return bit.tohex(x) end

local function hash(pointer, bytes, seed) return C.lsa_hash(pointer, bytes, seed or 0ULL) end

local function buffer(bytes)
  local block = ownership.block(bytes)
  return ffi.cast("uint8_t *", block), block
end

local function release(block) ownership.free(C.lsa_free, block) end

---- what both ways know ----

local function identity(model)
  if not model.identity then
    local config, weights = ffi.new "uint64_t[1]", ffi.new "uint64_t[1]"
    C.lsa_model_identity(model.c, config, weights)
    model.identity = {config = hex(config[0]), weights = hex(weights[0])}
  end
  return model.identity
end

-- Weights that come from the model are told by it; others by their bytes.
local function indexer_hash(indexer)
  if indexer.from == "native" then return "native" end
  local sum = 0ULL
  for _, ordinal in ipairs(indexer.layers) do
    local l = indexer.weights[ordinal]
    for _, part in ipairs {"a", "b", "w"} do
      sum = hash(l[part].data, l[part].rows * l[part].cols * C.lsa_dtype_size(l[part].dtype), sum)
    end
    sum = hash(l.norm, l.a.rows * 4, sum)
  end
  return hex(sum)
end

local function text_hash(text) return text and hex(hash(text, #text)) or "none" end

-- The kinds of tensors that are no rows of the session: blobs of bytes.
local blobs = {"about", "loop", "state", "eviction"}

-- The parts of a session as {c = lsa_session_part, name =, dtype =, rows =, bytes = of a row}; chunks are apart.
local function parts_of(session)
  local count, out = ffi.new "int64_t[1]", {}
  local keep = ownership.take(C.lsa_free, "lsa_session_part", function(list) return C.lsa_session_parts(session.c, list, count) end)
  for i = 0, tonumber(count[0]) - 1 do
    local c = keep[i]
    local dtype = ffi.string(C.lsa_dtype_name(c.dtype))
    out[#out + 1] = {c = c, keep = keep, name = ffi.string(c.name), dtype = dtype, rows = tonumber(c.rows),
      columns = tonumber(c.columns), bytes = tonumber(c.columns * C.lsa_dtype_size(c.dtype))}
  end
  return out
end

-- What a chunk has: bytes of its records and of one layer's key; how many chunks; layers.
local function chunk_sizes(session)
  local pool = session.pool
  if pool == nil then return nil end
  return {layers = tonumber(C.lsa_pool_layers(pool)), record = tonumber(C.lsa_pool_layers(pool) * C.lsa_pool_record_bytes(pool)),
    key = tonumber(C.lsa_pool_key_bytes(pool)), chunks = tonumber(C.lsa_session_chunks(session.c))}
end

local function key_name(layer) return ("keys.%d"):format(layer) end

local function tensor_text(dtype, shape) return dtype .. " [" .. table.concat(shape, ", ") .. "]" end

-- The checksum of all: names, shapes and checksums, in the order of the names.
local function checksum_of_all(list)
  local sum = 0ULL
  for _, t in ipairs(list) do
    local text = t.name .. " " .. tensor_text(t.dtype, t.shape)
    sum = hash(text, #text, sum)
    sum = hash(ffi.new("uint64_t[1]", t.sum), 8, sum)
  end
  return hex(sum)
end

local function by_name(a, b) return a.name < b.name end

---- what a file says of options ----

local function saved_options(session)
  local out, unsaved = {}, {}
  for name, value in pairs(session.opt) do
    if name == "indexer" and type(value) == "table" then
      if value.from == "tensors" then unsaved.indexer = "indexer is made of tensors, which a file of a session does not hold" end
    else
      local bytes, problem = plain.try(value, name)
      if bytes then out[name] = value else unsaved[name] = problem end
    end
  end
  return out, unsaved
end

local function loop_state(session)
  local loop, held = session.loop, session.tier
  local out = {observed_all = session.observed_all, policy_flops = session.policy_flops, sampler = session.sampler}
  for _, name in ipairs(loops.saved) do out[name] = loop[name] end
  if held then out.known, out.arrived, out.stale = held.known, held.arrived, held.stale end
  return out
end

-- The blobs of a session, and why one of them could not be made.
local function make_blobs(session)
  local opt, unsaved = saved_options(session)
  local out, held = {}, session.tier
  local about = {compute = session.model.compute, model = identity(session.model), options = opt, unsaved = unsaved}
  out.loop = plain.encode(loop_state(session), "the loop")
  if not unsaved.select then
    out.state, unsaved.select = plain.try(session.loop.state, "cycle.state")
  end
  if held and not unsaved.evict then
    out.eviction, unsaved.evict = held:state()
    about.eviction_text = text_hash(held.entry.text)
  end
  if session.indexer then
    local from = session.indexer
    about.indexer = {from = from.from, layers = from.layers, ensemble = from.ensemble, looks = from.looks, hash = indexer_hash(from),
      object = type(session.opt.indexer) == "table"}
  end
  out.about = plain.encode(about)
  return out
end

---- saving ----

local Save = {}
Save.__index = Save

function Save:add(name, dtype, shape)
  local t = {name = name, dtype = dtype, shape = shape, sum = 0ULL}
  self.list[#self.list + 1], self.by_name[name] = t, t
end

function Save:write(name, pointer, bytes)
  interrupts.poll()
  local t = self.by_name[name]
  t.sum = hash(pointer, bytes, t.sum)
  self.writer:write(name, pointer, bytes / tonumber(C.lsa_dtype_size(C.lsa_dtype_of(t.dtype))))
end

local function write_bytes(save, name, text)
  local pointer = ffi.cast("const uint8_t *", text)
  for from = 0, #text - 1, PIECE do save:write(name, pointer + from, math.min(PIECE, #text - from)) end
end

local function rows_at_a_time(part) return math.max(1, math.floor(PIECE / math.max(1, part.bytes))) end

local function write_part(save, session, part, room)
  local step = rows_at_a_time(part)
  for from = 0, part.rows - 1, step do
    local n = math.min(step, part.rows - from)
    check(C.lsa_session_part_read(session.c, part.c, from, n, room))
    save:write(part.name, room, n * part.bytes)
  end
end

local function write_chunks(save, session, sizes)
  local records, held = buffer(SEGMENT * (sizes.record + sizes.layers * sizes.key))
  local keys = records + SEGMENT * sizes.record
  for from = 0, sizes.chunks - 1, SEGMENT do
    local n = math.min(SEGMENT, sizes.chunks - from)
    check(C.lsa_pool_read_chunks(session.pool, from, n, records, keys))
    save:write("records", records, n * sizes.record)
    for layer = 0, sizes.layers - 1 do save:write(key_name(layer), keys + layer * n * sizes.key, n * sizes.key) end
  end
  release(held)
end

local function head_of(session)
  local head = ffi.new "lsa_session_head"
  check(C.lsa_session_describe(session.c, head))
  return head
end

local function largest_row(parts)
  local most = PIECE
  for _, part in ipairs(parts) do most = math.max(most, part.bytes) end
  return most
end

local function write_all(save, session, head, texts, parts, sizes)
  for _, name in ipairs(blobs) do write_bytes(save, name, texts[name] or "") end
  save:write("head", ffi.cast("const uint8_t *", head), ffi.sizeof(head))
  local room, held = buffer(largest_row(parts))
  for _, part in ipairs(parts) do write_part(save, session, part, room) end
  release(held)
  if sizes then write_chunks(save, session, sizes) end
  table.sort(save.list, by_name)
  local sums = ffi.new("uint64_t[?]", #save.list)
  for i, t in ipairs(save.list) do sums[i - 1] = t.sum end
  save.writer:write("checksums", sums, #save.list)
  save.writer.metadata.checksum = checksum_of_all(save.list)
  save.writer:finish()
end

-- Writes the session to `path`, which is replaced at once or not at all.
function M.save(session, path)
  local head, texts, parts, sizes = head_of(session), make_blobs(session), parts_of(session), chunk_sizes(session)
  local save = setmetatable({list = {}, by_name = {}}, Save)
  for _, name in ipairs(blobs) do save:add(name, "u8", {#(texts[name] or "")}) end
  save:add("head", "i64", {ffi.sizeof(head) / 8})
  for _, part in ipairs(parts) do save:add(part.name, part.dtype, {part.rows, part.columns}) end
  if sizes then
    save:add("records", "u8", {sizes.chunks, sizes.record})
    for layer = 0, sizes.layers - 1 do save:add(key_name(layer), "u8", {sizes.chunks, sizes.key}) end
  end
  local entries = {{"checksums", "i64", {#save.list}}}
  for _, t in ipairs(save.list) do entries[#entries + 1] = {t.name, t.dtype, t.shape} end
  save.writer = writer.new(path, entries, {format = FORMAT .. VERSION, checksum = hex(0ULL)})
  local ok, problem = pcall(write_all, save, session, head, texts, parts, sizes)
  if not ok then
    save.writer:abandon()
    error(problem, 0)
  end
end

---- reading ----

local File = {}
File.__index = File

-- The file's tensors, whose names and shapes are what was written.
local function open_file(path)
  local tensors, metadata = files.load(path)
  local version = tonumber((metadata.format or ""):match("^" .. FORMAT .. "(%d+)$"))
  if not version then raise("it is no saved session: its format is %s", tostring(metadata.format)) end
  if version ~= VERSION then
    raise("it was written by %s lsa, in version %d of the format; this one reads version %d",
      version < VERSION and "an older" or "a newer", version, VERSION)
  end
  local self, sums = setmetatable({tensors = tensors, list = {}, sums = {}, at = {}}, File), tensors.checksums
  for name, t in pairs(tensors) do
    if name ~= "checksums" then self.list[#self.list + 1] = {name = name, dtype = t:dtype(), shape = t:shape()} end
  end
  table.sort(self.list, by_name)
  if not sums or sums:dtype() ~= "i64" or sums:count() ~= #self.list then raise "tensor checksums is missing or damaged" end
  local pointer = ffi.cast("const uint64_t *", sums.c.data)
  for i, t in ipairs(self.list) do
    t.sum = pointer[i - 1]
    self.sums[t.name] = t.sum
  end
  if checksum_of_all(self.list) ~= metadata.checksum then
    raise "the names, shapes or checksums of its tensors are damaged"
  end
  return self
end

-- A tensor's bytes, which have to be of that dtype and shape.
function File:pointer(name, dtype, shape)
  local t = rawget(self.tensors, name)
  local has = t and tensor_text(t:dtype(), t:shape())
  if has ~= tensor_text(dtype, shape) then
    raise("tensor %s is %s; %s is wanted", name, has or "missing", tensor_text(dtype, shape))
  end
  return ffi.cast("const uint8_t *", t.c.data)
end

-- Takes a piece that comes next into the tensor's checksum; `last`: there is no other.
function File:hash(name, pointer, bytes, last)
  if bytes == 0 then return end
  interrupts.poll()
  self.at[name] = hash(pointer, bytes, self.at[name])
  if last and self.at[name] ~= self.sums[name] then raise("tensor %s is damaged: its checksum differs", name) end
end

local function read_bytes(file, name)
  local t = rawget(file.tensors, name)
  local n = t and t:count() or 0
  local pointer = file:pointer(name, "u8", {n})
  for from = 0, n - 1, PIECE do file:hash(name, pointer + from, math.min(PIECE, n - from), from + PIECE >= n) end
  return ffi.string(pointer, n)
end

local function read_part(file, session, part)
  local step = rows_at_a_time(part)
  local pointer = file:pointer(part.name, part.dtype, {part.rows, part.columns})
  for from = 0, part.rows - 1, step do
    local n = math.min(step, part.rows - from)
    file:hash(part.name, pointer + from * part.bytes, n * part.bytes, from + n == part.rows)
    check(C.lsa_session_part_write(session.c, part.c, from, n, pointer + from * part.bytes))
  end
end

local function read_chunks(file, session, sizes, spill)
  local records, keys = file:pointer("records", "u8", {sizes.chunks, sizes.record}), {}
  for layer = 0, sizes.layers - 1 do keys[layer] = file:pointer(key_name(layer), "u8", {sizes.chunks, sizes.key}) end
  local together, held = buffer(SEGMENT * sizes.layers * sizes.key)
  for from = 0, sizes.chunks - 1, SEGMENT do
    local n = math.min(SEGMENT, sizes.chunks - from)
    local last = from + n == sizes.chunks
    file:hash("records", records + from * sizes.record, n * sizes.record, last)
    for layer = 0, sizes.layers - 1 do
      local piece = keys[layer] + from * sizes.key
      file:hash(key_name(layer), piece, n * sizes.key, last)
      ffi.copy(together + layer * n * sizes.key, piece, n * sizes.key)
      C.lsa_file_forget(piece, n * sizes.key)
    end
    check(C.lsa_session_restore_chunks(session.c, from + n, spill))
    check(C.lsa_pool_write_chunks(session.pool, from, n, records + from * sizes.record, together))
    C.lsa_file_forget(records + from * sizes.record, n * sizes.record)
  end
  release(held)
end

local function read_head(file)
  local head = ffi.new "lsa_session_head"
  local pointer = file:pointer("head", "i64", {ffi.sizeof(head) / 8})
  file:hash("head", pointer, ffi.sizeof(head), true)
  ffi.copy(head, pointer, ffi.sizeof(head))
  return head
end

local function read_moving(file, session, head)
  local n, columns, room = tonumber(head.moving), C.LSA_SESSION_MOVING, C.LSA_SESSION_MESSAGE
  local rows, message = file:pointer("pool.moving", "i32", {n, columns}), file:pointer("pool.moving_message", "u8", {room, 1})
  file:hash("pool.moving", rows, n * columns * 4, true)
  file:hash("pool.moving_message", message, room, true)
  check(C.lsa_session_restore_moving(session.c, head, ffi.cast("const int32_t *", rows), ffi.string(message, room)))
end

-- The C session becomes what the file says.
local function read_session(file, session, to_disk)
  local head = read_head(file)
  local spill = (head.spilled == 1 or to_disk) and 1 or 0
  file:pointer("tokens", "i32", {tonumber(head.tokens), 1}) -- before memory is had for so many
  if session.pool ~= nil then file:pointer("pool.units", "i32", {tonumber(head.cells), 1}) end
  check(C.lsa_session_restore_begin(session.c, head))
  for _, part in ipairs(parts_of(session)) do read_part(file, session, part) end
  local sizes = chunk_sizes(session)
  if sizes then read_chunks(file, session, sizes, spill) end
  check(C.lsa_session_restore_end(session.c, head, spill))
  if head.used_cells >= 0 then
    local n = tonumber(head.used_cells)
    local cells = file:pointer("pool.by_use", "i32", {n, 1})
    file:hash("pool.by_use", cells, n * 4, true)
    check(C.lsa_session_restore_on_demand(session.c, head, ffi.cast("const int32_t *", cells)))
  end
  if head.moving > 0 then read_moving(file, session, head) end
end

---- restoring ----

local function read_about(file)
  local ok, about = pcall(plain.decode, read_bytes(file, "about"))
  if not ok then raise("tensor about: " .. raise.words(about)) end
  return about
end

local function check_model(about, model)
  local own = identity(model)
  for _, what in ipairs {"config", "weights"} do
    if about.model[what] ~= own[what] then
      raise("it is a session of a model of other %s than %s", what == "config" and "configuration" or what,
        model.name)
    end
  end
  if about.compute ~= model.compute then
    raise("it was computed in %s, the model computes in %s", about.compute, model.compute)
  end
end

-- The session's Memory Indexer as the option that makes it again.
local function indexer_option(about, model, given)
  local saved = about.indexer
  if given.indexer ~= nil or not saved or not saved.object then return given.indexer end
  return indexers.new({model = model, from = saved.from, layers = saved.layers, ensemble = saved.ensemble, looks = saved.looks})
end

local function check_indexer(about, session, given)
  if given.indexer ~= nil or not about.indexer then return end
  if indexer_hash(session.indexer) ~= about.indexer.hash then
    raise("its Memory Indexer (%s) has other weights now; indexer can be given anew", about.indexer.from)
  end
end

local function check_given(about, given)
  for name, why in pairs(about.unsaved) do
    if given[name] == nil then
      raise("%s; give it anew: model:restore(path, {%s = …})", why, name)
    end
  end
end

local function decode(file, name)
  local ok, value = pcall(plain.decode, read_bytes(file, name))
  if not ok or type(value) ~= "table" then raise("tensor %s: %s", name, ok and "no table" or raise.words(value)) end
  return value
end

-- The hot tier's books. An eviction policy whose code has changed since begins with what is present.
local function restore_tier(file, session, about, saved, cells)
  local held = tier.new(session.pool, session, session.opt.evict)
  held.fixed, held.known, held.arrived, held.stale = cells, saved.known, saved.arrived, saved.stale
  if about.unsaved.evict then
    held:rebuild()
  elseif about.eviction_text ~= text_hash(held.entry.text) then
    held:go_on(nil, "its code has changed since")
  else
    local state = read_bytes(file, "eviction")
    local ok, problem = pcall(held.go_on, held, #state > 0 and state)
    if not ok then raise("tensor eviction: %s", raise.words(problem)) end
  end
  return held
end

local function restore_exactly(file, session, about, given)
  check_indexer(about, session, given)
  read_session(file, session, given.cold and given.cold ~= "ram")
  local saved = decode(file, "loop")
  for _, name in ipairs {"observed_all", "policy_flops", "sampler"} do session[name] = saved[name] end
  if session.pool ~= nil then
    session.tier = restore_tier(file, session, about, saved, loops.cells(session.opt, session:chunk_bytes()))
  end
  session.loop = loops.new(session.opt, tonumber(session.model.config.csa_rate), session.tier)
  for _, name in ipairs(loops.saved) do session.loop[name] = saved[name] end
  if not about.unsaved.select then session.loop.state = decode(file, "state") end
end

local function named(path, fn, ...)
  local ok, result = pcall(fn, ...)
  if ok then return result end
  local why = raise.words(result)
  raise(why:find(path, 1, true) and why or path .. ": " .. why)
end

-- given: what a fork may change (lua/lsa/session.lua), which makes a cycle due, and cold and indexer, which do not. bare(opt)
-- makes a session without loop and tier.
local function restore(path, model, given, bare)
  local file = open_file(path)
  local about = read_about(file)
  check_model(about, model)
  check_given(about, given)
  named_files.check({select = about.options.select, every = about.options.every, evict = about.options.evict, cold = about.options.cold,
    indexer = about.indexer and about.indexer.object and about.indexer.from or about.options.indexer}, given, model.directory,
    "model:restore(path")
  local opt = options.copy(about.options)
  for _, name in ipairs {"select", "every", "evict"} do -- what is given anew is not looked for in the file
    if given[name] ~= nil then opt[name], about.unsaved[name] = given[name], "given anew" end
  end
  if opt.on_demand or given.on_demand then -- its keys stay in memory from the start; other rules are the affair of a fork of it
    if not opt.on_demand or about.options.select == "full" then opt.select, about.unsaved.select = "full", "given anew" end
    if given.evict ~= nil then opt.evict = "lru" end
    opt.on_demand = true
  end
  opt.cold, opt.indexer = given.cold or opt.cold, indexer_option(about, model, given) or opt.indexer
  local session = bare(opt)
  local ok, problem = pcall(restore_exactly, file, session, about, given)
  if not ok then
    session:close()
    error(problem, 0)
  end
  return session
end

function M.restore(path, model, given, bare)
  return named(path, restore, path, model, given, bare)
end

return M
