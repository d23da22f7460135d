-- The stream task: questions one after another in one session.
local lsa = require "lsa"
local files = require "file_support"

describe("the stream task", function()
  local model = lsa.model(lsa.root .. "/experiments/models/needle")

  local function with_hay(f)
    files.with_folder(function(folder)
      files.write(folder .. "/hay.txt",
        ("The grass is green. The river is near the stone. The clouds are white above. Here we go. There and back. "):rep(30))
      f(folder .. "/hay.txt", folder)
    end)
  end

  it("asks every statement once, topic by topic, decoding every token under the policy", function()
    with_hay(function(hay)
      local task = lsa.tasks.stream{model = model, tokens = 1500, needles = 6, stay = 3, text = hay, seed = 2}
      local full = task:run{select = "full"}
      assert.same({6, 1, 1, 0, 0}, {full.n, full.evidence, full.coverage, full.fetched_bytes, full.cycles})
      local asked = task.made[2001]
      local seen, tokens = {}, 0
      for i, one in ipairs(asked) do
        assert.is_nil(seen[one.key])
        seen[one.key] = true
        assert.equal((i - 1) % 3, one.distance)
        tokens = tokens + #model:tokens(one.question) + #model:tokens(one.answer)
      end
      assert.equal(tokens - 1, full.steps)         -- the last token is not decoded
      for i = 1, 3 do                              -- statements of a topic lie side by side
        for j = 4, 6 do assert.equal(asked[1].at < asked[4].at, asked[i].at < asked[j].at) end
      end
      local none = task:run{select = "none", budget = 0.1, every = 16}
      assert.is_true(none.evidence < 0.5 and none.evidence_low <= none.evidence and none.evidence <= none.evidence_high)
      assert.is_true(none.accuracy <= full.accuracy)
      assert.equal(math.ceil(none.steps / 16), none.cycles)
      local evidence = 0
      for distance = 0, 2 do evidence = evidence + none["at_" .. distance .. "_evidence"] / 3 end
      assert.is_true(math.abs(evidence - none.evidence) < 1e-12)
      local often, seldom = task:run{select = "native_topk", budget = 0.2, every = 8}, task:run{select = "native_topk", budget = 0.2, every = 64}
      assert.is_true(often.cycles > seldom.cycles and often.fetched_bytes > seldom.fetched_bytes)
      task:close()
    end)
  end)

  it("is a sweep's task", function()
    with_hay(function(hay, folder)
      local given = {model = model, task = {"stream", tokens = 1200, needles = 2, stay = 2, text = hay}, policies = {"recency"},
        taus = {8, 32}, budgets = {0.2}, results = folder .. "/r.jsonl"}
      local first = lsa.sweep(given)
      assert.equal(2, first.rows[1].n)
      assert.is_true(first.rows[1].cycles > first.rows[2].cycles and first.rows[2].cycles > 1)
      assert.equal(first:csv(), lsa.sweep(given):csv())
      given.task.session = {indexer = lsa.indexer{model = model, layers = {0}}}
      lsa.sweep(given)
      local _, lines = files.read(given.results):gsub("\n", "")
      assert.equal(4, lines)                       -- another indexer, other rows
      lsa.sweep(given)
      _, lines = files.read(given.results):gsub("\n", "")
      assert.equal(4, lines)
      assert.error_matches(function() lsa.sweep{model = model, task = {"strem"}} end, "it can be: single, multikey")
      assert.error_matches(function() lsa.tasks.stream{model = model, needles = 5, stay = 2} end, "topics of one size")
      assert.error_matches(function() lsa.tasks.stream{needles = 5} end, "a model %(lsa.model%) is wanted")
    end)
  end)
end)
