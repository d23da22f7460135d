-- Dumps: traces of documents against what sessions say step by step, and what is left of a run that was killed.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local dump = require "lsa.dump"
local labels = require "lsa.train.labels"
local files = require "file_support"
local process = require "process_support"
local rng = require "lsa.cycle.rng"
local raise = require "lsa.raise"

local C = lib.C
local golden = lib.root .. "/tests/golden/"

local function tokens_of(model, n, seed)
  local random, out = rng.new(seed), {}
  for i = 1, n do out[i] = random(tonumber(model.config.vocab)) end
  return out
end

local function bytes_of(t)
  t = t:contiguous()
  return ffi.string(t.c.data, t:bytes())
end

-- What a plain session says of every position: by layer, hidden states, native picks {id, logit}, logits of all chunks.
local function reference(model, tokens)
  local s, steps = model:session{select = "full", kv = "fp8"}, {}
  local _, trace = s:prefill(tokens, {trace = true})
  for p = 0, #tokens - 1 do steps[p] = {hidden = {}, picks = {}, scores = {}} end
  for l, layer in ipairs(model.csa_layers) do
    local function part(name) return trace[("layer.%d.%s"):format(layer, name)] end
    local picks, scores = part "index_topk":totable(), part "index_scores":totable()
    for p = 0, #tokens - 1 do
      local step = steps[p]
      step.hidden[l - 1], step.scores[l - 1], step.picks[l - 1] = part "attn_input":row(p), scores[p + 1], {}
      for _, id in ipairs(picks[p + 1]) do
        if id >= 0 then table.insert(step.picks[l - 1], {id, scores[p + 1][id + 1]}) end
      end
    end
  end
  return steps, s
end

-- Labels of a step from the definition; the set that is certain and the set that is possible, where f32 sums may differ.
local function expected_labels(step, layers, top_p)
  local sure, possible = {}, {}
  for l = 0, layers - 1 do
    local list, total, most, sum = {}, 0, -math.huge, 0
    for i, pick in ipairs(step.picks[l]) do
      list[i] = pick
      most = math.max(most, pick[2])
    end
    for _, pick in ipairs(list) do total = total + math.exp(pick[2] - most) end
    table.sort(list, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[1] < b[1]) end)
    for _, pick in ipairs(list) do
      local before = sum / total
      if before <= top_p + 1e-3 then possible[pick[1]] = (possible[pick[1]] or 0) + 1 end
      if before <= top_p - 1e-3 then sure[pick[1]] = (sure[pick[1]] or 0) + 1 end
      sum = sum + math.exp(pick[2] - most)
    end
  end
  return sure, possible
end

