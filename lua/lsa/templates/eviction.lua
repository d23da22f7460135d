-- NAME: one sentence about who leaves the hot pool.
--   opt.spared 0.5   share of the present ids, the latest to come, that are spared where others may leave
-- Source: who had the idea.
--
-- An eviction policy is called with the pool's capacity and returns an object. It is told of every access, and asked who leaves:
--
--   hit(id)           the id was accessed and was there
--   insert(id)        the id is there from now on
--   victim(allowed)   the id that leaves, which is not there from now on; only one of the set `allowed`, where that is given
--   remove(id)        the id left for another reason
--   state(), restore(data)    plain data from which a new object goes on: for forks and saved sessions
--
-- Try it:
--   lsa.cache{pages = ids, capacity = 100, evict = "NAME.lua"}            ./lsa test NAME_spec.lua
--   model:session{select = "lsa_topk", evict = "NAME.lua", hot = "1 MiB"}
--   ./lsa experiments/evictions.lua --help
return function(_, opt)
  local order = {}                    -- ids that are there, the first to come first
  local policy = {}

  local function drop(at) return table.remove(order, at) end

  local function place(id)
    for at, one in ipairs(order) do
      if one == id then return at end
    end
  end

  function policy:hit(id) end           -- an LRU would move the id to the end

  function policy:insert(id) order[#order + 1] = id end

  function policy:victim(allowed)
    for _, last in ipairs {math.ceil(#order * (1 - opt.spared)), #order} do    -- those that are not spared, then all
      for at = 1, last do
        if not allowed or allowed:has(order[at]) then return drop(at) end
      end
    end
  end

  function policy:remove(id)
    local at = place(id)
    if at then drop(at) end
  end

  function policy:state() return {order = order} end
  function policy:restore(data) order = data.order end

  return policy
end, {spared = 0.5}
