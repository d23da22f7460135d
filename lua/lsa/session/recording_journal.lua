-- Owns the form that a recording's file has until it is finished: rows are appended as they come, so that of a killed run all that
-- was recorded can be read.
--
--   journal = journals.create(path, head)     head, columns, keys: as load has them
--   journal:append(part)                      part.rows more rows, whole or not at all
--   journal:close()
--   tensors, metadata = journals.load(path)   up to the last whole part; metadata.unfinished says how many rows there are
--
-- The file: a line, then parts, each of them its length and its checksum (u64, little-endian), seeded with the checksum before it,
-- and so many bytes of plain data (lua/lsa/files/plain_data.lua):
--   first    {metadata = {name = text}, columns = {{name, dtype, shape of a row}, …}, keys = {{name, dtype, bytes of one}, …}}
--   others   {rows = n, columns = the columns' bytes behind each other, tokens = bytes, keys = {bytes, …} of new chunks,
--            lists = {name = {dtype, bytes}} that grow otherwise, tensors = {name = tensor}}
local ffi = require "ffi"
local plain = require "lsa.files.plain_data"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local replace = require "lsa.files.replace"
local tensor = require "lsa.tensor.tensor"
local C = require("lsa.ffi").C

local check = raise.check

local Journal = {}
Journal.__index = Journal

local M = {}

local LINE = "lsa recording, unfinished\n" -- lua/lsa/files/files.lua knows it

-- ---- writing ----

-- Two recordings in one file would tear each other's parts apart: whoever writes to it has its lock.
local function open(path, mode)
  local file = ownership.take(C.lsa_file_close, "lsa_file", C.lsa_file_open, path, mode)
  if C.lsa_file_lock(file) == 0 then raise("%s: another recording is being written there", path) end
  return file
end

local function close(file) return ownership.free(C.lsa_file_close, file) end

