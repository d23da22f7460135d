-- NAME, run small: ./lsa test NAME_spec.lua
local cjson = require "cjson"
local host = require "lsa.host"
local path = debug.getinfo(1, "S").source:match "^@(.*)_spec%.lua$" .. ".lua"

describe("NAME", function()
  it("has a row for every policy and budget", function()
    local pipe = io.popen(("'%s/%s/bin/lsa' '%s' --tokens 1200 --needles 1 --budgets 0.1,0.2 --json 2>/dev/null"):format(host.root, host.build, path))
    local out = cjson.decode(pipe:read "*a")
    pipe:close()
    assert.equal(4, #out.needles)
    for _, row in ipairs(out.needles) do assert.is_true(row.accuracy >= 0 and row.accuracy <= 1) end
  end)
end)
