-- Sessions on a GPU whose calls fail, every one of them once: an error that names the call, and the session is as it was. Needs a GPU.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local rng = require "lsa.cycle.rng"
local stub = require "stub_support"

local C = lib.C
local golden = lib.root .. "/tests/golden/"
local MOST = 4000

if C.lsa_device_count() == 0 or stub.here then
  describe("sessions on a GPU whose calls fail", function() pending "a GPU is needed" end)
  return
end

local function tokens(model, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

-- What is compared: the bits of logits, or tokens.
local function plain(result)
  if type(result) == "table" then return table.concat(result, " ") end
  local host = result:to "cpu":contiguous()
  return ffi.string(host.c.data, host:bytes())
end

describe("sessions on a GPU whose calls fail", function()
  local model = lsa.model(golden .. "flash", {device = "cuda"})
  local acts = {
    {"a prefill", function(s) return s:prefill(tokens(model, 9, 3)) end},
    {"a step", function(s) return s:decode(3) end},
    {"steps with cycles", function(s) return s:generate{n = 7} end},
    {"a fork", function(s) return s:fork():decode(5) end},
    {"a fork under another policy", function(s) return s:fork{select = "recency", budget = 5}:generate{n = 3} end},
  }
  for _, way in ipairs {{select = "lsa_topk", budget = 0.5, every = 3}, {select = "full"}, {select = "recency", budget = 6, every = 2, async = true}} do
    for _, act in ipairs(acts) do
      it(("are as they were: %s under %s"):format(act[1], way.select), function()
        local base = model:session(way)
        base:prefill(tokens(model, 61, 1))
        base:decode(7)
        local want, refused = plain(act[2](base:fork())), 0
        for n = 0, MOST do
          local s = base:fork()
          C.lsa_device_fail_after(n)
          local ok, result = pcall(act[2], s)
          local left = C.lsa_device_fail_after(-1)
          if left >= 0 then break end
          if ok then
            assert.equal(want, plain(result))          -- what failed was made up for
          else
            assert.matches("refused, as a test asked for", tostring(result))
            refused = refused + 1
            assert.equal(want, plain(act[2](s)))
          end
          s:close()
          assert.is_true(n < MOST)
        end
        assert.is_true(refused > 0)
        assert.equal(want, plain(act[2](base:fork())))
      end)
    end
  end
end)
