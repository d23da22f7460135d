local lsa = require "lsa"
local arity = require "lsa.arity"

describe("a closed session", function()
  it("refuses every method by name, and crashes in none", function()
    local s = lsa.model("tests/golden/flash"):session{select = "recency", budget = 6}
    s:prefill {1, 2, 3, 4, 5, 6, 7, 8, 9}
    local class, tried = getmetatable(s).__index, 0
    local answers = {close = true, cycles = true, chunk_bytes = true, __tostring = true} -- of what outlives it
    s:close()
    for name, method in pairs(class) do
      if type(method) == "function" and not answers[name] then
        for _, arguments in ipairs {{}, {1, 1, 1, 1, 1, 1}, {"a", "b", "c"}} do
          local ok, problem = pcall(method, s, unpack(arguments, 1, debug.getinfo(arity.original(method), "u").nparams - 1))
          assert.is_false(ok, name)
          assert.is_truthy(tostring(problem):find("the session is closed", 1, true), name .. ": " .. tostring(problem))
        end
        tried = tried + 1
      end
    end
    assert.is_true(tried > 25)
  end)
end)
