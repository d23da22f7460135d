-- The engine against transformers: every golden case, prefilled at once, in pieces, and decoded token by token.
local lfs = require "lfs"
local lsa = require "lsa"
local root = require("lsa.ffi").root .. "/tests/golden/"

-- Of the largest logit: transformers' own two ways of computing differ by a third of it.
local TOLERANCE = 2e-5

local cases = {}
for name in lfs.dir(root) do
  if lfs.attributes(root .. name .. "/golden.safetensors") then cases[#cases + 1] = name end
end
table.sort(cases)

-- Largest |a - b| and largest |b| of two tensors of equal count; NaN in either gives NaN.
local function difference(a, b)
  local pa, pb = a:to "f32":contiguous():pointer(), b:to "f32":contiguous():pointer()
  assert.equal(b:count(), a:count())
  local worst, scale = 0, 0
  for i = 0, a:count() - 1 do
    local d = math.abs(pa[i] - pb[i])
    if pa[i] == pb[i] then d = 0 end -- infinities of one sign
    if not (d <= worst) then worst = d end
    if math.abs(pb[i]) > scale and math.abs(pb[i]) < math.huge then scale = math.abs(pb[i]) end
  end
  return worst, scale
end

local function assert_close(a, b, what)
  local worst, scale = difference(a, b)
  assert.is_true(worst <= TOLERANCE * scale, ("%s: off by %.2e, largest %.3g"):format(what, worst, scale))
end

local function open_case(name, piece)
  local model = lsa.model(root .. name, {piece = piece})
  local golden = lsa.load(root .. name .. "/golden.safetensors")
  return model, golden, golden.input_ids:to "i32"
end

local function session(model) return model:session{select = "full", kv = "f32"} end

describe("golden vectors of transformers", function()
  it("are there", function() assert.is_true(#cases >= 8) end)

  for _, name in ipairs(cases) do
    describe(name, function()
      local function prefilled_in(piece)
        local model, golden, ids = open_case(name, piece)
        assert_close(session(model):prefill(ids, {all = true}), golden.logits, "logits in pieces of " .. piece)
      end

      it("match when prefilled at once", function() prefilled_in(4096) end)
      it("match in pieces of 64", function() prefilled_in(64) end)
      it("match in pieces of 7", function() prefilled_in(7) end)
      it("match in pieces of 1", function() prefilled_in(1) end)

      it("match token by token after a prefill, and when more is appended after decoding", function()
        local model, golden, ids = open_case(name, 64)
        local tokens = ids:totable()
        local prefix = math.ceil(#tokens / 2)
        local s = session(model)
        s:prefill(ids:narrow(0, 0, prefix))
        for t = prefix, #tokens - 1 do
          assert_close(s:decode(tokens[t + 1]), golden.logits_decode:row(t), "decoded logits of token " .. t)
        end
        s = session(model)
        local third = math.max(1, math.floor(#tokens / 3))
        s:prefill(ids:narrow(0, 0, third))
        s:decode(tokens[third + 1])
        if third + 1 < #tokens then
          local rest = s:prefill(ids:narrow(0, third + 1, #tokens - third - 1), {all = true})
          assert_close(rest, golden.logits:narrow(0, third + 1, #tokens - third - 1), "appended logits")
        end
      end)

      it("match inside every layer, top-k sets exactly", function()
        for _, piece in ipairs {4096, 13} do
          local model, golden, ids = open_case(name, piece)
          local _, trace = session(model):prefill(ids, {trace = true})
          local compared = 0
          for key, expected in pairs(golden) do
            if key:find "^layer%." then
              local ours = assert(trace[key], key .. " is not in the trace")
              if key:find "index_topk$" then
                local k, most = expected:shape()[2], ours:shape()[2] -- golden has min(k, chunks) columns
                assert.same(expected:to "f32":totable(), ours:narrow(1, most - k, k):totable(), key)
              elseif not key:find "index_scores$" then
                assert_close(ours, expected, key .. " in pieces of " .. piece)
              end
              compared = compared + 1
            end
          end
          assert.is_true(compared >= 3 * tonumber(model.config.layers))
        end
      end)
    end)
  end

  it("match index scores where they are visible", function()
    local model, golden, ids = open_case("csa", 4096)
    local _, trace = session(model):prefill(ids, {trace = true})
    local ours, expected = trace["layer.0.index_scores"]:totable(), golden["layer.0.index_scores"]:totable()
    local checked = 0
    for t = 1, #expected do
      for s = 1, math.floor(t / 4) do
        assert.is_true(math.abs(ours[t][s] - expected[t][s]) <= 1e-5)
        checked = checked + 1
      end
    end
    assert.is_true(checked > 1000)
  end)
end)
