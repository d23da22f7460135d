-- Owns the plots of what lsa measures. Each takes what lsa returned (a sweep's or an eval's table, or a list of its rows) and the options of
-- lsa.plot's kinds, title among them.
--
--   accuracy(t)                 accuracy against the share of the KV cache that is resident, a line for each policy, 95 % intervals
--   recall(t)                   accuracy by depth and length of the context: rows, or their questions, with depth, tokens and accuracy
--   misses(t)                   eviction: rows of evict, capacity (or hot), hits and misses, a panel for each `trace`; belady is the least possible
--   residency(path, {evidence = {{from, to}, …}})     a recording's resident chunks over its steps; chunks from .. to - 1 are marked
--   traffic(s)                  of a session or a replay, or {{s, label =}, …}: bytes fetched and milliseconds stalled at each cycle
--   calibration(result)         of lsa.evaluate's: how often chunks of a score were golden
--   table(t, {x =, y =, series =})    the one of these that fits the rows; else a result against a parameter
local intervals = require "lsa.intervals"
local options = require "lsa.options"
local raise = require "lsa.raise"
local grid = require "lsa.prompt.results_table"

local M = {}

local function plot() return require "lsa.plot" end

local function rows_of(t, what)
  local rows = type(t) == "table" and (t.rows or t)
  if type(rows) ~= "table" or type(rows[1]) ~= "table" then
    raise("%s: %s is no table of results; what lsa.sweep or lsa.eval returns is wanted, or a list of rows", what, options.shown(t))
  end
  return rows
end

-- Options given, as a table of the plot's own.
local function taken(opt, what)
  if type(opt) ~= "nil" and type(opt) ~= "table" then raise("%s: options are a table {name = value}, this is %s", what, options.shown(opt)) end
  return options.copy(opt or {})
end

-- The options that a plot gets: those given, over those that are its own.
local function with(own, opt)
  for name, value in pairs(opt or {}) do own[name] = value end
  return own
end

local function want(rows, names, what)
  for i, row in ipairs(rows) do
    for _, name in ipairs(names) do
      if type(row[name]) ~= "number" then
        raise("%s: row %d has %s = %s; a number is wanted", what, i, name, options.shown(row[name]))
      end
    end
  end
end

-- A number, or nil where it is none: nothing is drawn there.
local function sound(value) return type(value) == "number" and value - value == 0 and value or nil end

---- series ----

