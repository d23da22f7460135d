-- Owns how training is shared between processes: ranks.join "mpi" joins the job of this mpirun, once; ranks.join(nil) is alone.
--
--   r.rank, r.size         this one's number, from 0; how many
--   r:share(n)             this rank's part of 0 .. n-1: from, and the end
--   r:sum_f32(x, n)        x [n] becomes the sum over ranks, in the same bits on all of them; r:sum_f64
--   ranks.leave()          leaves the job, as the last thing that a program does; `lsa` does so for a script that went well.
--                          One that failed ends without, and mpirun then ends the others, who would wait for it
local ffi = require "ffi"
local lib = require "lsa.ffi"
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
local joined

-- Every trainer of a program shares the job.
function M.join(backend)
  if not backend then return alone end
  if backend ~= "mpi" then raise('parallel is %s; it can be "mpi"', tostring(backend)) end
  if not joined then
    local box = ffi.new "lsa_collective *[1]"
    check(C.lsa_collective_open(box, backend))
    local c = box[0]
    joined = setmetatable({c = c, rank = C.lsa_collective_rank(c), size = C.lsa_collective_size(c)}, Ranks)
  end
  return joined
end

function M.leave()
  if not joined then return end
  local c = joined.c
  joined.c = nil
  check(C.lsa_collective_close(c))
end

return M
