-- Owns how a text becomes a file in one step: path has the old text or the new one, whatever happens.
local ffi = require "ffi"
local raise = require "lsa.raise"
local C = require("lsa.ffi").C

local M = {}

function M.write(path, text)
  local box = ffi.new "lsa_replace *[1]"
  raise.check(C.lsa_replace_begin(box, path))
  local rc = C.lsa_replace_write(box[0], text, #text)
  if rc < 0 then
    C.lsa_replace_abandon(box[0])
    raise.check(rc)
  end
  raise.check(C.lsa_replace_commit(box[0]))
end

return M
