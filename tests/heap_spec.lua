-- The indexed heap against a search of everything.
local heap = require "lsa.cycle.slot_heap"
local traces = require "traces"

describe("the heap", function()
  local function least(model)
    local best = 0
    for slot, item in pairs(model) do
      local other = model[best]
      if not other or item[1] < other[1] or item[1] == other[1] and item[2] < other[2] then best = slot end
    end
    return best
  end

  it("always has the least key first, the least tie among equals, whatever is put, moved and removed", function()
    for seed = 1, 8 do
      local uniform = traces.generator(seed)
      local h, model, n = heap.new(1), {}, 0
      for step = 1, 2000 do
        local slot = uniform(60) + 1
        if uniform(3) == 0 then
          h:remove(slot)
          if model[slot] then n = n - 1 end
          model[slot] = nil
        else
          local key = uniform(8) == 0 and -math.huge or uniform(6) - 3
          h:put(slot, key, step)
          if not model[slot] then n = n + 1 end
          model[slot] = {key, step}
          assert.equal(step, h:tie_of(slot))
        end
        assert.equal(n, h.n)
        assert.equal(least(model), h:first())
        assert.equal(model[slot] ~= nil, h:has(slot))
      end
      while h.n > 0 do
        local slot = h:first()
        assert.equal(least(model), slot)
        h:remove(slot)
        model[slot] = nil
      end
      assert.equal(0, h:first())
    end
  end)

  it("finds the first that may leave and keeps the others in place", function()
    local h, id = heap.new(4), {}
    for slot = 1, 20 do
      h:put(slot, slot % 5, slot)
      id[slot] = slot * 100
    end
    local allowed = {has = function(_, one) return one == 1200 or one == 900 end}
    assert.equal(12, h:least(allowed, id))
    assert.equal(20, h.n)
    assert.equal(5, h:first())
    assert.equal(5, h:least(nil, id))
    assert.equal(0, h:least({has = function() return false end}, id))
    local order = {}
    while h.n > 0 do
      order[#order + 1] = h:first()
      h:remove(h:first())
    end
    assert.same({5, 10, 15, 20, 1, 6, 11, 16, 2, 7, 12, 17, 3, 8, 13, 18, 4, 9, 14, 19}, order)
  end)
end)
