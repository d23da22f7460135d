-- Tensors: views on reference-counted memory. lsa.zeros(shape, dtype), lsa.tensor(data, dtype).
--
--   x:shape() x:dtype() x:device() #x          #x is the first dimension; dimensions and elements count from 0
--   x:totable() x:item() x:get(i, j) x:set(i, j, v) x:fill(v) tostring(x)
--   x:row(i) x:narrow(dim, from, n) x:reshape(shape)        views on the same memory
--   x:copy() a new tensor; x:copy(y) y's values into x; x:contiguous(); x:to "cuda", x:to "bf16"
--   x:pages(size, "sum"|"max"|"mean"|"min")    the last dimension in pages
--   x:where(set, y)     [n]: x's element where the set has its id, y's (or the number y) elsewhere; a mask of u8 of x's shape
--   x:topk(k) x:topp(m)     1-D tensors make sets; x:topk(k, s) makes s that set
--   x[i]                    an element, or a row; i counts from the end where it is negative. x[i] = v
--   arithmetic, functions, comparisons: arithmetic.lua; views, x:index, lsa.cat: shapes.lua; x:sum(dim) and its like:
--   reductions.lua; x:sort() and its like: orders.lua; lsa.ones, lsa.rand and its like: making.lua
-- Every op makes a new tensor; what is on a device is brought to the host for it. Numbers that the dtype that they are put into
-- does not have are errors.
-- A tensor's C object is x.c (core/base/tensor.h); x:pointer() is its first element, raw: read through it, a NaN of odd bits is taken
-- for a value of another type by LuaJIT, which x[i], x:get(i) and x:totable() see to.
local ffi = require "ffi"
local arity = require "lsa.arity"
local C = require("lsa.ffi").C
local real = require "lsa.tensor.real"
local raise = require "lsa.raise"
local owned = require "lsa.tensor.memory_pressure"

local M = {}
local Tensor = {}
local check = raise.check
local dims, other_dims = ffi.new "int64_t[6]", ffi.new "int64_t[6]"
local object                                     -- the ctype of tensors, made below
local inner = {}                                 -- what other files make methods of

-- Element types; those that C has no type for go through f32.
local ctypes = {
  f32 = ffi.typeof "float *", i8 = ffi.typeof "int8_t *", u8 = ffi.typeof "uint8_t *", i32 = ffi.typeof "int32_t *",
  i64 = ffi.typeof "int64_t *", f64 = ffi.typeof "double *", bf16 = ffi.typeof "uint16_t *",
  f16 = ffi.typeof "uint16_t *", f8_e4m3 = ffi.typeof "uint8_t *", f8_e8m0 = ffi.typeof "uint8_t *",
}
local names, codes, pointers, direct = {}, {}, {}, {}
for code = 0, tonumber(C.LSA_DTYPES) - 1 do
  local name = ffi.string(C.lsa_dtype_name(code))
  names[code], codes[name], pointers[code] = name, code, ctypes[name]
  direct[code] = name == "f32" or name == "f64" or name:find "^[iu]" ~= nil
end
local F32, F64 = codes.f32, codes.f64
local integers = {i8 = {-2 ^ 7, 2 ^ 7 - 1}, u8 = {0, 2 ^ 8 - 1}, i32 = {-2 ^ 31, 2 ^ 31 - 1}, i64 = {-2 ^ 63, 2 ^ 63 - 1024}}
local limits = {}                                -- by code: the least and the greatest number of an integer dtype
for name, range in pairs(integers) do limits[codes[name]] = range end

-- Sets need tensors, too: each is looked up when it is first used, and once, since require is not compiled.
local sets
local function set_module()
  sets = sets or require "lsa.tensor.set"
  return sets
end

-- ---- making ----

local function is_tensor(x)
  return ffi.istype(object, x)
end

local function count(c)
  return tonumber(C.lsa_tensor_count(c))
end

local function whole(x)
  return type(x) == "number" and x == math.floor(x) and math.abs(x) < 2 ^ 53
end

local function shown(x)
  if type(x) == "number" then return tostring(x) end
  if type(x) == "string" then return ('"%s"'):format(x) end
  return raise.kind(x)
