-- Owns PyTorch's files: checkpoints of torch.save (.pt) are read and written, pickles of tensors and arrays (.pkl) read.
-- Nothing of a pickle is ever run (core/files/pickle.h); tensors are views on the mapped file.
--
--   tensors, metadata, refused = torch_file.load(path)     nested names are joined by "."; what is no tensor is metadata
--   torch_file.save(path, names, tensors, metadata)        a state dict; metadata under the key __metadata__
local ffi = require "ffi"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"
local C = require("lsa.ffi").C

local check = raise.check

local M = {}

local METADATA = "__metadata__"

-- ---- reading ----

local MOST = 0x20000000000000LL                 -- integers up to here are numbers, those beyond int64_t

-- nil and a message for what is refused.
local function value_of(file, i, kind)
  if kind == C.LSA_PICKLE_BOOL then return C.lsa_pickle_number(file, i) ~= 0 end
  if kind == C.LSA_PICKLE_FLOAT then return C.lsa_pickle_number(file, i) end
  if kind == C.LSA_PICKLE_INTEGER then
    local out = ffi.new "int64_t[1]"
    local rc = C.lsa_pickle_integer(file, i, out)
    if rc == C.LSA_EDTYPE then return nil, ffi.string(C.lsa_error()) end
    check(rc)
    if out[0] >= -MOST and out[0] <= MOST then return tonumber(out[0]) end
    return out[0]
  end
  local bytes = ffi.new "int64_t[1]"
  local text = C.lsa_pickle_text(file, i, bytes)
  return text ~= nil and ffi.string(text, bytes[0]) or nil
end

function M.load(path)
  local file = ownership.take(C.lsa_pickle_close, "lsa_pickle", C.lsa_pickle_open, path)
  local tensors, metadata, refused = {}, {}, {}
  for i = 0, tonumber(C.lsa_pickle_count(file)) - 1 do
    local name, kind = ffi.string(C.lsa_pickle_name(file, i)), C.lsa_pickle_kind(file, i)
    if kind ~= C.LSA_PICKLE_TENSOR then
      local key = name:match("^" .. METADATA .. "%.(.+)$") or name
      metadata[key], refused[key] = value_of(file, i, kind)
    else
      local out = tensor.unmade()
      local rc = C.lsa_pickle_tensor(file, i, out.box)
      if rc == C.LSA_EDTYPE or rc == C.LSA_ESHAPE then
        refused[name] = ffi.string(C.lsa_error())
      else
        check(rc)
        tensors[name] = out
      end
    end
  end
  ownership.free(C.lsa_pickle_close, file)
  return tensors, metadata, refused
end

-- The first bytes of a zip archive; of a pickle of protocol 2 to 5.
function M.is_archive(head) return head:sub(1, 4) == "PK\3\4" end
function M.is_pickle(head) return head:find "^\128[\2-\5]" ~= nil end

-- ---- writing: pickle's opcodes as strings ----

local storages = {f32 = "FloatStorage", bf16 = "BFloat16Storage", f16 = "HalfStorage", i8 = "CharStorage", u8 = "ByteStorage",
  i32 = "IntStorage", i64 = "LongStorage", f64 = "DoubleStorage"}
local newer = {f8_e4m3 = "float8_e4m3fn", f8_e8m0 = "float8_e8m0fnu"}     -- these have no storage of their own

local MARK, TUPLE, EMPTY_TUPLE, REDUCE, FALSE, PERSISTENT = "(", "t", ")", "R", "\137", "Q"

local function little_endian(n, bytes)
  local out = {}
  for i = 1, bytes do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

local function integer(n)
  if n < 2 ^ 8 then return "K" .. little_endian(n, 1) end
  if n < 2 ^ 16 then return "M" .. little_endian(n, 2) end
  if n < 2 ^ 31 then return "J" .. little_endian(n, 4) end
  return "\138\8" .. little_endian(n, 8)
end

local function text(s) return "X" .. little_endian(#s, 4) .. s end

local function global(module, name) return "c" .. module .. "\n" .. name .. "\n" end

local function integers(list)
  local out = {}
  for i, n in ipairs(list) do out[i] = integer(n) end
  return MARK .. table.concat(out) .. TUPLE
end

local function strides_of(shape)
  local out, step = {}, 1
  for i = #shape, 1, -1 do
    out[i] = step
    step = step * shape[i]
  end
  return out
end

-- A contiguous tensor whose storage has the number `key`.
local function pickled(t, key)
  local dtype, shape = t:dtype(), t:shape()
  local kind = storages[dtype] and global("torch", storages[dtype]) or global("torch.storage", "UntypedStorage")
  local count = storages[dtype] and t:count() or t:bytes()
  local storage = MARK .. text "storage" .. kind .. text(tostring(key)) .. text "cpu" .. integer(count) .. TUPLE .. PERSISTENT
  local hooks = global("collections", "OrderedDict") .. EMPTY_TUPLE .. REDUCE
  local arguments = storage .. integer(0) .. integers(shape) .. integers(strides_of(shape)) .. FALSE .. hooks
  if storages[dtype] then return global("torch._utils", "_rebuild_tensor_v2") .. MARK .. arguments .. TUPLE .. REDUCE end
  return global("torch._utils", "_rebuild_tensor_v3") .. MARK .. arguments .. global("torch", newer[dtype]) .. TUPLE .. REDUCE
end

local function sorted(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

local function state_dict(names, tensors, metadata)
  local out = {"\128\2}(" }
  for i, name in ipairs(names) do out[#out + 1] = text(name) .. pickled(tensors[i], i - 1) end
  if next(metadata) then
    out[#out + 1] = text(METADATA) .. "}("
    for _, key in ipairs(sorted(metadata)) do out[#out + 1] = text(key) .. text(metadata[key]) end
    out[#out + 1] = "u"
  end
  out[#out + 1] = "u."
  return table.concat(out)
end

local ALIGN = 64

local function write(zip, names, tensors, metadata)
  local function add(name, data, bytes, align) check(C.lsa_zip_add(zip, "archive/" .. name, data, bytes, align or 1)) end
  local pickle = state_dict(names, tensors, metadata)
  add("data.pkl", pickle, #pickle)
  add("byteorder", "little", 6)
  for i, t in ipairs(tensors) do add("data/" .. i - 1, t.c.data, t:bytes(), ALIGN) end
  add("version", "3\n", 2)
end

-- names: a list; tensors: contiguous ones on the host, in the names' order; metadata: texts by name.
function M.save(path, names, tensors, metadata)
  local zip = ownership.take(C.lsa_zip_abandon, "lsa_zip_writer", C.lsa_zip_create, path, 0)
  local ok, message = pcall(write, zip, names, tensors, metadata)
  if not ok then
    ownership.free(C.lsa_zip_abandon, zip)
    error(message, 0)
  end
  check(ownership.free(C.lsa_zip_finish, zip))
end

return M
