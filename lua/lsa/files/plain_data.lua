-- Owns how plain data becomes bytes and comes back, exactly: numbers, strings, booleans, sets, tensors, arrays of whole numbers
-- (int32_t[?] and the like), 64-bit numbers, what a module has declared (the seeded generator), and tables of these without
-- cycles. What a table holds twice comes back as one; equal data gives equal bytes.
--
--   bytes = plain.encode(value, "cycle.state")      an error says by which path it met what is none: cycle.state.f is a function
--   bytes, why = plain.try(value, "cycle.state")    nil and that
--   value = plain.decode(bytes)                     memory follows the number of bytes, whatever they say
--   value = plain.copy(value, "cycle.state")        shares nothing with the first
--   plain.class(name, metatable, state, restore)    objects of that metatable are plain data: restore(state(object)) is one again
local bit = require "bit"
local ffi = require "ffi"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"
local C = require("lsa.ffi").C

local M = {}

local MOST_DEPTH = 64

-- By tag, and by the name that a ctype shows: ffi.istype does not tell signs apart.
local function shown(kind) return tostring(kind):match "^ctype<(.*)>$" end
local ARRAYS, WHOLE = {}, {}
for i, name in ipairs {"int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t", "uint64_t"} do
  local tag, kind = string.char(96 + i), ffi.typeof(name .. "[?]")
  ARRAYS[tag] = {type = kind, bytes = ffi.sizeof(name), tag = tag}
  ARRAYS[shown(kind)] = ARRAYS[tag]
end
for tag, name in pairs {i = "int64_t", u = "uint64_t"} do
  WHOLE[tag] = ffi.typeof(name .. "[1]")
  WHOLE[shown(ffi.typeof(name))] = tag
end

local classes, class_of = {}, {}

function M.class(name, metatable, state, restore)
  classes[name] = {name = name, state = state, restore = restore}
  class_of[metatable] = classes[name]
end

---- encoding ----

local Encoder = {}
Encoder.__index = Encoder

local function bytes_of(x) return ffi.string(ffi.new("double[1]", x), 8) end

