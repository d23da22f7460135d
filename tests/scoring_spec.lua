-- The option `scoring` of sessions: how Level 1 and Level 2 score index keys.
local lsa = require "lsa"

local TOKENS = 600

local function tokens()
  local out = {}
  for i = 1, TOKENS do out[i] = 32 + i * i * 7919 % 90 end
  return out
end

describe("scoring", function()
  local model
  setup(function() model = lsa.model "experiments/models/needle" end)

  -- Scores that a policy is given at the first cycle of a session.
  local function scores_of(opt)
    local seen
    opt.select = function(cycle) seen = {cycle.scores, cycle.native(0)} return {} end
    opt.strict, opt.every = true, 64
    local s = model:session(opt)
    s:prefill(tokens())
    s:decode(65)
    return seen, s
  end

  it("is the model's compute where it is not given", function()
    local own, f32 = scores_of {}, scores_of {scoring = "f32"}
    for i = 1, 2 do assert.same(f32[i]:totable(), own[i]:totable()) end
  end)

  it("rounds queries, and with them scores, a little", function()
    local f32 = scores_of {scoring = "f32"}
    for scoring, bound in pairs {bf16 = 0.02, fp8 = 0.1} do
      local rounded = scores_of {scoring = scoring}
      for i = 1, 2 do
        local a, b, largest, differ = f32[i]:totable(), rounded[i]:totable(), 0, 0
        for j = 1, #a do
          largest = math.max(largest, math.abs(a[j]))
          if a[j] ~= b[j] then differ = differ + 1 end
        end
        assert.is_true(differ > #a / 2)
        for j = 1, #a do assert.is_true(math.abs(a[j] - b[j]) <= bound * largest, scoring) end
      end
    end
  end)

  it("is Level 2's, too, and a fork's", function()
    local session = model:session {select = "full", scoring = "fp8"}
    session:prefill(tokens())
    local fork = session:fork {}
    local other = model:session {select = "full"}
    other:prefill(tokens())
    local a, b, c = session:decode(65):totable(), fork:decode(65):totable(), other:decode(65):totable()
    assert.same(a, b)
    local differ = 0
    for i = 1, #a do if a[i] ~= c[i] then differ = differ + 1 end end
    assert.is_true(differ > 0)
  end)

  it("is one of three", function()
    assert.has_error(function() model:session {scoring = "fp4"} end, 'session: scoring is "fp4"; it can be: f32, bf16, fp8; did you mean fp8?')
  end)
end)
