-- Specs of what stands around a GPU's kernels, where there is no GPU: the same specs in a process whose CUDA library is
-- tests/device_stub.c.
local lib = require "lsa.ffi"
local processes = require "process_support"

local M = {}

-- Whether this process has the stub.
M.here = os.getenv "LSA_SPEC_ON_STUB" ~= nil

local function shell(command)
  local _, errors, code = processes.shell(command)
  if code ~= 0 then error(command .. ": " .. errors, 0) end
end

-- A tree like this one, whose build has the stub.
local function make(root)
  local quote = processes.quote
  local tree, build = quote(lib.root), quote(root .. "/" .. lib.build)
  shell(("mkdir -p %s/bin && for name in core kernels lua tests experiments; do ln -s %s/$name %s; done"):format(build, tree, quote(root)))
  shell(("cp %s %s/bin/lsa && ln -s %s/%s/liblsa*.so %s && rm -f %s/liblsa_cuda.so"):format(quote(processes.program), build, tree,
    lib.build, build, build))
  local compile = "cc -std=gnu11 -O1 -Wall -Wextra -Werror -fPIC -shared -I%s -o %s/%s"
  shell((compile .. " %s/tests/device_stub.c -L%s -llsa -Wl,-rpath,'$ORIGIN' -Wl,--allow-shlib-undefined"):format(tree, build,
    "liblsa_cuda.so", tree, build))
  shell((compile .. " %s/tests/nccl_stub.c -pthread -Wl,--allow-shlib-undefined"):format(tree, build, "libnccl.so.2", tree))
  shell(("echo 'int lsa_no_driver;' | cc -x c -fPIC -shared -o %s/libcuda.so.1 -"):format(build))
  return ("LSA_SPEC_ON_STUB=1 LD_LIBRARY_PATH=%s:$LD_LIBRARY_PATH %s/bin/lsa"):format(build, build)
end

-- The words that lsa on the stub begins with, and what has to be called when it is no longer wanted.
function M.tree()
  local root = os.tmpname()
  os.remove(root)
  return make(root), function() shell("rm -rf " .. processes.quote(root)) end
end

-- Runs lsa on the stub with these arguments, and words before the command: what it printed, its errors, its exit code.
function M.lsa(arguments, before)
  local words, remove = M.tree()
  local out, errors, code = processes.shell((before and before .. " " or "") .. words .. " " .. arguments)
  remove()
  return out, errors, code
end

-- Runs a spec there: what it printed where it failed, nil where all of it passed.
function M.failure_of(spec, before)
  local out, errors, code = M.lsa("test tests/" .. spec, before)
  return code ~= 0 and out .. errors or nil
end

return M
