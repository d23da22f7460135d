-- NAME on the small real model: ./lsa test NAME_spec.lua
local lsa = require "lsa"
local path = debug.getinfo(1, "S").source:match "^@(.*)_spec%.lua$" .. ".lua"

describe("NAME", function()
  local model = lsa.model "needle"

  -- Cycles of 24 steps.
  local function cycles(options)
    options[1] = path
    local s = model:session{select = "recency", budget = 0.3, every = options, strict = true}
    s:prefill(("The magic number for tree is: 1234. "):rep(20))
    s:generate{n = 24}
    return #s:cycles()
  end

  it("has cycles every `every` steps where the model is never unsure", function()
    assert.equal(3, cycles{every = 8, nats = 100})
  end)

  it("has them `soon` where it always is", function()
    assert.equal(6, cycles{every = 8, soon = 4, nats = -1})
  end)
end)
