-- Owns how what scripts keep becomes bytes and comes back: tables with their identities and metatables, numbers, arrays of
-- numbers, sets, tensors, closures with their local variables. Code is never in the bytes: a function or a class is told by
-- where its source is, and found again there.
--
--   bytes = snapshot.encode(value, roots)       an error says by which path it met what cannot be saved
--   value = snapshot.decode(bytes, roots)
--
-- roots: a list of values (an eviction object newly made, a policy's function) from which code is found, beside the modules
-- that are loaded. A closure comes back as a new one of the same code; what is shared by closures is shared again.
local ffi = require "ffi"
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"
local C = require("lsa.ffi").C

local M = {}

local MOST_DEPTH = 180

local ELEMENTS = {["char"] = true, ["signed char"] = true, ["unsigned char"] = true, ["short"] = true,
  ["unsigned short"] = true, ["int"] = true, ["unsigned int"] = true, ["int64_t"] = true, ["uint64_t"] = true,
  ["long"] = true, ["unsigned long"] = true, ["float"] = true, ["double"] = true, ["bool"] = true}

---- code ----

local home = debug.getinfo(1, "S").source:match "^@(.*)lua/lsa/session/snapshot%.lua$" or ""

-- Where a function's source is: the same text on every machine that has the tree.
local function place_of(fn)
  local info = debug.getinfo(fn, "Su")
  if info.what == "C" then return nil end
  local source = info.source
  if source:sub(2, #home + 1) == home then source = "=" .. source:sub(#home + 2) end
  return ("%s:%d:%d:%d"):format(source, info.linedefined, info.lastlinedefined, info.nups)
end

local function is_class(value) return type(value) == "table" and rawget(value, "__index") == value end

-- A class is told by the place of its first method.
local function class_place(class)
  local first
  for name, value in next, class do
    if type(name) == "string" and type(value) == "function" and (not first or name < first) then first = name end
  end
  local place = first and place_of(class[first])
  return place and ("class %s %s"):format(first, place)
end

local function own_module(name) return name == "lsa" or name:sub(1, 4) == "lsa." end

-- What modules are and hold by name: value -> "module" or "module\0field".
local function module_names()
  local names = {[_G] = "_G"}
  for name, module in pairs(package.loaded) do
    if type(module) == "table" or type(module) == "function" then names[module] = names[module] or name end
    if type(module) == "table" then
      for field, value in next, module do
        if type(field) == "string" and (type(value) == "function" or is_class(value)) and not names[value] then
          names[value] = name .. "\0" .. field
        end
      end
    end
  end
  return names
end

local function code_hash(fn)
  local bytes = string.dump(fn, true)
  return bit.tohex(C.lsa_hash(bytes, #bytes, 0ULL))
end

-- Functions of other code at the same place, two on a line, are told apart by their code.
local function note_variant(code, place, value)
  local first = code.example[place]
  if first == value or type(first) ~= "function" then return end
  local own, others = code_hash(value), code.variants[place]
  if not others then
    local hash = code_hash(first)
    if hash == own then return end
    others = {[hash] = first}
    code.variants[place] = others
  end
  others[own] = others[own] or value
end

local function note(code, place, value)
  if not place then return end
  code.example[place] = code.example[place] or value
  if type(value) == "function" then note_variant(code, place, value) end
  if code.at[place] == nil then code.at[place] = value
  elseif code.at[place] ~= value then code.at[place] = false end
end

-- Notes the functions and classes from the values in `list` on.
local function walk(code, list)
  local seen, at = code.seen, 0
  local function visit(value)
    local kind = type(value)
    if (kind ~= "table" and kind ~= "function") or seen[value] then return end
    seen[value] = true
    list[#list + 1] = value
  end
  for _, value in ipairs(list) do seen[value] = true end
  while at < #list do
    at = at + 1
    local value = list[at]
    if type(value) == "function" then
      note(code, place_of(value), value)
      for i = 1, math.huge do
        local name, item = debug.getupvalue(value, i)
        if not name then break end
        visit(item)
      end
    else
      if is_class(value) then note(code, class_place(value), value) end
      for _, item in next, value do visit(item) end
      local meta = getmetatable(value)
      if type(meta) == "table" then visit(meta) end
    end
  end
end

-- What the library's modules have: found once for as many modules as are loaded.
local library

local function library_code()
  local count = 0
  for _ in pairs(package.loaded) do count = count + 1 end
  if library and library.count == count then return library end
  library = {count = count, at = {}, example = {}, variants = {}, names = module_names(), seen = {}}
  local list = {}
  for name, module in pairs(package.loaded) do
    if own_module(name) then list[#list + 1] = module else library.seen[module] = true end
  end
  walk(library, list)
  return library
end

-- Where code is, from the library and the roots on: {at = {place = value, or false where there are several}, example = {place =
-- one of them}, variants = {place = {hash = one of that code}} where the code there is not one, names = module_names()}.
local function code_of(roots)
  local base = library_code()
  local function over(t) return setmetatable({}, {__index = t}) end
  local code = {at = over(base.at), example = over(base.example), variants = over(base.variants), names = base.names, seen = over(base.seen)}
  local list = {}
  for _, root in ipairs(roots) do
    if not code.seen[root] then list[#list + 1] = root end
  end
  walk(code, list)
  return code
end

---- encoding ----

local function number_bytes(x) return ffi.string(ffi.new("double[1]", x), 8) end

local Encoder = {}
Encoder.__index = Encoder

function Encoder:put(text) self.out[#self.out + 1] = text end

function Encoder:text(text)
  self:put(number_bytes(#text))
  self:put(text)
end

-- Code that is found by name or by place; true when it was written.
function Encoder:reference(value)
  local name = self.code.names[value]
  if name then
    self:put "m"
    self:text(name)
    return true
  end
  local place = type(value) == "function" and place_of(value) or is_class(value) and class_place(value)
  if place and self.code.at[place] == value then
    self:put "c"
    self:text(place)
    return true
  end
  return false
end

function Encoder:table(value, path, depth)
  local meta = getmetatable(value)
  if meta ~= nil and type(meta) ~= "table" then raise(path .. " has a protected metatable") end
  self:put "t"
  local keys = {}
  for key in next, value do keys[#keys + 1] = key end
  self:put(number_bytes(#keys))
  for _, key in ipairs(keys) do
    self:value(key, path, depth)
    self:value(rawget(value, key), path .. "." .. tostring(key), depth)
  end
  self:value(meta, path .. "'s metatable", depth)
end

function Encoder:closure(value, path, depth)
  local place = place_of(value)
  if not place or not self.code.example[place] then
    raise("%s is a function (%s), which cannot be in a file", path, place or "of C")
  end
  local variants = self.code.variants[place]
  self:put "f"
  self:text(variants and place .. "#" .. code_hash(value) or place)
  for i = 1, debug.getinfo(value, "u").nups do
    local cell = debug.upvalueid(value, i)
    local known = self.cells[cell]
    if not known then
      self.cell_count = self.cell_count + 1
      known = self.cell_count
      self.cells[cell] = known
      self:put("n" .. number_bytes(known))
      local name, item = debug.getupvalue(value, i)
      self:value(item, path .. ", local " .. name, depth)
    else
      self:put("k" .. number_bytes(known))
    end
  end
end

local function shape_text(t) return table.concat(t:shape(), " ") end

function Encoder:cdata(value, path)
  if set.is(value) then
    local ids = value:ids()
    self:put("S" .. number_bytes(value:size()) .. number_bytes(tonumber(value.of)))
    return self:text(ffi.string(ids.c.data, ids:bytes()))
  elseif tensor.is(value) then
    if value:device() ~= "cpu" then raise(path .. " is a tensor on another device") end
    local whole = value:contiguous()
    self:put "T"
    self:text(whole:dtype())
    self:text(shape_text(whole))
    self:put(number_bytes(tonumber(value.of)))
    return self:text(ffi.string(whole.c.data, whole:bytes()))
  end
  local name = tostring(ffi.typeof(value)):match "^ctype<(.*)>$" or "?"
  if name == "int64_t" or name == "uint64_t" then
    return self:put((name == "int64_t" and "l" or "u") .. ffi.string(ffi.new(name .. "[1]", value), 8))
  end
  local element = name:match "^(.-) ?%[[%d?]+%]$"
  if not element or not ELEMENTS[element] then raise("%s is a cdata '%s', which cannot be in a file", path, name) end
  self:put "a"
  self:text(name)
  self:text(ffi.string(value, ffi.sizeof(value)))
end

function Encoder:value(value, path, depth)
  depth = (depth or 0) + 1
  local kind = type(value)
  if depth > MOST_DEPTH then raise(path .. " is nested too deep") end
  if kind == "nil" then return self:put "0" end
  if kind == "boolean" then return self:put(value and "y" or "z") end
  if kind == "number" then return self:put("n" .. number_bytes(value)) end
  if kind == "string" then
    self:put "s"
    return self:text(value)
  end
  local known = self.known[value]
  if known then return self:put("r" .. number_bytes(known)) end
  if (kind == "function" or kind == "table") and self:reference(value) then return end
  self.count = self.count + 1
  self.known[value] = self.count
  if kind == "table" then return self:table(value, path, depth) end
  if kind == "function" then return self:closure(value, path, depth) end
  if kind == "cdata" then return self:cdata(value, path) end
  raise("%s is a %s, which cannot be in a file", path, kind)
end

-- what: how the value is called in errors.
function M.encode(value, roots, what)
  local encoder = setmetatable({out = {}, known = {}, cells = {}, count = 0, cell_count = 0, code = code_of(roots or {})}, Encoder)
  encoder:value(value, what or "the value")
  return table.concat(encoder.out)
end

---- decoding ----

local Decoder = {}
Decoder.__index = Decoder

local function damaged() raise "damaged: it is no snapshot" end

function Decoder:take(n)
  local from = self.at
  if not (n >= 0 and n <= #self.bytes - from + 1) then damaged() end
  self.at = from + n
  return self.bytes:sub(from, from + n - 1)
end

function Decoder:number()
  local x = ffi.new "double[1]"
  ffi.copy(x, self:take(8), 8)
  return x[0]
end

function Decoder:text()
  local n = self:number()
  if n ~= math.floor(n) then damaged() end
  return self:take(n)
end

function Decoder:found(value)
  self.count = self.count + 1
  self.known[self.count] = value
  return value
end

local read = {}

read["0"] = function() return nil end
function read.y() return true end
function read.z() return false end
function read.n(self) return self:number() end
function read.s(self) return self:text() end

function read.r(self)
  local value = self.known[self:number()]
  if value == nil then damaged() end
  return value
end

function read.m(self)
  local name, field = self:text():match "^([^%z]+)%z?(.*)$"
  if not name then damaged() end
  local module = name == "_G" and _G or package.loaded[name]
  if module == nil and own_module(name) then
    local ok, loaded = pcall(require, name)
    module = ok and loaded or nil
  end
  local value = module
  if field ~= "" then value = type(module) == "table" and rawget(module, field) or nil end
  if value == nil then raise("module %s has no %s here", name, field) end
  return value
end

function read.c(self)
  local place = self:text()
  local value = self.code.at[place]
  if not value then raise("code that it refers to is not here any more, or not the same: %s", place) end
  return value
end

function read.t(self, depth)
  local out, n = self:found {}, self:number()
  if not (n >= 0 and n <= #self.bytes) then damaged() end
  for _ = 1, n do
    local key = self:value(depth)
    local value = self:value(depth)
    if key == nil or key ~= key then damaged() end
    rawset(out, key, value)
  end
  local meta = self:value(depth)
  if meta ~= nil and type(meta) ~= "table" then damaged() end
  return meta and setmetatable(out, meta) or out
end

function read.f(self, depth)
  local place = self:text()
  local at, hash = place:match "^(.*)#(%x+)$"
  local variants = self.code.variants[at or place]
  local example = self.code.example[place]
  if at then example = variants and variants[hash] elseif variants then example = nil end
  if type(example) ~= "function" then
    raise("code that it refers to is not here any more, or not the same: %s", place)
  end
  local info = debug.getinfo(example, "Su")
  local copy = loadstring(string.dump(example), info.source)
  setfenv(copy, getfenv(example))
  self:found(copy)
  for i = 1, info.nups do
    local kind, id = self:take(1), self:number()
    local known = self.cells[id]
    if kind == "k" then
      if not known then damaged() end
      debug.upvaluejoin(copy, i, known.fn, known.i)
    else
      if kind ~= "n" or known then damaged() end
      self.cells[id] = {fn = copy, i = i}
      debug.setupvalue(copy, i, self:value(depth))
    end
  end
  return copy
end

function read.S(self)
  local size, of = self:number(), self:number()
  if not (size >= 0 and size < 2 ^ 31 and size == math.floor(size)) then damaged() end
  local out = self:found(set.of_pages(size, of))
  local ids = self:text()
  if #ids % 4 ~= 0 then damaged() end
  local array = ffi.new("int32_t[?]", #ids / 4 + 1)
  ffi.copy(array, ids, #ids)
  raise.check(C.lsa_set_add_ids(out.c, array, #ids / 4))
  return out
end

function read.T(self)
  local code, shape, count = C.lsa_dtype_of(self:text()), {}, 1
  for n in self:text():gmatch "%d+" do
    shape[#shape + 1] = tonumber(n)
    count = count * tonumber(n)
  end
  local of, bytes = self:number(), self:text()
  if code < 0 or count * tonumber(C.lsa_dtype_size(code)) ~= #bytes then damaged() end
  local out = tensor.empty(shape, ffi.string(C.lsa_dtype_name(code)))
  out.of = of
  ffi.copy(out.c.data, bytes, #bytes)
  return self:found(out)
end

local function whole_number(self, name)
  local x = ffi.new(name .. "[1]")
  ffi.copy(x, self:take(8), 8)
  return self:found(x[0])
end

function read.l(self) return whole_number(self, "int64_t") end
function read.u(self) return whole_number(self, "uint64_t") end

function read.a(self)
  local name, bytes = self:text(), self:text()
  local element, length = name:match "^(.-) ?%[([%d?]+)%]$"
  if not element or not ELEMENTS[element] then damaged() end
  local n = #bytes / ffi.sizeof(element)
  if n ~= math.floor(n) or (length ~= "?" and tonumber(length) ~= n) then damaged() end
  local out = length == "?" and ffi.new(element .. "[?]", n) or ffi.new(("%s[%d]"):format(element, n))
  ffi.copy(out, bytes, #bytes)
  return self:found(out)
end

function Decoder:value(depth)
  depth = depth + 1
  local reader = read[self:take(1)]
  if not reader or depth > MOST_DEPTH then damaged() end
  return reader(self, depth)
end

function M.decode(bytes, roots)
  local decoder = setmetatable({bytes = bytes, at = 1, known = {}, cells = {}, count = 0, code = code_of(roots or {})}, Decoder)
  local value = decoder:value(0)
  if decoder.at ~= #bytes + 1 then damaged() end
  return value
end

return M
