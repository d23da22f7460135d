-- Command lines of scripts, through the real executable.
local process = require "process_support"

local usage = [[
How often each policy finds the needle.
  --contexts (numbers default 1024,4096)   context lengths
  --policies (list default a,b)            policies
  -n,--questions (default 20)              questions
  --quick                                  a small run
  <model> (string)                         a folder]]

-- Runs a script that prints its options.
local function run(...)
  local path = os.tmpname()
  process.write(path, ("local a = require 'lsa.args' %q\n"):format(usage) .. [[
    print(table.concat(a.contexts, " "), table.concat(a.policies, " "), a.questions, a.quick, a.model)]])
  local out, err, code = process.lsa { path, ... }
  os.remove(path)
  return out, err, code
end

describe("a script's options", function()
  it("have defaults", function()
    local out, err, code = run "needle"
    assert.equals("1024 4096\ta b\t20\tfalse\tneedle\n", out)
    assert.equals("", err)
    assert.equals(0, code)
  end)

  it("are taken from the command line, lists and numbers by their type", function()
    local out = run("--contexts", "8", "--policies=x,y,z", "-n", "3", "--quick", "m")
    assert.equals("8\tx y z\t3\ttrue\tm\n", out)
  end)

  it("print the text at --help", function()
    local out, err, code = run "--help"
    assert.is_truthy(out:find("How often each policy finds the needle.", 1, true))
    assert.equals("", err)
    assert.equals(0, code)
  end)

  for name, words in pairs {
    ["an unknown option"] = { "m", "--nope" },
    ["what is no number"] = { "m", "--contexts", "1,x" },
    ["a missing argument"] = {},
    ["a stray argument"] = { "m", "stray" },
    ["a missing value"] = { "m", "-n" },
  } do
    it("give exit code 2 for " .. name, function()
      local out, err, code = run(unpack(words))
      assert.equals("", out)
      assert.is_truthy(err:find("usage: ", 1, true))
      assert.equals(2, code)
    end)
  end
end)
