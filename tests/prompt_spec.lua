-- What the library offers works alike in a script, in statements from a pipe, and at the prompt, whose globals and functions are not a
-- script's.
local lsa = require "lsa"
local fuzz = require "api_fuzz_support"
local process = require "process_support"
local support = require "file_support"
local Terminal = require "terminal_support"

local path = lsa.root .. "/tests/prompt_calls.txt"

local function statements(folder)
  local out = {("folder, golden = %q, %q"):format(folder, lsa.root .. "/tests/golden/")}
  for line in support.read(path):gmatch "[^\n]+" do
    if line:sub(1, 2) ~= "--" then out[#out + 1] = line end
  end
  return out
end

-- Progress bars are on stderr, which a terminal shows, too.
local function values(text)
  local out = {}
  for line in text:gmatch "[^\n]+" do
    if not line:find "[\27\r]" and line ~= "" then out[#out + 1] = line end
  end
  return table.concat(out, "\n")
end

local function piped()
  local out
  support.with_folder(function(folder)
    local errors, code
    out, errors, code = process.lsa({}, table.concat(statements(folder), "\n"))
    assert.equal(0, code, errors)
  end)
  return values(out)
end

describe("the library's calls", function()
  it("are all tried", function()
    local text, missing = support.read(path), {}
    local function want(kind, name)
      if not fuzz.EXCLUDED[kind .. "." .. name] and not text:find("[.:]" .. name .. "%f[^%w_]") then missing[#missing + 1] = kind .. "." .. name end
    end
    for name in pairs(getmetatable(lsa).__names) do want("lsa", name) end
    for name, value in pairs(lsa.accounting) do if type(value) == "function" then want("accounting", name) end end
    for kind, module in pairs {model = "lsa.model", session = "lsa.session"} do
      for name, value in pairs(require(module).class) do
        if type(value) == "function" and name:sub(1, 2) ~= "__" then want(kind, name) end
      end
    end
    local model = lsa.model(lsa.root .. "/tests/golden/flash")
    for kind, object in pairs {pool = lsa.pool {layers = 1, record = 8, chunks = 4}, batch = lsa.batch(model, {select = "recency", budget = 0.5}),
      indexer = lsa.indexer {model = model, layers = {0}, from = "native"}, sweep = lsa.sweep {grid = {x = {1}}, run = function() return {} end}} do
      for name in pairs(fuzz.methods(object)) do want(kind, name) end
    end
    assert.same({}, missing)
  end)

  it("give the same in a script, from a pipe and at the prompt", function()
    local expected, out = piped(), nil
    assert.is_true(#expected > 100)
    support.with_folder(function(folder)
      local lines = {}
      for i, line in ipairs(statements(folder)) do -- a script has to say what is to be printed
        lines[i] = loadstring("return " .. line) and ("print_all(%s)"):format(line) or line
      end
      support.write(folder .. "/script.lua", "lsa = require 'lsa' print_all = require('lsa.prompt.inspect').print\n" .. table.concat(lines, "\n"))
      local errors, code
      out, errors, code = process.lsa {folder .. "/script.lua"}
      assert.equal(0, code, errors)
    end)
    assert.equal(expected, values(out))
    if not Terminal.available() then return end
    local state = os.tmpname()
    os.remove(state)
    local terminal = Terminal.start(state)
    finally(function()
      terminal:stop()
      os.execute("rm -rf " .. state)
    end)
    support.with_folder(function(folder)
      terminal:expect "> "
      local all = {}
      for i, line in ipairs(statements(folder)) do
        terminal:send(line .. "\r")
        terminal:send(("io.write('end', '%d\\n')\r"):format(i))
        all[i] = terminal:expect(("end%d\n"):format(i)):gsub("Out%[%d+%]:[ \n]", "")
        terminal:expect "> "
        assert.is_nil(all[i]:find("stack traceback", 1, true), all[i])
        assert.is_nil(all[i]:find("prompt:1: ", 1, true), all[i])
      end
      for value in expected:gmatch "[^\n]+" do
        assert.is_truthy(table.concat(all, "\n"):find("\n" .. value .. "\n", 1, true), value)
      end
    end)
  end)
end)
