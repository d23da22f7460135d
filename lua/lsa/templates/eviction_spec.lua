-- NAME on a trace of accesses: ./lsa test NAME_spec.lua
local lsa = require "lsa"
local path = debug.getinfo(1, "S").source:match "^@(.*)_spec%.lua$" .. ".lua"

describe("NAME", function()
  local pages, random = {}, require "lsa.cycle.rng".new(1)
  for i = 1, 2000 do pages[i] = random() < 0.7 and random(30) or random(300) end

  local function misses(evict) return lsa.cache{pages = pages, capacity = 40, evict = evict}.misses end

  it("evicts only what is there, and never does better than who knows the future", function()
    assert.is_true(misses(path) >= misses "belady")
  end)

  it("evicts nothing where all fits", function()
    assert.equal(0, lsa.cache{pages = pages, capacity = 400, evict = path}.evicted)
  end)

  it("goes on in a fork as the first one would", function()
    local model = lsa.model "needle"
    local s = model:session{select = "native_topk", budget = 20, evict = path, hot = 40, every = 2}
    s:prefill(("One fish, two fish, red fish. "):rep(30))
    s:generate{n = 8}
    local fork = s:fork{}
    assert.same(s:generate{n = 8}, fork:generate{n = 8})
    assert.is_nil(fork:stats().eviction_rebuilt)
  end)
end)
