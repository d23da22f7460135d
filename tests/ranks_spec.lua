-- Training on two ranks. Where mpirun or the library for it is missing, these tests are pending.
local lsa = require "lsa"
local process = require "process_support"
local support = require "trainer_support"

local function there(path)
  local file = io.open(path)
  if file then file:close() end
  return file ~= nil
end

local available = os.execute "command -v mpirun >/dev/null" == 0 and
  there((process.program:gsub("bin/lsa$", "liblsa_mpi.so")))
local it = available and it or pending

-- Runs a script in a job. The sanitizer would find what Open MPI leaks.
local function run(how, path, ...)
  local words = {'ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" timeout 120', how, process.program, process.quote(path)}
  for _, word in ipairs{...} do words[#words + 1] = process.quote(word) end
  return process.shell(table.concat(words, " "))
end

-- On n ranks. mpirun refuses root unless asked, and counts cores.
local function mpirun(n, ...)
  return run("mpirun --allow-run-as-root --oversubscribe -n " .. n, ...)
end

local SCRIPT = [[
  local lsa = require "lsa"
  package.path = lsa.root .. "/tests/?.lua;" .. package.path
  local model = lsa.model(lsa.root .. "/experiments/models/needle")
  local trainer = lsa.trainer{model = model, traces = {arg[1]}, steps = 12, batch = 9, rate = 1e-3, window = 4, from = "random",
    parallel = arg[3] ~= "alone" and "mpi" or nil, checkpoint = arg[4], every = 4}
  local losses = {}
  trainer:run{steps = tonumber(arg[5]), on_step = function(row)
    losses[#losses + 1] = ("%.9g"):format(row.loss)
    if arg[3] == "fails" and trainer.ranks.rank == 1 and row.step == 3 then error "rank 1 fails" end
  end}
  io.write(trainer.ranks.rank, " of ", trainer.ranks.size, ": ", table.concat(losses, " "), "\n")
  if trainer.ranks.rank == 0 then trainer:indexer():save(arg[2]) end
]]

describe("training on two ranks", function()
  local script, trace, files = nil, nil, {}

  local function temporary()
    files[#files + 1] = os.tmpname()
    return files[#files]
  end

  setup(function()
    script, trace = process.write(temporary(), SCRIPT), temporary()
    local model = lsa.model "experiments/models/needle"
    lsa.save(trace, support.trace(model, {0, 1}, {steps = 200, topics = 4, stay = 20, seed = 1, noise = 0.3}))
  end)

  teardown(function()
    for _, path in ipairs(files) do os.remove(path) end
  end)

  local function compare(a, b)
    local x, y = lsa.load(a), lsa.load(b)
    local worst, count = 0, 0
    for name, t in pairs(x) do
      local largest = t:sub(y[name]):mul(t:sub(y[name])):max()
      count = count + 1
      if not (math.sqrt(largest) <= worst) then worst = math.sqrt(largest) end
    end
    assert.equal(8, count)
    return worst
  end

  it("gives the weights of one rank with the same batch, and the same losses on both", function()
    local one, two = temporary(), temporary()
    local single, _, code = process.lsa{script, trace, one, "alone"}
    assert.equal(0, code)
    local out, errors
    out, errors, code = mpirun(2, script, trace, two)
    assert.equal(0, code, errors)
    local first, second = out:match "0 of 2: ([^\n]+)", out:match "1 of 2: ([^\n]+)"
    assert.is_true(first ~= nil and first == second)
    local losses = single:match "0 of 1: ([^\n]+)"
    local at = losses:gmatch "%S+"
    for loss in first:gmatch "%S+" do
      local want = tonumber(at())
      assert.is_true(math.abs(tonumber(loss) - want) <= 1e-5 * want)
    end
    assert.is_true(compare(one, two) <= 1e-5)
  end)

  it("goes on from rank 0's checkpoint to the same bits", function()
    local whole, resumed, checkpoint = temporary(), temporary(), temporary()
    os.remove(checkpoint)
    local _, errors, code = mpirun(2, script, trace, whole)
    assert.equal(0, code, errors)
    _, errors, code = mpirun(2, script, trace, resumed, "both", checkpoint, "6")
    assert.equal(0, code, errors)
    local out
    out, errors, code = mpirun(2, script, trace, resumed, "both", checkpoint)
    assert.equal(0, code, errors)
    assert.equal(8, select(2, out:match "0 of 2: ([^\n]+)":gsub("%S+", "")))   -- steps 4 to 11
    assert.equal(0, compare(whole, resumed))
  end)

  it("ends on all ranks when one fails", function()
    local _, errors, code = mpirun(2, script, trace, temporary(), "fails")
    assert.is_true(code ~= 0 and code ~= 124)            -- 124: the time was up
    assert.truthy(errors:find("rank 1 fails", 1, true))
  end)

  it("is a job of one rank where there is no mpirun", function()
    local out, errors, code = run("", script, trace, temporary())
    assert.equal(0, code, errors)
    assert.truthy(out:find("0 of 1: ", 1, true))
  end)
end)

describe("lsa.trainer's parallel option", function()
  it("names what there is", function()
    for _, other in ipairs {"ncll", "", 1, true, {}, {"mpi"}, {"mpi", file = "x"}} do
      local ok, why = pcall(require("lsa.train.ranks").join, other, {kind = "cpu", name = "cpu"})
      assert.is_false(ok)
      assert.truthy(why:find('it can be "mpi", "nccl", or {"nccl", file = PATH, rank = NUMBER, size = NUMBER}', 1, true))
    end
  end)
end)

describe("lsa_collective_open", function()
  it("names a backend that is not there", function()
    local ffi = require "ffi"
    local C = require("lsa.ffi").C
    assert.equal(C.LSA_EARG, C.lsa_collective_open(ffi.new "lsa_collective *[1]", "carrier pigeon"))
    assert.equal("collective: there is no 'carrier pigeon'; there is: mpi", ffi.string(C.lsa_error()))
    assert.equal(0, C.lsa_collective_close(nil))
  end)
end)
