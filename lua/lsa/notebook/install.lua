-- Makes the kernel known to Jupyter: a folder with kernel.json, where Jupyter looks for its user's kernels.
local cjson = require "cjson"
local replace = require "lsa.files.replace"

local M = {}

-- Three chunks of a context, two of them looked ahead at.
local LOGO = [[
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">
  <rect width="64" height="64" rx="12" fill="#0b2a4a"/>
  <g fill="#5d7f9f"><rect x="10" y="12" width="8" height="40" rx="2"/><rect x="34" y="12" width="8" height="40" rx="2"/></g>
  <g fill="#e69f00"><rect x="22" y="12" width="8" height="40" rx="2"/><rect x="46" y="12" width="8" height="40" rx="2"/></g>
</svg>
]]

-- $JUPYTER_DATA_DIR and the like are Jupyter's own.
local function data_directory()
  local own, data, home = os.getenv "JUPYTER_DATA_DIR", os.getenv "XDG_DATA_HOME", os.getenv "HOME"
  if own and own ~= "" then return own end
  if data and data ~= "" then return data .. "/jupyter" end
  if not home or home == "" then error("there is no home directory to install the kernel in; --prefix DIR says where", 0) end
  return home .. "/.local/share/jupyter"
end

-- program: the launcher. prefix: of an installation, whose kernels are in share/jupyter/kernels; else the user's own.
-- Returns the folder.
function M.install(program, prefix)
  local directory = (prefix and prefix .. "/share/jupyter" or data_directory()) .. "/kernels/lsa"
  if os.execute("mkdir -p '" .. directory:gsub("'", "'\\''") .. "'") ~= 0 then error(directory .. ": could not be made", 0) end
  local spec = {argv = {program, "kernel", "{connection_file}"}, display_name = "lsa (LuaJIT)", language = "lua", interrupt_mode = "signal"}
  replace.write(directory .. "/kernel.json", cjson.encode(spec) .. "\n")
  replace.write(directory .. "/logo-svg.svg", LOGO)
  return directory
end

return M
