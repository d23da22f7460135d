-- Options of rules, misspelt: an error that lists those that there are, in every call that takes a rule, before anything is done.
local lsa = require "lsa"
local files = require "file_support"
local lib = require "lsa.ffi"

describe("a misspelt option of a rule", function()
  local model = lsa.model(lib.root .. "/tests/golden/flash")
  local prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}

  local function says(pattern, f, ...)
    local ok, message = pcall(f, ...)
    assert.is_false(ok, pattern)
    assert.matches(pattern, message)
    assert.matches("^[^:]*options_spec.lua:%d+: ", message)
  end

  local wrong = {
    select = {{"native_topk", layr = 2}, "policy native_topk: no option 'layr'; it takes none"},
    nested = {{"hysteresis", of = {"native_topk", layr = 2}}, "policy native_topk: no option 'layr'; it takes none"},
    theta = {{"lsa_threshold", thetta = 0.3}, "policy lsa_threshold: no option 'thetta'; there are: .*theta"},
    evict = {{"lru", foo = 1}, "eviction policy lru: no option 'foo'; it takes none"},
    every = {{"jaccard", mots = 1}, "schedule jaccard: no option 'mots'; there are: agree, disagree, every, least, most"},
  }

  it("is refused by sessions and their forks, by batches and requests", function()
    local base = model:session {select = "recency", budget = 6}
    base:prefill(prompt)
    local batch = lsa.batch(model, {select = "recency", budget = 6, most = 2})
    for name, case in pairs(wrong) do
      local field = (name == "nested" or name == "theta") and "select" or name
      local opt = {budget = 6, hot = field == "evict" and 8 or nil, [field] = case[1]}
      says(case[2], model.session, model, opt)
      says(case[2], base.fork, base, {[field] = case[1]})
      says(case[2], lsa.batch, model, {budget = 6, hot = 8, most = 2, [field] = case[1]})
      if field ~= "evict" then says(case[2], batch.submit, batch, {tokens = prompt, n = 2, [field] = case[1]}) end
    end
    assert.equal(12, base:stats().tokens)
    assert.equal(0, batch:submit {tokens = prompt, n = 2}) -- those before were none
    batch:close()
    base:close()
  end)

  it("is refused by replay, restore, caches, pools, sweeps and evaluations", function()
    files.with_folder(function(folder)
      local recording, saved = folder .. "/recording", folder .. "/saved"
      local s = model:session {select = "recency", budget = 6}
      s:prefill(prompt)
      s:record(recording)
      s:decode(1)
      s:record(false)
      s:save(saved)
      s:close()
      for name, case in pairs(wrong) do
        local field = (name == "nested" or name == "theta") and "select" or name
        says(case[2], lsa.replay, recording, {[field] = case[1]})
        says(case[2], model.restore, model, saved, {[field] = case[1]})
        local given = {model = model, task = {"single", tokens = 200}, results = folder .. "/rows.jsonl"}
        given[({select = "policies", evict = "evictions", every = "taus"})[field]] = {({select = "full", evict = "fifo", every = 4})[field], case[1]}
        says(case[2], lsa.sweep, given)
        assert.is_nil(io.open(folder .. "/rows.jsonl"), "a row was run")
      end
      says(wrong.select[2], lsa.eval, {model = model, policies = {wrong.select[1]}, tasks = {{"single", tokens = 200, contexts = 1}}})
      says(wrong.evict[2], lsa.cache, {pages = {1, 2, 1}, capacity = 1, evict = wrong.evict[1]})
      says(wrong.evict[2], lsa.pool, {layers = 1, record = 8, chunks = 4, hot = 2, evict = wrong.evict[1]})
    end)
  end)
end)

describe("a seed", function()
  it("is a whole number that doubles count exactly, wherever it is given", function()
    local model = lsa.model(lib.root .. "/tests/golden/flash")
    local function message_of(f, ...)
      local ok, message = pcall(f, ...)
      return not ok and message:gsub("^[^:]*:%d+: ", "") or "no error"
    end
    local most = "a whole number from 0 to 9007199254740991 is wanted"
    assert.equal("session: seed is 1.152921504606847e+18; " .. most, message_of(model.session, model, {seed = 2 ^ 60}))
    assert.equal("session: seed is 9007199254740992; " .. most, message_of(lsa.batch, model, {seed = 2 ^ 53}))
    assert.equal("session: seed is -1; a whole number of at least 0 is wanted", message_of(model.session, model, {seed = -1}))
    assert.equal("rand: seed is 1.152921504606847e+18, a whole number below 2^53 is wanted", message_of(lsa.rand, {2}, 2 ^ 60))
    assert.equal("randn: seed is 1.5, a whole number is wanted", message_of(lsa.randn, {2}, 1.5))
    model:session {seed = 2 ^ 53 - 1}:close()
    for _, name in ipairs {"single", "needle", "stream"} do
      for _, seed in ipairs {2 ^ 60, 2 ^ 32, -1, 1.5, 0 / 0, "x"} do
        assert.matches("^task: seed is .*; a whole number from 0 to 4294967295 is wanted", message_of(lsa.tasks[name], {model = model, tokens = 400, seed = seed}))
        local task = lsa.tasks[name] {model = model, tokens = 400}
        assert.matches("^task: seed is .*; a whole number from 0 to 4294967295 is wanted", message_of(task.run, task, {select = "full", seed = seed}))
        task:close()
      end
    end
  end)
end)
