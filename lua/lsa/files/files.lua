-- Files of named tensors: t = lsa.load(path), lsa.save(path, {name = tensor}, metadata).
--
--   local t, metadata = lsa.load "file.safetensors"     t.name is a tensor on the mapped file, read-only
--   lsa.load "checkpoint.pt", lsa.load "doc.pkl"        what PyTorch wrote (lua/lsa/files/torch_file.lua)
--   lsa.load "x.npy", lsa.save("x.npy", tensor)          one tensor, as numpy has it (lua/lsa/files/npy.lua)
--   lsa.load "trace.safetensors"                        a recording that is not finished, too (lua/lsa/session/recording_journal.lua)
--   lsa.save(path, …) writes safetensors, or what torch.load reads where the path ends in .pt; endings of formats that are
--   not written are errors
-- The format is known by the file's first bytes, never by its name. M.formats lists the formats; each has a name, a
-- test of the first 64 bytes, and load(path) -> table of tensors, table of metadata.
local ffi = require "ffi"
local C = require("lsa.ffi").C
local interrupts = require "lsa.interrupts"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local npy = require "lsa.files.npy"
local tensor = require "lsa.tensor.tensor"
local torch_file = require "lsa.files.torch_file"
local writer = require "lsa.files.safetensors_writer"

local M = {}
local check = raise.check

local PIECE = 2 ^ 22 -- elements between two looks at whether Ctrl-C was pressed

