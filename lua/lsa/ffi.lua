-- Owns the binding: finds the tree, declares the C headers to LuaJIT, loads liblsa.
-- The headers are the binding; nothing of them is repeated here.
local ffi = require "ffi"

local M = {}

-- This file is <root>/lua/lsa/ffi.lua.
M.root = debug.getinfo(1, "S").source:match "^@(.*)/lua/lsa/ffi%.lua$" or "."

local declared = {}

-- Declares a header after the headers that it includes; preprocessor lines are dropped.
local function declare(path)
  if declared[path] then return end
  declared[path] = true
  local file = assert(io.open(M.root .. "/" .. path))
  local text = file:read "*a"
  file:close()
  for include in text:gmatch '#include "([^"]+)"' do declare(include) end
  ffi.cdef((text:gsub("#[^\n]*\\\n[^\n]*", ""):gsub("\n%s*#[^\n]*", "\n")))
end

declare "core/lsa.h"

local host = package.loaded["lsa.host"]

-- The executable of another configuration than release says so.
M.build = host and host.build or "build"
M.C = ffi.load(M.root .. "/" .. M.build .. "/liblsa.so")

return M
