-- Cold files: what is written comes back or is an error; nothing is left behind; every fault is survived.
local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "file_support"
local C, check = lsa.C, require("lsa.raise").check

ffi.cdef [[
int open(const char *, int, ...);
int64_t pread(int, void *, size_t, int64_t);
int64_t pwrite(int, const void *, size_t, int64_t);
int close(int);
]]
local O_RDWR = 2
local SEGMENT = tonumber(C.LSA_COLD_SEGMENT)

local function new_file(folder, item, options)
  local out = ffi.new "lsa_cold_file *[1]"
  check(C.lsa_cold_file_new(out, folder, item, options and ffi.new("lsa_cold_file_options", options)))
  return ffi.gc(out[0], C.lsa_cold_file_release)
end

-- The bytes of a chunk's item: a number that tells the chunk, repeated.
local function expected(chunk, item, version)
  local word = ("%07d:"):format(chunk * 10 + (version or 0))
  return (word:rep(math.ceil(item / 8)):sub(-item))
end

-- What C calls back must come from code that is not compiled.
local function write(file, segments, first_chunks, counts, item, version)
  local make = ffi.cast("lsa_cold_tier_make *", function(_, chunk, to)
    ffi.copy(to, expected(tonumber(chunk), item, version), item)
  end)
  local n = #segments
  local rc = C.lsa_cold_file_write(file, ffi.new("int32_t[?]", n, segments), ffi.new("int64_t[?]", n, first_chunks),
    ffi.new("int64_t[?]", n, counts), n, make, nil)
  make:free()
  return rc
end
jit.off(write, true)

