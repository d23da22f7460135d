local ffi = require "ffi"
local lsa = require "lsa.ffi"

local C = lsa.C
local sanitized = lsa.build:find "sanitize" ~= nil

local function in_use() return tonumber(C.lsa_memory_in_use()) end

local function address(block) return tonumber(ffi.cast("uintptr_t", block)) end

describe("memory", function()
  setup(function() -- what other specs left is not to go while memory is counted
    for _ = 1, 3 do collectgarbage() end
  end)

  it("is aligned and counted, whatever the size", function()
    local before = in_use()
    local blocks = {}
    for _, bytes in ipairs {0, 1, 63, 64, 65, 4096, 2 ^ 17, 2 ^ 20 + 1, 2 ^ 25} do
      local block = C.lsa_alloc(bytes)
      assert.equal(0, address(block) % 64)
      ffi.fill(block, bytes, 0xab)
      blocks[#blocks + 1] = block
    end
    assert.is_true(in_use() >= before + 2 ^ 25 + 2 ^ 20)
    for _, block in ipairs(blocks) do C.lsa_free(block) end
    assert.equal(before, in_use())
    C.lsa_free(nil)
  end)

  it("is clear when asked for, used before or not", function()
    for _ = 1, 3 do
      local bytes = 2 ^ 18
      local block = ffi.cast("uint8_t *", C.lsa_alloc_zero(bytes))
      for i = 0, bytes - 1, 97 do assert.equal(0, block[i]) end
      ffi.fill(block, bytes, 0xff)
      C.lsa_free(block)
    end
  end)

  it("comes back where a block of like size was freed", function()
    if sanitized then return end
    collectgarbage()
    C.lsa_memory_give_back()                   -- what others freed would serve, too
    local size = 3 * 2 ^ 20
    local first = C.lsa_alloc(size)
    local at = address(first)
    C.lsa_free(first)
    local small = C.lsa_alloc(2 ^ 20)          -- too large a block would be a waste
    assert.is_true(address(small) ~= at)
    local second = C.lsa_alloc(size - 1000)
    assert.equal(at, address(second))
    C.lsa_free(small)
    C.lsa_free(second)
  end)

  it("does not mix up what is freed and asked for in any order", function()
    local state, blocks, before = 5, {}, in_use()
    local function random(n)
      state = state * 16807 % 2147483647
      return state % n
    end
    for step = 1, 3000 do
      local slot = random(40)
      local held = blocks[slot]
      if held then
        assert.equal(held.mark, held.words[0])
        assert.equal(held.mark, held.words[held.last])
        C.lsa_free(held.words)
        blocks[slot] = nil
      else
        local n = 2 ^ (14 + random(5)) + random(1000)
        local words = ffi.cast("int32_t *", C.lsa_alloc(4 * n))
        words[0], words[n - 1] = step, step
        blocks[slot] = {words = words, last = n - 1, mark = step}
      end
    end
    for _, held in pairs(blocks) do C.lsa_free(held.words) end
    assert.equal(before, in_use())
  end)

  it("grows in place of a smaller block, keeping what is there", function()
    local block = ffi.cast("int32_t *", C.lsa_realloc(nil, 400))
    for i = 0, 99 do block[i] = i end
    block = ffi.cast("int32_t *", C.lsa_realloc(block, 2 ^ 20))
    for i = 0, 99 do assert.equal(i, block[i]) end
    C.lsa_free(block)
  end)

  it("fails when a test wants it to, once, with a message", function()
    local before = in_use()
    C.lsa_memory_fail_after(1)
    local first = C.lsa_alloc(10)
    assert.is_true(first ~= nil)
    assert.is_true(C.lsa_alloc(10) == nil)
    assert.equal("out of memory: 10 bytes could not be allocated", ffi.string(C.lsa_error()))
    local third = C.lsa_alloc(10)
    assert.is_true(third ~= nil)
    C.lsa_memory_fail_after(-1)
    C.lsa_free(first)
    C.lsa_free(third)
    assert.is_true(C.lsa_alloc(-5) == nil)
    assert.is_true(C.lsa_alloc(2 ^ 62) == nil)
    assert.equal(before, in_use())
  end)

  it("copies strings", function()
    local copy = C.lsa_strdup "héllo"
    assert.equal("héllo", ffi.string(copy))
    C.lsa_free(copy)
  end)
end)
