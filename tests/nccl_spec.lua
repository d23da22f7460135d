-- Training on two GPUs that NCCL connects: the losses and weights of one with the same batch, and the same on both. With fewer GPUs, on a
-- stub of both (tests/device_stub.c, tests/nccl_stub.c).
local lsa = require "lsa"
local process = require "process_support"
local stub = require "stub_support"
local support = require "trainer_support"
local C = require("lsa.ffi").C

local quote = process.quote
local real = C.lsa_device_count() >= 2
local mpi = os.execute "command -v mpirun >/dev/null" == 0 and io.open((process.program:gsub("bin/lsa$", "liblsa_mpi.so"))) ~= nil

local SCRIPT = [[
  local lsa = require "lsa"
  local trace, rank, out, how, file = arg[1], tonumber(arg[2]), arg[3], arg[4], arg[5]
  local parallel = how == "file" and {"nccl", file = file, rank = rank, size = 2, wait = tonumber(arg[6] or 60)} or
    how ~= "alone" and how or nil
  local trainer = lsa.trainer{model = lsa.model(lsa.root .. "/experiments/models/needle"), traces = {trace}, steps = 12, batch = 9,
    rate = 1e-3, window = 4, from = "random", parallel = parallel, device = arg[7] or "cuda"}
  local losses = {}
  trainer:run{on_step = function(row) losses[#losses + 1] = ("%.9g"):format(row.loss) end}
  if out ~= "" then trainer:indexer():save(out .. trainer.ranks.rank) end
  io.write(trainer.ranks.rank, " of ", trainer.ranks.size, " on ", trainer.device.gpu, ": ", table.concat(losses, " "), "\n")
]]

local function parallel_of(parallel, device)
  return pcall(require("lsa.train.ranks").join, parallel, {kind = device, name = device, gpu = 0})
end

describe('parallel = "nccl"', function()
  it("wants a GPU, by name", function()
    for _, parallel in ipairs{"nccl", {"nccl", file = "x", rank = 0, size = 2}} do
      local ok, why = parallel_of(parallel, "cpu")
      assert.is_false(ok)
      assert.truthy(why:find('parallel is "nccl", which sums between GPUs, and device is cpu', 1, true), why)
    end
    if C.lsa_device_count() > 0 then return end
    local ok, why = parallel_of("nccl", "cuda")
    assert.is_false(ok)
    assert.truthy(why:find("no device: ", 1, true), why)
  end)
end)

describe("training on two GPUs", function()
  local words, remove = process.program, nil
  local script, trace, files = nil, nil, {}

  local function temporary()
    local path = os.tmpname()
    os.remove(path)
    files[#files + 1] = path
    return path
  end

  setup(function()
    if not real then words, remove = stub.tree() end
    script, trace = process.write(temporary(), SCRIPT), temporary()
    lsa.save(trace, support.trace(lsa.model "experiments/models/needle", {0, 1}, {steps = 200, topics = 4, stay = 20, seed = 1, noise = 0.3}))
  end)

  teardown(function()
    for _, path in ipairs(files) do
      for _, suffix in ipairs{"", "0", "1"} do os.remove(path .. suffix) end
    end
    if remove then remove() end
  end)

  local function command(...)
    local out = {real and "" or "LSA_STUB_GPUS=2", "timeout 120", real and quote(words) or "env " .. words, quote(script), quote(trace)}
    for _, word in ipairs{...} do out[#out + 1] = quote(tostring(word)) end
    return table.concat(out, " ")
  end

  local function loss_list(out, rank, size)
    local list = {}
    for number in (out:match(rank .. " of " .. size .. " on %d+: ([^\n]+)") or ""):gmatch "%S+" do list[#list + 1] = tonumber(number) end
    return list
  end

  local function compare(out, errors, two, one, single)
    local first, second, want = loss_list(out, 0, 2), loss_list(out, 1, 2), loss_list(single, 0, 1)
    assert.equal(12, #first, out .. errors)
    assert.equal(12, #want)
    assert.same(first, second)
    for i = 1, 12 do assert.is_true(math.abs(first[i] - want[i]) <= 1e-5 * want[i]) end
    local x, y, again = lsa.load(one .. 0), lsa.load(two .. 0), lsa.load(two .. 1)
    local count = 0
    for name, t in pairs(x) do
      count = count + 1
      local d = t:sub(y[name])
      assert.is_true(d:mul(d):max() <= 1e-10)
      assert.same(y[name]:totable(), again[name]:totable())
    end
    assert.equal(8, count)
  end

  local one, single

  local function of_one()
    if one then return end
    one = temporary()
    local errors, code
    single, errors, code = process.shell(command(0, one, "alone"))
    assert.equal(0, code, errors)
  end

  it("that find each other by a file gives what one does with the same batch", function()
    of_one()
    local two, file = temporary(), temporary()
    local out, errors = process.shell(command(1, two, "file", file, 60, "cuda:1") .. " & " .. command(0, two, "file", file) .. "; wait")
    assert.truthy(out:find("0 of 2 on 0: ", 1, true) and out:find("1 of 2 on 1: ", 1, true), out .. errors)
    compare(out, errors, two, one, single)
    assert.is_nil(io.open(file))                         -- the ranks are connected: it is gone
  end)

  local it_by_mpi = mpi and it or pending

  it_by_mpi("under mpirun does so, too, on a GPU for each", function()
    of_one()
    local two = temporary()
    local out, errors, code = process.shell('ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0" ' ..
      (real and "" or "LSA_STUB_GPUS=2 ") .. "timeout 120 mpirun --allow-run-as-root --oversubscribe -n 2 " ..
      command(0, two, "nccl"):gsub("^%S* ?timeout 120 ", ""))
    assert.equal(0, code, errors)
    assert.truthy(out:find("0 of 2 on 0: ", 1, true) and out:find("1 of 2 on 1: ", 1, true), out .. errors)
    compare(out, errors, two, one, single)
  end)

  it("says why ranks do not find each other", function()
    local file = temporary()
    local _, errors, code = process.shell(command(1, "", "file", file, 0.2, "cuda:1"))
    assert.is_true(code ~= 0 and code ~= 124)
    assert.truthy(errors:find("rank 1 has waited 0.2 s for rank 0 to write " .. file, 1, true), errors)
    process.write(file, "old")
    _, errors, code = process.shell(command(0, "", "file", file))
    assert.is_true(code ~= 0 and code ~= 124)
    assert.truthy(errors:find(file .. " is there already", 1, true), errors)
    _, errors, code = process.shell(command(1, "", "file", file, 1, "cuda:1"))
    assert.is_true(code ~= 0 and code ~= 124)
    assert.truthy(errors:find(file .. " has 3 bytes, a job's id has 128", 1, true), errors)
  end)

  it("refuses a GPU that two ranks have", function()
    local file = temporary()
    local _, errors = process.shell(command(1, "", "file", file, 60, "cuda:1") .. " & " ..
      command(0, "", "file", file, 60, "cuda:1") .. "; wait")
    assert.truthy(errors:find("rank 0 of 2 on GPU 1: ", 1, true), errors)
    assert.truthy(errors:find("each rank wants a GPU of its own", 1, true), errors)
    assert.is_nil(io.open(file))
  end)

  it("says what is no job", function()
    for said, what in pairs{["parallel: file is nil"] = "rank = 0, size = 2", ["parallel: rank is 2"] = "file = 'x', rank = 2, size = 2",
      ["parallel: size is 0"] = "file = 'x', rank = 0, size = 0", ["no option 'fil'"] = "fil = 'x'"} do
      local out = process.shell((real and quote(words) or "env " .. words) .. " -e " ..
        quote(("print(pcall(require('lsa.train.ranks').join, {'nccl', %s}, {kind = 'cuda'}))"):format(what)))
      assert.truthy(out:find(said, 1, true), out)
    end
  end)
end)