-- A part as it is in the file, and its checksum.
local function packed(part, before)
  local bytes = plain.encode(part, "a recording's part")
  local hash = C.lsa_hash(bytes, #bytes, before)
  return ffi.string(ffi.new("uint64_t[2]", #bytes, hash), 16) .. bytes, hash
end

function M.create(path, head)
  local text, hash = packed(head, 0ULL)
  if C.lsa_file_exists(path) == 1 then close(open(path, C.LSA_FILE_READ)) end
  replace.write(path, LINE .. text)
  return setmetatable({file = open(path, C.LSA_FILE_UPDATE), at = #LINE + #text, hash = hash}, Journal)
end

function Journal:append(part)
  local text, hash = packed(part, self.hash)
  check(C.lsa_file_write(self.file, text, #text, self.at))
  self.at, self.hash = self.at + #text, hash
end

function Journal:close()
  if self.file then close(self.file) end
  self.file = nil
end

-- ---- reading ----

-- The parts that are whole, as bytes, one after the other.
local function parts_of(path)
  local file, size = ownership.take(C.lsa_file_close, "lsa_file", C.lsa_file_open, path, C.LSA_FILE_READ), ffi.new "int64_t[1]"
  check(C.lsa_file_size(size, file))
  local at, hash, ends, front = #LINE, 0ULL, tonumber(size[0]), ffi.new "uint64_t[2]"
  return function()
    if at + 16 > ends then return nil end
    check(C.lsa_file_read(file, front, 16, at))
    local length = front[0]
    if length > ffi.cast("uint64_t", ends - at - 16) then return nil end
    local data = ffi.new("uint8_t[?]", length)
    check(C.lsa_file_read(file, data, length, at + 16))
    hash = C.lsa_hash(data, length, hash)
    if hash ~= front[1] then return nil end
    at = at + 16 + tonumber(length)
    return ffi.string(data, length)
  end
end

local function damaged(path, what) raise("load: %s: an unfinished recording whose %s is damaged", path, what) end

local function is_whole(x) return type(x) == "number" and x >= 0 and x < 2 ^ 31 and x % 1 == 0 end

-- Bytes of an element, 0 where the dtype is none.
local function size_of(dtype)
  local code = type(dtype) == "string" and C.lsa_dtype_of(dtype) or -1
  return code < 0 and 0 or tonumber(C.lsa_dtype_size(code))
end

-- What grows: pieces of bytes, of rows of a shape.
local function growing(path, name, dtype, shape)
  local row = size_of(dtype)
  if type(name) ~= "string" or type(shape) ~= "table" or #shape > 4 then damaged(path, "beginning") end
  for _, n in ipairs(shape) do row = is_whole(n) and row * n or 0 end
  if row <= 0 or row >= 2 ^ 40 then damaged(path, "beginning") end
  return {name = name, dtype = dtype, shape = shape, row = row, pieces = {}, bytes = 0}
end

local function grow(path, into, bytes)
  if type(bytes) ~= "string" or #bytes % into.row ~= 0 then damaged(path, "part") end
  into.pieces[#into.pieces + 1] = bytes
  into.bytes = into.bytes + #bytes
end

local function tensor_of(into)
  local out = tensor.zeros({into.bytes / into.row, unpack(into.shape)}, into.dtype)
  ffi.copy(out:pointer(), table.concat(into.pieces), into.bytes)
  return out
end

local function read_part(path, self, part)
  local at = 1
  if type(part) ~= "table" or not is_whole(part.rows) or type(part.columns) ~= "string" or type(part.keys) ~= "table" or
    type(part.lists) ~= "table" or type(part.tensors) ~= "table" then damaged(path, "part") end
  for _, column in ipairs(self.columns) do
    local bytes = part.rows * column.row
    if at + bytes - 1 > #part.columns then damaged(path, "part") end
    grow(path, column, part.columns:sub(at, at + bytes - 1))
    at = at + bytes
  end
  grow(path, self.tokens, part.tokens)
  for i, key in ipairs(self.keys) do grow(path, key, part.keys[i]) end
  for name, list in pairs(part.lists) do
    if type(list) ~= "table" then damaged(path, "part") end
    self.lists[name] = self.lists[name] or growing(path, name, list[1], {})
    grow(path, self.lists[name], list[2])
  end
  for name, t in pairs(part.tensors) do
    if type(name) ~= "string" or not tensor.is(t) then damaged(path, "part") end
    self.tensors[name] = t
  end
  self.rows = self.rows + part.rows
end

-- Columns of the first part; each of its lists.
local function columns_of(path, list, is_key)
  local out = {}
  if type(list) ~= "table" then damaged(path, "beginning") end
  for i, entry in ipairs(list) do
    if type(entry) ~= "table" then damaged(path, "beginning") end
    out[i] = growing(path, entry[1], entry[2], is_key and {entry[3]} or entry[3])
  end
  return out
end

local function decoded(path, bytes)
  local ok, part = pcall(plain.decode, bytes)
  if not ok or type(part) ~= "table" then damaged(path, "part") end
  return part
end

function M.load(path)
  local next_part = parts_of(path)
  local bytes = next_part()
  if not bytes then damaged(path, "beginning") end
  local head, metadata = decoded(path, bytes), {}
  local self = {rows = 0, columns = columns_of(path, head.columns), keys = columns_of(path, head.keys, true),
    tokens = growing(path, "token_ids", "i32", {}), lists = {}, tensors = {}}
  for bytes_of_part in next_part do read_part(path, self, decoded(path, bytes_of_part)) end
  for _, kind in ipairs {self.columns, self.keys, self.lists, {self.tokens}} do
    for _, into in pairs(kind) do self.tensors[into.name] = tensor_of(into) end
  end
  for name, text in pairs(type(head.metadata) == "table" and head.metadata or {}) do metadata[name] = tostring(text) end
  metadata.unfinished = ("%d rows; it is being written, or who wrote it was killed"):format(self.rows)
  return self.tensors, metadata
end

return M
