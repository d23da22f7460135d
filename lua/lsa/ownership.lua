-- Owns how what C makes gets its owner, Lua's collector: no interrupt comes between the two, after which nobody would free it.
-- Nothing else calls ffi.gc (tensors and sets are made before what they own: lua/lsa/tensor).
--
--   ownership.take(free, kind, make, …)   the `kind *` that make(out, …) of C's put into out[0], checked; free'd with its last reference.
--   ownership.free(free, object, …)       that now, or what ends it otherwise: free(object, …)'s result
--   ownership.block(bytes)                memory of C's door to the heap
local ffi = require "ffi"
local interrupts = require "lsa.interrupts"
local raise = require "lsa.raise"
local C = require("lsa.ffi").C

local M = {}

local function take(free, out, make, ...)
  local rc = make(out, ...)
  return rc, rc >= 0 and ffi.gc(out[0], free) or nil
end

function M.take(free, kind, make, ...)
  local rc, object = interrupts.masked(take, free, ffi.new(kind .. " *[1]"), make, ...)
  raise.check(rc)
  return object
end

local function free_now(free, object, ...)
  return free(ffi.gc(object, nil), ...)
end

function M.free(free, object, ...)
  return interrupts.masked(free_now, free, object, ...)
end

local function block(bytes)
  local made = C.lsa_alloc(bytes)
  return made ~= nil and ffi.gc(made, C.lsa_free) or nil
end

function M.block(bytes)
  return interrupts.masked(block, bytes) or raise.check(C.LSA_ENOMEM)
end

return M
