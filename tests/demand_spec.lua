-- Chunks on demand: what is there, what comes, who leaves and what is copied, beside a pool that is a plain list.
local ffi = require "ffi"
local support = require "kernel_support"
local check = require("lsa.raise").check

local demand = support.over_spans "demand"
local LAYER, STRIDE, BYTES, SHIFT, BORN = 1, 640, 630, 3, 8

local function buffer(ctype, n, keep)
  local out = support.span_buffer(ctype, math.max(1, n))
  keep[#keep + 1] = out
  return out
end

-- Records of n items, in blocks of 2^SHIFT; value(i, place) is each byte.
local function records(n, value, keep)
  local per = 2 ^ SHIFT
  local count = math.max(1, math.ceil(n / per))
  local list, blocks = buffer("uint8_t *", count, keep), {}
  for b = 0, count - 1 do
    blocks[b] = buffer("uint8_t", per * STRIDE, keep)
    list[b] = blocks[b]
    for i = 0, per * STRIDE - 1 do blocks[b][i] = value(b * per + math.floor(i / STRIDE), i % STRIDE) end
  end
  local out = ffi.new("lsa_records", {list, STRIDE, 64, SHIFT, 0}) -- the layer's own offset, which whole records do not have
  return out, function(i, place) return blocks[math.floor(i / per)][i % per * STRIDE + place] end
end

local function value(chunk, place) return (13 * chunk + place) % 251 end

-- A session's pool of so many cells and chunks, of which the last BORN are being born, and its twin.
local function new_pool(cells, chunks, keep)
  local d = buffer("lsa_demand", 1, keep)
  local self = {d = d[0], order = {}, hits = 0, moves = 0, fetches = 0, free = {}}
  d[0].cells, d[0].order_room, d[0].move_room, d[0].bytes, d[0].free_count = cells, 4 * cells, 64 * cells, BYTES, cells
  d[0].cell_of, d[0].chunk_in = buffer("int32_t", chunks, keep), buffer("int32_t", cells, keep)
  d[0].used, d[0].order = buffer("int64_t", cells, keep), buffer("int32_t", 4 * cells, keep)
  d[0].free_cells, d[0].missing = buffer("int32_t", cells, keep), buffer("int32_t", cells, keep)
  d[0].moves, d[0].counts = buffer("lsa_demand_move", 64 * cells, keep), buffer("lsa_demand_counts", 1, keep)
  for i = 0, chunks - 1 do d[0].cell_of[i] = -1 end
  for i = 0, cells - 1 do
    d[0].used[i], d[0].free_cells[i] = -1, cells - 1 - i
    self.free[i + 1] = cells - 1 - i
  end
  self.layers, self.progress = buffer("lsa_layer_store", LAYER + 1, keep), buffer("lsa_progress", 1, keep)
  self.layers[LAYER].cold = records(chunks, value, keep)
  self.layers[LAYER].hot, self.at = records(cells, function() return 255 end, keep)
  self.born = buffer("int32_t", BORN, keep)
  for i = 0, BORN - 1 do self.born[i] = -1 end
  self.born_from, self.chunks, self.cells = chunks - BORN, chunks, cells
  self.cell_of = {}
  return self
end

local function span_of(s, self, row)
  s.row, s.rows, s.demand, s.layers, s.progress = row, 1, self.d, self.layers, self.progress
  s.born_from, s.born_slot, s.in_cells = self.born_from, self.born, 1
end

-- The same in Lua: the chunks' cells.
local function use(self, chunks)
  local missing, out = {}, {}
  local function last(chunk)
    for i, other in ipairs(self.order) do
      if other == chunk then table.remove(self.order, i) break end
    end
    self.order[#self.order + 1] = chunk
  end
  for _, chunk in ipairs(chunks) do
    if self.cell_of[chunk] then
      self.hits = self.hits + 1
      last(chunk)
    else
      missing[#missing + 1] = chunk
    end
  end
  while #self.free < #missing do
    local gone = table.remove(self.order, 1)
    self.free[#self.free + 1], self.cell_of[gone] = self.cell_of[gone], nil
  end
  for _, chunk in ipairs(missing) do
    self.cell_of[chunk] = table.remove(self.free)
    last(chunk)
  end
  self.moves, self.fetches = self.moves + #missing, self.fetches + (#missing > 0 and 1 or 0)
  for i, chunk in ipairs(chunks) do out[i] = self.cell_of[chunk] end
  return out, missing
end

-- Up to n different chunks, ascending.
local function some(self, n, u)
  local out = {}
  for chunk = 0, self.chunks - 1 do
    if #out < n and u() < n / self.chunks * 1.2 then out[#out + 1] = chunk end
  end
  return out
end

local function expect(self, what)
  local d, held = self.d, 0
  for chunk = 0, self.chunks - 1 do
    local cell = self.cell_of[chunk]
    assert.equal(cell or -1, d.cell_of[chunk], what .. ": cell of " .. chunk)
    if chunk >= self.born_from then assert.equal(cell or -1, self.born[chunk - self.born_from], what .. ": newborn " .. chunk) end
    if cell then
      held = held + 1
      assert.equal(chunk, d.chunk_in[cell], what)
      for place = 0, STRIDE - 1, 9 do
        assert.equal(place < BYTES and value(chunk, place) or 255, self.at(cell, place), what)
      end
    end
  end
  assert.same({self.cells - held, self.hits, self.moves, self.fetches}, {tonumber(d.free_count), tonumber(d.counts.hits),
    tonumber(d.counts.moves), tonumber(d.counts.fetches)}, what)
  assert.is_true(d.counts.stall_ns >= 0 and (self.moves > 0 or d.counts.stall_ns == 0), what)
end

describe("demand", function()
  for _, shape in ipairs {{1, 1, 20, 40}, {7, 5, 40, 60}, {30, 30, 100, 50}, {700, 600, 2000, 6}, {50, 3, 400, 60}} do
    local cells, k, chunks, rounds = unpack(shape)
    it(("has %d picks of %d chunks in %d cells as a least-recently-used list has them"):format(k, chunks, cells), function()
      local keep, u = {}, support.uniform(cells)
      local spans = buffer("lsa_span", 3, keep)
      local pools = {new_pool(cells, chunks, keep), false, new_pool(cells + 2, chunks, keep)}
      for i, self in pairs(pools) do
        if self then span_of(spans[i - 1], self, i - 1) end
      end
      spans[1].row, spans[1].rows = 1, 1 -- which has nothing on demand
      local ids, counts = buffer("int32_t", 3 * k, keep), buffer("int32_t", 3, keep)
      for round = 1, rounds do
        local wanted, missing = {}, {}
        counts[1], ids[k] = 1, -77
        for i, self in pairs(pools) do
          if self then
            local chosen = round % 9 == 0 and {} or some(self, k, u)
            counts[i - 1] = #chosen
            for j, chunk in ipairs(chosen) do ids[(i - 1) * k + j - 1] = chunk end
            wanted[i], missing[i] = use(self, chosen)
            self.progress.passes = round
          end
        end
        check(demand(ids, counts, spans, 3, LAYER, k, nil))
        assert.equal(-77, ids[k])
        for i, self in pairs(pools) do
          if self then
            for j, cell in ipairs(wanted[i]) do assert.equal(cell, ids[(i - 1) * k + j - 1]) end
            for j, chunk in ipairs(missing[i]) do
              local move = self.d.moves[(self.moves - #missing[i] + j - 1) % tonumber(self.d.move_room)]
              assert.same({chunk, self.cell_of[chunk], round}, {move.chunk, move.cell, tonumber(move.pass)})
            end
            expect(self, ("round %d, span %d"):format(round, i))
          end
        end
      end
    end)
  end

  it("leaves the pool of a span that is not observed alone", function()
    local keep = {}
    local spans, self = buffer("lsa_span", 1, keep), new_pool(4, 30, keep)
    span_of(spans[0], self, 0)
    local ids, counts = support.span_copy("int32_t", ffi.new("int32_t[3]", 3, 9, 29), 3), buffer("int32_t", 1, keep)
    counts[0], spans[0].unobserved = 3, 1
    check(demand(ids, counts, spans, 1, LAYER, 3, nil))
    assert.equal(0, counts[0])
    expect(self, "unobserved")
    counts[0], spans[0].unobserved = 3, 0
    use(self, {3, 9, 29})
    check(demand(ids, counts, spans, 1, LAYER, 3, nil))
    expect(self, "observed")
  end)

  it("of no spans does nothing", function() check(demand(nil, nil, nil, 0, 0, 4, nil)) end)
end)
