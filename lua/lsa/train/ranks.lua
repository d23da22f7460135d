-- Owns how training is shared between processes. ranks.join(parallel, device) joins a job, once, and with nil is alone; device: where
-- it will work, as lsa.devices has it. `parallel` is
--
--   "mpi"                                      the ranks of this mpirun, sums over the host
--   "nccl"                                     the same ranks, sums between their GPUs by NCCL
--   {"nccl", file = PATH, rank = 0, size = 2}  without mpirun: rank 0 writes the file, by which the others find it; `wait`: seconds
--
--   r.rank, r.size         this one's number, from 0; how many
--   r:connect(device)      before the first sum: where this rank works, as lsa.devices has it
--   r:share(n)             this rank's part of 0 .. n-1: from, and the end
--   r:sum_f32(x, n)        x [n] becomes the sum over ranks, in the same bits on all of them; r:sum_f64
--   ranks.leave()          leaves the job, as the last thing that a program does; `lsa` does so for a script that went well.
--                          One that failed ends without, and mpirun then ends the others, who would wait for it
local ffi = require "ffi"
local interrupts = require "lsa.interrupts"
local lib = require "lsa.ffi"
local options = require "lsa.options"
local raise = require "lsa.raise"

local C = lib.C
local check = raise.check

local M = {}
local Ranks = {}
Ranks.__index = Ranks

function Ranks:share(n)
  return math.floor(n * self.rank / self.size), math.floor(n * (self.rank + 1) / self.size)
end

function Ranks:sum_f32(x, n)
  if self.size > 1 then check(C.lsa_collective_sum_f32(self.c, x, n)) end
end

function Ranks:sum_f64(x, n)
  if self.size > 1 then check(C.lsa_collective_sum_f64(self.c, x, n)) end
end

local alone = setmetatable({rank = 0, size = 1}, Ranks)
local joined = {}          -- "mpi", and jobs of NCCL's by GPU, or file and GPU
local opened = {}          -- in this order

local opened_as = interrupts.method(function(key, open)
  if not joined[key] then
    local box = ffi.new "lsa_collective *[1]"
    check(open(box))
    joined[key] = box[0]
    opened[#opened + 1] = key
  end
  return joined[key]
end)

local function mpi()
  return opened_as("mpi", function(box) return C.lsa_collective_open(box, "mpi") end)
end

function Ranks:connect(device)
  if self.how ~= "nccl" then return end
  local key = ("nccl %s on %d"):format(self.file or "", device.gpu)
  self.c = opened_as(key, function(box)
    local ids = not self.file and mpi() or nil
    return C.lsa_collective_open_nccl(box, ids, self.file, self.rank, self.size, self.wait or 0, device.gpu)
  end)
end

local function by_file(parallel)
  local opt = {}
  for name, value in pairs(parallel) do
    if name ~= 1 then opt[name] = value end
  end
  opt = options.check(opt, {file = false, rank = false, size = false, wait = 60}, "parallel")
  options.path(opt.file, "parallel: file")
  options.whole(opt.size, 1, "parallel: size", 2 ^ 20)
  options.whole(opt.rank, 0, "parallel: rank", opt.size - 1)
  options.number(opt.wait, 0, "parallel: wait")
  return setmetatable({how = "nccl", file = opt.file, rank = opt.rank, size = opt.size, wait = opt.wait}, Ranks)
end

local function want_gpus(device)
  if device.kind ~= "cuda" then
    raise('parallel is "nccl", which sums between GPUs, and device is %s; it has to be cuda or cuda:NUMBER', device.name)
  end
  if C.lsa_device_count() == 0 then check(C.LSA_EDEVICE) end
end

-- Every trainer of a program shares the job.
function M.join(parallel, device)
  if not parallel then return alone end
  local is_table = type(parallel) == "table"
  if parallel == "nccl" or is_table and parallel[1] == "nccl" then want_gpus(device) end
  if is_table and parallel[1] == "nccl" then return by_file(parallel) end
  if parallel ~= "mpi" and parallel ~= "nccl" then
    raise('parallel is %s; it can be "mpi", "nccl", or {"nccl", file = PATH, rank = NUMBER, size = NUMBER}',
      type(parallel) == "string" and parallel or options.shown(parallel))
  end
  local c = mpi()
  return setmetatable({how = parallel, c = c, rank = C.lsa_collective_rank(c), size = C.lsa_collective_size(c)}, Ranks)
end

function M.leave()
  for i = #opened, 1, -1 do
    local c = joined[opened[i]]
    joined[opened[i]], opened[i] = nil, nil
    check(C.lsa_collective_close(c))
  end
end

return M
