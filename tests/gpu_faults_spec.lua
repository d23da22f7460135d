-- Sessions on a GPU whose calls fail, every one of them once: an error that names the call, and the session is as it was. Needs a GPU.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local tokens = require("token_support").random
local stub = require "stub_support"

local C = lib.C
local golden = lib.root .. "/tests/golden/"
local MOST = 4000

if C.lsa_device_count() == 0 or stub.here then
  describe("sessions on a GPU whose calls fail", function() pending "a GPU is needed" end)
  return
end

-- What is compared: the bits of logits, or tokens.
local function plain(result)
  if type(result) == "table" then return table.concat(result, " ") end
  local host = result:to "cpu":contiguous()
  return ffi.string(host.c.data, host:bytes())
end

-- Of an error: a call's refusal, or a launch that is told by CUDA's own words for it.
local function is_refusal(message)
  return message:find("refused, as a test asked for", 1, true) or message:find("operation not permitted", 1, true)
end

local function slice(list, from)
  local out = {}
  for i = from, #list do out[#out + 1] = list[i] end
  return out
end

describe("sessions on a GPU whose calls fail", function()
  local model = lsa.model(golden .. "flash", {device = "cuda"})
  local MORE = tokens(model, 9, 3)
  -- A step that is refused leaves those before it: `from` is how many tokens an act came to before it failed.
  local acts = {
    {"a prefill", function(s, from) return s:prefill(slice(MORE, from + 1)) end},
    {"a step", function(s) return s:decode(3) end},
    {"steps with cycles", function(s, from) return s:generate{n = 7 - from} end},
    {"a fork", function(s) return s:fork():decode(5) end},
    {"a fork under another policy", function(s) return s:fork{select = "recency", budget = 5}:generate{n = 3} end},
  }
  for _, way in ipairs {{select = "lsa_topk", budget = 0.5, every = 3}, {select = "full"}, {select = "recency", budget = 6, every = 2}} do
    for _, act in ipairs(acts) do
      it(("are as they were: %s under %s"):format(act[1], way.select), function()
        way.strict = true
        local base, run = model:session(way), act[2]
        base:prefill(tokens(model, 61, 1))
        base:decode(7)
        local want, refused, at = run(base:fork(), 0), 0, base:position()
        for n = 0, MOST do
          local s = base:fork()
          C.lsa_device_fail_after(n)
          local ok, result = pcall(run, s, 0)
          local left = C.lsa_device_fail_after(-1)
          if left >= 0 then break end
          if ok then
            assert.equal(plain(want), plain(result))          -- what failed was made up for
          else
            assert.is_truthy(is_refusal(tostring(result)), tostring(result))
            refused = refused + 1
            local from = s:position() - at
            local rest = type(want) == "table" and slice(want, from + 1) or want
            if not (type(want) == "table" and #rest == 0) then
              assert.equal(plain(rest), plain(run(s, from)), ("call %d, %s"):format(n, tostring(result)))
            end
          end
          s:close()
          assert.is_true(n < MOST)
        end
        assert.is_true(refused > 0)
        assert.equal(plain(want), plain(run(base:fork(), 0)))
      end)
    end
  end
end)
