-- Level 1 of sessions on a GPU: what one launch answers is what the CPU scores, and what a session gets alone, whoever else is asked
-- with it. Without a GPU, on a stub (tests/stub_support.lua).
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local look = require "lsa.session.look"
local tokens = require("token_support").random
local stub = require "stub_support"

local C = lib.C

if C.lsa_device_count() == 0 then
  describe("looking ahead on a GPU", function()
    it("is right on a stub", function() assert.is_nil(stub.failure_of "look_spec.lua") end)
  end)
  return
end

local function bits(t) return ffi.string(t.c.data, t:count() * 4) end

local PIECE = 40 -- so that rings come round
local cpu, gpu = lsa.model("needle", {device = "cpu", piece = PIECE}), lsa.model("needle", {device = "cuda", piece = PIECE})

local function opened(model, n, options)
  local s = model:session(options)
  s:prefill(tokens(model, n, n))
  return s
end

local function scores(s)
  local t = s:tokens()
  return s:ensemble_scores(t, math.floor(t / tonumber(s.model.config.csa_rate)))
end

local function indexer(model, options)
  options.model = model
  return lsa.indexer(options)
end

describe("looking ahead on a GPU", function()
  for name, options in pairs {["its own indexer"] = {from = cpu:indexer_file()}, ["the native one"] = {layers = {0, 2}},
    ["8 looks"] = {from = cpu:indexer_file(), looks = 8, ensemble = "max"}, ["20 looks of 3 layers"] = {looks = 20}, ["a mean"] = {ensemble = "mean"}} do
    for _, kv in ipairs {"fp8", "f32"} do
      it(("gives the CPU's scores and their sets: %s, kv %s"):format(name, kv), function()
        for _, n in ipairs {5, 130, 611} do
          local s = opened(cpu, n, {kv = kv, select = "lsa_threshold", indexer = indexer(cpu, options)})
          local t = opened(gpu, n, {kv = kv, select = "lsa_threshold", indexer = indexer(gpu, options)})
          local a, b, off = scores(s), scores(t), 0
          assert.equal(a:count(), b:count())
          for i = 0, a:count() - 1 do off = math.max(off, math.abs(a:get(i) - b:get(i))) end
          assert.is_true(off < 2e-3, tostring(off))
          local chunks = b:count()
          for _, theta in ipairs {0, 0.3, b:count() > 0 and b:get(0) or 0.5, 1.1} do
            local chosen = t:ensemble_reached(n, chunks, theta)
            assert.is_true(chosen:equals(b:ge(theta)))
          end
        end
      end)
    end
  end

  it("gives each session of several what it gets alone", function()
    local ix, sessions, alone = indexer(gpu, {from = gpu:indexer_file(), looks = 4, ensemble = "max"}), {}, {}
    for i, n in ipairs {611, 3, 64, 200, 611, 129} do
      sessions[i] = opened(gpu, n, {select = "lsa_threshold", indexer = ix})
      alone[i] = bits(scores(sessions[i]))
    end
    look.ahead(sessions)
    for i, s in ipairs(sessions) do
      assert.equal(i ~= 2, s.ahead ~= nil) -- three tokens are fewer looks, which are asked alone
      assert.is_true(alone[i] == bits(scores(s)))
      assert.is_nil(s.ahead)
    end
    look.ahead(sessions)
    sessions[1]:decode(7) -- what was looked at before is of no use after it
    local fresh = sessions[1]:fork()
    assert.is_true(bits(scores(sessions[1])) == bits(scores(fresh)))
  end)

  it("of sessions that are not alike is an error", function()
    local ix = indexer(gpu, {})
    local a, b = opened(gpu, 90, {select = "full"}), opened(gpu, 90, {select = "full", kv = "f32"})
    local how, answered = look.with(ix, 1), ffi.new "int32_t[1]"
    assert.is_true(C.lsa_sessions_look(ffi.new("lsa_session *[2]", {a.c, b.c}), 2, how, nil, nil, answered) < 0)
    assert.matches("session 1 is of another model, format or scoring", ffi.string(C.lsa_error()))
    how.rows = 91
    assert.is_true(C.lsa_sessions_look(ffi.new("lsa_session *[1]", {a.c}), 1, how, nil, nil, answered) < 0)
    assert.matches("less than 91 tokens", ffi.string(C.lsa_error()))
    assert.equal(0, answered[0])
  end)
end)
