-- Sets of ids 0..n-1: residents, candidates, what a policy selects. lsa.set(n) makes an empty one.
--
--   s:add(x) s:remove(x)     x is an id, a list of ids, an i32 tensor of ids, or a set; they change s and return it
--   s:range(a, b)            adds a .. b-1
--   s:every(step)            adds 0, step, 2 step, ...
--   s:has(id) s:count() #s s:size()     size is n
--   s:ids()                  an i32 tensor, ascending;  for id in s:each() do ... end
--   s:union(r) s:intersect(r) s:minus(r) s:invert() s:dilate(radius) s:copy()          new sets
--   s:pages(size)            the pages that have a member
--   s:chunks(size)           the ids of the pages in s, as many ids as there were before they became pages (by s:pages,
--                            x:pages or s:density); a set made otherwise needs s:chunks(size, n) where n is no multiple
--   s:density(size)          an f32 tensor: members of each page
--   s:resize(n)              ids from n on are dropped
--   s:equals(r) s:intersect_count(r)
-- A set's C object is s.c (core/base/set.h).
local ffi = require "ffi"
local arity = require "lsa.arity"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"
local owned = require "lsa.tensor.memory_pressure"

local M = {}
local Set = {}
local check = raise.check

-- Looked up when it is first used: tensors need sets, too.
local tensors
local function tensor_module()
  tensors = tensors or require "lsa.tensor.tensor"
  return tensors
end

-- A struct of its own, because only cdata (not tables) have a length operator in this Lua.
local object

-- of: how many ids the set's pages were made of, where it is a set of pages; 0 otherwise.
local function new(n, of)
  local out = object()
  check(C.lsa_set_new(out.box, n))
  out.of = of or 0
  owned(tonumber(n) / 8)
  return out
end

-- As new, with undefined contents: for results that are then written whole.
local function result(n, of)
  local out = object()
  check(C.lsa_set_make(out.box, n))
  out.of = of or 0
  owned(tonumber(n) / 8)
  return out
end

local function is_set(x)
  return ffi.istype(object, x)
end

local function whole(x)
  return type(x) == "number" and x == math.floor(x) and math.abs(x) < 2 ^ 53
end

-- `what` is the argument's name, with its method's: "set topk: k".
local function want_whole(x, what)
  if not whole(x) then raise("%s is %s, a whole number is wanted", what, type(x) == "number" and x or raise.kind(x)) end
  return x
end

local function want_set(x, what)
  if not is_set(x) then raise("%s is %s, a set is wanted", what, raise.kind(x)) end
  return x
end

function M.new(n)
  return new(want_whole(n, "set: n"))
end

-- A set of n pages of `of` ids.
M.of_pages = new

M.result = result

-- An int32_t array and its length from a list or tensor of ids; the last result keeps the memory alive.
local function id_array(x, what)
  if type(x) == "table" then
    local n = #x
    local ids = ffi.new("int32_t[?]", n)
    for i = 1, n do
      local id = x[i]
      if not whole(id) or math.abs(id) >= 2 ^ 31 then
        raise("%s: element %d is %s, an id is wanted", what, i, type(id) == "number" and id or raise.kind(id))
      end
      ids[i - 1] = id
    end
    return ids, n, ids
  end
  local tensor = tensor_module()
  if not tensor.is(x) then
    raise("%s is %s; an id, a list of ids, an i32 tensor or a set is wanted", what, raise.kind(x))
  end
  local t = x:to "cpu":contiguous()
  if t.c.dtype ~= C.LSA_I32 then raise("%s is a tensor of %s, ids are i32", what, t:dtype()) end
  return ffi.cast("const int32_t *", t.c.data), t:count(), t
end

function Set:size()
  return tonumber(self.c.n)
end

function Set:add(ids)
  if type(ids) == "number" then
    check(C.lsa_set_add(self.c, want_whole(ids, "set add: id")))
  elseif is_set(ids) then
    check(C.lsa_set_union(self.c, self.c, ids.c))
  else
    local list, n, _ = id_array(ids, "set add: ids")
    check(C.lsa_set_add_ids(self.c, list, n))
  end
  return self
end

function Set:remove(ids)
  if type(ids) == "number" then
    check(C.lsa_set_remove(self.c, want_whole(ids, "set remove: id")))
  elseif is_set(ids) then
    check(C.lsa_set_minus(self.c, self.c, ids.c))
  else
    local gone = new(self.c.n):add(ids)
    check(C.lsa_set_minus(self.c, self.c, gone.c))
  end
  return self
end

function Set:range(a, b)
  check(C.lsa_set_add_range(self.c, want_whole(a, "set range: a"), want_whole(b, "set range: b")))
  return self
end

function Set:every(step)
  check(C.lsa_set_add_every(self.c, want_whole(step, "set every: step")))
  return self
end

function Set:has(id)
  if type(id) ~= "number" then raise("set has: id is %s, a whole number is wanted", raise.kind(id)) end
  return C.lsa_set_has(self.c, id) == 1
end

function Set:count()
  return tonumber(C.lsa_set_count(self.c))