-- Reads chunks: code, and a list of the items by place in `chunks`.
local function read(file, segment_of, chunks, item)
  local got, order = {}, {}
  local take = ffi.cast("lsa_cold_tier_take *", function(_, i, from)
    i = tonumber(i)
    got[i + 1] = ffi.string(from, item)
    order[#order + 1] = i
  end)
  local rc = C.lsa_cold_file_read(file, ffi.new("int32_t[?]", math.max(1, #segment_of), segment_of),
    ffi.new("int32_t[?]", math.max(1, #chunks), chunks), #chunks, take, nil)
  take:free()
  return rc, got, order
end
jit.off(read, true)

local function assert_items(file, segment_of, chunks, item, version)
  local rc, got = read(file, segment_of, chunks, item)
  check(rc)
  assert.equal(#chunks, #got)
  for i, chunk in ipairs(chunks) do assert.is_true(expected(chunk, item, version) == got[i], "chunk " .. chunk) end
end

-- The file again, by a descriptor of its own: without a name it is only reachable through /proc.
local function patch(file, offset, change)
  local fd = ffi.C.open("/proc/self/fd/" .. C.lsa_file_descriptor(C.lsa_cold_file_of(file)), O_RDWR)
  assert(fd >= 0)
  local one = ffi.new "uint8_t[1]"
  assert(ffi.C.pread(fd, one, 1, offset) == 1)
  one[0] = change(one[0])
  assert(ffi.C.pwrite(fd, one, 1, offset) == 1)
  ffi.C.close(fd)
end

local function every(step, n)
  local list = {}
  for chunk = 0, n - 1, step do list[#list + 1] = chunk end
  return list
end

local ways = {
  {"through io_uring, past the page cache", {1, 1, 0, 0, -1}}, {"one by one", {0, 1, 0, 0, -1}},
  {"through the page cache", {1, 0, 0, 0, -1}}, {"in small pieces", {1, 1, 8192, 3, 100}}, {"one item a piece", {0, 0, 1, 1, 0}},
}

describe("a cold file", function()
  for _, way in ipairs(ways) do
    it("gives back what was written, " .. way[1], function()
      support.with_folder(function(folder)
        for _, item in ipairs {8, 24, 372, 5000} do
          local file = new_file(folder, item, way[2])
          local segments = ffi.new "int32_t[3]"
          check(C.lsa_cold_file_take(file, segments, 3))
          -- Chunks of segment 0 of the pool lie in the file's segment 2, and so on; the last one is begun only.
          local segment_of = {segments[2], segments[0], segments[1]}
          local n = 2 * SEGMENT + 77
          check(write(file, segment_of, {0, SEGMENT, 2 * SEGMENT}, {SEGMENT, SEGMENT, 77}, item))
          assert_items(file, segment_of, every(item > 1000 and 41 or 1, n), item)
          assert_items(file, segment_of, every(97, n), item)
          assert_items(file, segment_of, {n - 1, 5, 4, 5, SEGMENT, 0, SEGMENT - 1}, item) -- in no order, one twice
          assert_items(file, segment_of, {}, item)
        end
      end)
    end)
  end

  it("has no name and goes with its last holder", function()
    support.with_folder(function(folder)
      local file = new_file(folder, 100)
      check(C.lsa_cold_file_take(file, ffi.new "int32_t[1]", 1))
      assert.equal("", support.names(folder))
      assert.equal(SEGMENT * 128, tonumber(C.lsa_cold_file_bytes(file)))
      C.lsa_cold_file_retain(file)
      C.lsa_cold_file_release(file)
      assert.equal(128, tonumber(C.lsa_cold_file_stride(file)))
    end)
  end)

  it("sets segments aside, shares them, and uses again those that nobody holds", function()
    support.with_folder(function(folder)
      local file, s = new_file(folder, 8), ffi.new "int32_t[4]"
      check(C.lsa_cold_file_take(file, s, 4))
      assert.same({0, 1, 2, 3}, {s[0], s[1], s[2], s[3]})
      C.lsa_cold_file_hold(file, 1)
      C.lsa_cold_file_drop(file, 1)
      C.lsa_cold_file_drop(file, 3)
      check(C.lsa_cold_file_take(file, s, 1))
      assert.equal(3, s[0]) -- 1 has a holder yet
      C.lsa_cold_file_drop(file, 1)
      check(C.lsa_cold_file_take(file, s, 2))
      assert.same({1, 4}, {s[0], s[1]})
    end)
  end)

  it("tells a damaged byte, wherever it is, by file and chunk", function()
    support.with_folder(function(folder)
      local item = 40
      local file, s = new_file(folder, item), ffi.new "int32_t[1]"
      check(C.lsa_cold_file_take(file, s, 1))
      check(write(file, {0}, {0}, {SEGMENT}, item))
      local stride = tonumber(C.lsa_cold_file_stride(file))
      for j = 0, 8 + item - 1 do
        local chunk = j * 3
        patch(file, chunk * stride + j, function(b) return bit.bxor(b, 2 ^ (j % 8)) end)
        local rc = read(file, {0}, {chunk - 1 >= 0 and chunk - 1 or 1, chunk, chunk + 1}, item)
        assert.equal(C.LSA_EFORMAT, rc)
        local said = ffi.string(C.lsa_error())
        assert.matches("chunk " .. chunk .. " is damaged", said)
        assert.matches(folder, said, 1, true)
        patch(file, chunk * stride + j, function(b) return bit.bxor(b, 2 ^ (j % 8)) end)
        assert_items(file, {0}, {chunk}, item)
      end
    end)
  end)

  it("tells an item that is in another's place", function()
    support.with_folder(function(folder)
      local file, s = new_file(folder, 40), ffi.new "int32_t[2]"
      check(C.lsa_cold_file_take(file, s, 2))
      check(write(file, {0, 1}, {0, SEGMENT}, {SEGMENT, SEGMENT}, 40))
      assert.equal(C.LSA_EFORMAT, (read(file, {1, 0}, {3}, 40)))
    end)
  end)

  it("says so when the disk is full, and goes on", function()
    support.with_folder(function(folder)
      local file, s = new_file(folder, 2 ^ 24), ffi.new "int32_t[4096]"
      local rc = C.lsa_cold_file_take(file, s, 4096) -- 64 TiB
      assert.equal(C.LSA_EIO, rc)
      assert.matches("cannot be given space: ", ffi.string(C.lsa_error()))
      assert.equal(0, tonumber(C.lsa_cold_file_bytes(file)))
      local small = new_file(folder, 8)
      check(C.lsa_cold_file_take(small, s, 1))
    end)
  end)

  it("says so when there is no such directory", function()
    local out = ffi.new "lsa_cold_file *[1]"
    local said = support.failure(C.lsa_cold_file_new(out, "/nonexistent", 8, nil), C.LSA_EIO)
    assert.matches("/nonexistent/lsa%-.*No such file or directory", said)
  end)

  it("survives every fault without a leak, through io_uring and without", function()
    support.with_folder(function(folder)
      for ring = 0, 1 do
        local allocations, operations = support.fail_everything(function()
          local out = ffi.new "lsa_cold_file *[1]"
          local rc = C.lsa_cold_file_new(out, folder, 24, ffi.new("lsa_cold_file_options", {ring, 1, 8192, 2, 0}))
          if rc ~= 0 then return rc end
          local file, s = out[0], ffi.new "int32_t[2]"
          rc = C.lsa_cold_file_take(file, s, 2)
          if rc == 0 then rc = write(file, {0, 1}, {0, SEGMENT}, {SEGMENT, 9}, 24) end
          if rc == 0 then rc = read(file, {0, 1}, {0, 1, 500, 1030}, 24) end
          C.lsa_cold_file_release(file)
          return rc
        end)
        assert.is_true(allocations >= 10 and operations >= 7)
      end
      assert.equal("", support.names(folder))
    end)
  end)

  it("keeps versions of the same chunks apart", function()
    support.with_folder(function(folder)
      local file, s = new_file(folder, 24), ffi.new "int32_t[2]"
      check(C.lsa_cold_file_take(file, s, 2))
      check(write(file, {0}, {0}, {SEGMENT}, 24))
      check(write(file, {1}, {0}, {SEGMENT}, 24, 1)) -- a fork's own version of the same chunks
      assert_items(file, {0}, every(5, SEGMENT), 24)
      assert_items(file, {1}, every(5, SEGMENT), 24, 1)
    end)
  end)
end)
