-- Owns questions that are asked once under each of several ways of serving, so that ways are compared by the same questions.
--
--   way = {label = "LSA", fork = {select = …, budget = …}, indexer = an lsa.indexer or nil}
--   row = paired.ask(task, number, ways)        context `number` of a task of lua/lsa/tasks/asked.lua: plain data, for results files
--   sum = paired.joined(rows, label, kind)      of many contexts; kind: nil for all
--   difference, width = paired.against(sum, other)
local intervals = require "lsa.intervals"
local asked = require "lsa.tasks.asked"

local M = {}

local of_stats = {"resident_pct", "resident_bytes", "fetched_bytes", "transfer_stall_ms", "cycles", "failed", "clipped"}

-- By label: of each question, in order, whether the whole answer came out (right: "1" or "0"), the share of its evidence that was resident, and
-- what the session's statistics say; kinds: of the questions. A context's session is closed when its questions are done.
function M.ask(task, number, ways)
  local base, questions = task:context(task.seed, number)
  local out, first = {kinds = {}}, ways[1]
  for _, way in ipairs(ways) do
    out[way.label] = {right = "", evidence = {}}
    for _, name in ipairs(of_stats) do out[way.label][name] = {} end
  end
  for i, one in ipairs(questions) do
    out.kinds[i] = one.kind
    local posed = base:fork()
    asked.pose(posed, one)
    for _, way in ipairs(ways) do
      posed.indexer = way.indexer or first.indexer or posed.indexer
      local fork, sum = posed:fork(way.fork), out[way.label]
      local exact, _, quality = asked.answer(fork, one, nil, true)
      local stats = fork:stats()
      fork:close()
      sum.right, sum.evidence[i] = sum.right .. (exact and 1 or 0), quality.evidence
      for _, name in ipairs(of_stats) do sum[name][i] = stats[name] end
      sum.error = stats.last_error or sum.error
    end
    posed:close()
  end
  task:close()
  return out
end

-- Of the rows of many contexts: right (the questions' outcomes in order), n, and means over questions of the rest.
function M.joined(rows, label, kind)
  local right, sum, n = {}, {evidence = 0}, 0
  for _, name in ipairs(of_stats) do sum[name] = 0 end
  for _, row in ipairs(rows) do
    local one = row[label]
    for i, its in ipairs(row.kinds) do
      if not kind or its == kind then
        n = n + 1
        right[n] = one.right:sub(i, i)
        for name in pairs(sum) do sum[name] = sum[name] + one[name][i] end
      end
    end
  end
  for name, value in pairs(sum) do sum[name] = value / n end
  sum.right, sum.n = table.concat(right), n
  local _, good = sum.right:gsub("1", "")
  sum.accuracy = good / n
  sum.low, sum.high = intervals.wilson(good, n)
  return sum
end

-- The mean difference in points, and the half width of its 95 % interval: half a question is added to each of
-- the four outcomes (A. Agresti, Y. Min, "Simple improved confidence intervals for comparing matched proportions", 2005), so that few
-- questions without a difference are not taken for certainty.
function M.against(sum, other)
  local right, n, gained, lost = sum.right, sum.n, 0, 0
  for i = 1, n do
    local a, b = right:byte(i), other.right:byte(i)
    if a > b then gained = gained + 1 elseif a < b then lost = lost + 1 end
  end
  return 100 * (gained - lost) / n, 196 * math.sqrt(gained + lost + 1 - (gained - lost) ^ 2 / (n + 2)) / (n + 2)
end

return M
