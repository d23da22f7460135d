local ffi = require "ffi"
local rng = require "lsa.cycle.rng"
local support = require "kernel_support"
local C = require("lsa.ffi").C
local check = require("lsa.raise").check

local advance = support.over_spans "advance"
local nan, inf = 0 / 0, math.huge

-- Sessions of which each is {given = {ids}, stops = {ids}, temperature =, seed =}, at position 10 i after i passes.
local function new_case(list, vocab)
  local n, case = #list, {vocab = vocab, list = list}
  case.spans, case.steps = support.span_buffer("lsa_span", n), support.span_buffer("lsa_steps", n)
  case.tokens, case.positions = support.span_buffer("int32_t", n), support.span_buffer("int32_t", n)
  case.logits, case.kept = support.span_buffer("float", n * vocab), support.span_buffer("float", n * vocab)
  for i, l in ipairs(list) do
    local s = case.steps[i - 1]
    case.spans[i - 1].row, case.spans[i - 1].rows = n - i, 1 -- rows are not in the order of the sessions
    s.progress.tokens, s.progress.passes = 10 * i, i
    s.temperature, s.given, s.stops = l.temperature or 0, #(l.given or {}), #(l.stops or {})
    l.random = rng.new(l.seed or i)
    s.generator = l.random.state[0]
    for j, id in ipairs(l.given or {}) do s.tokens[j - 1] = id end
    for j, id in ipairs(l.stops or {}) do s.stop_ids[j - 1] = id end
  end
  return case
end

local function set_logits(case, step)
  local values = support.normals(#case.list * case.vocab, step, 2)
  for i = 0, #case.list * case.vocab - 1 do case.logits[i] = values[i] end
end

local function call(case)
  return advance(case.spans, case.steps, case.tokens, case.positions, case.logits, case.kept, #case.list, case.vocab, nil)
end

-- What a row draws, by the contract of sample.
local function drawn(case, row, l, state)
  local token, temperature = ffi.new "int32_t[1]", ffi.new("double[1]", l.temperature or 0)
  check(C.lsa_sample_cpu(token, case.logits + row * case.vocab, state, temperature, 1, case.vocab, nil))
  return token[0]
end

describe("advance", function()
  it("takes the tokens that are given, then draws", function()
    local vocab, list = 50, {}
    for i = 1, 9 do list[i] = {given = {}, temperature = i % 3 * 0.5} for j = 1, i % 4 do list[i].given[j] = (7 * i + j) % vocab end end
    local case = new_case(list, vocab)
    local states = {}
    for i, l in ipairs(list) do states[i] = ffi.new("uint64_t[1]", l.random.state[0]) end
    for step = 1, 12 do
      set_logits(case, step)
      check(call(case))
      for i, l in ipairs(list) do
        local row, s = #list - i, case.steps[i - 1]
        local token = l.given[step] or drawn(case, row, l, states[i])
        assert.equal(token, case.tokens[row])
        assert.equal(token, s.tokens[step - 1])
        assert.equal(10 * i + step - 1, case.positions[row])
        assert.equal(10 * i + step - 1, tonumber(s.progress.tokens))
        assert.equal(i + step - 1, tonumber(s.progress.passes))
        assert.equal(step, s.begun)
        assert.equal(0, s.ended)
        assert.equal(0, case.spans[i - 1].unobserved)
        assert.is_true(s.generator == states[i][0])
      end
    end
  end)

  it("ends at a stop id that was drawn, with that step's logits kept, and stays there", function()
    local vocab = 6
    local case = new_case({{given = {3}, stops = {5, 3}}, {given = {3}}}, vocab) -- a given one ends nothing
    for step = 1, 5 do
      for row = 0, 1 do for id = 0, vocab - 1 do case.logits[row * vocab + id] = -id - step end end
      if step == 3 then case.logits[vocab + 5], case.logits[5] = 1, 1 end
      check(call(case))
    end
    local s, other = case.steps[0], case.steps[1]
    assert.equal(C.LSA_STEPS_STOPPED, s.ended)
    assert.equal(2, s.begun)
    assert.same({3, 0, 5}, {s.tokens[0], s.tokens[1], s.tokens[2]})
    assert.equal(12, tonumber(s.progress.tokens))
    assert.equal(3, tonumber(s.progress.passes))
    assert.equal(1, case.spans[0].unobserved)
    assert.equal(0, case.tokens[1])
    assert.equal(12, case.positions[1])
    for id = 0, vocab - 1 do assert.equal(id == 5 and 1 or -id - 3, case.kept[vocab + id]) end
    assert.equal(0, other.ended)
    assert.equal(5, other.begun)
    assert.same({3, 0, 5, 0, 0}, {other.tokens[0], other.tokens[1], other.tokens[2], other.tokens[3], other.tokens[4]})
  end)

  it("ends where nothing can be drawn, and leaves the generator alone", function()
    for _, bad in ipairs {nan, inf} do
      local case = new_case({{given = {1}, temperature = 1}}, 4)
      local state = case.steps[0].generator
      check(call(case))
      case.logits[2] = bad
      check(call(case))
      check(call(case))
      assert.equal(C.LSA_STEPS_NOTHING_TO_DRAW, case.steps[0].ended)
      assert.equal(1, case.steps[0].begun)
      assert.is_true(state == case.steps[0].generator)
      assert.equal(1, case.spans[0].unobserved)
      assert.is_true(case.kept[2] == bad or case.kept[2] ~= case.kept[2] and bad ~= bad)
    end
  end)

  it("takes no sessions, and refuses no vocabulary", function()
    check(advance(nil, nil, nil, nil, nil, nil, 0, 5, nil))
    assert.equal(C.LSA_ESHAPE, call(new_case({{given = {1}}}, 0)))
  end)
end)
