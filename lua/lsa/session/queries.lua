-- Owns what is asked of a session: by its loop and policies (lua/lsa/cycle/loop.lua, lua/lsa/cycle/cycle.lua), by scripts that look
-- at what it holds, and by whoever wants its statistics. Nothing here makes it take a step.
local ffi = require "ffi"
local accounting = require "lsa.accounting"
local lib = require "lsa.ffi"
local look = require "lsa.session.look"
local options = require "lsa.options"
local raise = require "lsa.raise"
local real = require "lsa.tensor.real"
local set = require "lsa.tensor.set"
local stats = require "lsa.session.stats"
local tensor = require "lsa.tensor.tensor"

local C = lib.C

local dtypes = {f32 = "f32", bf16 = "bf16"}

-- Session: the class, which gets these methods. open(self): an error where it cannot be asked.
return function(Session, open)

  ---- by the loop and its policies ----

  function Session:position()
    open(self)
    return tonumber(C.lsa_session_tokens(self.c)), tonumber(C.lsa_session_chunks(self.c))
  end

  function Session:resident()
    open(self)
    local _, n = self:position()
    if self.opt.on_demand then return self.tier:present() end
    if self.loop.full then return set.new(n):invert() end
    local count = tonumber(C.lsa_session_residents(self.c, nil))
    local ids = ffi.new("int32_t[?]", math.max(1, count))
    C.lsa_session_residents(self.c, ids)
    local out = set.new(n)
    raise.check(C.lsa_set_add_ids(out.c, ids, count))
    return out
  end

  -- Cells that a step among n chunks can need, on demand.
  function Session:demand_cells(n)
    open(self)
    return tonumber(C.lsa_session_demand_cells(self.c, n))
  end

  -- On demand: a cycle's set comes into the hot pool; returns how many of it were there.
  function Session:prefetch(chunks)
    open(self)
    if not set.is(chunks) then raise("prefetch: chunks is %s, a set is wanted", raise.kind(chunks)) end
    local ids, hits = chunks:ids(), ffi.new "int64_t[1]"
    raise.check(C.lsa_session_prefetch(self.c, ffi.cast("const int32_t *", ids.c.data), ids:count(), hits))
    return tonumber(hits[0])
  end

  function Session:set_resident(chunks)
    open(self)
    local ids = chunks:ids()
    raise.check(C.lsa_session_set_residents(self.c, ffi.cast("const int32_t *", ids.c.data), ids:count()))
  end

  function Session:drop_absent()
    open(self)
    raise.check(C.lsa_session_drop_absent(self.c))
  end

  function Session:coverage()
    open(self)
    local covered, total = ffi.new "int64_t[1]", ffi.new "int64_t[1]"
    raise.check(C.lsa_session_coverage(self.c, covered, total))
    return tonumber(covered[0]), tonumber(total[0])
  end

  -- Of the tokens that the indexer looks from, oldest first: float *, and how many.
  function Session:hidden_states(layer)
    open(self)
    local rows = look.rows(self)
    local hidden = ffi.new("float[?]", rows * tonumber(self.model.config.hidden))
    raise.check(C.lsa_session_hidden(self.c, layer, rows, hidden))
    self.policy_flops = self.policy_flops + rows * self.indexer:flops(layer)
    return hidden, rows
  end

  function Session:index_scores(layer, q, w, heads, n, rows)
    open(self)
    self.policy_flops = self.policy_flops + (rows or 1) * accounting.scoring(n, heads, tonumber(self.model.config.index_dim))
    local out = tensor.empty(rows and {rows, n} or {n}, "f32")
    raise.check(C.lsa_session_index_scores(self.c, layer, q, w, rows or 1, heads, ffi.cast("float *", out.c.data)))
    return out
  end

  -- What the Memory Indexer asks of its layers at the last of t tokens, how answers of n chunks are joined, and their FLOPs; the last
  -- result keeps the first alive.
  local function indexer_queries(self, t, n)
    local layers, dim, flops, count = self.indexer.layers, tonumber(self.model.config.index_dim), 0, 0
    local asked, kept = ffi.new("lsa_index_queries[?]", #layers * self.indexer.looks), {}
    for i, layer in ipairs(layers) do
      local hidden, rows = self:hidden_states(layer)
      local q, w, heads = self.indexer:query(layer, hidden, t - rows, self.format, rows)
      for row = 0, rows - 1 do
        asked[count] = {layer, heads, q + row * heads * dim, w + row * heads}
        count = count + 1
      end
      kept[i] = {q, w}
      flops = flops + rows * accounting.scoring(n, heads, dim)
    end
    return asked, count, (self.indexer.looks > 1 or self.indexer.ensemble == "max") and C.LSA_ENSEMBLE_MAX or C.LSA_ENSEMBLE_MEAN, flops, kept
  end

  -- The Memory Indexer's scores of n chunks at the last of t tokens: all its layers in one go over the keys.
  function Session:ensemble_scores(t, n)
    open(self)
    self.asks_ahead = true
    local ahead = self.ahead
    self.ahead = nil
    local results = ahead and ahead.t == t and {ahead.scores} or look.at {self}
    if results then
      self.policy_flops = self.policy_flops + look.flops(self, n)
      return results[1]
    end
    local asked, count, how, flops, kept = indexer_queries(self, t, n)
    local out = tensor.empty({n}, "f32")
    raise.check(C.lsa_session_ensemble(self.c, asked, count, how, ffi.cast("float *", out.c.data)))
    self.policy_flops = self.policy_flops + flops
    return out, kept
  end

  -- The set of chunks whose score is at least theta where a GPU finds it without the scores; else nil.
  function Session:ensemble_reached(t, n, theta)
    open(self)
    self.asks_ahead = true
    if self.ahead and self.ahead.t == t then return nil end -- its scores are there
    local results = look.at({self}, theta)
    if not results then return nil end
    self.policy_flops = self.policy_flops + look.flops(self, n)
    return results[1]
  end

  -- [n, bytes] records of a layer's index keys from chunk `from` on.
  local function raw_keys(self, layer, from, n)
    local c = self.model.config
    local width = self.format == C.LSA_KV_FP8 and tonumber(c.index_dim) + 4 or tonumber(c.index_dim)
    local out = tensor.empty({n, width}, dtypes[self.opt.kv] or "u8")
    raise.check(C.lsa_session_keys(self.c, layer, from, n, out.c.data))
    return out
  end

  function Session:decoded_keys(layer, n, from)
    open(self)
    local c, count = self.model.config, n - from
    local raw, out = raw_keys(self, layer, from, count), tensor.empty({count, tonumber(c.index_dim)}, "f32")
    raise.check(C.lsa_index_decode_cpu(ffi.cast("float *", out.c.data), raw.c.data, count, c.index_dim,
      C.lsa_index_key_bytes(self.format, c.index_dim), self.format, nil))
    return out
  end

  function Session:recent_queries(layer, w)
    open(self)
    local c = self.model.config
    local recent = tonumber(C.lsa_session_recent(self.c))
    w = math.min(w or recent, recent)
    local heads = tonumber(c.index_heads)
    local q, weights = tensor.zeros({w, heads, tonumber(c.index_dim)}, "f32"), tensor.zeros({w, heads}, "f32")
    raise.check(C.lsa_session_queries(self.c, layer, w, ffi.cast("float *", q.c.data), ffi.cast("float *", weights.c.data)))
    return q, weights
  end

  function Session:observations(layer, n)
    open(self)
    local used, mass = tensor.zeros({n}, "i32"), tensor.zeros({n}, "f32")
    raise.check(C.lsa_session_observed(self.c, layer, ffi.cast("int32_t *", used.c.data), ffi.cast("float *", mass.c.data)))
    return used, mass
  end

  function Session:token_tensor(t)
    open(self)
    local out = tensor.zeros({t}, "i32")
    C.lsa_session_token_ids(self.c, 0, t, ffi.cast("int32_t *", out.c.data))
    return out
  end

  -- Entropy of the last token's distribution, in nats.
  function Session:last_entropy()
    open(self)
    local out = ffi.new "double[1]"
    raise.check(C.lsa_entropy_cpu(out, C.lsa_session_logits(self.c), 1, tonumber(self.model.config.vocab), nil))
    return real.f64(out, 0)
  end

  -- Memory for the steps of a cycle.
  function Session:reserve(steps)
    open(self)
    raise.check(C.lsa_session_reserve_steps(self.c, steps))
  end

  -- One row per cycle, as data.
  function Session:cycles()
    return self.loop.rows
  end

  ---- by scripts ----

  function Session:keys(layer)
    open(self)
    options.whole(layer, 0, "keys: layer")
    return raw_keys(self, layer, 0, tonumber(C.lsa_session_chunks(self.c)))
  end

  function Session:hidden(layer)
    open(self)
    options.whole(layer, 0, "hidden: layer")
    local out = tensor.zeros({tonumber(self.model.config.hidden)}, "f32")
    raise.check(C.lsa_session_hidden(self.c, layer, 1, ffi.cast("float *", out.c.data)))
    return out
  end

  function Session:entries(layer)
    open(self)
    options.whole(layer, 0, "entries: layer")
    local n = tonumber(C.lsa_session_chunks(self.c))
    local out = tensor.zeros({n, tonumber(self.model.config.head_dim)}, "f32")
    raise.check(C.lsa_session_entries(self.c, layer, 0, n, ffi.cast("float *", out.c.data)))
    return out
  end

  function Session:tokens()
    open(self)
    return tonumber(C.lsa_session_tokens(self.c))
  end

  -- FLOPs of a decode step by part, at the mean context and residents of the steps run. policy: what Memory Indexer and policy score.
  local function flops_of(self, count)
    local steps, layers = tonumber(count.steps), tonumber(self.model.config.csa_layers)
    if steps == 0 then return nil end
    local out = accounting.flops(self.model.config, {tokens = tonumber(C.lsa_session_tokens(self.c)) - (steps - 1) / 2,
      resident = layers > 0 and tonumber(count.scored) / (steps * layers) or 0})
    out.policy = self.policy_flops / steps
    out.total = out.total + out.policy
    return out
  end

  function Session:stats()
    open(self)
    local count, bytes = ffi.new "lsa_session_counters", ffi.new "lsa_session_bytes"
    C.lsa_session_count(self.c, count)
    C.lsa_session_memory(self.c, bytes)
    local steps, chunk = tonumber(count.steps), self:chunk_bytes()
    local moved = self.tier and self.tier:counters() or ffi.new "lsa_pool_counters"
    local out = self.loop:stats()
    local t, n = self:position()
    local values = {
      tokens = t, chunks = n, steps = steps,
      resident_bytes = steps > 0 and math.floor(tonumber(count.resident_sum) * chunk / steps + 0.5) or tonumber(bytes.kv_resident),
      resident_pct = steps > 0 and 100 * count.resident_share / steps or 100 * tonumber(bytes.kv_resident) / math.max(1, tonumber(bytes.kv_total)),
      kv_bytes = tonumber(bytes.kv_total), index_key_bytes = tonumber(bytes.index_keys), hca_bytes = tonumber(bytes.hca),
      window_bytes = tonumber(bytes.window), hot_bytes = tonumber(bytes.hot_cells), cold_bytes = tonumber(bytes.cold),
      disk_bytes = tonumber(bytes.disk), mirror_bytes = tonumber(bytes.mirror),
      mirror_refused = self.pool ~= nil and tonumber(C.lsa_pool_mirror_refused(self.pool)) or 0,
      fetched_chunks = tonumber(moved.fetched_chunks), fetched_bytes = tonumber(moved.fetched_bytes),
      evicted_chunks = tonumber(moved.evicted_chunks), transfer_ms = tonumber(moved.transfer_ns) / 1e6,
      transfer_stall_ms = tonumber(moved.stall_ns) / 1e6,
      decode_ms = tonumber(count.decode_ns) / 1e6, prefill_ms = tonumber(count.prefill_ns) / 1e6,
    }
    if self.opt.on_demand then
      values.hits, values.prefetched_chunks = tonumber(count.hits), self.loop:sum "fetched_chunks"
      values.misses = values.fetched_chunks - values.prefetched_chunks
      values.miss_stall_ms = math.max(0, values.transfer_stall_ms - self.loop:sum "transfer_stall_ms")
    end
    values.flops = flops_of(self, count)
    values.eviction_rebuilt = self.tier and self.tier.rebuilt
    values.ms_per_token = steps > 0 and (values.decode_ms + out.stall_ms) / steps or 0
    for name, value in pairs(values) do out[name] = value end
    return stats.new(out)
  end
end
