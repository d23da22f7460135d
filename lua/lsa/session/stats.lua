-- Owns what s:stats() tells: a plain table that prints itself.
local M = {}

local Stats = {}
Stats.__index = Stats

-- 1,234,567 bytes as "1.2 MB".
function M.bytes(n)
  for _, unit in ipairs {{1e9, "GB"}, {1e6, "MB"}, {1e3, "kB"}} do
    if n >= unit[1] then return ("%.1f %s"):format(n / unit[1], unit[2]) end
  end
  return ("%d B"):format(n)
end

function M.flops(n)
  for _, unit in ipairs {{1e12, "TFLOP"}, {1e9, "GFLOP"}, {1e6, "MFLOP"}} do
    if n >= unit[1] then return ("%.1f %s"):format(n / unit[1], unit[2]) end
  end
  return ("%.1f kFLOP"):format(n / 1e3)
end

-- What of `counts` (failed, clipped, unspilled, mirror_refused, cycles, last_error) a figure must not be read without; "" where every cycle went as asked.
function M.troubles(counts)
  local parts = {}
  if (counts.failed or 0) > 0 then
    parts[1] = ("%g of %g cycles failed%s"):format(counts.failed, counts.cycles, counts.last_error and "; the last: " .. counts.last_error or "")
  end
  if (counts.clipped or 0) > 0 then
    table.insert(parts, 1, ("%g of %g cycles clipped to the budget"):format(counts.clipped, counts.cycles))
  end
  if (counts.unspilled or 0) > 0 then
    parts[#parts + 1] = ("the cold tier stayed in memory %g times, its disk has refused it"):format(counts.unspilled)
  end
  if (counts.mirror_refused or 0) > 0 then
    parts[#parts + 1] = ("the GPU had no room for all records %g times, which attention then reads over the bus"):format(counts.mirror_refused)
  end
  return table.concat(parts, ", ")
end

function Stats:__tostring()
  local b = M.bytes
  local mirror = self.mirror_bytes > 0 and (", mirrored by the GPU in %s"):format(b(self.mirror_bytes)) or ""
  local lines = {
    ("%s: %d tokens, %d chunks, %d steps in %d cycles"):format(self.policy, self.tokens, self.chunks, self.steps, self.cycles),
    ("  KV resident   %s of %s (%.2f %% mean over steps)"):format(b(self.resident_bytes), b(self.kv_bytes), self.resident_pct),
    ("  apart         index keys %s, HCA %s, window %s"):format(b(self.index_key_bytes), b(self.hca_bytes), b(self.window_bytes)),
    ("  tiers         hot %s, cold %s in memory%s, %s on disk"):format(b(self.hot_bytes), b(self.cold_bytes), mirror, b(self.disk_bytes)),
    ("  fetched       %d chunks, %s; hits %d, evicted %d"):format(self.fetched_chunks, b(self.fetched_bytes), self.hits,
      self.evicted_chunks),
    ("  time          prefill %.1f ms, decode %.3f ms/token, cycles %.2f ms, of which policy %.2f, transfer %.2f of %.2f"):format(
      self.prefill_ms, self.ms_per_token, self.stall_ms, self.policy_ms, self.transfer_stall_ms, self.transfer_ms),
  }
  if self.misses then
    lines[#lines + 1] = ("  on demand     hits %d, misses %d, prefetched %d; stalled %.2f ms by misses, %.2f by cycles"):format(self.hits, self.misses,
      self.prefetched_chunks, self.miss_stall_ms, self.stall_ms)
  end
  if self.coverage then
    lines[#lines + 1] = ("  coverage      %.1f %% of the native top-k resident (sampled at cycles)"):format(100 * self.coverage)
  elseif self.cycles > 0 and self.coverage_measured == false then
    lines[#lines + 1] = "  coverage      not measured (coverage = true measures it at cycles)"
  end
  if self.churn then
    lines[#lines + 1] = ("  between cycles %.1f %% of the set changes, Jaccard %.3f"):format(100 * self.churn, self.jaccard)
  end
  if self.flops then
    local f = self.flops
    lines[#lines + 1] = ("  compute       %s/token: scoring %s, attention %s, policy's scoring %s"):format(M.flops(f.total),
      M.flops(f.scoring), M.flops(f.attention), M.flops(f.policy))
  end
  if self.eviction_rebuilt then lines[#lines + 1] = "  eviction      " .. self.eviction_rebuilt end
  local troubles = M.troubles(self)
  if troubles ~= "" then lines[#lines + 1] = "  not as asked  " .. troubles end
  return table.concat(lines, "\n")
end

function M.new(values)
  return setmetatable(values, Stats)
end

return M
