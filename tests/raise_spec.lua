-- Where errors point: at the script's line, once, whatever of the library is in between.
local files = require "file_support"
local lsa = require "lsa"
local process = require "process_support"
local raise = require "lsa.raise"
local root = require("lsa.ffi").root

local model = lsa.model(root .. "/tests/golden/csa")

local function here() return debug.getinfo(2, "l").currentline end

-- The message of what f raises, at `line` of this file, with no other position.
local function says(line, text, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok, text)
  local at, rest = message:match "^[^:\n]-tests/raise_spec%.lua:(%d+): (.*)$"
  assert.equal(line, tonumber(at), message)
  assert.is_nil(rest:find "%.lua:%d+: ", message)
  assert.matches(text, rest)
end

local function prefilled(options)
  local s = model:session(options)
  local tokens = {}
  for i = 1, 40 do tokens[i] = i % 7 end
  s:prefill(tokens)
  return s
end

describe("an error", function()
  it("points at the script's line, from near and from deep inside the library", function()
    says(here() + 1, "set: ", function()
      local _ = lsa.set(-1)
    end)
    says(here() + 1, "session: page is 0; a whole number of at least 1", function()
      local _ = model:session {page = 0}
    end)
    says(here() + 1, "no eviction policy 'lur'", function()
      local _ = model:session {evict = "lur"}
    end)
    says(here() + 1, "nothing%.safetensors", function()
      local _ = lsa.load "/nowhere/nothing.safetensors"
    end)
  end)

  it("points at the call where the function is given to pcall or run by a coroutine", function()
    local line = here() + 1
    local called, why = pcall(model.session, model, {page = 0})
    says(line, "session: page is 0", function() error(called or why, 0) end)
    local thread = coroutine.create(function()
      line = here() + 1
      local _ = model:session {page = 0}
    end)
    local ok, message = coroutine.resume(thread)
    assert.is_false(ok)
    says(line, "session: page is 0", function() error(message, 0) end)
  end)

  it("has one position where the library caught it and said more", function()
    files.with_folder(function(folder)
      local path = folder .. "/session.safetensors"
      prefilled():save(path)
      local bytes = files.read(path)
      local at = bytes:find("records", 1, true)
      files.write(path, bytes:sub(1, at - 1) .. "recordz" .. bytes:sub(at + 7))
      says(here() + 1, "session%.safetensors: .*damaged", function()
        local _ = model:restore(path)
      end)
      says(here() + 1, "session%.safetensors: .*no saved session", function()
        local _ = model:restore(lsa.save(path, {x = lsa.zeros {2}}) or path)
      end)
    end)
    says(here() + 1, "'sink' cannot change", function()
      local _ = prefilled():fork {sink = 2}
    end)
    says(here() + 1, "no policy 'nonesuch'", function()
      local _ = prefilled():fork {select = "nonesuch"}
    end)
  end)

  it("in a policy at a cycle points at the policy's line", function()
    for _, strict in ipairs {true, false} do
      local line
      local s = prefilled {strict = strict, select = function(cycle)
        line = here() + 1
        local _ = cycle.top(7)
      end}
      local registry = require "lsa.registry"
      local warn = registry.warn
      registry.warn = function() end
      local ok, message = pcall(s.decode, s, 1)
      registry.warn = warn
      assert.equal(not strict, ok)
      says(line, "^cycle.top: scores is 7", function() error(ok and s:stats().last_error or message, 0) end)
    end
  end)

  it("in a policy that ends in the call points at the policy's first line", function()
    local line = here() + 1
    local s = prefilled {strict = true, select = function(cycle)
      return cycle.top(7)
    end}
    says(line, "^cycle.top: scores is 7", s.decode, s, 1)
  end)

  it("in what a policy or a schedule gives points at that, not at the call that ran the cycle", function()
    local line = here() + 2
    for _, case in ipairs {
      {select = function() return 7 end, "^the policy returned a number"},
      {select = function() return {1e6} end, "^set: id 1000000 is outside 0"},
      {select = function(cycle) return {{0, cycle.n}} end, "^the policy: %d+ chunks with sink and tail, the budget is"},
      {every = function() return 1e12 end, "^the schedule: 1%w+ steps; a whole number from 1 to 16777216 is wanted"},
    } do
      local s = prefilled {strict = true, select = case.select or "recency", every = case.every}
      says(line, case[1], s.decode, s, 1)
      assert.matches(case[1]:gsub("^%^", ""), s:stats().last_error)
      line = line + 1
    end
  end)

  it("of a policy is said once, whatever numbers are in it", function()
    local out, err, code = process.lsa {"-e", ([[
      local model = lsa.model "%s/tests/golden/flash"
      local s = model:session{select = function(cycle)
        if cycle.t %% 2 == 0 then error("no " .. cycle.t) end
        return {1e6 + cycle.t}
      end, every = 1}
      s:prefill {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
      s:generate{n = 25}
      print(s:stats().policy_errors)]]):format(require("lsa.ffi").root)}
    assert.equal(0, code)
    assert.is_true(tonumber(out) >= 24)
    local _, lines = err:gsub("\n", "")
    assert.equal(2, lines, err)
  end)

  it("points into what the command line and the prompt are given, and nowhere where that has left the stack", function()
    local _, err, code = process.lsa {"-e", "lsa.set(-1)"}
    assert.equal(1, code)
    assert.matches("^lsa: %-e:1: set: ", err)
    _, err = process.lsa({}, "\nlsa.set(-1)\n")
    assert.matches("^lsa: stdin:2: set: ", err)
    _, err = process.lsa({"-"}, "return require 'lsa'.set(-1)")
    assert.matches("^lsa: set: ", err)
  end)
end)

describe("raise", function()
  it("formats where there is something to format", function()
    says(here() + 1, "^100%% of 3$", function()
      raise("100%% of %d", 3)
    end)
    says(here() + 1, "^100%% of it$", function()
      raise "100% of it"
    end)
  end)

  it("check passes what is no failure", function() assert.equal(7, raise.check(7)) end)

  it("words takes off the position that raise gave, and no other", function()
    local function caught() return select(2, pcall(raise, "so it is")) end
    local message = caught()
    assert.matches("raise_spec.lua:%d+: so it is$", message)
    assert.equal(message, raise.words(message))
    assert.equal("so it is", raise.words(select(2, pcall(raise, "so it is"))))
    assert.equal("elsewhere.lua:3: no", raise.words "elsewhere.lua:3: no")
  end)
end)