end

function Set:ids()
  local t = tensor_module().empty({self:count()}, "i32")
  C.lsa_set_ids(self.c, ffi.cast("int32_t *", t.c.data))
  return t
end

function Set:each()
  local n = self:count()
  local ids = ffi.new("int32_t[?]", n)
  C.lsa_set_ids(self.c, ids)
  local i = -1
  return function()
    i = i + 1
    if i < n then return ids[i] end
  end
end

function Set:copy()
  local out = result(self.c.n, self.of)
  check(C.lsa_set_copy(out.c, self.c))
  return out
end

-- The other operand of a set operation may be whatever `add` takes but a single id.
local function operand(self, x, what)
  if is_set(x) then return x end
  if type(x) == "number" or x == nil then want_set(x, what) end
  return new(self.c.n):add(x)
end

function Set:union(r)
  local other, out = operand(self, r, "set union: r"), result(self.c.n, self.of)
  check(C.lsa_set_union(out.c, self.c, other.c))
  return out
end

function Set:intersect(r)
  local other, out = operand(self, r, "set intersect: r"), result(self.c.n, self.of)
  check(C.lsa_set_intersect(out.c, self.c, other.c))
  return out
end

function Set:minus(r)
  local other, out = operand(self, r, "set minus: r"), result(self.c.n, self.of)
  check(C.lsa_set_minus(out.c, self.c, other.c))
  return out
end

function Set:invert()
  local out = self:copy()
  C.lsa_set_invert(out.c)
  return out
end

function Set:dilate(radius)
  want_whole(radius, "set dilate: radius")
  local out = result(self.c.n, self.of)
  check(C.lsa_set_dilate(out.c, self.c, radius))
  return out
end

local function page_size(size, what)
  if want_whole(size, what) < 1 then raise("%s is %d, at least 1 is wanted", what, size) end
  return size
end

function Set:pages(size)
  page_size(size, "set pages: size")
  local out = result(math.ceil(self:size() / size), self.c.n)
  check(C.lsa_set_pages(out.c, self.c, size))
  return out
end

function Set:chunks(size, n)
  page_size(size, "set chunks: size")
  if n == nil then
    local of = tonumber(self.of)
    n = math.ceil(of / size) == self:size() and of or self:size() * size
  end
  local out = result(want_whole(n, "set chunks: n"))
  check(C.lsa_set_chunks(out.c, self.c, size))
  return out
end

function Set:resize(n)
  want_whole(n, "set resize: n")
  if n >= self.c.n then
    local out = result(n)
    check(C.lsa_set_copy(out.c, self.c))
    return out
  end
  local out = result(n)
  local words = math.ceil(n / 64)
  ffi.copy(out.c.bits, self.c.bits, words * 8)
  if n % 64 ~= 0 then
    out.c.bits[words - 1] = bit.band(out.c.bits[words - 1], bit.rshift(-1ULL, 64 - n % 64))
  end
  return out
end

function Set:equals(r)
  want_set(r, "set equals: r")
  local a, b = self.c, r.c
  if a.n ~= b.n then return false end
  local both = C.lsa_set_intersect_count(a, b)
  return both == C.lsa_set_count(a) and both == C.lsa_set_count(b)
end

-- How many members of each page of `size` ids, as an f32 tensor.
function Set:density(size)
  page_size(size, "set density: size")
  local out = tensor_module().empty {math.ceil(self:size() / size)}
  out.of = self.c.n
  check(C.lsa_density_cpu(ffi.cast("float *", out.c.data), self.c.bits, self.c.n, size, nil))
  return out
end

function Set:intersect_count(r)
  return tonumber(C.lsa_set_intersect_count(self.c, want_set(r, "set intersect_count: r").c))
end

-- "set: 5 of 100 ids: 0..2, 7, 9"
local function describe(self)
  local runs, from, to, cut = {}, nil, nil, false
  for id in self:each() do
    if to and id == to + 1 then
      to = id
    else
      if from then runs[#runs + 1] = from == to and from or from .. ".." .. to end
      from, to = id, id
      if #runs == 8 then
        cut = true
        break
      end
    end
  end
  if from then runs[#runs + 1] = cut and "..." or from == to and from or from .. ".." .. to end
  local text = ("set: %d of %d ids"):format(self:count(), self:size())
  return #runs > 0 and text .. ": " .. table.concat(runs, ", ") or text
end

Set.__methods = Set -- what the prompt completes
object = ffi.metatype("struct { union { lsa_set *c; lsa_set *box[1]; }; int64_t of; }", {
  __index = Set,
  __len = Set.count,
  __tostring = describe,
  __gc = function(self) C.lsa_set_free(self.c) end,
})

arity.methods(Set, "set ") -- not before: Lua gives __len two

-- Frees s, which nothing may look at from here on, now: its memory is warm for what is made next.
function M.release(s)
  owned.give_back(tonumber(s.c.n) / 8)
  C.lsa_set_drop(s.box)
end

M.is = is_set
raise.kinds[#raise.kinds + 1] = {is_set, "a set"}

return M
