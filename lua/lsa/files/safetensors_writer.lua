-- Owns safetensors files that are written piece by piece: memory does not grow with the tensors, and the file appears whole
-- or not at all.
--
--   w = writer.new(path, {{"hidden", "bf16", {n, d}}, {"ids", "i32"}}, metadata)
--   w:write("hidden", pointer, elements)     appends; pointer: C memory of the tensor's dtype
--   w:finish()   w:abandon()                 in any case, once
--
-- A tensor without a shape is a list that grows, in a file of its own without a name until finish appends it.
local ffi = require "ffi"
local cjson = require "cjson"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local C = require("lsa.ffi").C

local check = raise.check

local Writer = {}
Writer.__index = Writer

local M = {}

local MOST = 2 ^ 52          -- no tensor has more bytes: a header for them has room for the real one
local COPY_BYTES = 2 ^ 20
local ALIGN = 64

local format_names = {f32 = "F32", bf16 = "BF16", f16 = "F16", f8_e4m3 = "F8_E4M3", f8_e8m0 = "F8_E8M0", i8 = "I8",
  u8 = "U8", i32 = "I32", i64 = "I64", f64 = "F64"}

local HEADER_LIMIT = 100000000

local function product(shape)
  local n = 1
  for _, m in ipairs(shape) do n = n * m end
  return n
end

local function list_text(numbers)
  local out = {}
  for i, n in ipairs(numbers) do out[i] = ("%.0f"):format(n) end
  return "[" .. table.concat(out, ",") .. "]"
end

-- What jansson, and every other reader, takes as a name or a text.
local function check_text(path, text)
  local rest = text:gsub("[\194-\223][\128-\191]", " "):gsub("\224[\160-\191][\128-\191]", " ")
    :gsub("\237[\128-\159][\128-\191]", " "):gsub("[\225-\236\238\239][\128-\191][\128-\191]", " ")
    :gsub("\240[\144-\191][\128-\191][\128-\191]", " "):gsub("[\241-\243][\128-\191][\128-\191][\128-\191]", " ")
    :gsub("\244[\128-\143][\128-\191][\128-\191]", " ")
  if rest:find "[\128-\255]" then raise("%s: %s is not UTF-8", path, text) end
  if text:find("\0", 1, true) then raise("%s: %q has a zero byte", path, text) end
end