function Encoder:put(tag, x) self[#self + 1] = x and tag .. bytes_of(x) or tag end

function Encoder:text(tag, text)
  self:put(tag, #text)
  self[#self + 1] = text
end

function Encoder:fail(depth, what)
  local path = {self.what}
  for i = 1, depth do path[i + 1] = tostring(self.path[i]) end
  self.problem = table.concat(path, ".") .. " " .. what
  error(self.problem, 0)
end

local function compare(a, b)
  if type(a) ~= type(b) then return type(a) < type(b) end
  return a < b
end

function Encoder:table(value, depth)
  local meta = getmetatable(value)
  if class_of[meta] then
    self:text("o", class_of[meta].name)
    return self:value(class_of[meta].state(value), depth)
  end
  if meta ~= nil then self:fail(depth, "has a metatable, which is no plain data") end
  local keys = {}
  for key in next, value do
    if type(key) ~= "number" and type(key) ~= "string" then
      self:fail(depth, ("has a key that is a %s; numbers and strings are plain data"):format(type(key)))
    end
    keys[#keys + 1] = key
  end
  table.sort(keys, compare)
  self:put("t", #keys)
  for _, key in ipairs(keys) do
    self.path[depth + 1] = key
    self:value(key, depth + 1)
    self:value(value[key], depth + 1)
  end
end

local function is_scalar(value) return WHOLE[shown(ffi.typeof(value))] ~= nil end

function Encoder:cdata(value, depth)
  if set.is(value) then
    self:put("S", value:size())
    self:put("", tonumber(value.of))
    self[#self + 1] = ffi.string(value.c.bits, 8 * math.ceil(value:size() / 64))
    return
  elseif tensor.is(value) then
    local whole = value:to "cpu":contiguous()
    self:text("T", whole:dtype())
    self:text("", table.concat(whole:shape(), " "))
    self:text("", value:device())
    self:put("", tonumber(value.of))
    return self:text("", ffi.string(whole:pointer(), whole:bytes()))
  end
  local name = shown(ffi.typeof(value))
  local tag, array = WHOLE[name], ARRAYS[name]
  if array then return self:text("a" .. array.tag, ffi.string(value, ffi.sizeof(value))) end
  if not tag then self:fail(depth, ("is a cdata '%s', which is no plain data"):format(name)) end
  self:put(tag .. ffi.string(WHOLE[tag](value), 8))
end

function Encoder:value(value, depth)
  local kind = type(value)
  if kind == "number" then return self:put("n", value) end
  if kind == "string" then return self:text("s", value) end
  if kind == "boolean" then return self:put(value and "y" or "z") end
  if kind ~= "table" and kind ~= "cdata" then self:fail(depth, ("is a %s, which is no plain data"):format(kind)) end
  if depth >= MOST_DEPTH then self:fail(0, "is nested deeper than " .. MOST_DEPTH) end
  if kind == "cdata" and is_scalar(value) then return self:cdata(value, depth) end
  local known = self.known[value]
  if known == 0 then self:fail(depth, "contains itself, which is no plain data") end
  if known then return self:put("r", known) end
  self.known[value] = 0
  self[kind](self, value, depth)
  self.known.n = self.known.n + 1
  self.known[value] = self.known.n
end

-- The bytes, or nil and why the value is no plain data. what: how it is called there.
function M.try(value, what)
  local encoder = setmetatable({what = what or "the value", path = {}, known = {n = 0}}, Encoder)
  local ok, problem = pcall(encoder.value, encoder, value, 0)
  if ok then return table.concat(encoder) end
  if not encoder.problem then error(problem, 0) end
  return nil, problem
end

function M.encode(value, what)
  local bytes, problem = M.try(value, what)
  return bytes or raise("%s", problem)
end

---- decoding ----

local Decoder = {}
Decoder.__index = Decoder

local function damaged() raise "damaged plain data" end

function Decoder:take(n)
  local from = self.at
  if not (n >= 0 and n <= #self.bytes - from + 1) then damaged() end
  self.at = from + n
  return self.bytes:sub(from, from + n - 1)
end

-- Of all bit patterns that are no number, Lua may see one: others are values of other types to it.
function Decoder:number()
  local words = ffi.new "uint32_t[2]"
  ffi.copy(words, self:take(8), 8)
  local infinite = bit.band(words[1], 0x7ff00000) == 0x7ff00000
  if infinite and (bit.band(words[1], 0xfffff) ~= 0 or words[0] ~= 0) then return 0 / 0 end
  return ffi.cast("double *", words)[0]
end

function Decoder:count()
  local n = self:number()
  if not (n >= 0 and n < 2 ^ 53 and n == math.floor(n)) then damaged() end
  return n
end

function Decoder:text() return self:take(self:count()) end

local read = {}

function read.y() return true end
function read.z() return false end
function read.n(self) return self:number() end
function read.s(self) return self:text() end

function read.r(self)
  local value = self.known[self:count()]
  if value == nil then damaged() end
  return value
end

function read.t(self, depth)
  local out, n = {}, self:count()
  if n > #self.bytes then damaged() end
  for _ = 1, n do
    local key = self:value(depth + 1)
    local value = self:value(depth + 1)
    if key ~= key or (type(key) ~= "number" and type(key) ~= "string") then damaged() end
    out[key] = value
  end
  return out
end

function read.o(self, depth)
  local class = classes[self:text()]
  if not class then damaged() end
  local ok, object = pcall(class.restore, self:value(depth))
  return ok and object or damaged()
end

function read.S(self)
  local n, of = self:count(), self:count()
  local bits = self:take(8 * math.ceil(n / 64))
  if n >= 2 ^ 31 or of >= 2 ^ 31 then damaged() end
  local out = set.of_pages(n, of)
  ffi.copy(out.c.bits, bits, #bits)
  if n % 64 ~= 0 and bit.rshift(out.c.bits[math.floor(n / 64)], n % 64) ~= 0ULL then damaged() end
  return out
end

function read.T(self)
  local code, shape, count = C.lsa_dtype_of(self:text()), {}, 1
  for n in self:text():gmatch "%d+" do
    shape[#shape + 1] = tonumber(n)
    count = count * tonumber(n)
  end
  local device, of, bytes = self:text(), self:count(), self:text()
  if code < 0 or count * tonumber(C.lsa_dtype_size(code)) ~= #bytes or of >= 2 ^ 31 then damaged() end
  if #shape > 6 or not (device == "cpu" or device == "cuda") then damaged() end
  local out = tensor.empty(shape, ffi.string(C.lsa_dtype_name(code)))
  ffi.copy(out:pointer(), bytes, #bytes)
  if device ~= "cpu" then out = out:to(device) end
  out.of = of
  return out
end

for _, tag in ipairs {"i", "u"} do
  read[tag] = function(self)
    local x = WHOLE[tag]()
    ffi.copy(x, self:take(8), 8)
    return x[0]
  end
end

function read.a(self)
  local array, bytes = ARRAYS[self:take(1)], self:text()
  if not array or #bytes % array.bytes ~= 0 then damaged() end
  local out = array.type(#bytes / array.bytes)
  ffi.copy(out, bytes, #bytes)
  return out
end

function Decoder:value(depth)
  local tag = self:take(1)
  if not read[tag] or depth > MOST_DEPTH then damaged() end
  local value = read[tag](self, depth)
  local kind = type(value)
  if tag ~= "r" and (kind == "table" or kind == "cdata" and not is_scalar(value)) then
    self.known[#self.known + 1] = value
  end
  return value
end

function M.decode(bytes)
  local decoder = setmetatable({bytes = bytes, at = 1, known = {}}, Decoder)
  local value = decoder:value(0)
  if decoder.at ~= #bytes + 1 then damaged() end
  return value
end

function M.copy(value, what) return M.decode(M.encode(value, what)) end

return M
