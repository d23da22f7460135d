-- Eviction policies: what all of them promise, and what sets each apart.
local evictions = require "lsa.cycle.eviction_objects"
local registry = require "lsa.registry"
local traces = require "traces"

local function set_of(ids)
  local members = {}
  for _, id in ipairs(ids) do members[id] = true end
  return {has = function(_, id) return members[id] == true end}
end

-- Options without which a policy cannot be made.
local function spec_of(name, future)
  return name == "belady" and {name, future = future or {}} or name
end

local function hit_or_insert(object, present, capacity, id)
  if present[id] then
    object:hit(id)
    return
  end
  local count = 0
  for _ in pairs(present) do count = count + 1 end
  local gone
  if count >= capacity then
    gone = object:victim(nil, id)
    present[gone] = nil
  end
  object:insert(id)
  present[id] = true
  return gone
end

-- Runs a list of accesses; the ids that leave, in order.
local function leavers(name, capacity, accesses)
  local object = evictions.new(name, capacity)
  local present, gone = {}, {}
  for _, id in ipairs(accesses) do gone[#gone + 1] = hit_or_insert(object, present, capacity, id) end
  return gone
end

describe("eviction policies", function()
  it("are found by being there", function()
    assert.same({"arc", "belady", "clock", "fifo", "lfu", "lru", "random", "s3fifo", "score", "sieve", "slru",
      "wtinylfu"}, registry.names "evictions")
  end)

  it("say their formula and their source first", function()
    for _, name in ipairs(registry.names "evictions") do
      local file = assert(io.open(registry.home .. "/evictions/" .. name .. ".lua"))
      local header = file:read("*a"):match "^(.-)\nlocal "
      file:close()
      assert.truthy(header and header:find "Source: ", name)
    end
  end)

  for _, name in ipairs(registry.names "evictions") do
    describe(name, function()
      -- A random life: hits, insertions, evictions under random permissions, removals, and a model of who is there.
      local function live(capacity, steps, seed, on_victim)
        local uniform = traces.generator(seed)
        local object = evictions.new(spec_of(name), capacity)
        local present, list = {}, {}
        local function leave(id)
          for i, other in ipairs(list) do
            if other == id then
              list[i] = list[#list]
              list[#list] = nil
              break
            end
          end
          present[id] = nil
        end
        for _ = 1, steps do
          local id = uniform(3 * capacity + 2) * 715827
          if present[id] then
            object:hit(id)
          else
            while #list >= capacity do
              local barred = uniform(4)
              local allowed = {has = function(_, other) return other % 4 ~= barred end}
              local can = 0
              for _, other in ipairs(list) do
                if allowed:has(other) then can = can + 1 end
              end
              local victim = object:victim(allowed, uniform(2) == 0 and id or nil)
              on_victim(victim, allowed, present, can)
              if not victim then
                victim = object:victim(nil)
                on_victim(victim, set_of(list), present, #list)
              end
              leave(victim)
            end
            object:insert(id)
            present[id], list[#list + 1] = true, id
          end
          if uniform(10) == 0 and #list > 0 then
            local gone = list[uniform(#list) + 1]
            object:remove(gone)
            leave(gone)
          end
        end
        return object, list
      end

      it("evicts who is present and may leave, and someone whenever there is one", function()
        for seed = 1, 6 do
          for _, capacity in ipairs{1, 2, 3, 7, 20, 50} do
            live(capacity, 400, seed * 1000 + capacity, function(victim, allowed, present, can)
              if can == 0 then
                assert.is_nil(victim)
              else
                assert.is_true(present[victim] == true, tostring(victim))
                assert.is_true(allowed:has(victim))
              end
            end)
          end
        end
      end)

      it("hands out everyone once, then no one", function()
        for seed = 1, 4 do
          local object, list = live(20, 300, seed, function() end)
          local left = {}
          for _ = 1, #list do
            local victim = object:victim(nil)
            assert.is_number(victim)
            assert.is_nil(left[victim])
            left[victim] = true
          end
          for _, id in ipairs(list) do assert.is_true(left[id]) end
          assert.is_nil(object:victim(nil))
          assert.is_nil(object:victim(set_of{1, 2}))
        end
      end)

      it("evicts no one where no one may leave, and changes nothing by it", function()
        local a, b = evictions.new(spec_of(name), 4), evictions.new(spec_of(name), 4)
        for id = 1, 4 do
          a:insert(id)
          b:insert(id)
        end
        assert.is_nil(a:victim(set_of{}))
        assert.is_nil(a:victim(set_of{9}))
        local left = {}
        for i = 1, 4 do left[i] = a:victim(nil) end
        table.sort(left)
        assert.same({1, 2, 3, 4}, left)
      end)

      it("takes more ids than its capacity", function()
        local object = evictions.new(spec_of(name), 4)
        for id = 0, 999 do object:insert(id * 1000003 % 2147483647) end
        local seen = {}
        for _ = 1, 1000 do
          local victim = object:victim(nil)
          assert.is_nil(seen[victim])
          seen[victim] = true
        end
        assert.is_nil(object:victim(nil))
      end)

      it("survives a change of capacity", function()
        local object = evictions.new(spec_of(name), 10)
        for id = 1, 10 do object:insert(id) end
        evictions.resize(object, 30)
        for id = 11, 30 do object:insert(id) end
        for id = 1, 30, 2 do object:hit(id) end
        evictions.resize(object, 5)
        local left = {}
        for i = 1, 30 do left[i] = object:victim(nil, 100 + i) end
        table.sort(left)
        for i = 1, 30 do assert.equal(i, left[i]) end
      end)

      it("takes no notice of a hit or a removal of who is not there", function()
        local object = evictions.new(spec_of(name), 3)
        object:hit(5)
        object:remove(5)
        object:insert(1)
        object:hit(2147483647)
        object:remove(0)
        assert.equal(1, object:victim(nil))
        object:hit(1)
        object:remove(1)
        assert.is_nil(object:victim(nil))
        object:insert(1)
        assert.equal(1, object:victim(nil))
      end)

      it("refuses what is no id, and an id that is there already", function()
        local object = evictions.new(spec_of(name), 3)
        for _, id in ipairs{-1, 0.5, 2147483648, 1e18} do
          assert.is_false(pcall(object.insert, object, id))
        end
        object:insert(2147483647)
        local ok, why = pcall(object.insert, object, 2147483647)
        assert.is_false(ok)
        assert.truthy(why:find("2147483647", 1, true))
      end)

      -- Two objects that were told the same are asked the same from here on.
      local function same_ever_after(a, b, present, capacity, seed)
        local uniform, list = traces.generator(seed), {}
        for id in pairs(present) do list[#list + 1] = id end
        table.sort(list)
        for step = 1, 600 do
          local id = uniform(3 * capacity + 2) * 715827
          local at
          for i, other in ipairs(list) do
            if other == id then at = i end
          end
          local both = {a, b}
          if at and uniform(10) == 0 then
            for _, object in ipairs(both) do object:remove(id) end
            table.remove(list, at)
          elseif at then
            for _, object in ipairs(both) do object:hit(id) end
          else
            while #list >= capacity do
              local barred, announced = uniform(5), uniform(2) == 0 and id or nil
              local allowed = barred < 4 and {has = function(_, other) return other % 4 ~= barred end} or nil
              local victim, other = a:victim(allowed, announced), b:victim(allowed, announced)
              assert.equal(victim, other, ("seed %d, step %d"):format(seed, step))
              for i, one in ipairs(list) do
                if one == victim then
                  table.remove(list, i)
                  break
                end
              end
            end
            for _, object in ipairs(both) do object:insert(id) end
            list[#list + 1] = id
          end
        end
      end

      it("goes on in another object as in the first, whatever came before", function()
        local future = {}
        local draw = traces.generator(77)
        for i = 1, 2000 do future[i] = draw(152) * 715827 end
        for seed = 1, 8 do
          for _, capacity in ipairs{1, 2, 7, 50} do
            local spec = spec_of(name, future)
            local original, entry = evictions.new(spec, capacity)
            local life, present = traces.generator(seed * 100 + capacity), {}
            local count = 0
            for _ = 1, seed == 1 and 0 or 40 * seed do
              local id = life(3 * capacity + 2) * 715827
              if present[id] and life(10) == 0 then
                original:remove(id)
                present[id], count = nil, count - 1
              elseif present[id] then
                original:hit(id)
              else
                if count >= capacity then
                  present[original:victim(nil, life(2) == 0 and id or nil)], count = nil, count - 1
                end
                original:insert(id)
                present[id], count = true, count + 1
              end
              if original.score and life(3) == 0 then original:score(life(3 * capacity) * 715827, life(100)) end
            end
            if count >= capacity and life(2) == 0 then -- in the middle of making room
              present[original:victim(nil, 5)] = nil
            end
            local copy = evictions.fork(entry, original, capacity)
            local second = evictions.fork(entry, copy, capacity)
            local third = evictions.load(entry, capacity, (evictions.save(entry, original)))
            same_ever_after(original, copy, present, capacity, seed)
            -- The original and the first copy went on; the others still stand where they were made.
            same_ever_after(second, third, present, capacity, seed + 50)
          end
        end
      end)
    end)
  end

  it("with recency keep what is hit, without it do not", function()
    local accesses = {1, 2, 3, 1, 4}
    assert.same({1}, leavers("fifo", 3, accesses))
    assert.same({2}, leavers("lru", 3, accesses))
    assert.same({2}, leavers("clock", 3, accesses))
    assert.same({2}, leavers("sieve", 3, accesses))
    assert.same({2}, leavers("lfu", 3, accesses))
    assert.same({2}, leavers("arc", 3, accesses))
    assert.same({2}, leavers({"slru", segments = 2}, 3, accesses))
  end)

  it("lfu evicts the least touched, among equals the one that came to its count first", function()
    assert.same({3}, leavers("lfu", 3, {1, 2, 3, 1, 2, 4}))
    assert.same({4}, leavers("lfu", 3, {1, 2, 4, 2, 1, 1, 1, 3}))
    -- 1 reached two touches after 2 did.
    assert.same({3, 2}, leavers("lfu", 2, {2, 3, 2, 1, 1, 4}))
  end)

  it("clock gives a second chance, and its counter gives as many as it has bits for", function()
    -- All were hit: the hand clears 1, 2, 3 and comes back to 1.
    assert.same({1, 2}, leavers("clock", 3, {1, 2, 3, 1, 2, 3, 4, 5}))
    assert.same({2, 3}, leavers({"clock", bits = 2}, 3, {1, 2, 3, 1, 1, 1, 4, 5}))
  end)

  it("sieve moves its hand and never its queue", function()
    -- NSDI 2024, section 3: A and B are visited, the hand clears them, evicts C, and stays there. The new D enters
    -- at the head; the hand, past the newest, starts again at the oldest, A, which has lost its bit.
    assert.same({3, 1}, leavers("sieve", 3, {1, 2, 3, 1, 2, 4, 5}))
    assert.same({1, 2, 3}, leavers("sieve", 3, {1, 2, 3, 1, 2, 3, 4, 5, 6}))
  end)

  it("slru protects what was hit twice from a scan", function()
    local gone = leavers({"slru", segments = 2}, 4, {1, 1, 2, 2, 3, 4, 5, 6, 7, 8})
    assert.same({3, 4, 5, 6}, gone)
  end)

  it("s3fifo passes one-hit wonders through its small queue, and remembers them", function()
    -- Small queue 2 of 20: 1 and 2 fill it, 3 to 20 the main queue. 1 was hit twice: it moves to the main queue, and
    -- 2 leaves; then the main queue is over its 18, and its oldest without a hit leaves.
    local accesses = {}
    for id = 1, 20 do accesses[id] = id end
    for _, id in ipairs{1, 1, 3, 21, 22} do accesses[#accesses + 1] = id end
    assert.same({2, 4}, leavers("s3fifo", 20, accesses))
    local object = evictions.new("s3fifo", 20)
    for id = 1, 20 do object:insert(id) end
    assert.equal(1, object:victim(nil, 21))
    object:insert(21)
    assert.equal(2, object:victim(nil, 1))
    object:insert(1)
    assert.equal(2, object.ids.list[object.ids:find(1)])
    assert.equal(1, object.ids.list[object.ids:find(21)])
  end)

  it("arc adapts the share of what was seen once to the ghosts that come back", function()
    local object = evictions.new("arc", 4)
    for id = 1, 4 do object:insert(id) end
    object:hit(1)
    object:hit(2)
    -- T1 = 3 4, T2 = 1 2, p = 0: REPLACE takes T1's oldest, 3, and B1 remembers it.
    assert.equal(3, object:victim(nil, 5))
    object:insert(5)
    -- 3 comes back from B1: p becomes 1; T1 = 4 5 is larger, so 4 leaves; 3 enters T2.
    assert.equal(4, object:victim(nil, 3))
    assert.equal(1, object.p)
    object:insert(3)
    assert.equal(2, object.ids.list[object.ids:find(3)])
    -- 4 comes back: p becomes 2; T1 = 5 is not larger, so T2's oldest, 1, leaves.
    assert.equal(1, object:victim(nil, 4))
    assert.equal(2, object.p)
    object:insert(4)
    -- 1 comes back from B2: p becomes 1 = |T1|, and the newcomer is of B2: T1's 5 leaves.
    assert.equal(5, object:victim(nil, 1))
    assert.equal(1, object.p)
  end)

  it("arc and s3fifo know a ghost that was not announced", function()
    for _, name in ipairs{"arc", "s3fifo"} do
      local object = evictions.new(name, 20)
      for id = 1, 20 do object:insert(id) end
      object:hit(19)
      object:hit(20)
      local gone = object:victim(nil)
      object:insert(99)
      object:victim(nil)
      object:insert(gone)
      assert.equal(2, object.ids.list[object.ids:find(gone)])
    end
  end)

  it("wtinylfu keeps what was touched often when a scan passes", function()
    local object = evictions.new("wtinylfu", 10)
    local present = {}
    for _ = 1, 5 do
      for id = 1, 9 do hit_or_insert(object, present, 10, id) end
    end
    for id = 100, 140 do hit_or_insert(object, present, 10, id) end
    for id = 1, 9 do assert.is_true(present[id]) end
  end)

  it("wtinylfu forgets with time", function()
    local object = evictions.new({"wtinylfu", sample = 2}, 10)
    local present = {}
    for _ = 1, 5 do
      for id = 1, 9 do hit_or_insert(object, present, 10, id) end
    end
    for _ = 1, 20 do
      for id = 101, 109 do hit_or_insert(object, present, 10, id) end
    end
    local kept = 0
    for id = 101, 109 do kept = kept + (present[id] and 1 or 0) end
    assert.is_true(kept >= 8)
  end)

  it("score evicts the lowest, whenever the score came, and the oldest of equals", function()
    local object = evictions.new({"score", scores = {[1] = 5, [2] = 3}, default = 4}, 4)
    for id = 1, 4 do object:insert(id) end
    object:hit(3)
    assert.equal(2, object:victim(nil))
    assert.equal(4, object:victim(nil))
    object:score(1, 0)
    object:score(7, 100)
    object:insert(7)
    assert.equal(1, object:victim(nil))
    object:score(7, 0 / 0)
    assert.equal(7, object:victim(nil))
    assert.equal(3, object:victim(nil))
    local by_function = evictions.new({"score", scores = function(id) return -id end}, 4)
    for id = 1, 4 do by_function:insert(id) end
    assert.equal(3, by_function:victim(set_of{1, 2, 3}))
    assert.equal(4, by_function:victim(nil))
  end)

  it("random is even, seeded, and repeatable", function()
    local first = {}
    local counts = {}
    for seed = 1, 2000 do
      local object = evictions.new({"random", seed = seed}, 8)
      for id = 0, 7 do object:insert(id) end
      local victim = object:victim(nil)
      first[seed], counts[victim] = victim, (counts[victim] or 0) + 1
    end
    -- 250 expected of each, standard deviation 14.8: six of them either way.
    for id = 0, 7 do assert.is_true(math.abs(counts[id] - 250) < 90, counts[id]) end
    for seed = 1, 20 do
      local object = evictions.new({"random", seed = seed}, 8)
      for id = 0, 7 do object:insert(id) end
      assert.equal(first[seed], object:victim(nil))
    end
    -- One of many may leave: it is found, and evenly among the few.
    local few = {}
    for seed = 1, 400 do
      local object = evictions.new({"random", seed = seed}, 200)
      for id = 0, 199 do object:insert(id) end
      local victim = object:victim(set_of{17, 150})
      few[victim] = (few[victim] or 0) + 1
    end
    assert.equal(400, few[17] + few[150])
    assert.is_true(math.abs(few[17] - 200) < 60)
  end)

  it("belady evicts what is used last, or never", function()
    local future = {1, 2, 3, 4, 2, 1, 3, 5, 1, 2}
    -- At 4 the next uses are 1: 5, 2: 4, 3: 6, so 3; at 3, 4 is never used again; at 5, 3 is never.
    assert.same({3, 4, 3}, leavers({"belady", future = future}, 3, future))
  end)

  it("belady takes lists, tensors and arrays, and needs one", function()
    local trace = traces.make("loop", 10)
    assert.is_table(evictions.new({"belady", future = trace}, 3))
    local tensor = require("lsa").tensor({1, 2, 3}, "i32")
    assert.is_table(evictions.new({"belady", future = tensor}, 3))
    for _, future in ipairs{7, "1, 2", {1, 2.5}, {-1}, {"a"}} do
      local ok, why = pcall(evictions.new, {"belady", future = future}, 3)
      assert.is_false(ok)
      assert.truthy(why:find "belady: opt.future", why)
    end
    local ok, why = pcall(evictions.new, "belady", 3)
    assert.is_false(ok)
    assert.truthy(why:find "opt.future is nil")
  end)

  it("refuse options that mean nothing", function()
    for _, spec in ipairs{{"slru", segments = 0}, {"slru", segments = 1.5}, {"clock", bits = 0}, {"clock", bits = 40}} do
      assert.is_false(pcall(evictions.new, spec, 10))
    end
  end)
end)

-- Plain lists, searched from end to end: what the linked lists must equal, victim for victim.
local naive = {}

local function find(list, id)
  for i, other in ipairs(list) do
    if other == id then return i end
  end
end

-- The list's front is its end: the oldest is at 1.
function naive.lru(hit_refreshes)
  return function()
    local list = {}
    return {
      hit = function(_, id)
        if hit_refreshes then
          table.remove(list, find(list, id))
          list[#list + 1] = id
        end
      end,
      insert = function(_, id) list[#list + 1] = id end,
      victim = function(_, allowed)
        for i, id in ipairs(list) do
          if allowed:has(id) then return table.remove(list, i) end
        end
      end,
      remove = function(_, id) table.remove(list, find(list, id)) end,
    }
  end
end

function naive.lfu()
  local list, clock = {}, 0
  local function index(id)
    for i, item in ipairs(list) do
      if item.id == id then return i end
    end
  end
  return {
    hit = function(_, id)
      clock = clock + 1
      local item = list[index(id)]
      item.count, item.at = item.count + 1, clock
    end,
    insert = function(_, id)
      clock = clock + 1
      list[#list + 1] = {id = id, count = 1, at = clock}
    end,
    victim = function(_, allowed)
      local best
      for _, item in ipairs(list) do
        if allowed:has(item.id) and (not best or item.count < best.count or
            item.count == best.count and item.at < best.at) then
          best = item
        end
      end
      return best and table.remove(list, index(best.id)).id
    end,
    remove = function(_, id) table.remove(list, index(id)) end,
  }
end

function naive.slru(segments, sizes)
  local lists = {}
  for i = 1, segments do lists[i] = {} end
  local function where(id)
    for i, list in ipairs(lists) do
      local at = find(list, id)
      if at then return i, at end
    end
  end
  return {
    hit = function(_, id)
      local i, at = where(id)
      table.remove(lists[i], at)
      i = math.min(i + 1, segments)
      table.insert(lists[i], id)
      while i > 1 and #lists[i] > sizes[i] do
        table.insert(lists[i - 1], table.remove(lists[i], 1))
        i = i - 1
      end
    end,
    insert = function(_, id)
      for i = 1, segments do
        if #lists[i] < sizes[i] then return table.insert(lists[i], id) end
      end
      table.insert(lists[1], id)
    end,
    victim = function(_, allowed)
      for i = 1, segments do
        for at, id in ipairs(lists[i]) do
          if allowed:has(id) then return table.remove(lists[i], at) end
        end
      end
    end,
    remove = function(_, id)
      local i, at = where(id)
      table.remove(lists[i], at)
    end,
  }
end

describe("the linked lists of eviction policies", function()
  local function compare(spec, capacity, oracle)
    for seed = 11, 16 do
      local uniform = traces.generator(seed)
      local object, model = evictions.new(spec, capacity), oracle()
      local list = {}
      for step = 1, 3000 do
        local id = uniform(3 * capacity)
        local at = find(list, id)
        local kind = uniform(20)
        if at and kind == 0 then
          object:remove(id)
          model:remove(id)
          table.remove(list, at)
        elseif at then
          object:hit(id)
          model:hit(id)
        else
          if #list == capacity then
            local barred = uniform(3)
            local allowed = {has = function(_, other) return other % 3 ~= barred end}
            local expected = model:victim(allowed)
            local victim = object:victim(allowed)
            assert.equal(expected, victim, ("seed %d step %d"):format(seed, step))
            if victim then table.remove(list, find(list, victim)) end
          end
          if #list < capacity then
            object:insert(id)
            model:insert(id)
            list[#list + 1] = id
          end
        end
      end
    end
  end

  it("choose as a plain list does: fifo, lru, lfu, slru", function()
    compare("fifo", 13, naive.lru(false))
    compare("lru", 13, naive.lru(true))
    compare("lfu", 13, naive.lfu)
    compare({"slru", segments = 2}, 13, function() return naive.slru(2, {7, 6}) end)
    compare("slru", 13, function() return naive.slru(4, {4, 3, 3, 3}) end)
    compare("score", 13, naive.lru(true))
  end)
end)

describe("user-written eviction objects", function()
  local function object_with(extra)
    return evictions.new(function(capacity)
      local self = {hit = function() end, insert = function() end, victim = function() end, remove = function() end}
      extra(self, capacity)
      return self
    end, 3)
  end

  it("with state() and restore() go on in an object of the same capacity, and share nothing", function()
    local object, entry = object_with(function(self, capacity)
      self.order = {capacity}
      self.insert = function(_, id) self.order[#self.order + 1] = id end
      self.state = function() return {order = self.order} end
      self.restore = function(_, data) self.order = data.order end
    end)
    object:insert(7)
    local copy = evictions.fork(entry, object, 3)
    object:insert(8)
    copy:insert(9)
    assert.same({3, 7, 8}, object.order)
    assert.same({3, 7, 9}, copy.order)
  end)

  it("without both of them cannot be told where they stand", function()
    for _, method in ipairs{"state", "restore", "nothing"} do
      local object, entry = object_with(function(self) self[method] = function() return {} end end)
      assert.is_nil(evictions.fork(entry, object, 3))
    end
    local other, its = object_with(function(self) self.state, self.restore = {}, function() end end)
    assert.is_nil(evictions.fork(its, other, 3))
  end)

  it("whose state is no plain data, or that fail in it, are named with the place", function()
    local cases = {{function() return {a = {print}} end, "state%(%).a.1 is a function, which is no plain data"},
      {function() error("a mistake", 0) end, "evictions_spec.lua:%d+: a mistake"}}
    for _, case in ipairs(cases) do
      local object, entry = object_with(function(self) self.state, self.restore = case[1], function() end end)
      local ok, why = pcall(evictions.fork, entry, object, 3)
      assert.is_false(ok)
      assert.matches(case[2], why)
    end
    local object, entry = object_with(function(self)
      self.state = function() return {} end
      self.restore = function() error("it does not fit", 0) end
    end)
    local ok, why = pcall(evictions.fork, entry, object, 3)
    assert.is_false(ok)
    assert.matches("evictions_spec.lua:%d+: it does not fit", why)
  end)

  it("that are no eviction objects are refused by name", function()
    local ok, why = pcall(evictions.new, function() return 7 end, 3)
    assert.is_false(ok)
    assert.truthy(why:find "evictions_spec.lua:%d+: returns a number")
    ok, why = pcall(evictions.new, function() return {hit = function() end} end, 3)
    assert.is_false(ok)
    assert.truthy(why:find "no function 'insert'")
    ok, why = pcall(evictions.new, function() error("bare", 0) end, 3)
    assert.is_false(ok)
    assert.truthy(why:find "evictions_spec.lua:%d+: bare")
    ok, why = pcall(function() evictions.new("lur", 3) end)
    assert.is_false(ok)
    assert.truthy(why:find "evictions_spec.lua:%d+: no eviction policy 'lur'; there are: arc, belady")
  end)

  it("are built anew from ids when their file changes", function()
    local path = os.tmpname() .. ".lua"
    local function put(text)
      local file = assert(io.open(path, "w"))
      file:write(text)
      file:close()
    end
    local text = [[return function()
      local self, order = {}, {}
      function self:hit() end
      function self:insert(id) order[#order + 1] = id end
      function self:victim() return table.remove(order, %s) end
      function self:remove() end
      return self
    end]]
    put(text:format "1")
    local object, entry = evictions.new(path, 3)
    for id = 1, 3 do object:insert(id) end
    assert.equal(1, object:victim())
    put(text:format "#order")
    assert.is_true(entry:refresh())
    object = evictions.rebuild(entry, 3, {2, 3})
    assert.equal(3, object:victim())
    os.remove(path)
  end)
end)
