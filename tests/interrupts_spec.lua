-- Ctrl-C at random times at the prompt: it comes back, and what was interrupted goes on as if it had not been.
-- `./lsa test --operations 1000 tests/interrupts_spec.lua` interrupts a thousand times, and prints how long the prompt took.
local Terminal = require "terminal_support"
local long = require "long_support"
local lib = require "lsa.ffi"
local support = require "file_support"
local rng = require "lsa.cycle.rng"

local function clock() return tonumber(lib.C.lsa_clock_ns()) / 1e9 end

local settings = package.loaded["lsa.prompt.test"] or {}
local INTERRUPTS = settings.operations or 45
local LONGEST_MS = 120 -- until the key is pressed

local names = {"decode_plain", "decode_files", "decode_h2o", "catching", "fork", "endless", "prefill", "save", "restore", "batch", "training", "sweep",
  "loops", "generate", "making"}

describe("Ctrl-C at the prompt", function()
  local it = Terminal.available() and it or pending

  it("costs no session, no batch, no file and no prompt, whenever it comes", function()
    long.with_model("flash", function(model, folder)
      local state = folder .. "-prompt"
      local terminal = Terminal.start(state)
      finally(function()
        terminal:stop()
        os.execute("rm -rf '" .. state .. "'")
      end)
      terminal:expect "> "
      local script = model.directory .. "/go.lua" -- lines that are longer than the terminal scroll in it
      support.write(script, ("return loadfile '%s/tests/interrupt_prompt.lua' (%q, %q)"):format(lib.root, model.directory, folder))
      terminal:enter(("work = dofile '%s'"):format(script))
      assert.equals("nil\n", terminal:enter "work.nothing")
      local random, waits = rng.new(11), {}
      for i = 1, INTERRUPTS do
        local name = names[(i - 1) % #names + 1]
        terminal:send(("io.write('run', 'ning\\n') work.%s()\r"):format(name))
        terminal:expect "running\n"
        terminal:pause(random() * LONGEST_MS / 1000)
        local pressed = clock()
        terminal:send "\3"
        terminal:expect "> "
        waits[#waits + 1] = clock() - pressed
        terminal:send(("work.check '%s'\r"):format(name))
        terminal:expect(("verdict %s: "):format(name))
        assert.equals("sound", terminal:expect "\n", ("%s, interrupt %d"):format(name, i))
        terminal:expect "> "
      end
      terminal:send "exit\r"
      assert.equals(0, terminal:wait())
      if settings.operations then
        table.sort(waits)
        local _, broken_off = terminal.screen:gsub("interrupted\n", "")
        print(("%d interrupts, %d of them broke something off; the prompt came after %.2f s at the median, %.2f s at most"):format(
          #waits, broken_off, waits[math.ceil(#waits / 2)], waits[#waits]))
      end
    end)
  end)
end)