-- Names of parameters that tell rows apart, less the one that is an axis.
local function parameters(t, rows, less)
  local out, known = {}, t.axes
  if not known then
    known = {}
    for _, name in ipairs {"task", "policy", "select", "every", "evict", "seed", "model", "trace"} do
      if rows[1][name] ~= nil then known[#known + 1] = name end
    end
  end
  for _, name in ipairs(known) do
    local differs = false
    for _, row in ipairs(rows) do differs = differs or grid.shown(row[name]) ~= grid.shown(rows[1][name]) end
    if differs and not less[name] then out[#out + 1] = name end
  end
  return out
end

-- Rows that have these parameters in common, in their order, with what they are called.
local function series_of(rows, names)
  local out, known = {}, {}
  for _, row in ipairs(rows) do
    local parts = {}
    for _, name in ipairs(names) do
      local value = row[name]
      if value ~= nil then
        local text = grid.shown(value)
        text = text:match "([^/]+)%.lua$" or text -- a rule's file
        parts[#parts + 1] = ((type(value) == "string" or type(value) == "function") and not name:find "%.") and text or name:gsub("^select%.", "") .. " " .. text
      end
    end
    local label = table.concat(parts, ", ")
    if not known[label] then
      known[label] = {label = label, rows = {}}
      out[#out + 1] = known[label]
    end
    table.insert(known[label].rows, row)
  end
  return out
end

-- x, y, low and high of a series' rows by x; a scale of 100 makes percents. Intervals where every row has them.
local function points_of(rows, x, y, scale)
  local sorted, out = {}, {x = {}, y = {}, low = {}, high = {}}
  for _, row in ipairs(rows) do
    if sound(row[x]) and sound(row[y]) then sorted[#sorted + 1] = row end
  end
  table.sort(sorted, function(a, b) return a[x] < b[x] end)
  for i, row in ipairs(sorted) do
    out.x[i], out.y[i] = row[x], row[y] * scale
    out.low[#out.low + 1] = sound(row[y .. "_low"]) and row[y .. "_low"] * scale
    out.high[#out.high + 1] = sound(row[y .. "_high"]) and row[y .. "_high"] * scale
  end
  if #out.low < #out.y or #out.high < #out.y then out.low, out.high = nil, nil end
  return #sorted > 0 and out or nil
end

-- One panel for each value of `name`, with that in its title, where there are several.
local function panels(rows, name, title, draw)
  local groups = series_of(rows, {name})
  if #groups < 2 then return draw(rows, title) end
  local out = {}
  for i, group in ipairs(groups) do out[i] = draw(group.rows, title and i == 1 and title .. ": " .. group.label or group.label) end
  return plot().stack(out)
end

---- of policies ----

local SHARES = {accuracy = true, digits = true, evidence = true, coverage = true}

function M.accuracy(t, opt)
  local what = "lsa.plot.accuracy"
  opt = taken(opt, what)
  local rows = rows_of(t, what)
  want(rows, {"accuracy", "resident_pct"}, what)
  return panels(rows, "task", opt.title, function(some, title)
    local list, references = {}, {}
    for _, one in ipairs(series_of(some, parameters(t, some, {budget = true, hot = true, task = true}))) do
      local full = one.rows[1].select == "full"
      local points = points_of(one.rows, "resident_pct", "accuracy", 100)
      if full and points then
        references[1] = {kind = "reference", y = points.y[1], label = ("full attention, %.1f %%"):format(points.y[1])}
      elseif points then
        points.label = one.label
        list[#list + 1] = points
      end
    end
    if #list == 0 then raise("%s: there is no row but full attention's", what) end
    local own = with({xlabel = "KV cache resident, of full", xunit = "%", xlog = true, ylabel = "accuracy", yunit = "%", yrange = {0, 103},
      references = references}, opt)
    own.title = title
    for i, one in ipairs(list) do own[i] = one end
    return plot().line(own)
  end)
end

local function length_text(tokens)
  return tokens % 1024 == 0 and ("%dK"):format(tokens / 1024) or tokens >= 10000 and ("%.3gk"):format(tokens / 1000) or ("%d"):format(tokens)
end

-- The questions of rows that have them, each with its row's parameters; or the rows themselves.
local function questions_of(rows)
  local out = {}
  for _, row in ipairs(rows) do
    for _, question in ipairs(row.questions or {}) do
      local one = options.copy(question)
      for name, value in pairs(row) do
        if (one[name] == nil or name == "tokens") and type(value) ~= "table" then one[name] = value end -- a context's length, without the question's
      end
      out[#out + 1] = one
    end
  end
  return #out > 0 and out or rows
end

local DEPTHS = 10

function M.recall(t, opt)
  local what = "lsa.plot.recall"
  opt = taken(opt, what)
  local rows = questions_of(rows_of(t, what))
  want(rows, {"depth", "tokens", "accuracy"}, what)
  for i, row in ipairs(rows) do
    if row.depth < 0 or row.depth > 1 then raise("%s: row %d has depth = %g; a share of the context is wanted", what, i, row.depth) end
  end
  local lengths, known = {}, {}
  for _, row in ipairs(rows) do
    if not known[row.tokens] then known[row.tokens], lengths[#lengths + 1] = true, row.tokens end
  end
  table.sort(lengths)
  local groups, plots = series_of(rows, parameters(t, rows, {tokens = true, depth = true})), {}
  for _, group in ipairs(groups) do
    local sums, z, names, depths = {}, {}, {}, {}
    for _, row in ipairs(group.rows) do
      local at = math.min(DEPTHS - 1, math.floor(row.depth * DEPTHS)) .. "," .. row.tokens
      sums[at] = sums[at] or {0, 0}
      sums[at][1], sums[at][2] = sums[at][1] + row.accuracy, sums[at][2] + 1
    end
    for i = 1, DEPTHS do -- the beginning of the context is above
      local depth = DEPTHS - i
      depths[i] = ("%d–%d %%"):format(100 * depth / DEPTHS, 100 * (depth + 1) / DEPTHS)
      z[i] = {}
      for j, tokens in ipairs(lengths) do
        local sum = sums[depth .. "," .. tokens]
        z[i][j] = sum and 100 * sum[1] / sum[2] or 0 / 0
      end
    end
    for j, tokens in ipairs(lengths) do names[j] = length_text(tokens) end
    local own = with({z = z, blank = true, text = #lengths <= 16, xnames = names, ynames = depths, xlabel = "context (tokens)", ylabel = "depth",
      zlabel = "accuracy", zunit = "%", zrange = {0, 100}}, opt)
    if #groups > 1 then own.title = own.title and own.title .. ": " .. group.label or group.label end
    plots[#plots + 1] = plot().heatmap(own)
  end
  return #plots == 1 and plots[1] or plot().stack{size = {900, math.min(10000, 380 * #plots)}, unpack(plots)}
end

---- of the loop ----

-- The rows that a session, a replay or a list of rows has.
local function cycles_of(source, what)
  if type(source) == "table" and type(source.cycles) == "function" then source = source:cycles() end
  if type(source) ~= "table" or type(source[1]) ~= "table" or not source[1].t then
    raise("%s: %s has no cycles; a session, a replay or what their cycles() return is wanted", what, options.shown(source))
  end
  return source
end

function M.traffic(given, opt)
  local what = "lsa.plot.traffic"
  opt = taken(opt, what)
  local sources = given
  if type(given) ~= "table" or type(given.cycles) == "function" or type(given[1]) == "table" and given[1].t then sources = {{given}} end
  local fetched, stalled = {}, {}
  for i, one in ipairs(options.list(sources, what)) do
    local x, bytes, ms = {}, {}, {}
    for j, row in ipairs(cycles_of(one[1] or one, what)) do
      x[j], bytes[j], ms[j] = row.t, row.fetched_bytes or 0, row.stall_ms or 0
    end
    fetched[i], stalled[i] = {x = x, y = bytes, label = one.label}, {x = x, y = ms, label = one.label}
  end
  fetched = with({ylabel = "fetched at a cycle", yunit = "B", unpack(fetched)}, opt)
  stalled = with({ylabel = "stall", yunit = "ms", xlabel = "position (tokens)", unpack(stalled)}, opt)
  stalled.title = nil
  fetched, stalled = plot().line(fetched), plot().line(stalled)
  fetched.panels[1].y.low, stalled.panels[1].y.low = 0, 0
  return plot().stack{fetched, stalled}
end

local MOST_COLUMNS, MOST_ROWS = 480, 400

function M.residency(path, opt)
  local what = "lsa.plot.residency"
  opt = taken(opt, what)
  local evidence, watched = opt.evidence, taken(opt.replay, what .. ": replay")
  opt.evidence, opt.replay = nil, nil
  local changes = {}
  function watched.watch(row, n, resident) changes[#changes + 1] = {row = row, n = n, set = resident:copy()} end
  local r = require("lsa.replay").new(path, watched)
  local steps, rate, positions = r.rows, r.about.csa_rate, r.columns.positions.data
  local chunks = r.most
  if chunks == 0 or steps == 0 then raise("%s: %s has %d steps and %d chunks; there is nothing to draw", what, path, steps, chunks) end
  local columns, rows = math.min(steps, MOST_COLUMNS), math.min(chunks, MOST_ROWS)
  local z, at = {}, 0
  for i = 1, rows do z[i] = {} end
  for j = 1, columns do
    local step = math.min(steps - 1, math.floor((j - 0.5) * steps / columns))
    while changes[at + 1] and changes[at + 1].row < step do at = at + 1 end
    local force, there = changes[at], math.floor((tonumber(positions[step]) + 1) / rate)
    for i = 1, rows do
      local from, to = math.floor((i - 1) * chunks / rows), math.floor(i * chunks / rows)
      local present, resident = 0, 0
      for id = from, math.min(to, there) - 1 do
        present = present + 1
        if not force or id >= force.n or force.set:has(id) then resident = resident + 1 end
      end
      z[i][j] = present > 0 and 100 * resident / present or 0 / 0
    end
  end
  local own = with({z = z, blank = true, xlabel = "step", ylabel = "chunk of the KV cache", zlabel = "resident", zunit = "%", zrange = {0, 100},
    xrange = {0, steps}, yrange = {0, chunks}}, opt)
  if evidence then
    own.stripes, own.stripes_label = {}, "evidence"
    for i, span in ipairs(options.list(evidence, what .. ": evidence")) do
      if type(span) ~= "table" or not (span[1] and span[2] and span[1] >= 0 and span[1] < span[2] and span[2] <= chunks) then
        raise("%s: evidence[%d] is {%s, %s}; chunks {from, to} within 0 .. %d are wanted", what, i,
          options.shown(type(span) == "table" and span[1] or nil), options.shown(type(span) == "table" and span[2] or nil), chunks)
      end
      own.stripes[i] = {span[1], span[2]}
    end
  end
  return plot().heatmap(own)
end

---- of evictions ----

function M.misses(t, opt)
  local what = "lsa.plot.misses"
  opt = taken(opt, what)
  local rows = {}
  for i, row in ipairs(rows_of(t, what)) do
    local accesses = row.accesses or (row.hits or 0) + (row.misses or 0)
    local one = options.copy(row)
    one.size = row.capacity or row.hot
    if not (row.evict and sound(row.misses) and sound(one.size) and accesses > 0) then
      raise("%s: row %d has evict = %s, misses = %s, capacity = %s; all three are wanted", what, i, options.shown(row.evict),
        options.shown(row.misses), options.shown(one.size))
    end
    one.missed, one.trace = row.misses / accesses, row.trace or "trace"
    rows[i] = one
  end
  return panels(rows, "trace", opt.title, function(some, title)
    local list, sizes = {}, {}
    for _, one in ipairs(series_of(some, {"evict"})) do
      local points = points_of(one.rows, "size", "missed", 100)
      points.label, sizes[#points.x] = one.label, true
      if one.label == "belady" then points.colour, points.dash, points.label = "#000000", 2, "belady (the least)" end
      list[#list + 1] = points
    end
    if sizes[1] and next(sizes, 1) == nil then return M.miss_bars(list, title, opt) end
    local own = with({xlabel = "capacity", ylabel = "misses, of all accesses", yunit = "%", unpack(list)}, opt)
    own.title = title
    local p = plot().line(own)
    p.panels[1].y.low = 0
    return p
  end)
end

-- One capacity: bars, the fewest misses first.
function M.miss_bars(list, title, opt)
  local names, values, least = {}, {}, nil
  table.sort(list, function(a, b) return a.y[1] < b.y[1] end)
  for _, one in ipairs(list) do
    if one.colour then least = one.y[1] else names[#names + 1], values[#values + 1] = one.label, one.y[1] end
  end
  if #names == 0 then names, values = {"belady"}, {least} end
  local own = with({names = names, values = values, xlabel = "misses, of all accesses", xunit = "%", references = {least and
    {kind = "reference", x = least, label = ("belady, %.1f %%"):format(least)}}}, opt)
  own.title = title
  return plot().bars(own)
end

---- of indexers ----

function M.calibration(result, opt)
  local what = "lsa.plot.calibration"
  opt = taken(opt, what)
  local part = options.one_of(opt.part or "all", {"all", "outside"}, what .. ": part")
  opt.part = nil
  if type(result) ~= "table" or type(result[1]) ~= "table" or not result[1][part] then
    raise("%s: %s is no evaluation; what lsa.evaluate returns is wanted", what, options.shown(result))
  end
  local lines, counts = {}, {}
  for _, row in ipairs(result) do
    local one, each = {x = {}, y = {}, low = {}, high = {}, label = row.name}, {x = {}, y = {}, label = row.name}
    for _, bin in ipairs(row[part].bins) do
      if bin.count > 0 then
        local n = #one.x + 1
        local low, high = intervals.wilson(bin.golden * bin.count, bin.count)
        one.x[n], one.y[n], one.low[n], one.high[n] = bin.score, 100 * bin.golden, 100 * low, 100 * high
        each.x[n], each.y[n] = bin.score, bin.count
      end
    end
    if #one.x > 0 then lines[#lines + 1], counts[#counts + 1] = one, each end
  end
  if #lines == 0 then raise("%s: no bin has a chunk", what) end
  local above = with({xrange = {0, 1}, yrange = {0, 100}, ylabel = "of these, golden", yunit = "%",
    references = {{kind = "reference", label = "calibrated"}}, unpack(lines)}, opt)
  local below = with({xrange = {0, 1}, xlabel = "score", ylabel = "chunks", ylog = true, unpack(counts)}, opt)
  below.title = nil
  return plot().stack{plot().line(above), plot().line(below), share = {2, 1}, size = {900, 700}}
end

---- of any table ----

local function numeric(rows, name)
  local seen, distinct = {}, 0
  for _, row in ipairs(rows) do
    if type(row[name]) ~= "number" then return 0 end
    if not seen[row[name]] then seen[row[name]], distinct = true, distinct + 1 end
  end
  return distinct
end

-- A result against a parameter: the numeric one with the most values, or bars where there is none.
local function any(t, rows, opt, what)
  local x, y, series = opt.x, opt.y, opt.series
  opt.x, opt.y, opt.series = nil, nil, nil
  local axes, most, is_axis = t.axes or {}, 1, {}
  for _, name in ipairs(axes) do
    is_axis[name] = true
    if not x and numeric(rows, name) > most then x, most = name, numeric(rows, name) end
  end
  for _, name in ipairs(t.columns or {}) do
    if not y and not is_axis[name] and not name:find "_low$" and not name:find "_high$" and numeric(rows, name) > 0 then y = name end
  end
  if not y then raise("%s: no column of results is of numbers; y = a column's name is wanted", what) end
  want(rows, {x or y, y}, what)
  local scale = SHARES[y] and 100 or 1
  local unit = SHARES[y] and "%" or y:find "_bytes$" and "B" or (y:find "_ms$" or y:find "^ms_") and "ms" or y:find "_pct$" and "%" or nil
  local label = y:gsub("_bytes$", ""):gsub("_ms$", ""):gsub("_pct$", ""):gsub("_", " ")
  local names = series and {series} or parameters(t, rows, {[x or ""] = true})
  local list = series_of(rows, names)
  if not x then
    local bars = {names = {}, values = {}, low = {}, high = {}}
    for i, one in ipairs(list) do
      local points = points_of(one.rows, y, y, scale)
      bars.names[i], bars.values[i] = one.label == "" and "all" or one.label, points.y[1]
      bars.low[#bars.low + 1], bars.high[#bars.high + 1] = points.low and points.low[1], points.high and points.high[1]
    end
    if #bars.low < #list then bars.low, bars.high = nil, nil end
    return plot().bars(with(with(bars, {xlabel = label, xunit = unit}), opt))
  end
  local own = {xlabel = x:gsub("_", " "), ylabel = label, yunit = unit}
  for i, one in ipairs(list) do
    own[i] = points_of(one.rows, x, y, scale)
    own[i].label = one.label ~= "" and one.label or nil
  end
  return plot().line(with(own, opt))
end

function M.table(t, opt)
  local what = "plot"
  opt = taken(opt, what)
  local rows = rows_of(t, what)
  local first = rows[1]
  local asked = opt.x or opt.y or opt.series
  if not asked and first.evict and first.misses and (first.capacity or first.hot) then return M.misses(t, opt) end
  if not asked and first.accuracy and numeric(rows, "tokens") > 1 and (first.depth or (first.questions or {{}})[1].depth) then
    return M.recall(t, opt)
  end
  if not asked and first.accuracy and numeric(rows, "resident_pct") > 0 then return M.accuracy(t, opt) end
  return any(t, rows, opt, what)
end

return M
