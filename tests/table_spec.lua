-- The table of kernels against the contracts in the headers.
local ffi = require "ffi"
local raw = require "lsa.ffi"
local C = raw.C

local function read(path)
  local file = assert(io.open(raw.root .. "/" .. path))
  local text = file:read "*a"
  file:close()
  return text
end

-- Kernels by the contracts of kernels/*.h, name -> header; what is private has none.
local function contracts()
  local found, listing = {}, assert(io.popen("cd " .. raw.root .. " && ls kernels/*.h"))
  for path in listing:lines() do
    local text = read(path)
    if not text:find "^/%* Private" then
      for name in text:gmatch "typedef [%w_]+ lsa_([%w_]+)_fn%(" do found[name] = path end
    end
  end
  listing:close()
  return found
end

-- Its members by their types, name -> type.
local function members()
  local found = {}
  for kind, name in read("kernels/table.h"):gmatch "\n    lsa_([%w_]+)_fn %*([%w_]+);" do found[name] = kind end
  return found
end

describe("lsa_kernels", function()
  it("has a member for every contract, and none beside", function()
    local found, table_of = contracts(), members()
    assert.is_truthy(found.linear and found.linear_workspace and found.attention)
    for name, path in pairs(found) do assert.equal(name, table_of[name], path .. " has lsa_" .. name .. "_fn") end
    for name in pairs(table_of) do assert.is_truthy(found[name], name) end
    local named = 0
    for name in pairs(table_of) do
      named = named + 1
      assert.is_true(ffi.offsetof("lsa_kernels", name) ~= nil, name)
    end
    assert.equal(ffi.sizeof "lsa_kernels", 8 + named * ffi.sizeof "void *")
  end)

  it("has the CPU's kernel in every place", function()
    local kernels = C.lsa_kernels_on(C.LSA_CPU)
    assert.equal(C.LSA_CPU, kernels.device)
    assert.equal(ffi.sizeof "lsa_kernels", kernels.bytes)
    for name in pairs(members()) do
      local own = C["lsa_" .. name .. (name:find "_workspace$" and "" or "_cpu")]
      assert.is_true(kernels[name] == ffi.cast("lsa_" .. name .. "_fn *", own), name)
    end
  end)

  it("has a size of workspace where it has the kernel that wants one", function()
    local kernels = C.lsa_kernels_on(C.LSA_CUDA)
    if kernels == nil then return end
    for name in pairs(members()) do
      if kernels[name] ~= nil and members()[name .. "_workspace"] then
        assert.is_true(kernels[name .. "_workspace"] ~= nil, name)
      end
    end
  end)

  it("is not there for other devices", function()
    assert.is_true(C.lsa_kernels_on(7) == nil)
    assert.equal("kernels: there is no device 7", ffi.string(C.lsa_error()))
  end)
end)
