-- Owns checked calls of kernels: what lua/lsa/tensor/kernels.lua declares becomes functions that check every argument, make
-- what results they were not given, and call the C function of the device where the tensors are.
--
-- A declaration names the arguments in order, separated by ";":
--
--   x f32 [.., n]          a tensor: dtypes ("f32|bf16"; "any"), then its shape. A letter binds a dimension, or must
--                          agree with what it is bound to; a number must be met; ".." takes any leading dimensions
--   x! f32 [..]            is changed in place, and returned
--   w? f32 [n]             may be left out
--   eps = 1e-6             an option with its default; = false makes it a boolean; = a|b|c a choice, passed as 0, 1, 2
--   k integer, v number    an argument without a default;  d dtype: a dtype by name
--   > y f32 [.., n]        a result, made where it is not given; @d is the dtype d, or of the tensor d. y!: may be one of
--                          the arguments, which a result is otherwise kept apart from; y?: only when asked for
--   s set [n], > s set [n] a set
--
-- It is called with the arguments in that order, or with one table by name.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local raise = require "lsa.raise"
local set = require "lsa.tensor.set"
local tensor = require "lsa.tensor.tensor"

local M = {}
local check = raise.check

-- ---- declarations ----

local function words(text, separator)
  local list = {}
  for word in text:gmatch("[^" .. separator .. "]+") do
    local trimmed = word:match "^%s*(.-)%s*$"
    if trimmed ~= "" then list[#list + 1] = trimmed end
  end
  return list
end

local function parse_shape(arg, text)
  arg.shape = {}
  for _, word in ipairs(words(text, ",")) do
    if word == ".." then arg.leading = true else table.insert(arg.shape, tonumber(word) or word) end
  end
end

local function parse_default(arg, text)
  if text == "false" or text == "true" then
    arg.kind, arg.default = "boolean", text == "true"
  elseif tonumber(text) then
    arg.kind, arg.default = "number", tonumber(text)
  else
    arg.kind, arg.choices = "choice", words(text, "|")
    arg.default = arg.choices[1]
    for i, choice in ipairs(arg.choices) do arg.choices[choice] = i - 1 end
  end
end

local function parse(text)
  local arg = {text = text:gsub("^> *", "")}
  local result, rest = text:match "^(>?) *(.*)$"
  arg.result = result == ">"
  local name, default = rest:match "^([%w_]+) = (.+)$"
  if name then
    arg.name = name
    parse_default(arg, default)
    return arg
  end
  local mark, kind
  arg.name, mark, kind, rest = rest:match "^([%w_]+)([?!]?) ([%w_|@]+) *(.*)$"
  arg.optional, arg.changed = mark == "?", mark == "!"
  if kind == "integer" or kind == "number" or kind == "dtype" then
    arg.kind = kind
    return arg
  end
  arg.kind = kind == "set" and "set" or "tensor"
  arg.dtypes, arg.refers = kind, kind:find("@", 1, true) ~= nil
  arg.is_dtype = {}
  for _, dtype in ipairs(words(kind, "|")) do arg.is_dtype[dtype] = true end
  parse_shape(arg, rest:match "^%[(.*)%]$")
  return arg
end

-- ---- checks ----

local function shape_text(shape)
  return "[" .. table.concat(shape, ", ") .. "]"
end

local function agree(a, arg, token, n, place)
  local known = type(token) == "number" and token or a[token]
  if known == nil then
    a[token], a.bound_by[token] = n, arg.name
  elseif known ~= n then
    local whose = a.bound_by[token] and (", %s is %d (%s)"):format(token, known, a.bound_by[token])
    raise("%s: %s has %d in dimension %d%s", a.kernel, arg.name, n, place, whose or (", %d is wanted"):format(known))
  end
end

-- Leading dimensions agree as a whole; a.rows is their product.
local function agree_leading(a, arg, shape, n)
  local lead, rows = {}, 1
  for i = 1, n do
    lead[i] = shape[i]
    rows = rows * shape[i]
  end
  if not a.lead then
    a.lead, a.rows, a.bound_by.lead = lead, rows, arg.name
    return
  end
  local same = #a.lead == n
  for i = 1, n do same = same and a.lead[i] == lead[i] end
  if not same then
    raise("%s: %s has leading dimensions %s, %s has %s", a.kernel, arg.name, shape_text(lead), a.bound_by.lead,
      shape_text(a.lead))
  end
end

-- An argument's dtypes, or the one that it refers to.
local function dtype_of(a, arg)
  if not arg.refers then return arg.dtypes end
  return (arg.dtypes:gsub("@(%w+)", a.given))
end

local function check_tensor(a, arg, t)
  if not tensor.is(t) then raise("%s: %s is %s, a tensor is wanted", a.kernel, arg.name, raise.kind(t)) end
  local dtype = t:dtype()
  local wanted = dtype_of(a, arg)
  a.given[arg.name] = dtype
  if not (arg.is_dtype.any or arg.is_dtype[dtype] or dtype == wanted) then
    raise("%s: %s is %s, %s is wanted", a.kernel, arg.name, dtype, wanted)
  end
  local device = t:device()
  a.device, a.bound_by.device = a.device or device, a.bound_by.device or arg.name
  if device ~= a.device then
    raise("%s: %s is on %s, %s on %s", a.kernel, arg.name, device, a.bound_by.device, a.device)
  end
  if not t:is_contiguous() then raise("%s: %s is not contiguous; x:contiguous() is", a.kernel, arg.name) end
  if (arg.changed or arg.result) and t.c.read_only ~= 0 then
    raise("%s: %s is read-only (a mapped file); x:copy() is not", a.kernel, arg.name)
  end
  local shape, tokens = t:shape(), arg.shape
  local extra = #shape - #tokens
  if extra < 0 or (extra > 0 and not arg.leading) then
    raise("%s: %s has shape %s, %s%d dimensions are wanted", a.kernel, arg.name, shape_text(shape),
      arg.leading and "at least " or "", #tokens)
  end
  if arg.leading then agree_leading(a, arg, shape, extra) end
  for i, token in ipairs(tokens) do agree(a, arg, token, shape[extra + i], extra + i - 1) end
  a[arg.name] = t.c.data
end

-- Memory of a given result and of the arguments is apart, but for an argument that the result may be.
local function check_apart(a, arg, t)
  local from, bytes = ffi.cast("char *", t.c.data), t:bytes()
  for _, other in ipairs(a.tensors) do
    local name, x = other[1], other[2]
    if tensor.is(x) then
      local start = ffi.cast("char *", x.c.data)
      local same = start == from and arg.changed
      if not same and from < start + x:bytes() and start < from + bytes then
        raise("%s: %s overlaps %s", a.kernel, arg.name, name)
      end
    end
  end
end

local function check_set(a, arg, s)
  if not set.is(s) then raise("%s: %s is %s, a set is wanted", a.kernel, arg.name, raise.kind(s)) end
  if a.device == "cuda" then raise("%s: %s is a set, in host memory, %s on cuda", a.kernel, arg.name, a.bound_by.device) end
  agree(a, arg, arg.shape[1], s:size(), 0)
  a[arg.name] = s.c.bits
end

local function describe_value(v)
  return type(v) == "string" and ('"%s"'):format(v) or type(v) == "number" and tostring(v) or raise.kind(v)
end

local function check_option(a, arg, v)
  if v == nil then v = arg.default end
  local kind, good = arg.kind, type(v) == arg.kind
  if kind == "integer" then good = type(v) == "number" and v == math.floor(v) and math.abs(v) < 2 ^ 53 end
  if kind == "choice" then good = arg.choices[v] ~= nil end
  if kind == "dtype" then good = type(v) == "string" and C.lsa_dtype_of(v) >= 0 end
  if not good then
    local wanted = kind == "choice" and table.concat(arg.choices, ", ") or "a " .. kind
    raise("%s: %s is %s, %s is wanted", a.kernel, arg.name, describe_value(v), (wanted:gsub("^a integer", "an integer")))
  end
  a.given[arg.name] = v
  if kind == "boolean" then v = v and 1 or 0 end
  if kind == "choice" then v = arg.choices[v] end
  if kind == "dtype" then v = C.lsa_dtype_of(v) end
  a[arg.name] = v
end

-- ---- results ----

local function result_shape(a, arg)
  local shape = {}
  if arg.leading then
    for i, n in ipairs(a.lead) do shape[i] = n end
  end
  for _, token in ipairs(arg.shape) do
    shape[#shape + 1] = type(token) == "number" and token or assert(a[token], token)
  end
  return shape
end

local dims = ffi.new "int64_t[6]"

local function make(a, arg)
  local shape = result_shape(a, arg)
  if arg.kind == "set" then return set.new(shape[1]) end
  local dtype = dtype_of(a, arg)
  if a.device ~= "cuda" then return tensor.empty(shape, dtype) end
  for i, n in ipairs(shape) do dims[i - 1] = n end
  return require("lsa.tensor.device").empty("cuda", C.lsa_dtype_of(dtype), #shape, dims)
end

-- ---- calls ----

-- The C function of the tensors' device, out of its table of kernels.
local function implementation(op, a)
  local cuda = a.device == "cuda"
  local kernels = C.lsa_kernels_on(cuda and C.LSA_CUDA or C.LSA_CPU)
  local f = kernels ~= nil and kernels[op.name] or nil
  if f == nil then
    local why = kernels == nil and (" (%s)"):format(ffi.string(C.lsa_error())) or ""
    raise('%s: %s is on cuda, and the op has no CUDA half%s; x:to "cpu" brings it to the host', op.name, a.bound_by.device,
      why)
  end
  a.kernels = kernels
  return f
end

local workspaces = {}

-- Memory for a kernel's own use, as much as <name>_workspace says for these sizes; kept and grown, 64-byte aligned.
local function workspace(a, name, ...)
  local bytes = tonumber(a.kernels[name .. "_workspace"](...))
  local device = a.device or "cpu"
  local kept = workspaces[device]
  if not kept or #kept < bytes then
    if device == "cpu" then
      kept = tensor.empty({bytes}, "u8")
    else
      dims[0] = bytes
      kept = require("lsa.tensor.device").empty(device, C.LSA_U8, 1, dims)
    end
    workspaces[device] = kept
  end
  return kept.c.data
end

local function by_position(op, ...)
  local given = {}
  local n = select("#", ...)
  if n > #op.args then raise("%s: %d arguments are given, it takes %d", op.name, n, #op.args) end
  for i = 1, n do given[op.args[i].name] = (select(i, ...)) end
  return given
end

local function by_name(op, given)
  for name in pairs(given) do
    if not op.known[name] then raise("%s: it has no argument %s; it is %s", op.name, tostring(name), op.text) end
  end
  return given
end

-- Arguments of which one is on the GPU, with those that the op reads from the host copied there, too.
local function on_one_device(op, given)
  local where, moved
  for _, arg in ipairs(op.args) do
    local t = given[arg.name]
    if arg.kind == "tensor" and not arg.result and tensor.is(t) and t:device() == "cuda" then where = arg.name end
  end
  for _, arg in ipairs(where and op.args or {}) do
    local t = given[arg.name]
    if arg.kind == "tensor" and not arg.result and not arg.changed and tensor.is(t) and t:device() == "cpu" then
      if not moved then
        moved = {}
        for name, value in pairs(given) do moved[name] = value end
      end
      moved[arg.name] = t:to "cuda"
    end
  end
  if where then require("lsa.tensor.device").written() end
  return moved or given
end

local function call(op, ...)
  local first = ...
  local named = select("#", ...) == 1 and type(first) == "table"
  local given = on_one_device(op, named and by_name(op, first) or by_position(op, ...))
  local a = {kernel = op.name, bound_by = {}, given = {}, tensors = {}, workspace = workspace}
  local results = {}
  for _, arg in ipairs(op.args) do
    if not arg.dtypes then check_option(a, arg, given[arg.name]) end
  end
  for _, arg in ipairs(op.args) do
    local value = given[arg.name]
    if arg.dtypes and not arg.result and not (arg.optional and value == nil) then
      (arg.kind == "set" and check_set or check_tensor)(a, arg, value)
      a.tensors[#a.tensors + 1] = {arg.name, value}
      if arg.changed then results[#results + 1] = value end
    end
  end
  if op.derive then op.derive(a) end
  local f = implementation(op, a)
  for _, arg in ipairs(op.args) do
    local value = given[arg.name]
    if arg.result and not (arg.optional and not value) then
      local made = value == nil or value == true
      if made then value = make(a, arg) end
      (arg.kind == "set" and check_set or check_tensor)(a, arg, value)
      if not made and arg.kind == "tensor" then check_apart(a, arg, value) end
      results[#results + 1] = value
    end
  end
  check(op.run(f, a, given))
  return unpack(results)
end

local Operator = {}
Operator.__index = Operator
Operator.__tostring = function(op) return op.text end
Operator.__call = function(op, ...) return call(op, ...) end

-- declaration: see above. run(f, a, given) calls f and returns its code: a has pointers, sizes and options by name; rows, the
-- product of leading dimensions; kernels, the device's table; workspace(name, sizes...). derive(a), where given, runs between
-- arguments and results: it computes sizes of results, and raises.
function M.new(name, declaration, run, derive)
  local op = {name = name, args = {}, known = {}, run = run, derive = derive}
  local takes, gives = {}, {}
  for i, text in ipairs(words(declaration, ";")) do
    local arg = parse(text)
    op.args[i], op.known[arg.name] = arg, true
    table.insert(arg.result and gives or takes, arg.text)
  end
  op.text = ("%s(%s)"):format(name, table.concat(takes, ", "))
  if #gives > 0 then op.text = op.text .. " -> " .. table.concat(gives, ", ") end
  return setmetatable(op, Operator)
end

return M
