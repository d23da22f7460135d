-- Runs the real executable for specs of the command line and the prompt.
local host = package.loaded["lsa.host"]
local root = require("lsa.ffi").root

local M = {}

M.root = root
-- The executable that runs this spec, or the release one under plain luajit.
M.program = root .. "/" .. (host and host.build or "build") .. "/bin/lsa"

function M.quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

function M.write(path, text)
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
  return path
end

-- Runs a shell command: its stdout, its stderr, its exit code (128 + n after signal n).
function M.shell(command)
  local errors = os.tmpname()
  local pipe = io.popen("{ " .. command .. "\n} 2>" .. errors .. "; echo \"|$?\"")
  local text = pipe:read "*a"
  pipe:close()
  local file = io.open(errors)
  local stderr = file:read "*a"
  file:close()
  os.remove(errors)
  local stdout, code = text:match "^(.*)|(%d+)\n$"
  return stdout, stderr, tonumber(code)
end

-- Runs the executable with the arguments in `list`, `input` on its standard input.
function M.lsa(list, input)
  local words = { M.program }
  for _, word in ipairs(list) do words[#words + 1] = M.quote(word) end
  return M.shell(("printf '%%s' %s | %s"):format(M.quote(input or ""), table.concat(words, " ")))
end

-- The command line of a script that is killed where its n-th file operation would begin; `words`: its arguments, quoted.
function M.killed_at(n, script, words)
  local code = ("require('lsa.ffi').C.lsa_io_kill_after(%d) arg[0] = %q dofile(arg[0])"):format(n, script)
  return ("%s -e %s %s"):format(M.program, M.quote(code), words)
end

return M
