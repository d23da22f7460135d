-- Records from one tier to another: what is copied, and what is left alone.
local ffi = require "ffi"
local support = require "kernel_support"

local gather = support.over_spans "gather"

-- n records of `stride` bytes in blocks of 2^shift, each byte told by record and place; owner keeps them alive.
local function tier(n, stride, shift, value)
  local per, blocks, owner = 2 ^ shift, {}, {}
  local count = math.max(1, math.ceil(n / per))
  local list = support.span_buffer("uint8_t *", count)
  for b = 0, count - 1 do
    owner[b] = support.span_buffer("uint8_t", per * stride)
    list[b] = owner[b]
    for i = 0, per * stride - 1 do owner[b][i] = value(b * per + math.floor(i / stride), i % stride) end
  end
  blocks.records = ffi.new("lsa_records", {list, stride, 0, shift, 0})
  blocks.owner, blocks.list = owner, list
  function blocks.at(i, place) return owner[math.floor(i / per)][i % per * stride + place] end
  return blocks
end

describe("gather", function()
  it("copies whole records to their slots, and nothing else", function()
    for _, shape in ipairs {{1, 64, 64}, {9, 128, 100}, {40, 64, 1}, {70, 192, 192}} do
      local n, stride, bytes = unpack(shape)
      local from = tier(2 * n, stride, 2, function(i, place) return (7 * i + place) % 251 end)
      local to = tier(3 * n, stride, 3, function() return 255 end)
      local slots, chunks = support.span_buffer("int32_t", n), support.span_buffer("int32_t", n)
      local source = {}
      for i = 0, n - 1 do
        slots[i], chunks[i] = (3 * n - 1) - 2 * i, 2 * i % (2 * n)
        source[slots[i]] = chunks[i]
      end
      assert.equal(0, gather(to.records, slots, from.records, chunks, n, bytes, nil))
      for slot = 0, 3 * n - 1 do
        for place = 0, stride - 1 do
          local wanted = source[slot] and place < bytes and from.at(source[slot], place) or 255
          assert.equal(wanted, to.at(slot, place))
        end
      end
    end
  end)

  it("of nothing does nothing", function()
    local to = tier(1, 64, 0, function() return 3 end)
    assert.equal(0, gather(to.records, nil, to.records, nil, 0, 64, nil))
    assert.equal(3, to.at(0, 63))
  end)
end)
