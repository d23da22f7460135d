-- Owns what tensors compute element by element: arithmetic, functions, comparisons, and the broadcasting of shapes. tensor.lua
-- gives it what it is made of.
--
-- Numbers are computed in one of four dtypes. Integers stay integers, exact or an error: i8, u8 and i32 give i32, i64 gives i64; with
-- a number that is no integer, with floats, in quotients and in functions they become f64. Other floats become f32.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"

local check = raise.check
local F32, F64, I32, I64 = C.LSA_F32, C.LSA_F64, C.LSA_I32, C.LSA_I64

local ctypes = {[F32] = "float[1]", [F64] = "double[1]", [I32] = "int32_t[1]", [I64] = "int64_t[1]"}
local scalars = {}
for code, ctype in pairs(ctypes) do scalars[code] = ffi.new(ctype) end

return function(inner)
  local Tensor, M = inner.Tensor, inner.M
  local is_tensor, is_value, count, shape_text = inner.is_tensor, inner.is_value, inner.count, inner.shape_text

  -- ---- dtypes ----

  local kinds = {[C.LSA_I8] = I32, [C.LSA_U8] = I32, [I32] = I32, [I64] = I64, [F64] = F64}

  local function kind_of(t) return kinds[t.c.dtype] or F32 end
  inner.kind_of = kind_of

  -- The dtype that a tensor and a number are computed in.
  local function with_number(kind, v)
    if kind == F32 or kind == F64 then return kind end
    if type(v) ~= "number" then return I64 end
    if v ~= math.floor(v) or math.abs(v) >= 2 ^ 53 then return F64 end
    return kind == I32 and v >= -2 ^ 31 and v < 2 ^ 31 and I32 or I64
  end

  local function with_tensor(a, b)
    if a == b then return a end
    local whole = (a == I32 or a == I64) and (b == I32 or b == I64)
    return whole and I64 or F64
  end

  -- On the host, contiguous, of that dtype.
  local function as(t, code)
    local c = t.c
    if c.dtype == code and c.device == C.LSA_CPU and C.lsa_tensor_contiguous(c) == 1 then return t end
    return inner.host(t):to(inner.names[code]):contiguous()
  end
  inner.as = as

  -- ---- broadcasting ----

  -- The shape that both have where dimensions of 1 repeat, as a list.
  local function common_shape(a, b, what)
    local rank, shape = math.max(a.rank, b.rank), {}
    for i = 1, rank do
      local m = a.rank - i >= 0 and tonumber(a.shape[a.rank - i]) or 1
      local n = b.rank - i >= 0 and tonumber(b.shape[b.rank - i]) or 1
      if m ~= n and m ~= 1 and n ~= 1 then
        raise("%s: y has shape %s, x has %s: %d meets %d in dimension %d", what, shape_text(b), shape_text(a), n, m, rank - i)
      end
      shape[rank - i + 1] = m == 1 and n or m
    end
    return shape
  end

  -- Whether c has the last dimensions of `shape`, so that its elements repeat as they lie.
  local function is_end_of(c, shape)
    local skip = 0
    while skip < c.rank and c.shape[skip] == 1 do skip = skip + 1 end
    for i = 1, c.rank - skip do
      if c.shape[c.rank - i] ~= shape[#shape - i + 1] then return false end
    end
    return true
  end

  -- How often each element repeats where c has the first dimensions of `shape`, and 1 in those after them; nil otherwise.
  local function repeats_each(c, shape)
    if c.rank ~= #shape then return nil end
    local each, i = 1, c.rank
    while i > 0 and c.shape[i - 1] == 1 do
      each = each * shape[i]
      i = i - 1
    end
    for k = 1, i do
      if c.shape[k - 1] ~= shape[k] then return nil end
    end
    return each
  end

  -- A tensor's elements as a kernel takes them, and their period (kernels/arith.h); without one they are as many as the result's.
  local function repeating(t, shape, kind)
    if is_end_of(t.c, shape) then
      local flat = as(t, kind)
      return flat, count(flat.c)
    end
    local each = repeats_each(t.c, shape)
    if each then return as(t, kind), -each end
    return as(t:expand(shape), kind), nil
  end

  -- Calls f(out, x, y, n, x's period, y's period, kind) for two tensors, or a tensor and a number on either side. make(shape, kind)
  -- makes the result.
  local function together(x, y, what, kind_for, make, f)
    if not is_tensor(x) then
      if not is_value(x) then raise("%s: x is %s, a number or a tensor is wanted", what, inner.shown(x)) end
    elseif not is_tensor(y) and not is_value(y) then
      raise("%s: y is %s, a tensor is wanted", what, inner.shown(y))
    end
    local kind, shape
    if is_tensor(x) and is_tensor(y) then
      kind, shape = with_tensor(kind_of(x), kind_of(y)), common_shape(x.c, y.c, what)
    else
      local t, v = x, y
      if not is_tensor(x) then t, v = y, x end
      kind, shape = with_number(kind_of(t), v), t:shape()
    end
    kind = kind_for and kind_for(kind) or kind
    local out = make(shape, kind)
    local n = count(out.c)
    if n == 0 then return out end
    -- Both are held until the kernel has run.
    local a, b, a_period, b_period
    if is_tensor(x) then a, a_period = repeating(x, shape, kind) end
    if is_tensor(y) then b, b_period = repeating(y, shape, kind) end
    local value = scalars[kind]
    if not a or not b then value[0] = kind == F64 and tonumber(a and y or x) or (a and y or x) end
    check(f(out.c.data, a and a.c.data or value, b and b.c.data or value, n, a and (a_period or n) or 1, b and (b_period or n) or 1, kind))
    return out
  end

  -- Pages stay pages of as many.
  local function result(x, y, dtype)
    return function(shape, kind)
      local out = M.empty(shape, dtype or inner.names[kind])
      local t = is_tensor(x) and x or y
      if #shape == t.c.rank then out.of = t.of end
      return out
    end
  end

  -- ---- arithmetic ----

  local function quotient(kind) return kind == F32 and F32 or F64 end

  local function binary(x, y, op, what)
    return (together(x, y, what, op == C.LSA_DIV and quotient or nil, result(x, y), function(out, a, b, n, ap, bp, kind)
      return C.lsa_arith_cpu(out, a, b, n, ap, bp, op, kind, nil)
    end))
  end

  local operators = {add = C.LSA_ADD, sub = C.LSA_SUB, mul = C.LSA_MUL, div = C.LSA_DIV, minimum = C.LSA_MIN, maximum = C.LSA_MAX,
    pow = C.LSA_POW}
  for name, op in pairs(operators) do
    Tensor[name] = function(x, y) return (binary(x, y, op, name)) end
  end

  local function metamethod(name) return function(x, y) return (binary(x, y, operators[name], name)) end end
  inner.metamethods = {__add = metamethod "add", __sub = metamethod "sub", __mul = metamethod "mul", __div = metamethod "div",
    __pow = metamethod "pow"}

  -- u8, by a code of LSA_LT and so on.
  local function compare(x, y, op, what)
    return (together(x, y, what, nil, result(x, y, "u8"), function(out, a, b, n, ap, bp, kind)
      return C.lsa_compare_cpu(out, a, b, n, ap, bp, op, kind, nil)
    end))
  end
  function inner.compare(x, y, op) return (compare(x, y, op, "compare")) end

  -- ---- functions ----

  -- Those of integers that are integers.
  local keeps = {abs = true, neg = true, round = true, floor = true, ceil = true}
  local functions = {abs = C.LSA_MAP_ABS, neg = C.LSA_MAP_NEG, round = C.LSA_MAP_ROUND, floor = C.LSA_MAP_FLOOR, ceil = C.LSA_MAP_CEIL,
    sqrt = C.LSA_MAP_SQRT, tanh = C.LSA_MAP_TANH, exp = C.LSA_MAP_EXP, log = C.LSA_MAP_LOG, sigmoid = C.LSA_MAP_SIGMOID}

  -- i64 in another integer dtype, which has to have all of it.
  local function narrowed(t, code, what)
    if code == I64 then return t end
    local out = inner.converted(t:contiguous(), code)
    if count(t.c) > 0 and compare(t, out, C.LSA_NE, what):any() then
      raise("%s: a result does not fit %s; x:to \"i64\" has room", what, inner.names[code])
    end
    return out
  end
  inner.narrowed = narrowed

  local function map(x, name)
    local kind = kind_of(x)
    local whole = kind == I32 or kind == I64
    local compute = not whole and kind or keeps[name] and I64 or F64
    local a = as(x, compute)
    local out = M.empty(x:shape(), inner.names[compute])
    out.of = x.of
    check(C.lsa_map_cpu(out.c.data, a.c.data, count(a.c), functions[name], compute, nil))
    return whole and keeps[name] and narrowed(out, kind, name) or out
  end

  for name in pairs(functions) do
    Tensor[name] = function(x) return (map(x, name)) end
  end
  inner.metamethods.__unm = Tensor.neg

  function Tensor:clamp(low, high)
    if low == nil and high == nil then raise "clamp: neither low nor high is given" end
    if high == nil then return (binary(self, low, C.LSA_MAX, "clamp")) end
    if low == nil then return (binary(self, high, C.LSA_MIN, "clamp")) end
    local out = binary(self, low, C.LSA_MAX, "clamp")
    if out.c.dtype ~= F32 or type(high) ~= "number" then return (binary(out, high, C.LSA_MIN, "clamp")) end
    scalars[F32][0] = high
    check(C.lsa_arith_cpu(out.c.data, out.c.data, scalars[F32], count(out.c), count(out.c), 1, C.LSA_MIN, F32, nil))
    return out
  end

  -- ---- comparisons ----

  -- A 1-D tensor of u8 as the set of those that are not 0.
  local function marked(mask)
    local set = inner.set_module().result(count(mask.c), mask.of)
    check(C.lsa_mark_cpu(set.c.bits, mask.c.data, count(mask.c), nil))
    return set
  end
  inner.marked = marked

  local function wants_mask(options, what)
    if options == nil then return false end
    if type(options) ~= "table" then raise("%s: options is %s, a table is wanted", what, inner.shown(options)) end
    for name in pairs(options) do
      if name ~= "mask" then raise("%s: it has no option %s; mask is known", what, tostring(name)) end
    end
    return options.mask
  end

  -- A set where x is 1-D and y a number, without {mask = true}; else u8.
  local comparisons = {lt = C.LSA_LT, le = C.LSA_LE, eq = C.LSA_EQ, ne = C.LSA_NE, gt = C.LSA_GT, ge = C.LSA_GE}
  for name, op in pairs(comparisons) do
    Tensor[name] = function(x, y, options)
      local set = x.c.rank == 1 and is_value(y) and not wants_mask(options, name)
      if not set and not is_tensor(y) and not is_value(y) then raise("%s: v is %s, a number is wanted", name, inner.shown(y)) end
      if set and kind_of(x) == F32 and (name == "ge" or name == "gt") then return (inner.above(x, tonumber(y), name)) end
      local mask = compare(x, y, op, name)
      return set and marked(mask) or mask
    end
  end

  -- ---- choice ----

  local function chosen_elements(x, chosen)
    local c = x.c
    if is_tensor(chosen) then
      local same = chosen.c.dtype == C.LSA_U8 and chosen.c.rank == c.rank
      for i = 0, c.rank - 1 do same = same and chosen.c.shape[i] == c.shape[i] end
      if same then return (marked(as(chosen, C.LSA_U8))) end
      raise("where: the mask is %s of shape %s, u8 of x's shape, %s, is wanted", chosen:dtype(), shape_text(chosen.c), shape_text(c))
    end
    if not inner.set_module().is(chosen) then raise("where: set is %s, a set or a mask of u8 is wanted", inner.shown(chosen)) end
    if c.rank ~= 1 or chosen.c.n ~= c.shape[0] then
      raise("where: the set is over %d ids, the tensor has shape %s", tonumber(chosen.c.n), shape_text(c))
    end
    return chosen
  end

  -- f32 has a kernel; of others the chosen are few, or the tensor is.
  local function choose(out, set, a, y, kind)
    local n = count(out.c)
    if kind == F32 then
      if not is_tensor(y) then scalars[F32][0] = tonumber(y) end
      local b = is_tensor(y) and inner.floats(y) or scalars[F32]
      check(C.lsa_where_cpu(inner.floats(out), set.c.bits, inner.floats(a), b, n, is_tensor(y) and 1 or 0, nil))
      return out
    end
    if is_tensor(y) then out:copy(y) else out:fill(y) end
    local from, to = a:pointer(), out:pointer()
    for id in set:each() do to[id] = from[id] end
    return out
  end

  -- x's element where a set has its id, or a mask of u8 of x's shape has not 0, y's elsewhere.
  function Tensor:where(chosen, y)
    local set = chosen_elements(self, chosen)
    if not is_tensor(y) and type(y) ~= "number" then raise("where: y is %s, a tensor or a number is wanted", inner.shown(y)) end
    local kind = is_tensor(y) and with_tensor(kind_of(self), kind_of(y)) or with_number(kind_of(self), y)
    if is_tensor(y) then
      local shape = common_shape(self.c, y.c, "where")
      if #shape ~= self.c.rank or M.empty(shape, "u8"):count() ~= count(self.c) then
        raise("where: y has shape %s, x has %s", shape_text(y.c), shape_text(self.c))
      end
      y = as(y:expand(shape), kind)
    end
    local out = M.empty(self:shape(), inner.names[kind])
    out.of = self.of
    return (choose(out, set, as(self, kind), y, kind))
  end

  function Tensor:isnan(options)
    local mask = compare(self, self, C.LSA_NE, "isnan")
    return self.c.rank == 1 and not wants_mask(options, "isnan") and marked(mask) or mask
  end
end
