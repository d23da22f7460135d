-- Owns 95 % intervals of what was measured on n questions.
--
--   low, high = intervals.wilson(right, n)       of a share: E. B. Wilson, "Probable inference", JASA 22, 1927
--   low, high = intervals.bootstrap(values)      of a mean: B. Efron, "Bootstrap methods", Annals of Statistics 7, 1979. The draws are
--                                                the same for lists of one length, so lists over the same questions are paired
--   low, high = intervals.shares(values)         of a mean of shares, 0 to 1: bootstrap; where all are the same, which a few questions
--                                                often are, and which is no certainty, Wilson's
--   low, high = intervals.changes(values)        of a mean of differences of shares: bootstrap; where all are the same, half a question
--                                                is added to each of the four outcomes (A. Agresti, Y. Min, "Simple improved confidence
--                                                intervals for comparing matched proportions", 2005)
local rng = require "lsa.cycle.rng"

local M = {}

local Z = 1.959963984540054
local DRAWS = 1000

function M.wilson(right, n)
  local p, z = right / n, Z * Z / n
  local middle, half = (p + z / 2) / (1 + z), Z * math.sqrt(p * (1 - p) / n + z / (4 * n)) / (1 + z)
  return math.max(0, math.min(p, middle - half)), math.min(1, math.max(p, middle + half))
end

function M.bootstrap(values)
  local n, random, means = #values, rng.new(1), {}
  for draw = 1, DRAWS do
    local sum = 0
    for _ = 1, n do sum = sum + values[1 + random(n)] end
    means[draw] = sum / n
  end
  table.sort(means)
  return means[math.floor(0.025 * DRAWS) + 1], means[math.ceil(0.975 * DRAWS)]
end

-- What all values are; nil where they differ.
local function common(values)
  for i = 2, #values do
    if values[i] ~= values[1] then return nil end
  end
  return values[1]
end

function M.shares(values)
  local share = common(values)
  if share then return M.wilson(share * #values, #values) end
  return M.bootstrap(values)
end

function M.changes(values)
  local change, n = common(values), #values
  if not change then return M.bootstrap(values) end
  local half = Z * math.sqrt(n * change * change + 1 - (n * change) ^ 2 / (n + 2)) / (n + 2)
  return math.max(-1, change - half), math.min(1, change + half)
end

return M
