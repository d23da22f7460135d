-- Safetensors files written piece by piece.
local ffi = require "ffi"
local lsa = require "lsa"
local lib = require "lsa.ffi"
local writer = require "lsa.files.safetensors_writer"
local files = require "file_support"

local function array(ctype, list) return ffi.new(ctype .. "[?]", #list, list) end

describe("a writer", function()
  it("makes the file that lsa.save would make of the same tensors", function()
    files.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local w = writer.new(path, {{"small", "u8", {2, 3}}, {"grows", "i32"}, {"big", "i64", {2}}, {"more", "f32"}, {"none", "bf16", {0, 4}}},
        {note = "x"})
      w:write("grows", array("int32_t", {1, 2, 3}), 3)
      w:write("small", array("uint8_t", {1, 2, 3, 4}), 4)
      w:write("more", array("float", {0.5}), 1)
      w:write("big", array("int64_t", {7, -8}), 2)
      w:write("small", array("uint8_t", {5, 6}), 2)
      w:write("grows", array("int32_t", {4}), 1)
      assert.equal(4, w:count "grows")
      assert.is_nil(files.read(path))
      w:finish()
      assert.equal("a.safetensors", files.names(folder))
      local t, metadata = lsa.load(path)
      assert.same({{1, 2, 3}, {4, 5, 6}}, t.small:totable())
      assert.same({1, 2, 3, 4}, t.grows:totable())
      assert.same({7, -8}, t.big:totable())
      assert.same({0.5}, t.more:totable())
      assert.same({0, 4}, t.none:shape())
      assert.same({note = "x"}, metadata)
    end)
  end)

  it("has growing tensors that stay empty, or become large", function()
    files.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local w = writer.new(path, {{"empty", "f32"}, {"large", "i32"}})
      local n = 100000
      local data = ffi.new("int32_t[?]", n)
      for round = 0, 6 do
        for i = 0, n - 1 do data[i] = round * n + i end
        w:write("large", data, n)
      end
      w:finish()
      local t = lsa.load(path)
      assert.same({0}, t.empty:shape())
      assert.equal(7 * n, t.large:count())
      for _, i in ipairs {0, 262143, 262144, 262145, 524288, 7 * n - 1} do assert.equal(i, t.large:get(i)) end
    end)
  end)

  it("says what is missing, or too much, and leaves nothing when abandoned", function()
    files.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      local w = writer.new(path, {{"x", "f32", {4}}, {"y", "i32"}})
      w:write("x", ffi.new("float[3]"), 3)
      local ok, message = pcall(w.finish, w)
      assert.is_false(ok)
      assert.matches("x has 3 elements of 4", message)
      ok, message = pcall(w.write, w, "x", ffi.new("float[2]"), 2)
      assert.is_false(ok)
      assert.matches("x has room for 4 elements, 5 come", message)
      w:abandon()
      assert.equal("", files.names(folder))
    end)
  end)

  it("leaves an old file as it is when any operation fails", function()
    files.with_folder(function(folder)
      local path = folder .. "/a.safetensors"
      files.write(path, "old")
      local function attempt()
        local w
        local ok = pcall(function()
          w = writer.new(path, {{"x", "f32", {4}}, {"y", "i32"}})
          w:write("x", ffi.new("float[4]"), 4)
          w:write("y", ffi.new("int32_t[4]"), 4)
          w:finish()
        end)
        lib.C.lsa_io_fail_after(-1)
        if not ok and w then w:abandon() end
        return ok
      end
      local failures = 0
      for n = 0, 100 do
        lib.C.lsa_io_fail_after(n)
        if attempt() then break end
        failures = failures + 1
        if files.read(path) ~= "old" then break end   -- renamed, but the directory could not be synced
        assert.equal("old", files.read(path))
      end
      assert.is_true(failures >= 10, failures .. " operations")
      assert.equal(4, lsa.load(path).x:count())
    end)
  end)
end)
