local ffi = require "ffi"
local binding = require "lsa.ffi"

ffi.cdef [[
int64_t parallel_faults(int threads, int64_t n, int spin, int nested, int *most_together);
int64_t parallel_callers(int callers, int calls);
int parallel_in_child(void);
int parallel_after_uneven(int tries);
]]

local library, root = os.tmpname(), binding.root
local compile = ("cc -std=c11 -D_GNU_SOURCE -O1 -Wall -pthread -fPIC -shared -I%s -o %s %s/tests/parallel.c %s")
  :format(root, library, root, root .. "/" .. binding.build .. "/liblsa.so")
assert(os.execute(compile) == 0, "the counted work does not compile")
local P = ffi.load(library)
os.remove(library)

local function faults(threads, n, spin, nested, most)
  return tonumber(P.parallel_faults(threads, n, spin or 0, nested and 1 or 0, most or ffi.new "int[1]"))
end

local function tasks()
  local n = 0
  for _ in io.popen("ls /proc/" .. tonumber(require("posix.unistd").getpid()) .. "/task"):lines() do n = n + 1 end
  return n
end

describe("threads that share work", function()
  it("do each part once, for any number of parts and threads, call after call", function()
    for threads = 1, 5 do
      for n = 0, 200 do assert.equal(0, faults(threads, n)) end
      for _, n in ipairs {1000, 4097, 100000} do assert.equal(0, faults(threads, n)) end
    end
    for i = 1, 3000 do assert.equal(0, faults(2 + i % 3, i % 50, i % 300)) end
  end)

  it("work side by side, and never more of them than were asked for", function()
    for threads = 1, 4 do
      local most = ffi.new "int[1]"
      for _ = 1, 40 do assert.equal(0, faults(threads, 400, 20000, false, most)) end
      assert.is_true(most[0] <= threads)
      if threads == 1 then assert.equal(1, most[0]) end
    end
  end)

  it("work alone within a call", function()
    for threads = 2, 4 do assert.equal(0, faults(threads, 300, 100, true)) end
  end)

  it("serve several callers", function()
    assert.equal(0, tonumber(P.parallel_callers(4, 2000)))
  end)

  it("are as many after thousands of calls as after the first", function()
    faults(5, 100)
    local before = tasks()
    for i = 1, 3000 do faults(2 + i % 4, 50) end
    assert.equal(before, tasks())
  end)

  it("go on together after a call in which one had the longer piece", function()
    assert.equal(1, P.parallel_after_uneven(3000))
  end)

  it("are not missed by a child process, which has none of them", function()
    faults(3, 100)
    assert.equal(0, P.parallel_in_child())
  end)
end)
