-- What the system lets the process have, refuses it, or takes away while it runs.
local ffi = require "ffi"
local lib = require "lsa.ffi"
local long = require "long_support"
local process = require "process_support"
local support = require "file_support"
local C, quote, shell = lib.C, process.quote, process.shell

local golden = lib.root .. "/tests/golden/"
local sanitized = lib.build:find "sanitize" ~= nil

describe("limits of the system", function()
  local function with_root(files, fn)
    support.with_folder(function(folder)
      for path, text in pairs(files) do
        os.execute(("mkdir -p '%s/%s'"):format(folder, path:match "^(.*)/"))
        support.write(folder .. "/" .. path, text)
      end
      fn(folder)
    end)
  end

  it("are those of the control group and of all that it is in, in either version", function()
    local info = "MemTotal: 16000000 kB\nMemAvailable:   1000 kB\n"
    with_root({["proc/self/cgroup"] = "0::/a/b\n", ["proc/meminfo"] = info, ["sys/fs/cgroup/a/b/cpu.max"] = "max 100000\n",
      ["sys/fs/cgroup/a/cpu.max"] = "250000 100000\n", ["sys/fs/cgroup/cpu.max"] = "900000 100000\n",
      ["sys/fs/cgroup/a/memory.max"] = "600000\n", ["sys/fs/cgroup/a/memory.current"] = "500000\n",
      ["sys/fs/cgroup/a/memory.stat"] = "anon 1\ninactive_file 20000\n"}, function(root)
      assert.equal(3, tonumber(C.lsa_limits_processors(root)))
      assert.equal(120000, tonumber(C.lsa_limits_memory(root)))
    end)
    with_root({["proc/self/cgroup"] = "5:memory:/x\n4:cpu,cpuacct:/x/y\n1:name=systemd:/\n", ["proc/meminfo"] = info,
      ["sys/fs/cgroup/cpu/x/y/cpu.cfs_quota_us"] = "-1\n", ["sys/fs/cgroup/cpu/x/y/cpu.cfs_period_us"] = "100000\n",
      ["sys/fs/cgroup/cpu/x/cpu.cfs_quota_us"] = "100001\n", ["sys/fs/cgroup/cpu/x/cpu.cfs_period_us"] = "100000\n",
      ["sys/fs/cgroup/memory/x/memory.limit_in_bytes"] = "4096\n", ["sys/fs/cgroup/memory/x/memory.usage_in_bytes"] = "8192\n"},
      function(root)
        assert.equal(2, tonumber(C.lsa_limits_processors(root)))
        assert.equal(0, tonumber(C.lsa_limits_memory(root)))
      end)
    with_root({["proc/meminfo"] = info}, function(root)
      assert.equal(0, tonumber(C.lsa_limits_processors(root)))
      assert.equal(1024000, tonumber(C.lsa_limits_memory(root)))
    end)
    assert.equal(2 ^ 63, tonumber(C.lsa_limits_memory "/nonexistent"))
  end)

  it("bound the threads, and so does OMP_NUM_THREADS", function()
    local ask = process.program .. " -e " .. quote "tonumber(require 'lsa.ffi'.C.lsa_threads())"
    assert.equal("1\n", (shell("OMP_NUM_THREADS=1 " .. ask)))
    assert.is_true(tonumber((shell(ask))) <= tonumber((shell "nproc")))
    assert.matches("threads +1 of %d+ processors, OMP_NUM_THREADS is 1", (shell("OMP_NUM_THREADS=1 " .. process.program .. " doctor")))
  end)

  it("refuse a block that is more than the system has", function()
    local lsa = require "lsa"
    for _, make in ipairs {function() return lsa.zeros {2 ^ 40} end, function() return lsa.zeros({2 ^ 43}, "u8") end} do
      local ok, message = pcall(make)
      assert.is_false(ok)
      assert.matches("out of memory: %d+ bytes could not be allocated; the system has %d+$", message)
    end
    local pages = C.lsa_pages_alloc(2 ^ 44)
    assert.is_true(pages == nil)
  end)

  it("of the stack are the program's own affair", function()
    if sanitized then return end
    local code = ("local m = require 'lsa'.model '%sflash' local s = m:session{select = 'lsa_topk', budget = 0.5, every = 2} "):format(golden) ..
      "s:prefill {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16} print(table.concat(s:generate{n = 8}, ' '))"
    local run = process.program .. " -e " .. quote(code)
    local expected = shell(run)
    assert.matches("^%d+ ", expected)
    for _, limit in ipairs {"ulimit -s 128", "export OMP_STACKSIZE=64k", "ulimit -s 128; export OMP_STACKSIZE=64k"} do
      local out, err, ended = shell("( " .. limit .. "; " .. run .. " )")
      assert.same({expected, "", 0}, {out, err, ended}, limit)
    end
  end)
end)