end

local function want_whole(x, what)
  if whole(x) then return x end
  if type(x) == "number" and x == math.floor(x) then raise("%s is %.17g, a whole number below 2^53 is wanted", what, x) end
  raise("%s is %s, a whole number is wanted", what, shown(x))
end

local function want_number(x, what)
  if type(x) ~= "number" then raise("%s is %s, a number is wanted", what, shown(x)) end
  return x
end

local function want_tensor(x, what)
  if not is_tensor(x) then raise("%s is %s, a tensor is wanted", what, shown(x)) end
  return x
end

local function want_dtype(name, what)
  local code = codes[name or "f32"]
  if not code then
    raise("%s is %s; f32, bf16, f16, f8_e4m3, f8_e8m0, i8, u8, i32, i64 and f64 are known", what, shown(name))
  end
  return code
end

-- Writes a shape (a list, or one number) into an int64_t[6]; returns the rank.
local function read_shape(shape, what, into)
  if type(shape) == "number" then shape = {shape} end
  if type(shape) ~= "table" then raise("%s is %s, a list of dimensions is wanted", what, shown(shape)) end
  if #shape > 6 then raise("%s has %d dimensions, at most 6 are possible", what, #shape) end
  for i = 1, #shape do
    local n = shape[i]
    if not whole(n) or n < 0 then raise("%s: dimension %d is %s", what, i - 1, shown(n)) end
    into[i - 1] = n
  end
  return #shape
end

-- A method's shape: a list, or numbers.
local function dimensions_of(what, first, ...)
  local more = select("#", ...)
  if type(first) == "number" then return {first, ...} end
  if type(first) ~= "table" then raise("%s: shape is %s, a list of dimensions is wanted", what, shown(first)) end
  if more > 0 then raise("%s: %d arguments, one list or numbers are wanted", what, more + 1) end
  return first
end

-- A tensor without one of C's, which C puts into its box: an interrupt between the two costs nothing.
local function unmade() return object() end

-- t, whose memory is new.
local function counted(t)
  owned(count(t.c) * tonumber(C.lsa_dtype_size(t.c.dtype)))
  return t
end

local function empty(code, rank, shape)
  local out = unmade()
  check(C.lsa_tensor_empty(out.box, code, rank, shape))
  return counted(out)
end

-- A view, whose memory was counted when it was made.
local function view(c, offset, rank, shape, stride)
  local out = unmade()
  check(C.lsa_tensor_view(out.box, c, offset, rank, shape, stride))
  return out
end

function M.zeros(shape, dtype)
  local code = want_dtype(dtype, "zeros: dtype")
  local out = unmade()
  check(C.lsa_tensor_new(out.box, code, read_shape(shape, "zeros: shape", dims), dims))
  return counted(out)
end

-- As zeros, with undefined contents: for results that are then written whole.
function M.empty(shape, dtype)
  local code = want_dtype(dtype, "empty: dtype")
  return empty(code, read_shape(shape, "empty: shape", dims), dims)
end

-- A new f32 tensor of t's shape, of the same pages if it is one of pages.
local function like(t)
  local c = t.c
  local out = empty(F32, c.rank, c.shape)
  out.of = t.of
  return out
end

-- Frees t, which nothing may look at from here on, now: its memory is warm for what is made next.
function M.release(t)
  owned.give_back(count(t.c) * tonumber(C.lsa_dtype_size(t.c.dtype)))
  C.lsa_tensor_drop(t.box)
end

