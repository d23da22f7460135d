-- numpy's .npy: one tensor a file, little-endian, in C's order. A file is read and written as a whole.
--   M.load(path) -> tensor     M.save(path, tensor)
-- bool is read as u8. What numpy has no dtype for (bf16, f8) is not written, what tensors have none for is not read.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local M = {}
local check = raise.check
local MAGIC = "\147NUMPY"
local codes = {f32 = "<f4", f64 = "<f8", f16 = "<f2", i8 = "|i1", u8 = "|u1", i32 = "<i4", i64 = "<i8"}
local dtypes = {["|b1"] = "u8"}
for dtype, code in pairs(codes) do dtypes[code] = dtype end

function M.matches(head) return head:sub(1, 6) == MAGIC end

local function little_endian(text)
  local n = 0
  for i = #text, 1, -1 do n = n * 256 + text:byte(i) end
  return n
end

-- The header is a Python dict of three known keys.
local function parse(path, text)
  local code = text:match "'descr':%s*'([^']*)'"
  local order, shape_text = text:match "'fortran_order':%s*(%a+)", text:match "'shape':%s*%(([%d,%sL]*)%)"
  if not code then
    local what = text:match "'descr':%s*(%[.-%])%s*[,}]"
    raise("load: %s: %s", path, what and "its elements are records, " .. what or "its header is damaged")
  end
  if not shape_text or order ~= "True" and order ~= "False" then raise("load: %s: its header is damaged", path) end
  local shape = {}
  for n in shape_text:gmatch "%d+" do shape[#shape + 1] = tonumber(n) end
  if #shape > 6 then raise("load: %s: it has %d dimensions, at most 6 are possible", path, #shape) end
  local dtype = dtypes[code] or dtypes[code:gsub("^=", "<")]
  if not dtype then
    local known = {}
    for each in pairs(dtypes) do known[#known + 1] = each end
    table.sort(known)
    raise("load: %s: its dtype is %s; %s are known", path, code, table.concat(known, ", "))
  end
  return dtype, shape, order == "True"
end

local function read(file, n, at, path, bytes)
  if at + n > bytes then raise("load: %s is cut short: %d bytes of at least %d", path, bytes, at + n) end
  local out = ffi.new("uint8_t[?]", n)
  check(C.lsa_file_read(file, out, n, at))
  return ffi.string(out, n)
end

function M.load(path)
  local file, size = ownership.take(C.lsa_file_close, "lsa_file", C.lsa_file_open, path, C.LSA_FILE_READ), ffi.new "int64_t[1]"
  check(C.lsa_file_size(size, file))
  local bytes = tonumber(size[0])
  local start = read(file, 8, 0, path, bytes)
  local major = start:byte(7)
  if major < 1 or major > 3 then raise("load: %s is of npy's version %d; 1 to 3 are known", path, major) end
  local width = major == 1 and 2 or 4
  local length = little_endian(read(file, width, 8, path, bytes))
  local from = 8 + width + length
  local dtype, shape, by_columns = parse(path, read(file, length, 8 + width, path, bytes))
  local count = C.lsa_dtype_size(C.lsa_dtype_of(dtype))
  for _, n in ipairs(shape) do count = count * n end
  if from + tonumber(count) ~= bytes then
    raise("load: %s has %d bytes, a header of %d and elements of %.0f", path, bytes, from, tonumber(count))
  end
  local reversed = {}
  for i, n in ipairs(shape) do reversed[#shape - i + 1] = n end
  local out = tensor.empty(by_columns and reversed or shape, dtype)
  if out:bytes() > 0 then check(C.lsa_file_read(file, out.c.data, out:bytes(), from)) end
  check(ownership.free(C.lsa_file_close, file))
  if not by_columns then return out end
  local order = {}
  for i = 1, #shape do order[i] = #shape - i end
  return out:permute(order):contiguous()
end

local function header(t)
  local shape = table.concat(t:shape(), ", ")
  if #t:shape() == 1 then shape = shape .. "," end
  local text = ("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }"):format(codes[t:dtype()], shape)
  local total = math.ceil((10 + #text + 1) / 64) * 64
  text = text .. (" "):rep(total - 10 - #text - 1) .. "\n"
  return MAGIC .. "\1\0" .. string.char(#text % 256, math.floor(#text / 256)) .. text
end

-- The file is replaced at once, or not at all.
function M.save(path, t)
  if not codes[t:dtype()] then raise('save: %s: npy has no %s; x:to "f32" converts', path, t:dtype()) end
  local source = t:to "cpu":contiguous()
  local head, file = header(source), ownership.take(C.lsa_replace_abandon, "lsa_replace", C.lsa_replace_begin, path)
  local rc = C.lsa_replace_write(file, head, #head)
  if rc == 0 and source:bytes() > 0 then rc = C.lsa_replace_write(file, source.c.data, source:bytes()) end
  if rc == 0 then return check(ownership.free(C.lsa_replace_commit, file)) end
  local message = ffi.string(C.lsa_error())
  ownership.free(C.lsa_replace_abandon, file)
  raise("%s", message)
end

return M
