-- A golden model whose contexts may be long: chunks leave memory in segments of 1,024.
local ffi = require "ffi"
local lsa = require "lsa"
local support = require "file_support"

ffi.cdef "int getpid(void);"

local golden = require("lsa.ffi").root .. "/tests/golden/"

local M = {}

-- Calls fn(model, folder) with the golden model `name`, up to 65,536 positions, and an empty folder.
function M.with_model(name, fn)
  support.with_folder(function(folder)
    local here = folder .. "/model"
    support.make_folder(here)
    local config = assert(support.read(golden .. name .. "/config.json"))
    support.write(here .. "/config.json", (config:gsub('"max_position_embeddings": %d+', '"max_position_embeddings": 65536')))
    support.write(here .. "/model.safetensors", assert(support.read(golden .. name .. "/model.safetensors")))
    local cold = folder .. "/cold"
    support.make_folder(cold)
    fn(lsa.model(here), cold)
    collectgarbage()
  end)
end

-- An i32 tensor of n tokens that `random` draws.
function M.tokens(model, n, random)
  local out, vocab = lsa.zeros({n}, "i32"), tonumber(model.config.vocab)
  local ids = ffi.cast("int32_t *", out.c.data)
  for i = 0, n - 1 do ids[i] = random(vocab) end
  return out
end

-- The bytes of a tensor.
function M.bytes(t) return ffi.string(t.c.data, t:count() * 4) end

-- Overwrites bytes of the cold file in `folder`, which has no name: through this process's descriptor of it.
function M.damage(folder, offset, bytes)
  local pipe = assert(io.popen(("ls -l /proc/%d/fd"):format(ffi.C.getpid())))
  local fd = pipe:read("*a"):match("(%d+) %-> " .. folder:gsub("%p", "%%%0"))
  pipe:close()
  local file = assert(io.open("/proc/self/fd/" .. assert(fd, "no cold file"), "r+b"))
  file:seek("set", offset)
  file:write(("x"):rep(bytes))
  file:close()
end

return M
