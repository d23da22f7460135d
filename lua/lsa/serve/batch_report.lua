-- Owns what b:stats() tells of a batch (lua/lsa/batch.lua): a plain table that prints itself.
--
--   queued, running, done, failed, cancelled     requests
--   tokens, tokens_per_s, decode_tokens_per_s    drawn; over all the time in steps, and over that in decode steps
--   prefilled, steps, rows_per_step, at_once     tokens of prompts; decode steps, requests a step; most requests that ran at once
--   wait_mean, wait_max                          seconds from submission to admission, of those admitted
--   cells                                        {total, used, reserve, free, promised}; used: residents and newborn
--   fetched_chunks, fetched_bytes, evicted_chunks, hits
--   failed_cycles, clipped, cycles               of all requests' cycles, those that failed, those clipped to the budget
--   unspilled                                    how often a cold tier on disk stayed in memory, for its disk refused it
--   mirror_refused                               how often a GPU had no room for all records of a session, which attention then reads over the bus
--   memory                                       {limit, used, peak, gpus} bytes of fast memory, as admission counts: the limit of each GPU, the others of all
--   rows                                         one a request: what b:result(id) has, but for text
local stats = require "lsa.session.stats"

local M = {}

local SUMS = {"fetched_chunks", "fetched_bytes", "evicted_chunks", "hits", "failed_cycles", "clipped", "unspilled", "mirror_refused", "cycles"}

local Report = {}
Report.__index = Report

local function cells_of(replicas)
  local out = {total = 0, used = 0, reserve = 0, free = 0, promised = 0}
  for _, replica in ipairs(replicas) do
    local commons = not replica.closed and replica.commons
    if commons then
      local total, free, reserve = commons:cells(), commons:free(), commons:reserve()
      out.total, out.free, out.reserve = out.total + total, out.free + free, out.reserve + reserve
      out.used, out.promised = out.used + total - free - reserve, out.promised + commons.promised
    end
  end
  return out
end

local function memory_of(batch)
  local out = {limit = batch.replicas[1].memory, peak = batch.counts.peak, used = 0, gpus = #batch.replicas}
  for _, replica in ipairs(batch.replicas) do out.used = out.used + replica:bytes() end
  return out
end

function M.new(batch)
  local count, memory = batch.counts, memory_of(batch)
  local out = {queued = 0, running = 0, done = 0, failed = 0, cancelled = 0, tokens = 0, prefilled = count.prefilled,
    steps = count.steps, rows_per_step = count.steps > 0 and count.rows / count.steps or 0, at_once = count.at_once,
    seconds = count.seconds, decode_s = count.decode_s, prefill_s = count.prefill_s, wait_mean = 0, wait_max = 0, memory = memory, rows = {}}
  for _, name in ipairs(SUMS) do out[name] = 0 end
  local admitted = 0
  for i, r in ipairs(batch.requests) do
    local row = r:row()
    out.rows[i] = row
    local state = r:running() and "running" or r.state
    out[state] = out[state] + 1
    out.tokens = out.tokens + #r.out
    for _, name in ipairs(SUMS) do out[name] = out[name] + row[name] end
    if r.wait then
      admitted = admitted + 1
      out.wait_mean, out.wait_max = out.wait_mean + r.wait, math.max(out.wait_max, r.wait)
    end
  end
  out.wait_mean = out.wait_mean / math.max(1, admitted)
  out.tokens_per_s = count.seconds > 0 and out.tokens / count.seconds or 0
  out.decode_tokens_per_s = count.decode_s > 0 and out.tokens / count.decode_s or 0
  out.cells = cells_of(batch.replicas)
  return setmetatable(out, Report)
end

local function row_text(r)
  return ("  %4d  %-9s %-16s %8d %7d %9.3f %9.3f %9.3f %7d %10s %s"):format(r.id, r.state, r.policy, r.prompt, #r.tokens,
    r.wait_s, r.prefill_s, r.decode_s, r.cells, stats.bytes(r.fetched_bytes), r.error or "")
end

function Report:__tostring()
  local b, c, m = stats.bytes, self.cells, self.memory
  local lines = {
    ("batch: %d requests running, %d queued, %d done, %d failed, %d cancelled; at most %d at once"):format(self.running,
      self.queued, self.done, self.failed, self.cancelled, self.at_once),
    ("  throughput    %d tokens, %.1f tokens/s (%.1f in decode steps of %.2f requests), %d tokens prefilled"):format(self.tokens,
      self.tokens_per_s, self.decode_tokens_per_s, self.rows_per_step, self.prefilled),
    ("  queue         wait %.3f s mean, %.3f s at most"):format(self.wait_mean, self.wait_max),
    ("  hot pool      %d cells: %d in use, %d reserve, %d free; %d promised"):format(c.total, c.used, c.reserve, c.free,
      c.promised),
    ("  fast memory   %s now, %s at most%s"):format(b(m.used), b(m.peak), m.limit and " of " .. b(m.limit) .. (m.gpus > 1 and " a GPU" or "") or ""),
    ("  fetched       %d chunks, %s; hits %d, evicted %d"):format(self.fetched_chunks, b(self.fetched_bytes), self.hits,
      self.evicted_chunks),
    ("  %4s  %-9s %-16s %8s %7s %9s %9s %9s %7s %10s"):format("id", "state", "policy", "prompt", "tokens", "wait s", "prefill s",
      "decode s", "cells", "fetched"),
  }
  local troubles = stats.troubles{failed = self.failed_cycles, clipped = self.clipped, unspilled = self.unspilled, mirror_refused = self.mirror_refused, cycles = self.cycles}
  if troubles ~= "" then table.insert(lines, #lines, "  not as asked  " .. troubles) end
  for _, row in ipairs(self.rows) do lines[#lines + 1] = (row_text(row):gsub("%s+$", "")) end
  return table.concat(lines, "\n")
end

return M
