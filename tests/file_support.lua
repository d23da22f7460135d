-- What specs of files share: a folder that goes away, whole files as strings, safetensors files made by hand,
-- and a sweep that fails each allocation and each file operation once.
local ffi = require "ffi"
local json = require "cjson"
local lsa = require "lsa.ffi"
local C = lsa.C

ffi.cdef [[
char *mkdtemp(char *);
int mkdir(const char *, unsigned);
int symlink(const char *, const char *);
int mkfifo(const char *, unsigned);
]]

local M = {}

-- Calls fn(folder) with a new empty folder, in memory where there is one, and removes it afterwards, whatever happens.
function M.with_folder(fn)
  local name = ffi.new("char[64]", "/dev/shm/lsa-spec-XXXXXX")
  if ffi.C.mkdtemp(name) == nil then
    ffi.copy(name, "/tmp/lsa-spec-XXXXXX")
    assert(ffi.C.mkdtemp(name) ~= nil, "no temporary folder")
  end
  local folder = ffi.string(name)
  local ok, message = pcall(fn, folder)
  os.execute("rm -rf '" .. folder .. "'")
  if not ok then error(message, 0) end
end

function M.write(path, text)
  local file = assert(io.open(path, "wb"))
  assert(file:write(text))
  assert(file:close())
end

function M.read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read "*a"
  file:close()
  return text
end

function M.make_folder(path) assert(ffi.C.mkdir(path, 511) == 0) end
function M.make_link(path, to) assert(ffi.C.symlink(to, path) == 0) end
function M.make_pipe(path) assert(ffi.C.mkfifo(path, 511) == 0) end

-- The names in a folder, sorted, with a space between.
function M.names(folder)
  local pipe = io.popen("ls -A '" .. folder .. "'")
  local names = pipe:read "*a"
  pipe:close()
  return (names:gsub("\n", " "):gsub(" $", ""))
end

-- The eight bytes of a length.
function M.length_bytes(n)
  local out = {}
  for i = 1, 8 do
    out[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(out)
end

-- A safetensors file: header text, data.
function M.safetensors(header, data) return M.length_bytes(#header) .. header .. (data or "") end

-- A safetensors file's tensors: name -> {dtype =, shape =, data = bytes}. Written apart from the library.
function M.read_tensors(path)
  local text = assert(M.read(path), path)
  local length = 0
  for i = 8, 1, -1 do length = length * 256 + text:byte(i) end
  local header, tensors = json.decode(text:sub(9, 8 + length)), {}
  header.__metadata__ = nil
  for name, entry in pairs(header) do
    local from, to = entry.data_offsets[1], entry.data_offsets[2]
    tensors[name] = {dtype = entry.dtype, shape = entry.shape, data = text:sub(9 + length + from, 8 + length + to)}
  end
  return tensors
end

-- The reverse, in the order of the names, without padding; `shift` bytes of another tensor come before the data.
function M.write_tensors(path, tensors, shift)
  local names, entries, data, at = {}, {}, {}, 0
  for name in pairs(tensors) do names[#names + 1] = name end
  table.sort(names)
  local function add(name, t)
    local shape = {}
    for i, n in ipairs(t.shape) do shape[i] = ("%d"):format(n) end
    entries[#entries + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%d,%d]}'):format(json.encode(name), t.dtype,
      table.concat(shape, ","), at, at + #t.data)
    data[#data + 1] = t.data
    at = at + #t.data
  end
  if shift then add("!", {dtype = "U8", shape = {shift}, data = ("x"):rep(shift)}) end
  for _, name in ipairs(names) do add(name, tensors[name]) end
  M.write(path, M.safetensors("{" .. table.concat(entries, ",") .. "}", table.concat(data)))
end

-- The message of a call that must fail with `code`.
function M.failure(rc, code)
  if rc == 0 then error("the call should have failed", 2) end
  local message = ffi.string(C.lsa_error())
  if code and rc ~= code then
    error(("failed with %d instead of %d: %s"):format(rc, code, message), 2)
  end
  return message
end

-- Bytes the library holds, without what the collector would free.
function M.memory()
  collectgarbage()
  collectgarbage()
  return tonumber(C.lsa_memory_in_use())
end

-- Fails the n-th allocation, then the n-th file operation, for n = 0, 1, ... until `attempt` succeeds: attempt() returns
-- the code of what it called, and leaves nothing behind. With a stride, only every stride-th. Gives how many there are of each.
function M.fail_everything(attempt, stride)
  assert(attempt() == 0, "without faults it has to succeed")
  local counts = {}
  for _, door in ipairs {"lsa_memory_fail_after", "lsa_io_fail_after"} do
    local before, n = M.memory(), 0
    while true do
      C[door](n)
      local rc = attempt()
      C[door](-1)
      local leak = tonumber(C.lsa_memory_in_use() - before)
      if leak ~= 0 then error(("%s(%d) leaks %d bytes"):format(door, n, leak), 2) end
      if rc == 0 then break end
      local expected = door == "lsa_io_fail_after" and C.LSA_EIO or C.LSA_ENOMEM
      if rc ~= expected then
        error(("%s(%d) gives %d: %s"):format(door, n, rc, ffi.string(C.lsa_error())), 2)
      end
      n = n + (stride or 1)
    end
    counts[#counts + 1] = n
  end
  return counts[1], counts[2]
end

return M
