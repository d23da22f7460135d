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

  it("are there in every script: rows as JSON or CSV in the place of tables", function()
    local path = os.tmpname()
    process.write(path, [==[
      local opt = require "lsa.args" "Asks.\n  --n (default 2)  how many\n  --list (numbers default 1,2)  numbers"
      opt.report:say("for %s", "people")
      opt.report:table("rows", {"a", "b"}, {{a = 1, b = "x"}, {a = 1 / 3, b = 0 / 0}})
      opt.report:table("more", {"c"}, {{c = opt.n}}, "a text for people\n")
      opt.report:done()]==])
    assert.equals("for people\n      a    b\n      1    x\n0.33333  nan\na text for people\n", (process.lsa {path}))
    local out, err, code = process.lsa {path, "--json", "--n", "3"}
    assert.same({"", 0}, {err, code})
    local read = require "cjson".decode(out)
    assert.same({"0.3333333333333333"}, {out:match '"a": (0[%d.]+)'})
    assert.equal("x", read.rows[1].b)
    assert.equal(3, read.more[1].c)
    assert.equal(3, read.options.n)
    assert.same({1, 2}, read.options.list)
    assert.equal(require "lsa.version", read.version)
    assert.equals("a,b\n1,x\n0.3333333333333333,nan\n\nc\n2\n", (process.lsa {path, "--csv"}))
    out, err, code = process.lsa {path, "--csv", "--json"}
    assert.same({"", 2}, {out, code})
    assert.is_truthy(err:find "^%-%-csv and %-%-json: one of them\n")
    out = process.lsa {path, "--help"}
    assert.is_truthy(out:find "\n  %-%-json +rows as JSON")
    os.remove(path)
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
