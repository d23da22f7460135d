-- What nvcc made of the CUDA kernels: a table of them, and a failure where registers did not suffice (spills) or where the loop that a
-- kernel spends its time in lacks the instruction that it is written for.
--
--     luajit .ci/kernels.lua LOG [LIBRARY]
--
-- LOG: what make printed with NVCC_APPEND_FLAGS=-Xptxas=-v; the last word about a kernel counts. LIBRARY is disassembled where
-- cuobjdump is; without it instructions are not looked at.

-- Kernels by the beginning of their names, and what one of their loops must have.
local WANTED = {
  {"gather_records", "16-byte loads"},
  {"linear_eights", "16-byte loads"},
  {"expert_products", "16-byte loads"},
  {"expert_tiles", "16-byte loads"},
  {"chain_token", "16-byte loads"},
  {"pick_score_wgmma", "warp-group products"},
  {"index_score_wgmma", "warp-group products"},
  {"lookahead_score", "warp-group products"},
  {"attend_tiles", "warp-group products"},
  {"attend_values", "warp-group products"},
  {"pick_score_mma", "matrix products"},
  {"index_score_mma", "matrix products"},
}

local INSTRUCTIONS = {
  ["16-byte loads"] = {"LDG[%w.]*%.128", "LDGSTS[%w.]*%.128", "LD%.E[%w.]*%.128"},
  ["matrix products"] = {"[HQIB]?G?MMA[%w.]*%."},
  ["warp-group products"] = {"[HQ]GMMA"},
  ["bulk copies"] = {"UBLKCP", "UTMALDG"},
}

-- "linear_eights" of "_Z13linear_eightsI10eight_bf16Li2ELi1EEv7producti"
local function base_name(mangled)
  local length, rest = mangled:match "^_ZN?L?(%d+)(.*)$"
  while length and mangled:find "^_ZN" and rest:sub(tonumber(length) + 1):find "^%d" do -- the last of nested names
    length, rest = rest:sub(tonumber(length) + 1):match "^(%d+)(.*)$"
  end
  return length and rest:sub(1, tonumber(length)) or mangled
end

local function readable(mangled)
  local pipe = io.popen("c++filt '" .. mangled .. "' 2>/dev/null")
  local text = pipe:read "*l"
  pipe:close()
  return (text or mangled):gsub("^void ", ""):gsub("%(.*", ""):gsub("__nv_bfloat16", "bf16")
end

local function read_log(path)
  local kernels, name = {}, nil
  for line in io.lines(path) do
    local entry = line:match "Compiling entry function '(%S+)' for"
    if entry then
      name = entry
      kernels[name] = {name = name, base = base_name(name)}
    end
    local k = kernels[name]
    local stack, stores, loads = line:match "(%d+) bytes stack frame, (%d+) bytes spill stores, (%d+) bytes spill loads"
    if k and stack and not k.stack then k.stack, k.stores, k.loads = tonumber(stack), tonumber(stores), tonumber(loads) end
    local registers = line:match "Used (%d+) registers"
    if k and registers then
      k.registers, k.shared = tonumber(registers), tonumber(line:match "(%d+) bytes smem" or 0)
    end
  end
  return kernels
end

local function has_tool(name)
  local pipe = io.popen("PATH=$PATH:/usr/local/cuda/bin; command -v " .. name)
  local path = pipe:read "*l"
  pipe:close()
  return path
end

-- Which of INSTRUCTIONS each kernel has within a loop: between the target of a branch back and that branch.
local function read_library(tool, path)
  local found, name, lines = {}, nil, {}
  local function finish()
    if not name then return end
    local has, loops = {}, {}
    for _, line in ipairs(lines) do
      local target = line.text:match "BRA[%w.]* .-(0x%x+)" or line.text:match "BRA (0x%x+)"
      if target and tonumber(target) < line.at then loops[#loops + 1] = {tonumber(target), line.at} end
    end
    for kind, patterns in pairs(INSTRUCTIONS) do
      local count = 0
      for _, line in ipairs(lines) do
        local matches = false
        for _, pattern in ipairs(patterns) do matches = matches or line.text:find("%f[%w]" .. pattern) ~= nil end
        local inside = false
        for _, loop in ipairs(matches and loops or {}) do inside = inside or line.at >= loop[1] and line.at <= loop[2] end
        if inside then count = count + 1 end
      end
      has[kind] = count
    end
    found[name], lines = has, {}
  end
  local pipe = io.popen(("'%s' -sass '%s' 2>/dev/null"):format(tool, path))
  for line in pipe:lines() do
    local next_one = line:match "Function : (%S+)"
    if next_one then
      finish()
      name = next_one
    end
    local at, text = line:match "^%s*/%*(%x+)%*/%s+(.-);"
    if at then lines[#lines + 1] = {at = tonumber(at, 16), text = text} end
  end
  pipe:close()
  finish()
  return found
end

local function wanted_of(base)
  for _, wanted in ipairs(WANTED) do
    if base:sub(1, #wanted[1]) == wanted[1] then return wanted[2] end
  end
end

local log, library = arg[1], arg[2]
local tool = library and has_tool "cuobjdump"
local code = tool and read_library(tool, library)
local list, problems = {}, {}
for _, k in pairs(read_log(log)) do
  if not code or code[k.name] then list[#list + 1] = k end -- the log may have kernels that are gone
end
table.sort(list, function(a, b) return a.name < b.name end)
if #list == 0 then problems[1] = log .. " tells of no kernel; make liblsa_cuda from the beginning" end

print(("%-44s %9s %7s %7s %7s  %s"):format("kernel", "registers", "stack", "spills", "shared", "in its loop"))
for _, k in ipairs(list) do
  local wanted = wanted_of(k.base)
  local has = code and code[k.name]
  local text = wanted and (not code and "?" or ("%d %s"):format(has and has[wanted] or 0, wanted)) or ""
  print(("%-44s %9d %7d %7d %7d  %s"):format(readable(k.name):sub(1, 44), k.registers or 0, k.stack or 0, (k.stores or 0) + (k.loads or 0),
    k.shared or 0, text))
  if (k.stores or 0) + (k.loads or 0) > 0 then
    problems[#problems + 1] = ("%s spills registers: %d bytes stored, %d loaded"):format(readable(k.name), k.stores, k.loads)
  end
  if code and wanted and not (has and has[wanted] > 0) then
    problems[#problems + 1] = ("%s has no %s in a loop"):format(readable(k.name), wanted)
  end
end
for _, wanted in ipairs(WANTED) do
  local there = false
  for _, k in ipairs(list) do there = there or k.base:sub(1, #wanted[1]) == wanted[1] end
  if not there then problems[#problems + 1] = ("no kernel's name begins with %s, as .ci/kernels.lua wants"):format(wanted[1]) end
end
if library and not tool then print "no cuobjdump: instructions were not looked at" end
for _, problem in ipairs(problems) do print(problem) end
os.exit(#problems == 0 and 0 or 1)