describe("standard streams", function()
  it("that take nothing are an error, however the program ends", function()
    for _, code in ipairs {"1", "print(1) os.exit(0)", "io.write(('x'):rep(100000))"} do
      local run = process.program .. " -e " .. quote(code)
      local _, err, ended = shell(run .. " > /dev/full")
      assert.same({"lsa: standard output: No space left on device\n", 1}, {err, ended}, code)
      _, err, ended = shell(run .. " >&-")
      assert.same({"lsa: standard output: is closed\n", 1}, {err, ended}, code)
    end
    local _, err, ended = shell(process.program .. " --help > /dev/full")
    assert.same({"lsa: standard output: No space left on device\n", 1}, {err, ended})
    _, err, ended = shell(process.program .. " -e 'x = 1' >&-") -- nothing was lost
    assert.same({"", 0}, {err, ended})
  end)

  it("that are closed do not become files that are opened", function()
    support.with_folder(function(folder)
      local code = ("local f = io.open('%s/f', 'w') print 'lost' io.stderr:write 'lost' f:write 'kept' f:close()"):format(folder)
      shell(process.program .. " -e " .. quote(code) .. " <&- >&- 2>&-")
      assert.equal("kept", support.read(folder .. "/f"))
    end)
  end)

  it("are said to be closed where statements are read from them, and are not missed elsewhere", function()
    local _, err, ended = shell(process.program .. " <&-")
    assert.same({"lsa: standard input is closed; a script's name or -e CODE is wanted\n", 2}, {err, ended})
    _, err, ended = shell(process.program .. " - <&-")
    assert.same({2, 1}, {ended, (err:find("lsa: standard input is closed", 1, true))})
    assert.equal("2\n", (shell(process.program .. " -e 1+1 <&-")))
  end)

  it("may begin with a byte order mark", function()
    assert.equal("2\n3\n", (process.lsa({}, "\239\187\1911 + 1\n3")))
    assert.equal("2\n", (process.lsa({"-"}, "\239\187\191print(1 + 1)")))
  end)
end)

describe("a mapped file that somebody cuts", function()
  it("is an error that names it, each time it is read, and costs nothing else", function()
    support.with_folder(function(folder)
      local script = support.write(folder .. "/script.lua", ([[
        local lsa = require "lsa"
        local path, other = %q, %q
        lsa.save(path, {x = lsa.zeros({2 ^ 20}):fill(1), y = lsa.zeros({5})})
        lsa.save(other, {z = lsa.zeros({2 ^ 20}):fill(1)})
        local t, u = lsa.load(path), lsa.load(other)
        print(t.x:sum())
        os.execute("truncate -s 4096 '" .. path .. "'")
        for _ = 1, 3 do print(pcall(t.x.sum, t.x)) end
        print(pcall(t.x.to, t.x, "bf16"))
        print(pcall(t.x.get, t.x, 2 ^ 20 - 1))
        for _, ending in ipairs {".safetensors", ".npy", ".pt"} do
          print(pcall(lsa.save, other .. ending, ending == ".npy" and t.x or {x = t.x}))
        end
        print(u.z:sum())
        lsa.save(path, {x = lsa.zeros({3}):fill(2)})
        print(lsa.load(path).x:sum())]]):format(folder .. "/cut.safetensors", folder .. "/whole.safetensors")) or folder .. "/script.lua"
      local out, err, ended = process.lsa {script}
      local message = "false\t[^\n]*/cut.safetensors: somebody made the file shorter while it was in use; it has to be loaded anew\n"
      assert.matches("^1048576\n" .. message:rep(8) .. "1048576\n6\n$", out)
      assert.same({"", 0}, {err, ended})
      assert.equal("cut.safetensors script.lua whole.safetensors ", (process.shell("ls -A " .. folder):gsub("\n", " ")))
    end)
  end)

  it("does not cost the session of a model that it belongs to", function()
    long.with_model("flash", function(model, folder)
      local script = support.write(folder .. "/script.lua", ([[
        local lsa = require "lsa"
        local model = lsa.model(%q)
        local s = model:session{select = "full"}
        s:prefill {1, 2, 3}
        local before = s:tokens()
        os.execute("truncate -s 100 '%s/model.safetensors'")
        local ok, message = pcall(s.decode, s, 1)
        print(ok and s:tokens() == before + 1 or message:find("model.safetensors: somebody made", 1, true) ~= nil and s:tokens() == before)]])
        :format(model.directory, model.directory)) or folder .. "/script.lua"
      local out, err, ended = process.lsa {script}
      assert.same({"true\n", "", 0}, {out, err, ended})
    end)
  end)
end)

