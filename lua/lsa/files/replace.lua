-- Owns how a text becomes a file in one step: path has the old text or the new one, whatever happens.
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local C = require("lsa.ffi").C

local M = {}

function M.write(path, text)
  local file = ownership.take(C.lsa_replace_abandon, "lsa_replace", C.lsa_replace_begin, path)
  if C.lsa_replace_write(file, text, #text) < 0 then
    ownership.free(C.lsa_replace_abandon, file)
    raise.check(-1)
  end
  raise.check(ownership.free(C.lsa_replace_commit, file))
end

return M