-- In the order of the keys: the same metadata is the same bytes.
local function metadata_text(metadata)
  local keys, out = {}, {}
  for key in pairs(metadata) do keys[#keys + 1] = key end
  table.sort(keys)
  for i, key in ipairs(keys) do out[i] = cjson.encode(key) .. ":" .. cjson.encode(metadata[key]) end
  return "{" .. table.concat(out, ",") .. "}"
end

-- The header, as the file begins; `room` is what it is padded to. Without `room`: what has room for it, however much grows.
local function header_text(self, room)
  local entries, at = {}, 0
  if next(self.metadata) then entries[1] = '"__metadata__":' .. metadata_text(self.metadata) end
  for _, t in ipairs(self.tensors) do
    local shape = t.shape or {room and t.done or MOST}
    local bytes = t.shape and product(t.shape) * t.size or room and t.done * t.size or MOST
    entries[#entries + 1] = ('%s:{"dtype":"%s","shape":%s,"data_offsets":%s}'):format(cjson.encode(t.name), format_names[t.dtype],
      list_text(shape), list_text {at, at + bytes})
    at = at + bytes
  end
  local text = "{" .. table.concat(entries, ",") .. "}"
  local total = room or math.ceil((8 + #text) / ALIGN) * ALIGN
  local length, bytes = total - 8, {}
  if length > HEADER_LIMIT then
    raise("%s: the header would have %d bytes, at most %d are allowed", self.path, length, HEADER_LIMIT)
  end
  for i = 1, 8 do
    bytes[i] = string.char(length % 256)
    length = math.floor(length / 256)
  end
  return table.concat(bytes) .. text .. (" "):rep(total - 8 - #text)
end

-- Larger elements first, so that all are aligned; what grows comes last.
local function in_order(a, b)
  if (a.shape == nil) ~= (b.shape == nil) then return a.shape ~= nil end
  if a.size ~= b.size then return a.size > b.size end
  return a.name < b.name
end

-- Where each tensor is written to.
local function open_parts(self)
  local folder = ffi.string(C.lsa_file_path(self.file)):match "^(.*)/[^/]*$"
  local at = self.room
  for _, t in ipairs(self.tensors) do
    if t.shape then
      t.file, t.at = self.file, at
      at = at + product(t.shape) * t.size
    else
      t.file, t.at = ownership.take(C.lsa_file_close, "lsa_file", C.lsa_file_open_unnamed, folder == "" and "/" or folder or "."), 0
    end
  end
  self.fixed_end = at
end

function M.new(path, list, metadata)
  local self = setmetatable({path = path, tensors = {}, by_name = {}, metadata = metadata or {}}, Writer)
  for i, entry in ipairs(list) do
    local name, dtype, shape = unpack(entry)
    check_text(path, name)
    if name == "__metadata__" then raise("%s: a tensor cannot be called __metadata__", path) end
    if self.by_name[name] then raise("%s: %s is given twice", path, name) end
    if not format_names[dtype] then raise("%s: tensor %s: dtype %s cannot be saved", path, name, tostring(dtype)) end
    local t = {name = name, dtype = dtype, shape = shape, size = tonumber(C.lsa_dtype_size(C.lsa_dtype_of(dtype))), done = 0}
    self.tensors[i], self.by_name[name] = t, t
  end
  for key, value in pairs(self.metadata) do
    check_text(path, key)
    check_text(path, value)
  end
  table.sort(self.tensors, in_order)
  self.room = #header_text(self)
  self.replace = ownership.take(C.lsa_replace_abandon, "lsa_replace", C.lsa_replace_begin, path)
  self.file = C.lsa_replace_file(self.replace)
  local ok, problem = pcall(open_parts, self)
  if not ok then
    self:abandon()
    error(problem, 0)
  end
  return self
end

function Writer:write(name, pointer, elements)
  local t = self.by_name[name]
  if t.shape and t.done + elements > product(t.shape) then
    raise("writer: %s has room for %.0f elements, %.0f come", name, product(t.shape), t.done + elements)
  end
  check(C.lsa_file_write(t.file, pointer, elements * t.size, t.at + t.done * t.size))
  t.done = t.done + elements
end

-- How many elements of a tensor have been written.
function Writer:count(name) return self.by_name[name].done end

-- Appends a growing tensor's part to the file.
local function join(self, t, at)
  local buffer, left, from = ffi.new("uint8_t[?]", COPY_BYTES), t.done * t.size, 0
  while left > 0 do
    local n = math.min(left, COPY_BYTES)
    check(C.lsa_file_read(t.file, buffer, n, from))
    check(C.lsa_file_write(self.file, buffer, n, at + from))
    left, from = left - n, from + n
  end
  return at + from
end

-- Gives the first failure's code.
local function close_parts(self)
  local rc = 0
  for _, t in ipairs(self.tensors) do
    if not t.shape and t.file then rc = math.min(rc, ownership.free(C.lsa_file_close, t.file)) end
    t.file = nil
  end
  return rc
end

function Writer:finish()
  local at = self.fixed_end
  for _, t in ipairs(self.tensors) do
    if not t.shape then at = join(self, t, at)
    elseif t.done ~= product(t.shape) then
      raise("writer: %s has %.0f elements of %.0f", t.name, t.done, product(t.shape))
    end
  end
  local header = header_text(self, self.room)
  check(C.lsa_file_write(self.file, header, #header, 0))
  check(close_parts(self))
  local replace = self.replace
  self.replace, self.file = nil, nil
  check(ownership.free(C.lsa_replace_commit, replace))
end

function Writer:abandon()
  close_parts(self)
  if self.replace then ownership.free(C.lsa_replace_abandon, self.replace) end
  self.replace, self.file = nil, nil
end

return M
