-- Zip archives: what is written is read again, and damaged ones are refused.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local files = require "file_support"
local support = require "kernel_support"
local C, check = lib.C, require("lsa.raise").check

local function open(bytes)
  local box = ffi.new "lsa_zip *[1]"
  local data = support.buffer("uint8_t", math.max(#bytes, 1)) + (#bytes == 0 and 1 or 0)
  ffi.copy(data, bytes, #bytes)
  local rc = C.lsa_zip_open(box, data, #bytes, "test.zip")
  return rc, rc == 0 and ffi.gc(box[0], C.lsa_zip_close), data
end

-- name -> contents of an archive's bytes; raises what the library says.
local function entries(bytes)
  local rc, zip, data = open(bytes)
  check(rc)
  local out, at, size = {}, ffi.new "int64_t[1]", ffi.new "int64_t[1]"
  for i = 0, tonumber(C.lsa_zip_count(zip)) - 1 do
    check(C.lsa_zip_entry(zip, i, at, size))
    check(C.lsa_zip_check(zip, i))
    local name = ffi.string(C.lsa_zip_name(zip, i))
    assert.equal(i, tonumber(C.lsa_zip_find(zip, name)))
    out[name] = ffi.string(data + at[0], size[0])
  end
  assert.equal(-1, tonumber(C.lsa_zip_find(zip, "absent")))
  return out
end

local function create(path, list, align, zip64_from)
  local box = ffi.new "lsa_zip_writer *[1]"
  local rc = C.lsa_zip_create(box, path, zip64_from or 0)
  if rc < 0 then return rc end
  for _, entry in ipairs(list) do
    rc = C.lsa_zip_add(box[0], entry[1], entry[2], #entry[2], align or 1)
    if rc < 0 then
      C.lsa_zip_abandon(box[0])
      return rc
    end
  end
  return C.lsa_zip_finish(box[0])
end

local list = {{"a/data.pkl", "hello"}, {"a/data/0", ("x"):rep(1000)}, {"a/data/1", ""}, {"b", "\0\1\2"}}

local function written(align, zip64_from)
  local bytes
  files.with_folder(function(folder)
    check(create(folder .. "/z", list, align, zip64_from))
    assert.equal("z", files.names(folder))
    bytes = files.read(folder .. "/z")
  end)
  return bytes
end

local function number(n, bytes) return files.length_bytes(n):sub(1, bytes) end

describe("zip archives", function()
  for _, from in ipairs {0, 1, 100, 1100} do
    it("give back what was written, aligned, with 64-bit fields from " .. from .. " on", function()
      for _, align in ipairs {1, 2, 3, 64, 4096} do
        local bytes = written(align, from)
        local found, count = entries(bytes), 0
        for _, entry in ipairs(list) do
          assert.equal(entry[2], found[entry[1]])
          count = count + 1
        end
        assert.equal(4, count)
        assert.equal(0, (bytes:find(("x"):rep(1000), 1, true) - 1) % align)
      end
    end)
  end

  it("may end with a comment, and have none of anything", function()
    local bytes = written()
    assert.equal("hello", entries(bytes:sub(1, -3) .. number(5, 2) .. "words")["a/data.pkl"])
    assert.same({}, entries("PK\5\6" .. ("\0"):rep(18)))
  end)

  it("are refused where they are not whole", function()
    local bytes = written()
    for cut = 0, #bytes - 1 do
      local rc = open(bytes:sub(1, cut))
      assert.equal(C.LSA_EFORMAT, rc)
    end
    for name, damage in pairs {
      ["is compressed"] = {"PK\1\2", 10, number(8, 2)}, ["is encrypted"] = {"PK\1\2", 8, number(1, 2)},
      ["has two sizes"] = {"PK\1\2", 20, number(3, 4)}, ["does not fit"] = {"PK\1\2", 42, number(2 ^ 31, 4)},
      ["header is damaged"] = {"PK\3\4", 0, "QK"}, ["is cut off"] = {"PK\1\2", 28, number(60000, 2)},
      ["has the checksum"] = {"hello", 0, "jello"}, ["directory does not fit"] = {"PK\5\6", 12, number(2 ^ 20, 4)},
    } do
      local at = bytes:find(damage[1], 1, true) + damage[2]
      local ok, message = pcall(entries, bytes:sub(1, at - 1) .. damage[3] .. bytes:sub(at + #damage[3]))
      assert.is_false(ok, name)
      assert.is_truthy(message:find("test.zip", 1, true) and message:find(name, 1, true), message)
    end
  end)

  it("have every name once, without zero bytes", function()
    local bytes = written()
    local twice = bytes:gsub("a/data/1", "a/data/0")
    assert.matches("a name comes twice", select(2, pcall(entries, twice)))
    assert.matches("zero byte", select(2, pcall(entries, (bytes:gsub("a/data/1", "a/data\0001")))))
  end)

  -- What a damaged archive still gives has the checksums of its directory; what it does not give is refused by file.
  it("survive any damage: refused by the file's name, or read as the directory says", function()
    local random, refused, whole = support.uniform(5), 0, 0
    for _, from in ipairs {0, 1} do
      local bytes = written(64, from)
      for _ = 1, 4000 do
        local damaged = bytes
        for _ = 1, 1 + math.floor(random(0, 4)) do
          local at = #bytes - math.floor(random(0, math.min(#bytes, 420)))
          damaged = damaged:sub(1, at - 1) .. string.char(math.floor(random(0, 256))) .. damaged:sub(at + 1)
        end
        local ok, got = pcall(entries, damaged)
        if ok then
          whole = whole + 1
          for name, content in pairs(got) do assert.is_true(damaged:find(name, 1, true) and damaged:find(content, 1, true) ~= nil) end
        else
          refused = refused + 1
          assert.is_true(tostring(got):find("test.zip: ", 1, true) ~= nil, tostring(got))
        end
      end
    end
    assert.is_true(refused > 4000 and whole > 100, ("%d refused, %d read"):format(refused, whole))
  end)

  it("leave the old file, and nothing else, when anything fails", function()
    files.with_folder(function(folder)
      local path = folder .. "/z"
      local allocations, operations = files.fail_everything(function()
        os.remove(path)
        files.write(path, "old")
        local rc = create(path, list, 64)
        assert.is_true(rc == 0 or files.read(path) == "old" or files.read(path):sub(1, 2) == "PK")
        assert.equal("z", files.names(folder))
        return rc
      end)
      assert.is_true(allocations > 5 and operations > 5)
    end)
  end)

  it("refuse entries that make no sense", function()
    files.with_folder(function(folder)
      assert.equal(C.LSA_EARG, create(folder .. "/z", {{("n"):rep(2000), "x"}}))
      assert.equal(C.LSA_EARG, create(folder .. "/z", {{"n", "x"}}, 5000))
      assert.equal("", files.names(folder))
    end)
  end)
end)
