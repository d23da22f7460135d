local ffi = require "ffi"
local lsa = require "lsa.ffi"
local support = require "file_support"
local C, check = lsa.C, require("lsa.raise").check

ffi.cdef [[
int fork(void);
int waitpid(int, int *, int);
]]

local function open(path, mode)
  local out = ffi.new "lsa_file *[1]"
  check(C.lsa_file_open(out, path, mode), 2)
  return out[0]
end

local function replace(path)
  local out = ffi.new "lsa_replace *[1]"
  check(C.lsa_replace_begin(out, path), 2)
  return out[0]
end

local function size_of(file)
  local bytes = ffi.new "int64_t[1]"
  check(C.lsa_file_size(bytes, file))
  return tonumber(bytes[0])
end

describe("files", function()
  it("are written and read at any offset", function()
    support.with_folder(function(folder)
      local path = folder .. "/a"
      local file = open(path, C.LSA_FILE_UPDATE)
      check(C.lsa_file_write(file, "world", 5, 6))
      check(C.lsa_file_write(file, "hello ", 6, 0))
      check(C.lsa_file_sync(file))
      assert.equals(11, size_of(file))
      local buffer = ffi.new "char[5]"
      check(C.lsa_file_read(file, buffer, 5, 3))
      assert.equals("lo wo", ffi.string(buffer, 5))
      check(C.lsa_file_resize(file, 5))
      assert.equals(path, ffi.string(C.lsa_file_path(file)))
      assert.is_true(C.lsa_file_descriptor(file) >= 0)
      local other = open(path, C.LSA_FILE_READ)
      assert.same({1, 0}, {C.lsa_file_lock(file), C.lsa_file_lock(other)})
      check(C.lsa_file_close(other))
      check(C.lsa_file_close(file))
      assert.equals("hello", support.read(path))
      check(C.lsa_file_close(open(path, C.LSA_FILE_UPDATE)))
      assert.equals("hello", support.read(path))
      check(C.lsa_file_close(open(path, C.LSA_FILE_WRITE)))
      assert.equals("", support.read(path))
      check(C.lsa_file_close(nil))
    end)
  end)

  it("that end too early say where, and what was expected", function()
    support.with_folder(function(folder)
      support.write(folder .. "/a", "hello")
      local file, buffer = open(folder .. "/a", C.LSA_FILE_READ), ffi.new "char[8]"
      local message = support.failure(C.lsa_file_read(file, buffer, 8, 0), C.LSA_EFORMAT)
      assert.equals(folder .. "/a: ends at byte 5, 3 more were expected", message)
      assert.is_true(support.failure(C.lsa_file_write(file, buffer, 8, 0), C.LSA_EIO):find "cannot be written" ~= nil)
      check(C.lsa_file_close(file))
    end)
  end)

  it("are regular, or refused at once", function()
    support.with_folder(function(folder)
      local out = ffi.new "lsa_file *[1]"
      support.make_pipe(folder .. "/pipe")
      assert.is_true(support.failure(C.lsa_file_open(out, folder .. "/pipe", C.LSA_FILE_READ), C.LSA_EIO):find "regular" ~= nil)
      assert.is_true(support.failure(C.lsa_file_open(out, folder, C.LSA_FILE_READ), C.LSA_EIO):find "regular" ~= nil)
      assert.is_true(support.failure(C.lsa_file_open(out, folder .. "/x", C.LSA_FILE_READ), C.LSA_EIO):find "No such file" ~= nil)
      assert.is_true(support.failure(C.lsa_file_open(out, folder .. "/x", 9), C.LSA_EARG):find "mode 9" ~= nil)
      assert.equals(0, C.lsa_file_exists(folder .. "/x"))
      assert.equals(0, C.lsa_file_exists(folder .. "/x/y"))
      support.failure(C.lsa_file_exists(folder), C.LSA_EIO)
      support.write(folder .. "/x", "")
      assert.equals(1, C.lsa_file_exists(folder .. "/x"))
    end)
  end)

  it("are mapped and read whole, empty ones too", function()
    support.with_folder(function(folder)
      local path, data, bytes, text = folder .. "/a", ffi.new "void *[1]", ffi.new "int64_t[1]", ffi.new "char *[1]"
      for _, contents in ipairs {"", "x", ("page"):rep(5000)} do
        support.write(path, contents)
        check(C.lsa_file_map(data, bytes, path))
        assert.equals(#contents, tonumber(bytes[0]))
        assert.is_true(data[0] ~= nil and ffi.string(data[0], #contents) == contents)
        C.lsa_file_unmap(data[0], bytes[0])
        check(C.lsa_file_read_all(text, bytes, path, 20000))
        assert.is_true(ffi.string(text[0]) == contents)
        C.lsa_free(text[0])
      end
      local message = support.failure(C.lsa_file_read_all(text, bytes, path, 19999), C.LSA_EFORMAT)
      assert.equals(path .. ": has 20000 bytes, at most 19999 are allowed", message)
    end)
  end)
end)

describe("replacing a file", function()
  it("shows the new contents at the commit and not before", function()
    support.with_folder(function(folder)
      local path = folder .. "/a"
      support.write(path, "old")
      local r = replace(path)
      check(C.lsa_replace_write(r, "ne", 2))
      check(C.lsa_replace_write(r, "w", 1))
      assert.equals("old", support.read(path))
      check(C.lsa_replace_commit(r))
      assert.equals("new", support.read(path))
      assert.equals("a", support.names(folder))
      r = replace(path)
      check(C.lsa_replace_write(r, "lost", 4))
      C.lsa_replace_abandon(r)
      C.lsa_replace_abandon(nil)
      assert.equals("new", support.read(path))
      assert.equals("a", support.names(folder))
    end)
  end)

  it("by two writers at once gives one of the two", function()
    support.with_folder(function(folder)
      local a, b = replace(folder .. "/a"), replace(folder .. "/a")
      check(C.lsa_replace_write(a, "first", 5))
      check(C.lsa_replace_write(b, "second", 6))
      check(C.lsa_replace_commit(b))
      check(C.lsa_replace_commit(a))
      assert.equals("first", support.read(folder .. "/a"))
      assert.equals("a", support.names(folder))
    end)
  end)

  it("by two processes never takes the other's file for one that was left behind", function()
    local process = require "process_support"
    support.with_folder(function(folder)
      -- Before a name is changed, another writer to the same path begins, and removes what it finds that nobody has.
      support.write(folder .. "/between.c", [[
        #define _GNU_SOURCE
        #include <dlfcn.h>
        int rename(const char *from, const char *to)
        {
            void *other;
            int (*begin)(void **, const char *) = dlsym(RTLD_DEFAULT, "lsa_replace_begin");
            void (*abandon)(void *) = dlsym(RTLD_DEFAULT, "lsa_replace_abandon");
            int (*change)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
            if (begin(&other, to) == 0) abandon(other);
            return change(from, to);
        }]])
      local code = ('lsa.save(%q, {x = lsa.arange(3)}) print(lsa.load(%q).x:sum())'):format(folder .. "/a.safetensors", folder .. "/a.safetensors")
      local out, errors = process.shell(("cc -shared -fPIC -o %s/between.so %s/between.c && ASAN_OPTIONS=verify_asan_link_order=0 LD_PRELOAD=%s/between.so %s -e %s"):format(
        folder, folder, folder, process.program, process.quote(code)))
      assert.same({"3\n", ""}, {out, errors})
    end)
  end)

  -- Killed at every operation in turn; what each leaves beside the file, the next one removes.
  it("by a process that is killed leaves the old one, or the new one whole", function()
    support.with_folder(function(folder)
      local path, status, old, left = folder .. "/a", ffi.new "int[1]", 0, 0
      support.write(folder .. "/a.tmp-1-x", "not a temporary")
      for n = 0, 100 do
        support.write(path, "old")
        local child = ffi.C.fork()
        if child == 0 then
          C.lsa_io_kill_after(n)
          local r = replace(path)
          C.lsa_replace_write(r, "new", 3)
          C.lsa_replace_commit(r)
          C.lsa_io_kill_after(0)
          C.lsa_file_remove "/nowhere/a"
        end
        assert.equals(child, ffi.C.waitpid(child, status, 0))
        assert.equals(9, status[0])
        local text = support.read(path)
        assert.is_true(text == "old" or text == "new")
        if text == "old" then old = n end
        local names = support.names(folder)
        if names ~= "a a.tmp-1-x" then
          left = left + 1
          assert.matches("^a a%.tmp%-1%-x a%.tmp%-%d+%-%d+$", names)
        elseif text == "new" then
          break
        end
      end
      assert.is_true(old >= 4 and left >= 3)
      C.lsa_replace_abandon(replace(path))
      assert.equals("a a.tmp-1-x", support.names(folder))
      assert.equals("not a temporary", support.read(folder .. "/a.tmp-1-x"))
    end)
  end)

  it("in a folder that is not there says so", function()
    local out = ffi.new "lsa_replace *[1]"
    local message = support.failure(C.lsa_replace_begin(out, "/nowhere/a"), C.LSA_EIO)
    assert.is_true(message:find("/nowhere/a.tmp-", 1, true) == 1 and message:find "No such file" ~= nil)
  end)

  it("keeps the old one at every failure, and leaves nothing else", function()
    support.with_folder(function(folder)
      local path, syncs = folder .. "/a", 0
      support.write(path, "old")
      local _, operations = support.fail_everything(function()
        local out = ffi.new "lsa_replace *[1]"
        local rc = C.lsa_replace_begin(out, path)
        if rc == 0 then
          rc = C.lsa_replace_write(out[0], "new", 3)
          if rc == 0 then
            rc = C.lsa_replace_commit(out[0])
          else
            C.lsa_replace_abandon(out[0])
          end
        end
        assert.equals("a", support.names(folder))
        -- Once renamed, the new file is there: only making that durable can still fail.
        if rc ~= 0 and support.read(path) == "new" then syncs = syncs + 1 end
        support.write(path, "old")
        return rc
      end)
      assert.equals(7, operations)
      assert.is_true(syncs == 3)                 -- the directory's name out of memory, its open, its sync
    end)
  end)
end)
