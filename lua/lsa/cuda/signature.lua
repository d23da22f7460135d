-- Owns what types a kernel's arguments have: read off a name that the compiler mangled with them (the Itanium C++ ABI).
--
--   signature.of(mangled)     {{type = "float", pointer = true, constant = true}, {type = "int"}, …} of the function type in
--                             _Z…IPFv…EE; type is C++'s name, "void" behind void *
--   signature.text(argument)  "const float *", as messages call it
local M = {}

local BUILTIN = {v = "void", b = "bool", c = "char", a = "signed char", h = "unsigned char", s = "short", t = "unsigned short",
  i = "int", j = "unsigned int", l = "long", m = "unsigned long", x = "long long", y = "unsigned long long", f = "float", d = "double"}

local Reader = {}
Reader.__index = Reader

function Reader:take(pattern)
  local from, to, found = self.text:find("^(" .. pattern .. ")", self.at)
  if not from then return nil end
  self.at = to + 1
  return found
end

-- What was read before may be named again, by its number.
function Reader:keep(type)
  self.seen[#self.seen + 1] = type
  return type
end

function Reader:substitution()
  local digits = self:take "[0-9A-Z]*_"
  local number = digits == "_" and 0 or tonumber(digits:sub(1, -2), 36) + 1
  return assert(self.seen[number + 1], "a name that is not there")
end

function Reader:name()
  local length = tonumber(self:take "%d+")
  local name = self.text:sub(self.at, self.at + length - 1)
  self.at = self.at + length
  return name
end

-- One of several names in each other; only how it reads is of use.
function Reader:nested()
  local parts = {}
  self:take "[rVK]*"
  while not self:take "E" do
    if self:take "S" then
      parts = {self:take "t" and "std" or self:substitution().type}
    elseif self:take "I" then
      while not self:take "E" do self:type() end
      parts[#parts] = parts[#parts] .. "<…>"
      self:keep {type = table.concat(parts, "::")}
    else
      parts[#parts + 1] = self:name()
      self:keep {type = table.concat(parts, "::")}
    end
  end
  table.remove(self.seen)      -- the whole of it is kept below, as the last of its prefixes
  return self:keep {type = table.concat(parts, "::")}
end

function Reader:type()
  local builtin = self:take "[vbcahstijlmxyfd]"
  if builtin then return {type = BUILTIN[builtin]} end
  if self:take "P" then
    local of = self:type()
    return self:keep {type = of.type, pointer = true, constant = of.constant, deep = of.pointer or of.deep}
  elseif self:take "K" then
    local of = self:type()
    return self:keep {type = of.type, pointer = of.pointer, constant = true, deep = of.deep}
  elseif self:take "V" then
    return self:keep(self:type())
  elseif self:take "S" then
    return self:substitution()
  elseif self:take "N" then
    return self:nested()
  elseif self.text:find("^%d", self.at) then
    local type = self:keep {type = self:name()}
    if self:take "I" then
      while not self:take "E" do self:type() end
      return self:keep {type = type.type .. "<…>"}
    end
    return type
  end
  error("no type at " .. self.text:sub(self.at), 0)
end

function M.of(mangled)
  local reader = setmetatable({text = mangled, at = 3, seen = {}}, Reader)
  reader:keep {type = reader:name()}
  assert(reader:take "IPF", "no function")
  reader:type()                -- the result
  local arguments = {}
  while not reader:take "E" do arguments[#arguments + 1] = reader:type() end
  if #arguments == 1 and arguments[1].type == "void" and not arguments[1].pointer then arguments = {} end
  return arguments
end

function M.text(argument)
  local text = (argument.pointer and argument.constant and "const " or "") .. argument.type
  return argument.pointer and text .. (argument.deep and " **" or " *") or text
end

return M
