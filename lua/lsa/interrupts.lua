-- Owns what Ctrl-C may break off. At the prompt an interrupt is an error that comes at any instruction, also in the middle of
-- a change of several steps. What has to be done whole, or put back, runs masked; the script's functions that it calls in
-- between run unmasked (core/host/interrupt.h). A long C call looks at the flag itself and returns LSA_EINTR.
--
--   interrupts.masked(f, ...)      f(...), in which no interrupt is raised; one that came is raised when it has returned
--   interrupts.unmasked(f, ...)    f(...), in which interrupts are raised again
--   interrupts.method(f)           a function that calls f masked
--   interrupts.came()              whether what failed, failed because of one
--   interrupts.survived()          whether what runs goes on after one
--   interrupts.poll()              raises where one came: for long loops of masked code
--
-- In plain LuaJIT Ctrl-C ends the process, and nothing is raised.
local arity = require "lsa.arity"
local lib = require "lsa.ffi"

local C = lib.C
local host = package.loaded["lsa.host"]

local M = {}

local function directly(f, ...) return f(...) end

M.masked = host and host.masked or directly
M.unmasked = host and host.unmasked or directly

function M.method(f)
  return arity.stands(function(...) return M.masked(f, ...) end, f)
end

function M.came() return C.lsa_interrupted() ~= 0 end

function M.survived() return host ~= nil and host.at_prompt() end

function M.poll()
  if C.lsa_interrupted() ~= 0 then error("interrupted", 0) end
end

return M
