local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local support = require "trainer_support"
local C = lib.C

local LAYERS = {0, 1, 2}
local model, documents

local function trace(seed, opt)
  opt = opt or {}
  return support.trace(model, opt.layers or LAYERS, {steps = opt.steps or 400, topics = 8, stay = 20, seed = seed, noise = 0.3})
end

local function new(opt)
  local all = {model = model, traces = documents, from = "random", steps = 40, batch = 16, rate = 3e-3, window = 2}
  for key, value in pairs(opt or {}) do all[key] = value end
  return lsa.trainer(all)
end

local function bits(trainer)
  local out, n = {}, tonumber(C.lsa_trainer_count(trainer.c)) * 4
  for _, kind in ipairs{C.LSA_TRAIN_VALUE, C.LSA_TRAIN_FIRST, C.LSA_TRAIN_SECOND} do
    out[#out + 1] = ffi.string(C.lsa_trainer_all(trainer.c, kind), n)
  end
  return table.concat(out)
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "*a"
  file:close()
  return text
end

setup(function()
  model = lsa.model "experiments/models/needle"
  documents = {trace(1), trace(2)}
end)

describe("lsa.trainer", function()
  it("learns what the hidden states say about chunks, and knows it of another document", function()
    local trainer = new{steps = 120, batch = 32, negatives = 5}
    local first = trainer:step().loss
    local last = trainer:run().loss
    assert.is_true(last < 0.25 * first)
    local ix, held = trainer:indexer(), trace(3)
    local doc = require("lsa.train.documents").open(held, LAYERS, model, ffi.new("lsa_horizon", {1, 2, 4}))
    local right, golden, wrong, others = 0, 0, 0, 0
    for step = 100, 380, 20 do
      local scores, n = {}, doc:candidates(step)
      for _, layer in ipairs(LAYERS) do
        local hidden = doc.hidden[layer]:row(step)
        scores[layer + 1] = ix:logits(layer, hidden, doc.keys[layer]:narrow(0, 0, n), step)
      end
      local score = ix:join(scores)
      local is = {}
      for _, id in ipairs((doc:positives(step)):totable()) do is[id] = true end
      for id = 0, n - 1 do
        if is[id] then
          golden, right = golden + 1, right + (score:get(id) >= 0.5 and 1 or 0)
        else
          others, wrong = others + 1, wrong + (score:get(id) >= 0.5 and 1 or 0)
        end
      end
    end
    assert.is_true(golden > 100 and right >= 0.9 * golden)
    assert.is_true(wrong <= 0.1 * others)
  end)

  it("learns under every loss and sampler", function()
    for _, opt in ipairs{{loss = "focal"}, {loss = "none", pairwise = "bpr"}, {loss = "none", pairwise = "hinge"},
      {loss = "bce", pairwise = "bpr", factor = 0.5}, {sampler = "hard"}, {weights = "none", negatives = 3}} do
      local trainer, rows = new(opt), {}
      trainer:run{on_step = function(row) rows[#rows + 1] = row.loss end}
      local before, after = 0, 0
      for i = 1, 5 do before, after = before + rows[i], after + rows[#rows + 1 - i] end
      assert.is_true(after < 0.75 * before)
    end
  end)

  it("starts from the native indexer where rank and heads are its own, else at random", function()
    local trainer = lsa.trainer{model = model, traces = documents}
    local native = lsa.indexer{model = model, layers = LAYERS}:tensors()
    for name, t in pairs(trainer:tensors()) do assert.same(native[name]:totable(), t:totable()) end
    local other = lsa.trainer{model = model, traces = documents, heads = 2, rank = 8}
    assert.same({64, 8}, other:tensors()["retrievers.l1.wq_b.weight"]:shape())
    assert.has_error(function() lsa.trainer{model = model, traces = documents, heads = 2, from = "native"} end)
  end)

  it("gives an indexer that scores as the trainer does, also from its file", function()
    local trainer = new()
    trainer:run{steps = 3}
    local path = os.tmpname()
    trainer:indexer():save(path)
    local ix = lsa.indexer{model = model, from = path}
    assert.same(LAYERS, ix.layers)
    local doc, step, n = trainer.documents[1], 300, 60
    local want, logits = trainer:highest(0, step, n), nil
    for _, layer in ipairs(LAYERS) do
      local one = ix:logits(layer, doc.hidden[layer]:row(step), doc.keys[layer]:narrow(0, 0, n), step)
      logits = logits and logits:maximum(one) or one
    end
    for i = 0, n - 1 do assert.is_true(math.abs(want:get(i) - logits:get(i)) <= 1e-6) end
    os.remove(path)
  end)

  it("takes the same steps to the same bits, also across a checkpoint", function()
    for _, sampler in ipairs{"uniform", {"hard", refresh = 7}} do
      local whole = new{sampler = sampler}
      whole:run{steps = 20}
      local path = os.tmpname()
      os.remove(path)
      local half = new{sampler = sampler, checkpoint = path, every = 10}
      half:run{steps = 13}
      local rest = new{sampler = sampler, checkpoint = path, every = 10}
      assert.equal(10, rest.steps_done)
      rest:run{steps = 10}
      assert.is_true(bits(whole) == bits(rest))
      os.remove(path)
    end
  end)

  it("keeps the old checkpoint when writing the new one fails anywhere", function()
    local path = os.tmpname()
    local trainer = new()
    trainer:step()
    trainer:save(path)
    local before = read(path)
    trainer:step()
    local other, failures = os.tmpname(), 0
    trainer:save(other)
    local after = read(other)
    for n = 0, 100 do
      C.lsa_io_fail_after(n)
      local ok = pcall(trainer.save, trainer, path)
      C.lsa_io_fail_after(-1)
      if ok then break end
      local now = read(path)                 -- the new one where only the directory could not be synced
      assert.is_true(now == before or now == after)
      failures = failures + (now == before and 1 or 0)
    end
    assert.is_true(failures >= 3)
    assert.is_true(before ~= after and after == read(path))
    os.remove(other)
    local back = new{checkpoint = path}
    assert.equal(2, back.steps_done)
    assert.is_true(bits(trainer) == bits(back))
    os.remove(path)
  end)

  it("comes to the same weights however often it is killed", function()
    local process = require "process_support"
    local script, path, traces = os.tmpname(), os.tmpname(), os.tmpname()
    os.remove(path)
    lsa.save(traces, documents[1])
    process.write(script, [[
      local lsa = require "lsa"
      local model = lsa.model(lsa.root .. "/experiments/models/needle")
      lsa.trainer{model = model, traces = {arg[1]}, from = "random", steps = 150, batch = 16, rate = 3e-3, window = 2,
        checkpoint = arg[2], every = 1}:run()
    ]])
    local words = process.quote(traces) .. " " .. process.quote(path)
    local code, kills = 137, -1
    while code == 137 and kills < 60 do
      code = select(3, process.shell(process.killed_at(math.floor(40 * 1.3 ^ (kills + 1)), script, words)))
      kills = kills + 1
    end
    assert.equal(0, code)
    assert.is_true(kills >= 3)
    local back = new{traces = {traces}, steps = 150, window = 2, checkpoint = path}
    assert.equal(150, back.steps_done)
    local whole = new{traces = {traces}, steps = 150, window = 2}
    whole:run()
    assert.is_true(bits(whole) == bits(back))
    for _, file in ipairs{script, path, traces} do os.remove(file) end
  end)

  it("does not go on from a checkpoint of another run", function()
    local path = os.tmpname()
    new():save(path)
    local ok, why = pcall(new, {checkpoint = path, batch = 8})
    assert.is_false(ok)
    assert.truthy(why:find("is of a run with batch = 16, here it is 8", 1, true))
    lsa.save(path, {x = lsa.zeros{1}})
    ok, why = pcall(new, {checkpoint = path})
    assert.is_false(ok)
    assert.truthy(why:find("is not one", 1, true))
    os.remove(path)
  end)

  it("leaves the weights alone in a step that is no number, and gives up after ten", function()
    local bad = trace(1)
    bad.hidden_layer_1 = bad.hidden_layer_1:to "f32":mul(0 / 0)
    local trainer = new{traces = {bad}}
    local before = bits(trainer)
    for _ = 1, 9 do
      local row = trainer:step()
      assert.is_true(row.skipped)
      assert.is_true(row.loss ~= row.loss)
    end
    local ok, why = pcall(trainer.step, trainer)
    assert.is_false(ok)
    assert.truthy(why:find("loss or gradient was no number in 10 steps", 1, true))
    assert.is_true(before == bits(trainer))
  end)

  it("draws no step without golden chunks, and says when there is none", function()
    local sparse = trace(1)
    local pointers = {}
    for i = 0, 400 do pointers[i + 1] = i <= 200 and 0 or 2 end
    sparse.label_pointers = lsa.tensor(pointers, "i32")
    sparse.label_indices, sparse.label_scores = lsa.tensor({3, 99}, "i32"), lsa.tensor({1, 2}, "i32")
    local trainer = new{traces = {sparse}}
    assert.equal(2, trainer.batches.total)          -- of the steps before the 200th that see it
    for place = 0, 15 do
      local one = trainer.batches:draw(0, place)
      assert.is_true(one.step >= 198 and one.step < 200)
      assert.equal(1, one.positives)
      assert.equal(3, one.ids[0])
    end
    local asked = {}
    trainer = new{traces = {trace(2), sparse}, where = function(i, position)
      asked[i] = (asked[i] or 0) + 1
      return i == 2 and position == tonumber(sparse.positions_layer_0:get(199))
    end}
    assert.equal(1, trainer.batches.total)
    assert.equal(2, asked[2])
    for place = 0, 3 do
      local one = trainer.batches:draw(0, place)
      assert.equal(199, one.step)
      assert.equal(3, one.ids[0])
    end
    local none, what = pcall(new, {traces = {sparse}, where = function() return false end})
    assert.is_false(none)
    assert.truthy(what:find("where training is wanted", 1, true))
    assert.is_false((pcall(new, {traces = {sparse}, where = true})))
    sparse.label_pointers = lsa.zeros({401}, "i32")
    sparse.label_indices, sparse.label_scores = lsa.zeros({0}, "i32"), lsa.zeros({0}, "i32")
    local ok, why = pcall(new, {traces = {sparse}})
    assert.is_false(ok)
    assert.truthy(why:find("no step of 1 traces has a golden chunk", 1, true))
  end)

  it("trains at most the given number of positives, and never a golden chunk as a negative", function()
    local trainer = new{positives = 4, negatives = 2}
    local doc = trainer.documents[1]
    local capped = 0
    for number = 0, 3 do
      for place = 0, 15 do
        local one = trainer.batches:draw(number, place)
        local golden, n = {}, 0
        for _, id in ipairs((one.doc:positives(one.step)):totable()) do golden[id], n = true, n + 1 end
        assert.equal(math.min(4, n), one.positives)
        assert.equal(math.min(2 * one.positives, one.doc:candidates(one.step) - n), one.negatives)
        if n > 4 then capped = capped + 1 end
        for i = 0, one.positives + one.negatives - 1 do
          assert.equal(i < one.positives, golden[one.ids[i]] == true)
          assert.is_true(one.ids[i] < one.doc:candidates(one.step))
          assert.is_true(i < one.positives or one.weights[i] == 1)
        end
      end
    end
    assert.is_true(capped > 10)
    assert.is_not_nil(doc)
  end)

  it("takes a function as sampler, and names what is wrong with its answer", function()
    local seen = {}
    local trainer = new{sampler = function(sample, opt)
      seen[#seen + 1] = sample.want
      assert.equal(lsa.zeros({1}):dtype(), sample:scores():dtype())
      assert.same({}, opt)
      return sample:uniform(1)
    end}
    trainer:step()
    assert.equal(16, #seen)
    for answer, message in pairs{
      [function(s) return {s.n} end] = "none of the",
      [function(s) return {s.positives:get(0)} end] = "which is golden",
      [function(s) return s:uniform(s.want + 1) end] = "are wanted",
      [function() return "all" end] = "a list or i32 tensor",
      [function() error "no luck" end] = "no luck",
    } do
      local ok, why = pcall(new{sampler = answer}.step, new{sampler = answer})
      assert.is_false(ok)
      assert.truthy(tostring(why):find(message, 1, true))
    end
  end)

  it("names what is wrong with a trace", function()
    for change, message in pairs{
      [function(t) t.label_scores = nil end] = "no tensor label_scores",
      [function(t) t.compk_layer_1 = t.compk_layer_1:to "f32" end] = "compk_layer_1 is f32 [100, 36]; u8 [100, 36] is wanted",
      [function(t) t.hidden_layer_2 = t.hidden_layer_2:narrow(0, 0, 399) end] = "hidden_layer_2 is bf16 [399, 128]",
      [function(t) t.positions_layer_1 = t.positions_layer_1:copy() t.positions_layer_1:set(0, 1) end] =
        "positions of layer 1 are not those of the first layer",
      [function(t) t.label_indices = t.label_indices:copy() t.label_indices:set(0, 100) end] = "labels: chunk 100 of 100",
    } do
      local bad = trace(1)
      change(bad)
      local ok, why = pcall(new, {traces = {bad}})
      assert.is_false(ok)
      assert.truthy(why:find(message, 1, true), why)
    end
  end)

  it("reads traces from files", function()
    local path = os.tmpname()
    lsa.save(path, documents[1])
    local from_file, from_tensors = new{traces = {path}}, new{traces = {documents[1]}}
    from_file:step()
    from_tensors:step()
    assert.is_true(bits(from_file) == bits(from_tensors))
    os.remove(path)
  end)

  it("raises the rate to its height, then lets it fall to 0 as a cosine", function()
    local trainer = new{steps = 14, warmup = 4, rate = 8}
    assert.same({2, 4, 6, 8, 8}, {trainer:rate(0), trainer:rate(1), trainer:rate(2), trainer:rate(3), trainer:rate(4)})
    assert.is_true(math.abs(trainer:rate(9) - 4) <= 1e-12)
    assert.is_true(trainer:rate(13) > 0 and trainer:rate(13) < 0.3)
    trainer:run()
    assert.has_error(function() trainer:step() end)
  end)

  it("refuses what it does not know", function()
    for opt, message in pairs{
      [{losss = "bce"}] = "no option 'losss'",
      [{loss = "mse"}] = 'loss is "mse"; it can be: bce, focal, none',
      [{steps = 0}] = "steps is 0",
      [{rate = 0 / 0}] = "rate is",
      [{traces = {}}] = "traces is empty",
      [{sampler = "nobody"}] = "no sampler 'nobody'; there are: hard, uniform",
    } do
      local ok, why = pcall(new, opt)
      assert.is_false(ok)
      assert.truthy(why:find(message, 1, true), why)
    end
  end)
end)
