-- NAME on the small real model: ./lsa test NAME_spec.lua
local lsa = require "lsa"
local path = debug.getinfo(1, "S").source:match "^@(.*)_spec%.lua$" .. ".lua"

describe("NAME", function()
  local model = lsa.model "needle"

  local function session(options)
    options.select, options.strict = {path, recent = options.recent}, true    -- an error of the policy fails the test
    options.recent = nil
    local base = model:session{select = "full"}
    base:prefill(("The magic number for tree is: 1234. "):rep(60))
    local s = base:fork(options)
    s:generate{n = 2}
    return s
  end

  it("keeps within its budget, whatever that is", function()
    for _, budget in ipairs {0, 1, 20, 0.1, 1} do
      local s = session{budget = budget}
      assert.equal(0, s:stats().policy_errors)
      assert.is_true(s:resident():count() <= s:resident():size())
    end
  end)

  it("keeps the newest chunks where all of the budget is theirs", function()
    local s = session{budget = 40, recent = 1}
    local resident = s:resident()
    assert.is_true(resident:has(resident:size() - 1))
  end)
end)