local function labels_of(trace, t)
  local pointers, out = trace.label_pointers, {}
  for i = pointers:get(t), pointers:get(t + 1) - 1 do
    out[#out + 1] = {trace.label_indices:get(i), trace.label_scores:get(i)}
  end
  return out
end

local function check_trace(model, tokens, trace, opt)
  local steps, session = reference(model, tokens)
  local layers = #model.csa_layers
  local from, every = opt.from or 0, opt.every or 1
  local T = math.max(0, math.floor((#tokens - 1 - from) / every) + 1)
  assert.same({T + 1}, trace.label_pointers:shape())
  local golden_count = 0
  for _, l in ipairs(opt.layers or {0, 1, 2}) do
    assert.is_true(bytes_of(session:keys(l)) == bytes_of(trace["compk_layer_" .. l]))
    assert.same({T, tonumber(model.config.hidden)}, trace["hidden_layer_" .. l]:shape())
  end
  for t = 0, T - 1 do
    local p = from + t * every
    for _, l in ipairs(opt.layers or {0, 1, 2}) do
      assert.equal(p, trace["positions_layer_" .. l]:get(t))
      assert.is_true(bytes_of(steps[p].hidden[l]:to "bf16") == bytes_of(trace["hidden_layer_" .. l]:row(t)))
    end
    local sure, possible = expected_labels(steps[p], layers, opt.top_p or 0.6)
    local least, found = opt.min_layers or labels.min_layers(layers), {}
    local last = -1
    for _, label in ipairs(labels_of(trace, t)) do
      local id, votes = label[1], label[2]
      assert.is_true(id > last)
      last, found[id] = id, true
      assert.is_true(votes >= least and votes >= (sure[id] or 0) and votes <= (possible[id] or 0))
      golden_count = golden_count + 1
    end
    for id, votes in pairs(sure) do
      if votes >= least then assert.is_true(found[id], ("chunk %d of step %d"):format(id, t)) end
    end
  end
  assert.equal(trace.label_pointers:get(T), trace.label_indices:count())
  return golden_count
end

describe("labels by attention", function()
  it("are picks that got at least so much of it, of the layers that vote", function()
    local model = lsa.model(golden .. "flash", {piece = 16})
    files.with_folder(function(folder)
      local tokens = tokens_of(model, 75, 1)
      local function count(least, voters)
        local path = ("%s/%g_%d.safetensors"):format(folder, least, #voters)
        dump.document(model, tokens, path, {by = "attention", least = least, top_p = 1, min_layers = 1, voters = voters})
        return lsa.load(path).label_indices:count()
      end
      local all, few, none = count(0, {1}), count(0.1, {1}), count(1.5, {1})
      assert.is_true(all > few and few > 0)
      assert.equal(0, none)
      assert.is_true(count(0.1, {0, 1, 2}) >= few)
      assert.error_matches(function() dump.document(model, tokens, folder .. "/x", {least = 0.1}) end, "it is of attention")
    end)
  end)
end)

describe("a dump", function()
  local model = lsa.model(golden .. "flash", {piece = 16})

  for i, opt in ipairs {
    {}, {from = 7, every = 1, top_p = 0.4, min_layers = 2}, {every = 5, layers = {1}}, {from = 50, every = 100, layers = {0}},
  } do
    it("has what sessions say step by step, case " .. i, function()
      files.with_folder(function(folder)
        local tokens = tokens_of(model, 75, i)
        local path = folder .. "/doc.safetensors"
        dump.document(model, tokens, path, opt)
        local trace, metadata = lsa.load(path)
        assert.equal("lsa document 1", metadata.format)
        assert.is_true(check_trace(model, tokens, trace, opt) > 0)
        assert.equal("doc.safetensors", files.names(folder))
      end)
    end)
  end

  it("counts the best k alone where k is less than the model's", function()
    files.with_folder(function(folder)
      local tokens, path = tokens_of(model, 60, 9), folder .. "/doc.safetensors"
      dump.document(model, tokens, path, {k = 2, top_p = 1, min_layers = 1})
      local trace, steps = lsa.load(path), reference(model, tokens)
      for t = 0, 59 do
        local most = 0
        for l = 0, #model.csa_layers - 1 do most = most + math.min(2, #steps[t].picks[l]) end
        local votes = 0
        for _, label in ipairs(labels_of(trace, t)) do votes = votes + label[2] end
        assert.equal(most, votes)
      end
    end)
  end)

  it("finds nearly the labels that decoding token by token finds", function()
    files.with_folder(function(folder)
      local tokens, path = tokens_of(model, 120, 2), folder .. "/doc.safetensors"
      dump.document(model, tokens, path, {top_p = 0.999, min_layers = 1})
      local trace, s = lsa.load(path), model:session{select = "full", kv = "fp8"}
      local k, same, total = tonumber(model.config.index_topk), 0, 0
      s:prefill {tokens[1]}
      for p = 1, #tokens - 1 do
        s:decode(tokens[p + 1])
        local golden_ids, ids = {}, ffi.new("int32_t[?]", k)
        for _, label in ipairs(labels_of(trace, p)) do golden_ids[label[1]] = true end
        for l = 0, #model.csa_layers - 1 do
          for j = 0, tonumber(C.lsa_session_native_topk(s.c, l, ids)) - 1 do
            total = total + 1
            same = same + (golden_ids[ids[j]] and 1 or 0)
          end
        end
      end
      assert.is_true(total > 1000 and same / total > 0.9, ("%d of %d"):format(same, total))
    end)
  end)

  it("adds the native logits of the first steps", function()
    files.with_folder(function(folder)
      local tokens, path = tokens_of(model, 70, 4), folder .. "/doc.safetensors"
      dump.document(model, tokens, path, {from = 30, every = 3, logits = 3})
      local trace, steps = lsa.load(path), reference(model, tokens)
      for i = 0, 2 do
        for l = 0, #model.csa_layers - 1 do
          local got, want = trace[("logits_layer_%d_token_%d"):format(l, i)]:totable(), steps[30 + 3 * i].scores[l]
          local visible = math.floor((30 + 3 * i + 1) / 4)
          assert.equal(17, #got)
          for s = 1, 17 do
            if s > visible then assert.equal(-math.huge, got[s])
            else assert.is_true(math.abs(got[s] - want[s]) <= 1e-3 * math.max(1, math.abs(want[s]))) end
          end
        end
      end
    end)
  end)

  it("of a text without tokens, or without steps, has no rows", function()
    files.with_folder(function(folder)
      for n, from in pairs {[0] = 0, [3] = 10} do
        local path = folder .. "/doc.safetensors"
        dump.document(model, tokens_of(model, n, 1), path, {from = from})
        local trace = lsa.load(path)
        assert.same({0}, trace.label_pointers:totable())
        assert.same({0, tonumber(model.config.hidden)}, trace.hidden_layer_0:shape())
      end
    end)
  end)

  it("does not depend on pieces, but for rounding", function()
    files.with_folder(function(folder)
      local tokens, shapes = tokens_of(model, 80, 6), {}
      for i, piece in ipairs {1, 7, 512} do
        local path = ("%s/%d.safetensors"):format(folder, piece)
        dump.document(lsa.model(golden .. "flash", {piece = piece}), tokens, path, {})
        local trace = lsa.load(path)
        shapes[i] = trace.label_indices:count()
        assert.is_true(math.abs(shapes[i] - shapes[1]) <= 2)
      end
    end)
  end)

  it("needs memory for its cache and a piece, not for what it writes", function()
    files.with_folder(function(folder)
      local small = lsa.model(golden .. "flash", {piece = 64})
      local tokens = tokens_of(small, 4000, 3)
      local before, most = files.memory(), 0
      dump.document(small, tokens, folder .. "/doc.safetensors", {progress = function()
        collectgarbage()
        most = math.max(most, tonumber(C.lsa_memory_in_use()) - before)
      end})
      local trace = lsa.load(folder .. "/doc.safetensors")
      local written = 0
      for _, t in pairs(trace) do written = written + t:bytes() end
      assert.is_true(most < 8e6, ("%.1f MB"):format(most / 1e6))
      assert.is_true(written > 4000 * 2 * 2 * tonumber(small.config.hidden))
    end)
  end)

  it("says what is wrong with its options", function()
    local tokens = tokens_of(model, 8, 1)
    local function failure(opt, list)
      local ok, message = pcall(dump.document, model, list or tokens, "/dev/shm/never.safetensors", opt)
      assert.is_false(ok)
      assert.is_nil(files.read "/dev/shm/never.safetensors")
      assert.is_nil(files.names("/dev/shm"):find("never", 1, true))
      return message
    end
    assert.matches("layer 9; the model has 3 CSA layers", failure {layers = {9}})
    assert.matches("every is 0", failure {every = 0})
    assert.matches("logits is 4", failure {logits = 4})
    assert.matches("no option 'steps'", failure {steps = 4})
    assert.matches("token 2 is 99999", failure({}, {1, 2, 99999}))
    assert.matches("top_p is %-1", failure {top_p = -1})
  end)
end)

describe("dumps of many documents", function()
  local model = lsa.model(golden .. "flash", {piece = 16})
  local function list(n)
    local out = {}
    for i = 1, n do out[i] = {name = "doc" .. i, tokens = tokens_of(model, 40 + i, i)} end
    return out
  end

  it("pass over what is finished, and refuse what is of something else", function()
    files.with_folder(function(folder)
      local paths, there = dump.documents(model, list(2), folder .. "/new", {every = 2})
      assert.same({folder .. "/new/doc1.safetensors", folder .. "/new/doc2.safetensors"}, paths)
      assert.equal(0, there)
      local states = {}
      paths, there = dump.documents(model, list(3), folder .. "/new", {every = 2}, function(name, state)
        states[#states + 1] = name .. " " .. state
      end)
      assert.equal(3, #paths)
      assert.equal(2, there)
      assert.same({"doc1 there", "doc2 there", "doc3 begun", "doc3 done"}, states)
      local ok, message = pcall(dump.documents, model, list(1), folder .. "/new", {every = 3})
      assert.is_false(ok)
      assert.matches("with other options", message)
      local other = list(1)
      other[1].tokens[1] = (other[1].tokens[1] + 1) % tonumber(model.config.vocab)
      ok, message = pcall(dump.documents, model, other, folder .. "/new", {every = 2})
      assert.is_false(ok)
      assert.matches("of another text", message)
      ok, message = pcall(dump.documents, model, {{name = "a", tokens = {}}, {name = "a", tokens = {}}}, folder .. "/twice")
      assert.is_false(ok)
      assert.matches("two documents are called a", message)
    end)
  end)

  it("refuse a folder that another process writes to", function()
    files.with_folder(function(folder)
      local box = ffi.new "lsa_file *[1]"
      raise.check(C.lsa_file_open(box, folder .. "/.lock", C.LSA_FILE_UPDATE))
      assert.equal(1, C.lsa_file_lock(box[0]))
      local ok, message = pcall(dump.documents, model, list(1), folder)
      assert.is_false(ok)
      assert.matches("another process is writing to", message)
      C.lsa_file_close(box[0])
      assert.equal(1, #dump.documents(model, list(1), folder))
      raise.check(C.lsa_file_open(box, folder .. "/.lock", C.LSA_FILE_UPDATE))
      assert.equal(1, C.lsa_file_lock(box[0]))
      assert.equal(1, select(2, dump.documents(model, list(1), folder)), "what is finished is read meanwhile")
      assert.is_false((pcall(dump.documents, model, list(2), folder)))
      C.lsa_file_close(box[0])
    end)
  end)

  -- The whole script, killed at some time and started again, until it says that all is done.
  it("lose at most the unfinished document to kill -9, and end with the same bytes", function()
    files.with_folder(function(folder)
      local texts = {}
      for i = 1, 5 do
        texts[i] = ("%s/text%d.txt"):format(folder, i)
        files.write(texts[i], ("line %d of a text, "):format(i):rep(150 + 20 * i))
      end
      local function words(output)
        return ("needle %s -o %s --every 2"):format(table.concat(texts, " "), output)
      end
      local script = lib.root .. "/experiments/dump.lua"
      local out, err, code = process.shell(("%s %s %s"):format(process.program, process.quote(script), words(folder .. "/whole")))
      assert.equal(0, code, err)
      assert.matches("5 traces in .*, 0 of them were there", out)

      local kills, finished = 0, {}
      for attempt = 0, 60 do
        local _, _, rc = process.shell(process.killed_at(math.floor(15 * 1.3 ^ attempt), script, words(folder .. "/killed")) .. " >/dev/null")
        for i = 1, 5 do
          local bytes = files.read(("%s/killed/text%d.safetensors"):format(folder, i))
          assert.is_true(bytes ~= nil or not finished[i], "a finished document is lost")
          finished[i] = finished[i] or bytes
          assert.is_true(bytes == finished[i], "a finished document is written again")
        end
        if rc == 0 then break end
        kills = kills + 1
      end
      assert.is_true(kills >= 5, "the run was hardly killed")
      for i = 1, 5 do
        local whole = files.read(("%s/whole/text%d.safetensors"):format(folder, i))
        assert.is_true(whole ~= nil and whole == finished[i], "document " .. i .. " differs")
      end
      assert.equal(".lock text1.safetensors text2.safetensors text3.safetensors text4.safetensors text5.safetensors",
        files.names(folder .. "/killed"))
    end)
  end)
end)
