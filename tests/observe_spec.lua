local ffi = require "ffi"
local support = require "kernel_support"
local check = require("lsa.raise").check

local LAYER, PLACES, CHUNKS = 1, 60, 200
local remember, observe = support.over_spans "remember", support.over_spans "observe"

local function buffer(ctype, n, keep)
  local out = support.span_buffer(ctype, n)
  keep[#keep + 1] = out
  return out
end

local function uniforms(out, n, seed)
  local u = support.uniform(seed)
  for i = 0, n - 1 do out[i] = u(0, 3) end
  return out
end

-- n different numbers below `most`, ascending.
local function ascending(out, n, most, u)
  local left = n
  for value = 0, most - 1 do
    if left > 0 and u() < left / (most - value) then out[n - left], left = value, left - 1 end
  end
end

-- One span of `rows` rows: what it has, and f32 copies for the oracle.
local function new_span(s, row, l, k, keep)
  local progress, layers = buffer("lsa_progress", 1, keep), buffer("lsa_layer_store", LAYER + 1, keep)
  progress[0].tokens, progress[0].passes = 1000, l.passes
  s.progress, s.layers, s.row, s.rows = progress, layers, row, l.rows
  s.among_residents, s.observed_by_chunk = l.among, l.by_chunk
  local resident = buffer("int32_t", PLACES, keep)
  ascending(resident, PLACES, CHUNKS, support.uniform(row + 1))
  s.resident = resident
  local store, n = layers[LAYER], l.by_chunk == 1 and CHUNKS or PLACES
  local span = {n = n, used = ffi.new("int32_t[?]", n), mass = uniforms(ffi.new("float[?]", n), n, row + 3)}
  store.used, store.mass = buffer("int32_t", n, keep), buffer("float", n, keep)
  for i = 0, n - 1 do
    span.used[i] = i % 5
    store.used[i], store.mass[i] = span.used[i], span.mass[i]
  end
  for place = 0, 1 do
    store.picked[place], store.picked_mass[place] = buffer("int32_t", k, keep), buffer("float", k, keep)
    store.picked_count[place] = buffer("int32_t", 1, keep)
    store.picked_count[place][0] = -7
    for j = 0, k - 1 do store.picked[place][j], store.picked_mass[place][j] = -7, -7 end
  end
  return span
end

local function new_case(list, k)
  local case = {k = k, list = list, of = {}, keep = {}, rows = 0}
  case.spans = buffer("lsa_span", #list, case.keep)
  for i, l in ipairs(list) do
    case.of[i] = new_span(case.spans[i - 1], case.rows, l, k, case.keep)
    case.rows = case.rows + l.rows
  end
  case.places, case.counts = buffer("int32_t", case.rows * k, case.keep), buffer("int32_t", case.rows, case.keep)
  case.mass = uniforms(buffer("float", case.rows * k, case.keep), case.rows * k, 77)
  local u, row = support.uniform(k), 0
  for _, l in ipairs(list) do
    local most = l.among == 1 and PLACES or l.by_chunk == 1 and CHUNKS or PLACES
    for _ = 1, l.rows do
      case.counts[row] = row % 4 == 2 and 0 or math.min(k, math.floor(u(1, k + 1)))
      ascending(case.places + row * k, case.counts[row], most, u)
      row = row + 1
    end
  end
  return case
end

local function chunk_at(s, place) return s.among_residents ~= 0 and s.resident[place] or place end

-- Counts row t's picks, as the contract says.
local function count_row(case, i, t)
  local s, of = case.spans[i - 1], case.of[i]
  for j = t * case.k, t * case.k + case.counts[t] - 1 do
    local at = s.observed_by_chunk ~= 0 and chunk_at(s, case.places[j]) or case.places[j]
    of.used[at] = of.used[at] + 1
    of.mass[at] = of.mass[at] + case.mass[j]
  end
end

local function expect_counts(case, what)
  for i, of in ipairs(case.of) do
    local store = case.spans[i - 1].layers[LAYER]
    assert.is_true(support.same_bits(store.used, of.used, 4 * of.n), what .. ": used of span " .. i)
    assert.is_true(support.same_bits(store.mass, of.mass, 4 * of.n), what .. ": mass of span " .. i)
  end
end

-- What is laid aside of the last row: places, or chunks once they are observed; nothing else is touched.
local function expect_aside(case, observed)
  for i, l in ipairs(case.list) do
    local s = case.spans[i - 1]
    local store, last, next_place = s.layers[LAYER], tonumber(s.row + s.rows) - 1, (l.passes + 1) % 2
    local n = case.counts[last]
    assert.equal(n, store.picked_count[next_place][0])
    assert.equal(-7, store.picked_count[1 - next_place][0])
    for j = 0, case.k - 1 do
      local place, mass = j < n and case.places[last * case.k + j] or -7, j < n and case.mass[last * case.k + j] or -7
      if observed and j < n then place = chunk_at(s, place) end
      assert.equal(place, store.picked[next_place][j])
      assert.equal(mass, store.picked_mass[next_place][j])
      assert.equal(-7, store.picked[1 - next_place][j])
    end
  end
end

local SPANS = {
  {rows = 1, passes = 0, among = 0, by_chunk = 1}, {rows = 9, passes = 1, among = 0, by_chunk = 1},
  {rows = 1, passes = 7, among = 1, by_chunk = 0}, {rows = 1, passes = 4, among = 1, by_chunk = 1},
  {rows = 6, passes = 3, among = 1, by_chunk = 1}, {rows = 5, passes = 2, among = 0, by_chunk = 0},
}

describe("remember and observe", function()
  for _, k in ipairs {1, 5, 50} do
    it(("count %d picks a row, the last row's once the pass is over"):format(k), function()
      local case = new_case(SPANS, k)
      check(remember(case.spans, #SPANS, LAYER, case.places, case.mass, case.counts, k, nil))
      for i in ipairs(SPANS) do
        local s = case.spans[i - 1]
        for t = tonumber(s.row), tonumber(s.row + s.rows) - 2 do count_row(case, i, t) end
      end
      expect_counts(case, "remember")
      expect_aside(case, false)
      check(observe(case.spans, #SPANS, LAYER + 1, nil))
      for i in ipairs(SPANS) do count_row(case, i, tonumber(case.spans[i - 1].row + case.spans[i - 1].rows) - 1) end
      expect_counts(case, "observe")
      expect_aside(case, true)
    end)
  end

  it("counts one span of a pass alone", function()
    local case = new_case(SPANS, 8)
    check(remember(case.spans, #SPANS, LAYER, case.places, case.mass, case.counts, 8, nil))
    for i in ipairs(SPANS) do
      for t = tonumber(case.spans[i - 1].row), tonumber(case.spans[i - 1].row + case.spans[i - 1].rows) - 2 do
        count_row(case, i, t)
      end
    end
    check(observe(case.spans + 2, 1, LAYER + 1, nil))
    count_row(case, 3, tonumber(case.spans[2].row))
    expect_counts(case, "observe")
  end)

  it("keeps a NaN with its chunk", function()
    local case = new_case({{rows = 2, passes = 0, among = 0, by_chunk = 1}}, 3)
    case.counts[0], case.places[0], case.places[1], case.places[2] = 3, 4, 9, 30
    case.mass[1] = 0 / 0
    check(remember(case.spans, 1, LAYER, case.places, case.mass, case.counts, 3, nil))
    local mass = case.spans[0].layers[LAYER].mass
    for i = 0, CHUNKS - 1 do assert.equal(i == 9, mass[i] ~= mass[i]) end
  end)

  it("take no spans", function()
    check(remember(nil, 0, 0, nil, nil, nil, 4, nil))
    check(observe(nil, 0, 0, nil))
  end)
end)
