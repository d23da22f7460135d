-- Memory Indexers by themselves: against the definition, against the Lightning Indexer, saved and loaded.
local lsa = require "lsa"
local lib = require "lsa.ffi"
local files = require "file_support"
local rng = require "lsa.cycle.rng"

local golden = lib.root .. "/tests/golden/"

local function tokens_of(model, n)
  local random, out = rng.new(4), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

local model = lsa.model(golden .. "flash")
local tokens = tokens_of(model, 90)
local LAST = #tokens - 1

local function session(kv)
  local s = model:session{select = "full", kv = kv}
  s:prefill(tokens)
  return s
end

local function message_of(f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  return message
end

local function same(want, got, tolerance)
  assert.equal(want:count(), got:count())
  local a, b = want:totable(), got:totable()
  local scale = 0
  for i = 1, #a do scale = math.max(scale, math.abs(a[i])) end
  for i = 1, #a do
    assert.is_true(math.abs(a[i] - b[i]) <= tolerance * scale, ("chunk %d: %g, not %g"):format(i - 1, b[i], a[i]))
  end
end

local function dot(row, x)
  local sum = 0
  for i = 1, #x do sum = sum + row[i] * x[i] end
  return sum
end

-- Eq. 1-5 in double precision, from the weights by checkpoint name, for keys that are not rotated.
local function oracle(weights, layer, hidden, keys, p)
  local function part(name) return weights[("retrievers.l%d.%s"):format(layer, name)]:to "f32":totable() end
  local c, config, square = {}, model.config, 0
  for i, row in ipairs(part "wq_a.weight") do
    c[i] = dot(row, hidden)
    square = square + c[i] ^ 2
  end
  local norm, scale = part "q_norm_weight", 1 / math.sqrt(square / #c + config.norm_eps)
  for i = 1, #c do c[i] = c[i] * scale * norm[i] end
  local b, w = part "wq_b.weight", part "weights_proj.weight"
  local heads, dim, rope = #w, tonumber(config.index_dim), tonumber(config.rope_dim)
  local out = {}
  for s = 1, #keys do out[s] = 0 end
  for h = 1, heads do
    local q = {}
    for d = 1, dim do q[d] = dot(b[(h - 1) * dim + d], c) end
    for i = 0, rope / 2 - 1 do
      local at, angle = dim - rope + 2 * i + 1, p * model.c.compress_freq[i]
      local x, y = q[at], q[at + 1]
      q[at], q[at + 1] = x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
    end
    local weight = dot(w[h], hidden) / math.sqrt(dim) / math.sqrt(heads)
    for s = 1, #keys do out[s] = out[s] + weight * math.max(0, dot(keys[s], q)) end
  end
  return lsa.tensor(out)
end

describe("a Memory Indexer", function()
  it("gives the logits of the definition", function()
    local s, ix = session "f32", lsa.indexer{model = model}
    local weights = ix:tensors()
    assert.same({0, 1, 2}, ix.layers)
    for _, l in ipairs(ix.layers) do
      for _, p in ipairs {0, 5, LAST} do
        local want = oracle(weights, l, s:hidden(l):totable(), s:keys(l):totable(), p)
        same(want, ix:logits(l, s:hidden(l), s:keys(l), p), 2e-5)
      end
    end
  end)

  for kv, tolerance in pairs {f32 = 2e-5, bf16 = 2e-5, fp8 = 2e-5} do
    it("that is native gives the Lightning Indexer's logits, kv " .. kv, function()
      local s, ix = session(kv), lsa.indexer{model = model, from = "native"}
      for l = 0, #model.csa_layers - 1 do
        local q, w = s:recent_queries(l, 1)
        local _, n = s:position()
        local want = s:index_scores(l, q:pointer(), w:pointer(), w:count(), n)
        same(want, ix:logits(l, s:hidden(l), s:keys(l), LAST), tolerance)
      end
    end)
  end

  it("joins its layers by the max or the mean of their sigmoids", function()
    local s = session "fp8"
    for _, how in ipairs {"max", "mean"} do
      local ix = lsa.indexer{model = model, layers = {0, 2}, ensemble = how}
      local hidden, keys, logits = {}, {}, {}
      for _, l in ipairs {0, 2} do
        hidden[l], keys[l] = s:hidden(l), s:keys(l)
        logits[l] = ix:logits(l, hidden[l], keys[l], LAST):totable()
      end
      local want = {}
      for i = 1, #logits[0] do
        local a, b = 1 / (1 + math.exp(-logits[0][i])), 1 / (1 + math.exp(-logits[2][i]))
        want[i] = how == "max" and math.max(a, b) or (a + b) / 2
      end
      same(lsa.tensor(want), ix:score(hidden, keys, LAST), 1e-6)
    end
    local one = lsa.indexer{model = model, layers = {1}}
    same(one:logits(1, s:hidden(1), s:keys(1), LAST):sigmoid(), one:score(s:hidden(1), s:keys(1), LAST), 1e-6)
  end)

  for _, kind in ipairs {"safetensors", "pt"} do
    it("is the same bits after it was saved and loaded, as ." .. kind, function()
      files.with_folder(function(folder)
        local path, s = folder .. "/ix." .. kind, session "fp8"
        local a = lsa.indexer{model = model, layers = {2, 0}, ensemble = "mean"}
        a:save(path)
        local b = lsa.indexer{model = model, from = path, ensemble = "mean"}
        assert.same({0, 2}, b.layers)
        assert.equal("mean", b.ensemble)
        for _, l in ipairs {0, 2} do
          assert.same(a:logits(l, s:hidden(l), s:keys(l), LAST):totable(), b:logits(l, s:hidden(l), s:keys(l), LAST):totable())
        end
        assert.same({2}, lsa.indexer{model = model, from = path, layers = {2}}.layers)
        assert.matches("no tensor retrievers.l1", message_of(lsa.indexer, {model = model, from = path, layers = {1}}))
        local again = folder .. "/again." .. kind
        b:save(again)
        assert.is_true(files.read(path) == files.read(again))
      end)
    end)
  end

  it("may have its own rank and number of heads, and weights in bf16", function()
    local config = model.config
    local hidden, dim = tonumber(config.hidden), tonumber(config.index_dim)
    local random, t = rng.new(2), {}
    local function filled(shape)
      local x = lsa.zeros(shape)
      for i = 0, x:count() - 1 do x:pointer()[i] = (random(2001) - 1000) / 4000 end
      return x:to "bf16"
    end
    t["retrievers.l1.wq_a.weight"], t["retrievers.l1.wq_b.weight"] = filled {6, hidden}, filled {3 * dim, 6}
    t["retrievers.l1.q_norm_weight"], t["retrievers.l1.weights_proj.weight"] = filled {6}, filled {3, hidden}
    local s = session "f32"
    local ix = lsa.indexer{model = model, from = t}
    local want = oracle(t, 1, s:hidden(1):totable(), s:keys(1):totable(), 33)
    same(want, ix:logits(1, s:hidden(1), s:keys(1), 33), 2e-5)
  end)

  -- More chunks than lie together, so that several threads have some.
  it("scores a session's chunks in one go as its layers do one by one, with any number of threads", function()
    local needle = lsa.model(lib.root .. "/experiments/models/needle")
    local base = needle:session{select = "full"}
    base:prefill(tokens_of(needle, 10000))
    for _, ensemble in ipairs {"max", "mean"} do
      for _, threads in ipairs {1, 3} do
        lib.C.lsa_threads_set(threads)
        local ix = lsa.indexer{model = needle, layers = {0, 2}, ensemble = ensemble}
        local asked, got = 0, nil
        local s = base:fork{select = function(cycle)
          asked, got = asked + 1, cycle.scores:copy()
          assert.equal(cycle.n, got:count())
          assert.is_true(got:eq(ix:join{cycle.logits(0), cycle.logits(2)}):all())
          return {}
        end, strict = true}
        s.indexer = ix
        s:decode(1)
        assert.equal(1, asked)
        assert.is_true(got:max() > got:min())
        lib.C.lsa_threads_set(0)
      end
    end
  end)

  -- A session's hidden states are what a trace of the same tokens has; one step is a token's, the others are a prefill's.
  it("looks from several of the latest tokens: the highest of the scores that each gives alone", function()
    for _, kv in ipairs {"f32", "fp8"} do
      for _, looks in ipairs {1, 2, 7, 64} do
        for _, length in ipairs {5, 89} do
          local ix = lsa.indexer{model = model, layers = {0, 2}, looks = looks}
          local asked, got, reached = 0, nil, nil
          local s = model:session{kv = kv, indexer = ix, strict = true, budget = 1, select = function(cycle)
            asked, got, reached = asked + 1, cycle.scores:copy(), cycle.reached(cycle.scores:mean())
            assert.is_true(got:eq(ix:join{cycle.logits(0), cycle.logits(2)}):all())
            return {}
          end}
          local head = {}
          for i = 1, length do head[i] = tokens[i] end
          local t = model:session{kv = kv, select = "full"}
          local _, trace = t:prefill(head, {trace = {"attn_input"}})
          s:prefill(head)
          s:decode(1)
          assert.equal(1, asked)
          local want
          for p = math.max(0, length - looks), length - 1 do
            local hidden, keys = {}, {}
            for _, l in ipairs {0, 2} do
              hidden[l] = trace[("layer.%d.attn_input"):format(model.csa_layers[l + 1])]:row(p)
              keys[l] = t:keys(l)
            end
            local one = lsa.indexer{model = model, layers = {0, 2}}:score(hidden, keys, p)
            want = want and want:maximum(one) or one
          end
          same(want, got, 1e-5)                -- products of several rows round otherwise
          assert.is_true(reached:count() > 0)
        end
      end
    end
  end)

  it("keeps looks in its file, in saved sessions and in recordings, and refuses what cannot be", function()
    files.with_folder(function(folder)
      local path = folder .. "/ix.safetensors"
      lsa.indexer{model = model, layers = {2}, ensemble = "mean", looks = 9}:save(path)
      assert.equal(9, lsa.indexer{model = model, from = path}.looks)
      assert.equal(1, lsa.indexer{model = model, from = path, looks = 1}.looks)
      local ix = lsa.indexer{model = model, from = path, looks = 12}
      local s = model:session{indexer = ix, select = "lsa_topk", budget = 0.3, every = 4}
      s:prefill(tokens)
      s:save(folder .. "/s")
      local r = model:restore(folder .. "/s", {trust = true})
      assert.equal(12, r.indexer.looks)
      s:record(folder .. "/trace")
      for i = 1, 12 do assert.same(s:decode(i):totable(), r:decode(i):totable()) end
      assert.is_true(s:resident():equals(r:resident()))
      local fetched = s:stats().fetched_chunks
      s:close()
      assert.is_true(fetched > 0)
      assert.equal(fetched, lsa.replay(folder .. "/trace", {select = "lsa_topk", budget = 0.3, every = 4}):stats().fetched_chunks)
      -- At other steps, and of another indexer, from the tokens that were recorded.
      for _, options in ipairs {{every = 3}, {every = 4, indexer = ix}} do
        options.select, options.budget, options.strict = "lsa_topk", 0.3, true
        assert.is_true(lsa.replay(folder .. "/trace", options):stats().cycles >= 3)
      end
    end)
    for looks, text in pairs {[0] = "looks", [65] = "sessions keep hidden states of 64", [1.5] = "looks"} do
      assert.matches(text, message_of(lsa.indexer, {model = model, layers = {0}, looks = looks}))
    end
    assert.matches("mean of 2 layers", message_of(lsa.indexer, {model = model, layers = {0, 1}, ensemble = "mean", looks = 2}))
  end)

  it("refuses files whose parts do not fit, and says which", function()
    local whole = lsa.indexer{model = model, layers = {1}}:tensors()
    local function failure(name, t)
      local broken = {}
      for key, value in pairs(whole) do broken[key] = value end
      broken["retrievers.l1." .. name] = t
      return message_of(lsa.indexer, {model = model, from = broken})
    end
    local a, b = whole["retrievers.l1.wq_a.weight"], whole["retrievers.l1.wq_b.weight"]
    local norm, w = whole["retrievers.l1.q_norm_weight"], whole["retrievers.l1.weights_proj.weight"]
    assert.matches("no tensor retrievers.l1.wq_b.weight", failure("wq_b.weight", nil))
    assert.matches("wq_b.weight of layer 1 is f32 of 1 dimensions", failure("wq_b.weight", norm))
    assert.matches("weights_proj.weight of layer 1 is i32", failure("weights_proj.weight", w:to "i32"))
    assert.matches("layer 1: indexer: wq_a has %d+ columns", failure("wq_a.weight", a:narrow(1, 0, 4):contiguous()))
    assert.matches("layer 1: indexer: wq_b has %d+ columns", failure("wq_b.weight", b:narrow(1, 0, 4):contiguous()))
    assert.matches("layer 1: indexer: weights_proj has 1 rows", failure("weights_proj.weight", w:narrow(0, 0, 1):contiguous()))
    assert.matches("q_norm_weight of layer 1 has 3 values", failure("q_norm_weight", norm:narrow(0, 0, 3)))
    assert.matches("has no target layer", message_of(lsa.indexer, {model = model, from = {x = norm}}))
    assert.matches("none of the known formats", message_of(lsa.indexer, {model = model, from = golden .. "README.md"}))
  end)

  it("has the ensemble that its file was saved with, where none is asked for", function()
    files.with_folder(function(folder)
      lsa.indexer{model = model, layers = {0, 2}, ensemble = "mean"}:save(folder .. "/mean.safetensors")
      local function ensemble_of(path, wanted)
        return lsa.indexer{model = model, from = folder .. path, ensemble = wanted}.ensemble
      end
      assert.equal("mean", ensemble_of "/mean.safetensors")
      assert.equal("max", ensemble_of("/mean.safetensors", "max"))
      local s = model:session{indexer = folder .. "/mean.safetensors", select = "lsa_topk"}
      assert.equal("mean", s.indexer.ensemble)
      lsa.indexer{model = model, layers = {0, 2}, ensemble = "mean"}:save(folder .. "/plain.pt")
      assert.equal("max", ensemble_of "/plain.pt")
      lsa.save(folder .. "/bad.safetensors", lsa.load(folder .. "/mean.safetensors"), {ensemble = "sum"})
      assert.matches('ensemble is "sum"', message_of(lsa.indexer, {model = model, from = folder .. "/bad.safetensors"}))
    end)
  end)

  it("refuses what is no layer, hidden state or key of the model", function()
    local s, ix = session "fp8", lsa.indexer{model = model, layers = {0}}
    local hidden, keys = s:hidden(0), s:keys(0)
    assert.matches("layer 7; the model has 3 CSA layers", message_of(lsa.indexer, {model = model, layers = {7}}))
    assert.matches("model, whose rope and key dimension are needed, is nil", message_of(lsa.indexer, {}))
    assert.matches('ensemble is "sum"', message_of(lsa.indexer, {model = model, ensemble = "sum"}))
    assert.matches("layer 2 is no target", message_of(ix.logits, ix, 2, hidden, keys, 1))
    assert.matches("keys are a u8 tensor", message_of(ix.logits, ix, 0, hidden, keys:narrow(1, 0, 8):contiguous(), 1))
    assert.matches("keys are a i32 tensor", message_of(ix.logits, ix, 0, hidden, lsa.zeros({3, 4}, "i32"), 1))
    assert.matches("hidden has 5 values", message_of(ix.logits, ix, 0, lsa.zeros {5}, keys, 1))
    assert.matches("no hidden state or keys of layer 0", message_of(ix.score, ix, {}, {}, 1))
    assert.same({0}, ix:logits(0, hidden, keys:narrow(0, 0, 0), 1):shape())
  end)

  it("prints what it is", function()
    assert.equal("indexer from native: CSA layers 0, 1, 2, ensemble max", tostring(lsa.indexer{model = model}))
  end)
end)