M.unmade = unmade
M.is = is_tensor
raise.kinds[#raise.kinds + 1] = {is_tensor, "a tensor"}

local function is_value(x)
  return type(x) == "number" or ffi.istype("int64_t", x) or ffi.istype("uint64_t", x)
end

-- v, where an element of the dtype can be it.
local function fitting(v, code, what)
  local range = limits[code]
  if not range or code == codes.i64 and ffi.istype("int64_t", v) then return v end
  local n = tonumber(v)
  if not (n >= range[1] and n <= range[2] and n == math.floor(n)) then
    raise("%s is %s, which %s cannot hold", what, type(v) == "number" and ("%.17g"):format(v) or tostring(v), names[code])
  end
  return v
end

local function data_shape(data, shape)
  if type(data) == "table" then
    shape[#shape + 1] = #data
    if #shape > 6 then raise "tensor: data is nested deeper than 6" end
    if #data > 0 then data_shape(data[1], shape) end
  end
  return shape
end

-- Writes nested data from element `at` on; returns where it ends.
local function flatten(data, shape, depth, out, at, code)
  local n = shape[depth]
  if not n then
    if not is_value(data) then raise("tensor: element %d is %s, a number is wanted", at, shown(data)) end
    out[at] = limits[code] and fitting(data, code, "tensor: element " .. at) or data
    return at + 1
  end
  if type(data) ~= "table" then raise("tensor: element %d is %s, a list of %d is wanted", at, shown(data), n) end
  if #data ~= n then
    raise("tensor: a list has %d elements where the first of its depth has %d", #data, n)
  end
  for i = 1, n do at = flatten(data[i], shape, depth + 1, out, at, code) end
  return at
end

function M.new(data, dtype)
  local code = want_dtype(dtype, "tensor: dtype")
  if is_tensor(data) then return data:to(names[code]):copy() end
  if type(data) ~= "table" and not is_value(data) then
    raise("tensor: data is %s; numbers, nested as the tensor is, are wanted", shown(data))
  end
  local shape = data_shape(data, {})
  local t = M.empty(shape, direct[code] and names[code] or "f32")
  flatten(data, shape, 1, t:pointer(), 0, code)
  return t:to(names[code])
end

-- ---- what it is ----

local function shape_of(c)
  local shape = {}
  for i = 0, c.rank - 1 do shape[i + 1] = tonumber(c.shape[i]) end
  return shape
end

local function shape_text(c)
  return "[" .. table.concat(shape_of(c), ", ") .. "]"
end

function Tensor:shape() return shape_of(self.c) end
function Tensor:dtype() return names[self.c.dtype] end
function Tensor:device() return self.c.device == C.LSA_CPU and "cpu" or "cuda" end
function Tensor:count() return count(self.c) end
function Tensor:bytes() return count(self.c) * tonumber(C.lsa_dtype_size(self.c.dtype)) end
function Tensor:is_contiguous() return C.lsa_tensor_contiguous(self.c) == 1 end

-- The first element, typed: float * for f32, int32_t * for i32, uint16_t * for bf16 and f16, ... It is raw memory, whose floating-point
-- numbers are read by lua/lsa/tensor/real.lua where they may be anything.
function Tensor:pointer()
  return ffi.cast(pointers[self.c.dtype], self.c.data)
end

local function writable(t, what)
  if t.c.read_only ~= 0 then raise("%s: the tensor is read-only (a mapped file); x:copy() makes one that is not", what) end
end

-- ---- moving ----

local function host(t)
  return t.c.device == C.LSA_CPU and t or t:to "cpu"
end

function Tensor:contiguous()
  local c = self.c
  if C.lsa_tensor_contiguous(c) == 1 then return self end
  return self:copy()
end

-- y's values into x, of the same shape; converted to x's dtype. Without y: a new contiguous tensor.
function Tensor:copy(y)
  local c = self.c
  if y == nil then
    if c.device ~= C.LSA_CPU then return require("lsa.tensor.device").copy(self) end
    local out = empty(c.dtype, c.rank, c.shape)
    check(C.lsa_copy_cpu(out.c.data, c.data, C.lsa_dtype_size(c.dtype), c.rank, c.shape, out.c.stride, c.stride, nil))
    return out
  end
  want_tensor(y, "copy: y")
  writable(self, "copy")
  local from = y.c
  local same = c.rank == from.rank
  for i = 0, c.rank - 1 do same = same and c.shape[i] == from.shape[i] end
  if not same then raise("copy: y has shape %s, the tensor %s", shape_text(from), shape_text(c)) end
  if c.device ~= C.LSA_CPU or from.device ~= C.LSA_CPU then return require("lsa.tensor.device").copy(y, self) end
  local source = from.dtype == c.dtype and y or y:to(self:dtype())
  -- Views on one storage may overlap.
  if source.c.storage == c.storage then source = source:copy() end
  check(C.lsa_copy_cpu(c.data, source.c.data, C.lsa_dtype_size(c.dtype), c.rank, c.shape, c.stride, source.c.stride,
    nil))
  return self
end

-- What does not fit is the nearest that does.
local function converted(source, code)
  local c = source.c
  local out = empty(code, c.rank, c.shape)
  check(C.lsa_convert_cpu(out.c.data, source.c.data, count(c), code, c.dtype, nil))
  return out
end

-- Whether integers of a dtype have all elements of `source`, on the host and contiguous; fractions are cut off.
local function check_range(source, code)
  local range, from = limits[code], source.c.dtype
  local own = limits[from]
  if not range or own and own[1] >= range[1] and own[2] <= range[2] then return end
  local low, high = range[1] - 1, range[2] + 1
  if code == codes.i64 then low, high = -2 ^ 63 - 2 ^ 11, 2 ^ 63 end -- the doubles next to those that fit
  local values = direct[from] and source or source:to "f32"
  local p = values:pointer()
  for i = 0, count(source.c) - 1 do
    local v = p[i]
    if not (v > low and v < high) then
      v = source:reshape {count(source.c)}:get(i)
      raise("to: element %d is %s, which %s cannot hold", i, type(v) == "number" and ("%.17g"):format(v) or tostring(v), names[code])
    end
  end
end

-- A dtype or a device (x:to(dtype):to(device)); the tensor itself when it already is what is asked for. To integers, towards zero.
function Tensor:to(what)
  if what == "cpu" or what == "cuda" then
    if self:device() == what then return self end
    return require("lsa.tensor.device").move(self, what)
  end
  local code = want_dtype(what or "nothing", "to: dtype or device")
  local c = self.c
  if c.dtype == code then return self end
  if c.device ~= C.LSA_CPU then return self:to "cpu":to(what):to "cuda" end
  local source = self:contiguous()
  check_range(source, code)
  return converted(source, code)
end

-- On the host, f32, contiguous: what the kernels of arithmetic take.
local function f32(t)
  local c = t.c
  if c.dtype == F32 and c.device == C.LSA_CPU and C.lsa_tensor_contiguous(c) == 1 then return t end
  local source = host(t):contiguous()
  local out = source:to "f32"
  if c.dtype == codes.i32 or c.dtype == codes.i64 then
    local from, to = source:pointer(), ffi.cast("float *", out.c.data)
    for i = 0, count(c) - 1 do
      if from[i] ~= to[i] then
        raise("element %d is %s, which f32 cannot hold; x:to \"f32\" rounds", i, (tostring(from[i]):gsub("U?LL$", "")))
      end
    end
  end
  return out
end

local function floats(t)
  return ffi.cast("float *", t.c.data)
end

-- ---- elements ----

local scratch = ffi.new "float[1]"

-- An element as a number; an integer beyond 2^53 as the int64_t that it is.
local function integer(p, i)
  local v = p[i]
  return v >= -2LL ^ 53 and v <= 2LL ^ 53 and tonumber(v) or v
end

local function read_element(c, offset)
  if c.dtype == F32 then return real.f32(c.data, offset) end
  if c.dtype == F64 then return real.f64(c.data, offset) end
  if direct[c.dtype] then return (integer(ffi.cast(pointers[c.dtype], c.data), offset)) end
  local at = ffi.cast("char *", c.data) + offset * C.lsa_dtype_size(c.dtype)
  check(C.lsa_convert_cpu(scratch, at, 1, F32, c.dtype, nil))
  return real.f32(scratch, 0)
end

local function load_element(c, offset)
  local value = read_element(c, offset)
  if c.read_only ~= 0 then check(0) end -- a mapped file may have been cut meanwhile
  return value
end

local function store_element(c, offset, v, what)
  fitting(v, c.dtype, what)
  if direct[c.dtype] then
    ffi.cast(pointers[c.dtype], c.data)[offset] = v
    return
  end
  scratch[0] = v
  local at = ffi.cast("char *", c.data) + offset * C.lsa_dtype_size(c.dtype)
  check(C.lsa_convert_cpu(at, scratch, 1, c.dtype, F32, nil))
end

-- An index into a dimension, counted from its end where it is negative.
local function want_index(c, dim, i, what)
  want_whole(i, what)
  local n = tonumber(c.shape[dim])
  local at = i < 0 and i + n or i
  if at < 0 or at >= n then raise("%s is %d, dimension %d has %d", what, i, dim, n) end
  return at
end

-- Where element (i, j, ...) lies, in elements from the first.
local function offset_of(c, what, n, ...)
  if n ~= c.rank then raise("%s: %d indices for a %d-D tensor", what, n, c.rank) end
  local offset = 0
  for d = 0, n - 1 do
    offset = offset + want_index(c, d, (select(d + 1, ...)), what .. ": index " .. d) * tonumber(c.stride[d])
  end
  return offset
end

-- What a tensor on a device is in host memory, for who reads it element by element: until something there is written to.
local MOST_MIRRORED = 2 ^ 26     -- bytes; of a larger one, elements come one by one
local mirrors = setmetatable({}, {__mode = "k"})

local function mirror(t)
  local device, known = require "lsa.tensor.device", mirrors[t]
  if not known or known.writes ~= device.writes then
    known = {writes = device.writes, host = t:to "cpu"}
    mirrors[t] = known
  end
  return known.host
end

local function element(t, what, n, ...)
  local c = t.c
  local offset = offset_of(c, what, n, ...)
  if c.device == C.LSA_CPU then return load_element(c, offset) end
  if t:bytes() <= MOST_MIRRORED then return load_element(mirror(t).c, offset) end
  return view(c, offset, 0, dims, dims):to "cpu":item()
end

function Tensor:get(...)
  return (element(self, "get", select("#", ...), ...))
end

function Tensor:set(...)
  local n = select("#", ...)
  if n == 0 then raise "set: no value given" end
  local v = select(n, ...)
  if not is_value(v) then raise("set: the value is %s, a number is wanted", shown(v)) end
  writable(self, "set")
  local offset = offset_of(self.c, "set", n - 1, ...)
  if self.c.device == C.LSA_CPU then
    store_element(self.c, offset, v, "set: the value")
  else
    view(self.c, offset, 0, dims, dims):copy(M.new(v, self:dtype()))
  end
  return self
end

function Tensor:item()
  if count(self.c) ~= 1 then raise("item: the tensor has %d elements", count(self.c)) end
  return (load_element(host(self).c, 0))
end

function Tensor:fill(v)
  want_number(v, "fill: v")
  writable(self, "fill")
  if self.c.device ~= C.LSA_CPU or not self:is_contiguous() then
    return self:copy(M.empty(self:shape(), self:dtype()):fill(v))
  end
  local n = count(self.c)
  if n == 0 then return self end
  store_element(self.c, 0, v, "fill: v")
  -- Doubling: each copy takes what is there already.
  local size, done = tonumber(C.lsa_dtype_size(self.c.dtype)), 1
  local p = ffi.cast("char *", self.c.data)
  while done < n do
    local m = math.min(done, n - done)
    ffi.copy(p + done * size, p, m * size)
    done = done + m
  end
  return self
end

-- value(p, i) reads an element.
local function nest(p, c, dim, at, value)
  if dim == c.rank then return value(p, at) end
  local t, stride = {}, tonumber(c.stride[dim])
  if dim == c.rank - 1 then
    for i = 0, tonumber(c.shape[dim]) - 1 do t[i + 1] = value(p, at + i * stride) end
  else
    for i = 0, tonumber(c.shape[dim]) - 1 do t[i + 1] = nest(p, c, dim + 1, at + i * stride, value) end
  end
  return t
end

function Tensor:totable()
  local t = host(self)
  if not direct[t.c.dtype] then t = t:to "f32" end
  local out = nest(t:pointer(), t.c, 0, 0, t.c.dtype == F32 and real.f32 or t.c.dtype == F64 and real.f64 or integer)
  check(0) -- a mapped file may have been cut meanwhile
  return out
end

-- ---- views ----

function Tensor:narrow(dim, from, n)
  local c = self.c
  want_whole(dim, "narrow: dim")
  if dim < 0 and dim >= -c.rank then dim = dim + c.rank end
  want_whole(from, "narrow: from")
  if from < 0 and dim >= 0 and dim < c.rank then from = from + tonumber(c.shape[dim]) end
  want_whole(n, "narrow: n")
  local out = unmade()
  check(C.lsa_tensor_narrow(out.box, c, dim, from, n))
  return out
end

function Tensor:row(i)
  local c = self.c
  want_whole(i, "row: i")
  if c.rank == 0 then raise "row: the tensor has no dimensions" end
  local n = tonumber(c.shape[0])
  local at = i < 0 and i + n or i
  if at < 0 or at >= n then raise("row: i is %d, the tensor has %d rows", i, n) end
  return view(c, at * c.stride[0], c.rank - 1, c.shape + 1, c.stride + 1)
end

-- One dimension may be -1: what remains. A tensor that is not contiguous is copied.
function Tensor:reshape(...)
  local shape = dimensions_of("reshape", ...)
  local n, known, free, filled = count(self.c), 1, nil, {}
  for i, m in ipairs(shape) do
    filled[i] = m
    if m == -1 and not free then free = i else known = known * want_whole(m, "reshape: dimension " .. i - 1) end
  end
  if free then filled[free] = known > 0 and n / known or 0 end
  local rank, total = read_shape(filled, "reshape: shape", dims), 1
  for i = 0, rank - 1 do total = total * tonumber(dims[i]) end
  if total ~= n then
    raise("reshape: shape [%s] has %.0f elements, the tensor %s has %d", table.concat(filled, ", "), total,
      shape_text(self.c), n)
  end
  local source, stride = self:contiguous(), 1
  read_shape(filled, "reshape: shape", dims)
  for i = rank - 1, 0, -1 do
    other_dims[i] = stride
    stride = stride * tonumber(dims[i])
  end
  return view(source.c, 0, rank, dims, other_dims)
end

-- ---- pages ----

local reductions = {sum = C.LSA_REDUCE_SUM, mean = C.LSA_REDUCE_MEAN, min = C.LSA_REDUCE_MIN, max = C.LSA_REDUCE_MAX}

function Tensor:pages(size, how)
  local a = f32(self)
  local c = a.c
  want_whole(size, "pages: size")
  if size < 1 then raise("pages: size is %d, at least 1 is wanted", size) end
  local op = reductions[how]
  if not op then raise('pages: how is %s; "sum", "max", "mean" and "min" are possible', shown(how)) end
  if c.rank == 0 then raise "pages: the tensor has no dimensions" end
  local shape, rows = shape_of(c), 1
  local n = shape[#shape]
  for i = 1, #shape - 1 do rows = rows * shape[i] end
  shape[#shape] = math.ceil(n / size)
  local out = M.empty(shape)
  if c.rank == 1 then out.of = n end
  check(C.lsa_pages_cpu(floats(out), floats(a), rows, n, size, op, nil))
  return out
end

-- ---- selection ----

local function row_of_scores(t, what, into)
  if t.c.rank ~= 1 then raise("%s: the tensor has shape %s, 1-D is wanted", what, shape_text(t.c)) end
  local set = set_module()
  if into == nil then return f32(t), set.result(tonumber(t.c.shape[0]), t.of) end
  if not set.is(into) then raise("%s: into is %s, a set is wanted", what, shown(into)) end
  if into.c.n ~= t.c.shape[0] then
    raise("%s: into is over %d ids, the tensor has shape %s", what, tonumber(into.c.n), shape_text(t.c))
  end
  into.of = t.of
  return f32(t), into
end

local workspace = {bytes = 0}

-- Kept between calls: a selection runs every cycle.
local function select_workspace(n)
  local bytes = tonumber(C.lsa_select_workspace(n))
  if workspace.bytes < bytes then
    workspace = {bytes = bytes, tensor = M.empty({bytes}, "u8")}
  end
  return workspace.tensor.c.data
end

-- "ge" or "gt" of a 1-D tensor of floats.
local function above(t, v, what)
  local a, out = row_of_scores(t, what)
  check(C.lsa_select_above_cpu(out.c.bits, floats(a), out.c.n, v, what == "gt" and 1 or 0, nil))
  return out
end

-- into: a set that becomes the result; for whoever asks again and again.
function Tensor:topk(k, into)
  want_whole(k, "topk: k")
  local a, out = row_of_scores(self, "topk", into)
  check(C.lsa_select_topk_cpu(out.c.bits, floats(a), out.c.n, k, select_workspace(out.c.n), nil))
  return out
end

function Tensor:topp(m)
  want_number(m, "topp: m")
  local a, out = row_of_scores(self, "topp")
  check(C.lsa_select_topp_cpu(out.c.bits, floats(a), out.c.n, m, select_workspace(out.c.n), nil))
  return out
end

-- ---- what is made of all this ----

inner.converted, inner.integers = converted, integers
inner.Tensor, inner.M, inner.names, inner.host, inner.view, inner.count = Tensor, M, names, host, view, count
inner.is_tensor, inner.is_value, inner.shown, inner.shape_text, inner.like = is_tensor, is_value, shown, shape_text, like
inner.want_whole, inner.want_number, inner.want_index, inner.read_shape = want_whole, want_number, want_index, read_shape
inner.dimensions_of = dimensions_of
inner.integer = integer
-- A number, or an int64_t, with all its digits.
function inner.digits(v) return type(v) == "cdata" and tostring(v):gsub("LL$", "") or ("%.17g"):format(v) end
inner.f32, inner.floats, inner.above, inner.set_module = f32, floats, above, set_module
for _, part in ipairs {"arithmetic", "shapes", "reductions", "orders", "making", "printing"} do require("lsa.tensor." .. part)(inner) end

-- x:sum, x[i], and a message that helps for whatever is neither.
local function look_up(self, key)
  local method = Tensor[key]
  if method ~= nil then return method end
  if type(key) == "string" then
    if key:sub(1, 2) == "__" then return nil end
    raise('tensor has no op "%s"%s', key, require "lsa.nearest".hint(key, Tensor))
  end
  if type(key) == "number" and self.c.rank == 1 then return (element(self, "x[i]", 1, key)) end
  if type(key) == "number" then return (self:row(key)) end
  return (self:index(key))
end

local function assign(self, key, value)
  if type(key) ~= "number" then raise("x[i] = v: i is %s, a whole number is wanted", shown(key)) end
  if self.c.rank == 1 and not is_tensor(value) then return self:set(key, value) end
  local row = self:row(key)
  if is_tensor(value) then row:copy(value) else row:fill(value) end
end

-- Lua makes true or false of what this gives, so it cannot compare elements; and it is asked about nil as well.
local function same_object(a, b)
  if not (is_tensor(a) and is_tensor(b)) then return false end
  if a.c == b.c then return true end
  raise "==: tells whether two are one tensor, and these are not; x:eq(y) compares elements"
end

local function no_order()
  raise "< and <=: make true or false in Lua; x:lt(y), x:le(y), x:gt(y) and x:ge(y) compare elements"
end

arity.methods(Tensor, "")
Tensor.__methods = Tensor -- what the prompt completes
-- of: how many elements its pages were made of, where x:pages or s:density made it; so that
-- x:pages(64, "max"):topk(k):chunks(64) has as many ids as x.
local metamethods = {
  __index = look_up,
  __newindex = assign,
  __eq = same_object,
  __lt = no_order,
  __le = no_order,
  __len = function(self)
    if self.c.rank == 0 then raise "#: the tensor has no dimensions" end
    return tonumber(self.c.shape[0])
  end,
  __tostring = inner.describe,
  __gc = function(self) C.lsa_tensor_free(self.c) end,
}
for name, f in pairs(inner.metamethods) do metamethods[name] = f end
object = ffi.metatype("struct { union { lsa_tensor *c; lsa_tensor *box[1]; }; int64_t of; }", metamethods)

return M
