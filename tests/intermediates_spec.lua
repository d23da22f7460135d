-- Which intermediates of a prefill are collected, and what the picks' logits are.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local raise = require "lsa.raise"
local C = lib.C

local golden = lib.root .. "/tests/golden/"

local function open_case(name, piece)
  local model = lsa.model(golden .. name, {piece = piece})
  return model, lsa.load(golden .. name .. "/golden.safetensors").input_ids:to "i32"
end

local function prefilled(model, ids, trace)
  local s = model:session{select = "full", kv = "f32"}
  return select(2, s:prefill(ids, {trace = trace}))
end

local function names(t)
  local list = {}
  for name in pairs(t) do list[#list + 1] = name end
  table.sort(list)
  return list
end

describe("intermediates of a prefill", function()
  for _, piece in ipairs {4096, 13} do
    it("are those that were asked for, with the same numbers, in pieces of " .. piece, function()
      local model, ids = open_case("flash", piece)
      local all = prefilled(model, ids, true)
      local layer = model.csa_layers[2]
      local some = prefilled(model, ids, {"index_topk", ("layer.%d.attn_input"):format(layer)})
      local want = {("layer.%d.attn_input"):format(layer)}
      for _, l in ipairs(model.csa_layers) do want[#want + 1] = ("layer.%d.index_topk"):format(l) end
      table.sort(want)
      assert.same(want, names(some))
      for name, t in pairs(some) do assert.same(all[name]:totable(), t:totable(), name) end
    end)

    it("give the picks' logits beside their ids, in pieces of " .. piece, function()
      local model, ids = open_case("csa", piece)
      local t = prefilled(model, ids, true)
      local checked = 0
      for _, layer in ipairs(model.csa_layers) do
        local function rows(name) return t[("layer.%d.%s"):format(layer, name)]:totable() end
        local scores, picks, logits = rows "index_scores", rows "index_topk", rows "index_topk_logits"
        for token = 1, #picks do
          for j, id in ipairs(picks[token]) do
            if id < 0 then
              assert.equal(-math.huge, logits[token][j])
            else
              local score = scores[token][id + 1]
              assert.is_true(math.abs(logits[token][j] - score) <= 1e-5 * math.max(1, math.abs(score)))
              checked = checked + 1
            end
          end
        end
      end
      assert.is_true(checked > 500)
    end)
  end

  it("are refused by names that make no sense", function()
    local model, ids = open_case("csa")
    local s = model:session{select = "full"}
    for _, trace in ipairs {3, "attn_input", {}} do
      local ok, message = pcall(s.prefill, s, ids, {trace = trace})
      assert.is_false(ok)
      assert.matches("trace is .*; true or a list of names is wanted", message)
    end
    local ok, message = pcall(s.prefill, s, ids, {trace = {("x"):rep(60)}})
    assert.is_false(ok)
    assert.matches("nothing is called xxx", message)
  end)

  it("are let go, and collected anew", function()
    local trace = require("lsa.session.intermediates").new {"a"}
    local data = ffi.new("float[6]", 1, 2, 3, 4, 5, 6)
    local before = C.lsa_memory_in_use()
    for _ = 1, 3 do
      raise.check(C.lsa_trace_rows(trace, 0, "a", data, 2, 3))
      raise.check(C.lsa_trace_rows(trace, 0, "b", data, 2, 3))
      assert.equal(1, tonumber(C.lsa_trace_count(trace)))
      C.lsa_trace_clear(trace)
      assert.equal(0, tonumber(C.lsa_trace_count(trace)))
    end
    assert.is_true(C.lsa_memory_in_use() - before < 64 * 1024)
    assert.equal(0, C.lsa_trace_wants(nil, 0, "a"))
  end)
end)
