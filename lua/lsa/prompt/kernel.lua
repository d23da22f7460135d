-- `lsa kernel`: a Jupyter kernel, and how it is made known to Jupyter.
local host = require "lsa.host"

local M = {}

local usage = [[
usage: lsa kernel --install [--prefix DIR]    makes the kernel known to Jupyter: to this user, or to the installation in DIR
       lsa kernel CONNECTION_FILE             what Jupyter runs
]]

local function run(arguments)
  local first, second, third = unpack(arguments, 1, 3)
  if first == "--help" then
    io.write(usage)
    return 0
  end
  if first == "--install" and (second == nil or second == "--prefix" and third and #arguments == 3) then
    require "lsa.notebook.sockets"
    local directory = require("lsa.notebook.install").install(host.root .. "/lsa", third)
    print(("lsa (LuaJIT) is a kernel of Jupyter now: %s"):format(directory))
    return 0
  end
  if #arguments == 1 and first:sub(1, 1) ~= "-" then return require("lsa.notebook.kernel").run(first) end
  io.stderr:write(usage)
  return 2
end

function M.main(arguments)
  local ok, result = pcall(run, arguments)
  if ok then return result end
  io.stderr:write("lsa: ", tostring(result), "\n")
  return 1
end

return M