describe("a Git LFS pointer", function()
  it("is called that, wherever a file is expected", function()
    local lsa = require "lsa"
    long.with_model("short", function(model)
      local pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 99999\n"
      for _, name in ipairs {"model.safetensors", "config.json", "tokenizer.json"} do
        local path = model.directory .. "/" .. name
        local old = support.read(path)
        support.write(path, pointer)
        local ok, message = pcall(function() return lsa.model(model.directory):tokens "a" end)
        assert.is_false(ok)
        assert.matches(name .. ": is a Git LFS pointer", message)
        ok, message = pcall(lsa.load, path)
        assert.is_false(ok)
        assert.matches(name .. " is a Git LFS pointer", message)
        if old then support.write(path, old) else os.remove(path) end
      end
    end)
  end)
end)

---- calls that not every kernel and file system has ----

local function with_program(fn)
  local program = os.tmpname()
  assert(os.execute(("cc -std=gnu11 -Wall -o %s %s/tests/without_calls.c"):format(program, lib.root)) == 0)
  local ok, problem = pcall(fn, program)
  os.remove(program)
  if not ok then error(problem, 0) end
end

local function cold_calls(model, folder, before)
  return shell(("%s %s %s/tests/cold_calls.lua %s %s"):format(before or "", process.program, lib.root, quote(model.directory), quote(folder)))
end

describe("a cold tier on disk", function()
  local numbers = ffi.arch == "x64" and {fallocate = 285, io_uring_setup = 425, io_uring_enter = 426, madvise = 28}
    or {fallocate = 47, io_uring_setup = 425, io_uring_enter = 426, madvise = 233}

  it("gives what memory gives where the kernel refuses what it can do without", function()
    with_program(function(program)
      long.with_model("flash", function(model, folder)
        for _, refused in ipairs {"fallocate", "io_uring_setup", "io_uring_enter", "all"} do
          for _, code in ipairs {1, 38, refused == "fallocate" and 95 or nil} do -- EPERM, ENOSYS, EOPNOTSUPP
            local list = {}
            for name, number in pairs(numbers) do
              if refused == "all" or refused == name then list[#list + 1] = number end
            end
            local out, err = cold_calls(model, folder, ("%s %d %s --"):format(program, code, table.concat(list, " ")))
            assert.same({"same\t0\tdisk\n", ""}, {out, err}, refused .. " " .. code)
          end
        end
      end)
    end)
  end)

  it("gives what memory gives on ext2, which sets no space aside, and, full, goes on in memory and says so", function()
    long.with_model("flash", function(model, folder)
      local image, place = folder .. "/image", folder .. "/mounted"
      support.make_folder(place)
      local made = shell(("PATH=$PATH:/usr/sbin:/sbin; truncate -s 64M %s && mkfs.ext2 -q -F %s && mount -o loop %s %s && echo made"):format(
        image, image, image, place))
      if made ~= "made\n" then return pending "no file system can be mounted here" end
      local out, err = cold_calls(model, place)
      shell(("head -c 60000000 /dev/zero > %s/filler"):format(quote(place)))
      local full, full_err = cold_calls(model, place)
      shell("umount " .. quote(place))
      assert.same({"same\t0\tdisk\n", ""}, {out, err})
      out, err = full, full_err
      assert.equal("same\t0\tmemory\n", out)
      assert.matches("cannot be given space: No space left on device", err)
      local _, lines = err:gsub("\n", "")
      assert.equal(1, lines)
    end)
  end)
end)
