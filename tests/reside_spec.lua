-- A set of residents takes over: whose keys lie side by side, what is forgotten, and what is left alone.
local ffi = require "ffi"
local support = require "kernel_support"

local C = require("lsa.ffi").C
local reside = support.over_spans "reside"
local SHIFT, OTHER = 3, 7

local function buffer(ctype, n, keep)
  local out = support.span_buffer(ctype, math.max(1, n))
  keep[#keep + 1] = out
  return out
end

-- n keys in blocks of 2^SHIFT, `offset` bytes into items that are `stride` apart; each byte is value(i, place).
local function keys(n, stride, offset, value, keep)
  local count, per = math.max(1, math.ceil(n / 2 ^ SHIFT)), 2 ^ SHIFT
  local list = buffer("uint8_t *", count, keep)
  for b = 0, count - 1 do
    local block = buffer("uint8_t", per * stride, keep)
    for i = 0, per * stride - 1 do block[i] = value(b * per + math.floor(i / stride), i % stride - offset) end
    list[b] = block
  end
  return ffi.new("lsa_records", {list, stride, offset, SHIFT, 0})
end

local function of_chunk(i, place) return (5 * i + place) % 251 end
local function of_slot(i, place) return (11 * i + 3 * place + 1) % 251 end

-- Three layers: keys by chunk, no index keys at all, keys in cells. Room for `room` residents and what was observed.
local function stores(chunks, slots, room, bytes, keep)
  local layers = buffer("lsa_layer_store", 3, keep)
  layers[0].keys = keys(chunks, bytes, 0, of_chunk, keep)
  layers[2].keys = keys(chunks, bytes, 0, function() return OTHER end, keep)
  layers[2].hot_keys = keys(slots, 2 * bytes + 4, 4, of_slot, keep)
  for _, layer in ipairs {0, 2} do
    local l = layers[layer]
    l.resident_keys = buffer("uint8_t", room * bytes, keep)
    l.used, l.mass = buffer("int32_t", room, keep), buffer("float", room, keep)
    ffi.fill(l.resident_keys, room * bytes, OTHER)
    for i = 0, room - 1 do l.used[i], l.mass[i] = i + 1, i + 0.5 end
  end
  return layers
end

describe("reside", function()
  it("has the residents' keys side by side, forgets what was observed, and leaves the rest alone", function()
    for _, shape in ipairs {{1, 1, 36}, {40, 17, 36}, {300, 299, 132}, {64, 20, 4}, {30, 9, 18}, {70, 33, 1}} do
      local chunks, n, bytes = unpack(shape)
      local keep, room, slots, observed = {}, n + 5, 2 * n, n + 2
      local layers = stores(chunks, slots, room, bytes, keep)
      local ids, at = buffer("int32_t", n, keep), buffer("int32_t", n, keep)
      for i = 0, n - 1 do
        ids[i], at[i] = math.floor(i * (chunks - 1) / math.max(1, n - 1)), (2 * n - 1) - 2 * i
      end
      assert.equal(0, reside(layers, 3, ids, at, n, observed, bytes, nil))
      for layer, wanted in pairs {[0] = function(i, place) return of_chunk(ids[i], place) end,
        [2] = function(i, place) return of_slot(at[i], place) end} do
        local l = layers[layer]
        for i = 0, room - 1 do
          for place = 0, bytes - 1 do
            assert.equal(i < n and wanted(i, place) or OTHER, l.resident_keys[i * bytes + place])
          end
          assert.equal(i < observed and 0 or i + 1, l.used[i])
          assert.equal(i < observed and 0 or i + 0.5, l.mass[i])
        end
      end
    end
  end)

  it("of no residents forgets alone; with nothing to forget has keys alone", function()
    local keep = {}
    local layers = stores(4, 4, 4, 36, keep)
    assert.equal(0, reside(layers, 3, nil, nil, 0, 3, 36, nil))
    assert.equal(OTHER, layers[0].resident_keys[0])
    assert.same({0, 4}, {layers[0].used[2], layers[0].used[3]})
    local ids = buffer("int32_t", 1, keep)
    ids[0] = 2
    assert.equal(0, reside(layers, 3, ids, ids, 1, 0, 36, nil))
    assert.equal(of_chunk(2, 0), layers[0].resident_keys[0])
    assert.equal(4, layers[0].used[3])
    assert.equal(0, C.lsa_reside_cpu(layers, 0, nil, nil, 0, 0, 36, nil))
  end)
end)