-- ---- safetensors ----

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do keys[#keys + 1] = key end
  table.sort(keys)
  return keys
end

local function with_zeros(name) return (name:gsub("\\u0000", "\0")) end

-- Tensors of a dtype or of more dimensions than tensors here have, and what has a zero byte in its name or text, are errors when they
-- are asked for, not when the file is opened.
local function load_safetensors(path)
  local file = ownership.take(C.lsa_safetensors_close, "lsa_safetensors", C.lsa_safetensors_open, path)
  local tensors, refused, metadata, refused_metadata = {}, {}, {}, {}
  for i = 0, tonumber(C.lsa_safetensors_count(file)) - 1 do
    local name = ffi.string(C.lsa_safetensors_name(file, i))
    local out = tensor.unmade()
    local rc = C.lsa_safetensors_get(file, i, out.box)
    if rc == C.LSA_EDTYPE or rc == C.LSA_ESHAPE then
      refused[name] = ffi.string(C.lsa_error())
    elseif rc == C.LSA_EFORMAT then
      refused[with_zeros(name)] = ffi.string(C.lsa_error())
    else
      check(rc)
      tensors[name] = out
    end
  end
  for i = 0, tonumber(C.lsa_safetensors_metadata_count(file)) - 1 do
    local key = ffi.string(C.lsa_safetensors_metadata_key(file, i))
    if C.lsa_safetensors_metadata_check(file, i) < 0 then
      refused_metadata[with_zeros(key)] = ffi.string(C.lsa_error())
    else
      metadata[key] = ffi.string(C.lsa_safetensors_metadata_value(file, i))
    end
  end
  return tensors, metadata, refused, refused_metadata
end

M.formats = {
  {
    name = "safetensors",
    -- A header length below 2^48, then the header's brace.
    matches = function(head) return #head >= 9 and head:sub(7, 9) == "\0\0{" end,
    load = load_safetensors,
  },
  {name = "an unfinished recording", matches = function(head) return head:find("^lsa recording, unfinished\n") ~= nil end,
    load = function(path) return require("lsa.session.recording_journal").load(path) end},
  {name = "PyTorch's archive", matches = torch_file.is_archive, load = torch_file.load},
  {name = "npy", matches = npy.matches, load = npy.load},
  {name = "pickle", matches = torch_file.is_pickle, load = torch_file.load},
}

-- ---- load and save ----

-- C would end a name at its first zero byte, and take another file.
local function check_path(path, what)
  if type(path) ~= "string" then raise("%s: path is %s, a string is wanted", what, raise.kind(path)) end
  if path:find("\0", 1, true) then raise("%s: path is %q, which has a zero byte", what, path) end
end

local function head_of(path)
  local file, why = io.open(path, "rb")
  if not file then raise("load: %s", why) end
  local head = file:read(64)
  file:close()
  if not head then raise("load: %s is empty, or not a file", path) end
  if C.lsa_file_is_pointer(head, #head) == 1 then
    raise("load: %s is a Git LFS pointer, not the file itself, which `git lfs pull` fetches", path)
  end
  return head
end

local function describe(tensors)
  local lines = {}
  for _, name in ipairs(sorted_keys(tensors)) do
    local t = tensors[name]
    lines[#lines + 1] = ("%s  %s [%s]"):format(name, t:dtype(), table.concat(t:shape(), ", "))
  end
  return table.concat(lines, "\n")
end

-- What is asked for by a name of `problems` is an error, which says that.
local function refusing(problems)
  return function(_, name)
    if problems[name] then raise("%s", problems[name]) end
  end
end

-- The tensors print themselves as a list of names, dtypes and shapes.
function M.load(path)
  check_path(path, "load")
  local head, known = head_of(path), {}
  for _, format in ipairs(M.formats) do
    if format.matches(head, path) then
      local tensors, metadata, refused, refused_metadata = format.load(path)
      if tensor.is(tensors) then return tensors, {} end
      metadata, refused_metadata = metadata or {}, refused_metadata or refused
      setmetatable(tensors, {__tostring = describe, __index = refused and refusing(refused)})
      if refused_metadata and next(refused_metadata) then setmetatable(metadata, {__index = refusing(refused_metadata)}) end
      return tensors, metadata
    end
    known[#known + 1] = format.name
  end
  raise("load: %s is none of the known formats (%s)", path, table.concat(known, ", "))
end

-- What a format cannot give back is not written: C's strings end at a zero byte; in a checkpoint, an empty name and a long one
-- are those of other values.
local function check_name(path, name, what)
  if name:find("\0", 1, true) then raise("save: %s: %s %q has a zero byte", path, what, name) end
  if not path:find "%.pt$" then return end
  if name == "" then raise('save: %s: %s "" is empty, which a .pt file cannot give back', path, what) end
  if #name > 900 then raise("save: %s: %s %s... has %d bytes, a .pt file gives back 900", path, what, name:sub(1, 40), #name) end
end

local function save_safetensors(path, names, tensors, metadata)
  local list = {}
  for i, name in ipairs(names) do list[i] = {name, tensors[i]:dtype(), tensors[i]:shape()} end
  local w = writer.new(path, list, metadata)
  local ok, problem = pcall(function()
    for i, name in ipairs(names) do
      local t = tensors[i]
      local bytes, size = ffi.cast("const uint8_t *", t.c.data), t:bytes() / math.max(1, t:count())
      for from = 0, t:count() - 1, PIECE do
        interrupts.poll()
        w:write(name, bytes + from * size, math.min(PIECE, t:count() - from))
      end
    end
    w:finish()
  end)
  if not ok then
    w:abandon()
    error(problem, 0)
  end
end

-- Endings of other programs' formats, which a file of safetensors must not have.
local others = {"csv", "tsv", "txt", "json", "jsonl", "npz", "pkl", "pickle", "h5", "hdf5", "parquet", "mat", "gguf", "onnx", "zip", "gz", "xz"}
local refused_endings = {}
for _, ending in ipairs(others) do refused_endings[ending] = true end

local function check_ending(path)
  local ending = (path:match "%.([%w]+)$" or ""):lower()
  if refused_endings[ending] then
    raise("save: %s: .%s is not written; .safetensors, .pt and, of one tensor, .npy are%s", path, ending,
      (ending == "csv" or ending == "json" or ending == "txt") and "; x:totable() gives what to write" or "")
  end
end

-- metadata: strings by name. The file is replaced at once, or not at all.
function M.save(path, tensors, metadata)
  check_path(path, "save")
  check_ending(path)
  if path:find "%.[nN][pP][yY]$" then
    if not tensor.is(tensors) then raise("save: %s is of one tensor, %s is given", path, raise.kind(tensors)) end
    if metadata ~= nil then raise("save: %s: npy has no metadata", path) end
    return npy.save(path, tensors)
  end
  if tensor.is(tensors) then raise("save: %s: tensors is one tensor, a table by name is wanted; .npy is of one", path) end
  if type(tensors) ~= "table" then raise("save: tensors is %s, a table by name is wanted", raise.kind(tensors)) end
  if type(metadata) ~= "nil" and type(metadata) ~= "table" then
    raise("save: metadata is %s, a table of strings is wanted", raise.kind(metadata))
  end
  for key in pairs(metadata or {}) do
    if type(key) ~= "string" then raise("save: the metadata's name %s is %s, a string is wanted", tostring(key), raise.kind(key)) end
  end
  for name in pairs(tensors) do
    if type(name) ~= "string" then raise("save: the name %s is %s, a string is wanted", tostring(name), type(name)) end
  end
  local names, kept = sorted_keys(tensors), {}
  for i, name in ipairs(names) do
    local t = tensors[name]
    check_name(path, name, "the name")
    if not tensor.is(t) then raise("save: %s is %s, a tensor is wanted", name, raise.kind(t)) end
    kept[i] = t:to "cpu":contiguous()
  end
  local texts = {}
  for _, key in ipairs(sorted_keys(metadata or {})) do
    local value = metadata[key]
    if type(value) == "number" or type(value) == "boolean" then value = tostring(value) end
    if type(value) ~= "string" then
      raise("save: metadata %s is %s, a string is wanted", key, raise.kind(value))
    end
    check_name(path, key, "the metadata's name")
    if not path:find "%.pt$" and value:find("\0", 1, true) then raise("save: %s: metadata %s has a zero byte", path, key) end
    texts[key] = value
  end
  if path:find "%.pt$" then return torch_file.save(path, names, kept, texts) end
  save_safetensors(path, names, kept, texts)
end

M.save = interrupts.method(M.save)

return M
