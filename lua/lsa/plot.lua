-- Owns lsa.plot: pictures of numbers, drawn by gnuplot (Debian's gnuplot-nox), with readable axes and colours that all kinds of sight
-- tell apart. Numbers are lists or tensors.
--
--   lsa.plot(y)  lsa.plot(x, y, {title = …})                            a line
--   lsa.plot.line{x =, y =, low =, high =, label =}                     low and high: a band, an interval's ends; x: 1, 2, … where not given
--   lsa.plot.line{{y = a, label = "LSA"}, {y = b, label = "recency"}}   several; so for scatter. {a, b}: of numbers alone
--   lsa.plot.scatter{x =, y =}
--   lsa.plot.heatmap{z = rows}                                          [rows, columns]; NaN is an error, or with blank = true nothing
--   lsa.plot.histogram{values = x, bins = 30}                           or several: {{values =, label =}, …}
--   lsa.plot.bars{names = {…}, values = {…}, low =, high =}             or several values of each name: {{values =, label =}, …, names =}
--   lsa.plot.stack{p, q}                                                plots above each other, with one x axis
--
-- Each also takes title, xlabel, ylabel; xunit, yunit, zunit ("B", "s": with prefixes; "%": at each number; others behind the label); xlog,
-- ylog; xrange, yrange = {low, high}; hline, vline: numbers to read against; size = {width, height} in pixels.
-- A plot: p:save "a.png" (or .svg, .pdf), p:show(), and it prints itself (lua/lsa/plot/figure.lua).
--
-- Ready ones, each with what it is made of (lua/lsa/plot/results.lua): lsa.plot.accuracy, recall, misses, residency, traffic, calibration;
-- t:plot() picks the one that fits a sweep's table.
local figure = require "lsa.plot.figure"
local gnuplot = require "lsa.plot.gnuplot"
local options = require "lsa.options"
local raise = require "lsa.raise"
local tensor = require "lsa.tensor.tensor"

local M = {}

local shared = {title = false, xlabel = false, ylabel = false, xunit = false, yunit = false, xlog = false, ylog = false, xrange = false,
  yrange = false, hline = false, vline = false, size = false, references = false, stripes = false, grid = false, xnames = false,
  ynames = false}

---- checks ----

local function finite(value, what, at)
  value = type(value) == "cdata" and tonumber(value) or value
  if type(value) == "number" and value - value == 0 then return value end
  if at then what = ("%s[%d]"):format(what, at) end
  raise("%s is %s; a finite number is wanted", what, type(value) == "number" and (value ~= value and "nan" or tostring(value)) or options.shown(value))
end

-- A list of finite numbers, of a list or a tensor of one dimension.
local function column(value, what)
  if tensor.is(value) then
    if #value:shape() ~= 1 then raise("%s is a tensor [%s]; one dimension is wanted", what, table.concat(value:shape(), ", ")) end
    value = value:totable()
  elseif type(value) ~= "table" or getmetatable(value) and getmetatable(value).__index then
    raise("%s is %s; a list of numbers or a tensor is wanted", what, options.shown(value))
  end
  local out = {}
  for i = 1, #value do out[i] = finite(value[i], what, i) end
  if #out == 0 then raise("%s is empty", what) end
  return out
end

local function same_length(a, a_name, b, b_name, what)
  if #a ~= #b then
    raise("%s: %s has %d value%s and %s has %d", what, a_name, #a, #a == 1 and "" or "s", b_name, #b)
  end
end

local function text_of(value, what)
  if value == nil or type(value) == "string" then return value end
  raise("%s is %s; a text is wanted", what, options.shown(value))
end

local function range_of(value, what)
  if value == nil then return nil, nil end
  options.list(value, what)
  local low, high = finite(value[1], what .. "[1]"), finite(value[2], what .. "[2]")
  if low >= high then raise("%s is {%g, %g}; the lower end comes first", what, low, high) end
  return low, high
end

local function list_of_texts(value, n, what)
  options.list(value, what)
  for i, item in ipairs(value) do text_of(item, ("%s[%d]"):format(what, i)) end
  if n and #value ~= n then raise("%s has %d texts for %d places", what, #value, n) end
  return value
end

local function colour_of(value, index, what)
  if value == nil then return gnuplot.colours[(index - 1) % #gnuplot.colours + 1] end
  if type(value) == "string" and value:find "^#%x%x%x%x%x%x$" then return value end
  raise('%s is %s; a colour is written as in "#0072B2"', what, options.shown(value))
end

---- axes ----

-- What the data take of an axis: it grows to hold each value.
local function hold(axis, values)
  for _, value in ipairs(values) do
    axis.least, axis.most = math.min(axis.least or value, value), math.max(axis.most or value, value)
  end
end

local function positive(axis, name, what)
  local low = math.min(axis.least or 1, axis.low or 1)
  if axis.log and low <= 0 then raise("%s: %slog, and %s is at %g; logarithms want numbers above 0", what, name, name, low) end
end

-- A panel for the options that all kinds share.
local function panel_of(opt, layers, what)
  local x, y = {}, {}
  for name, axis in pairs {x = x, y = y} do
    axis.label = text_of(opt[name .. "label"], what .. ": " .. name .. "label")
    axis.unit = text_of(opt[name .. "unit"], what .. ": " .. name .. "unit")
    axis.log = opt[name .. "log"] and options.boolean(opt[name .. "log"], what .. ": " .. name .. "log")
    axis.low, axis.high = range_of(opt[name .. "range"], what .. ": " .. name .. "range")
    axis.names = opt[name .. "names"] and list_of_texts(opt[name .. "names"], nil, what .. ": " .. name .. "names")
  end
  for name, axis in pairs {h = "y", v = "x"} do
    if opt[name .. "line"] ~= nil then
      layers[#layers + 1] = {kind = "reference", [axis] = finite(opt[name .. "line"], ("%s: %sline"):format(what, name))}
    end
  end
  for _, one in ipairs(opt.references or {}) do layers[#layers + 1] = one end
  return {title = text_of(opt.title, what .. ": title"), x = x, y = y, layers = layers, grid = opt.grid}
end

local function is_numbers(value) return tensor.is(value) or type(value) == "table" and type(value[1]) == "number" end

-- The series of options: their list part, or the options themselves as the only one; and the options without them. Numbers alone
-- are a series' `main`, and alone in the list part the only series.
local function series_of(given, fields, what, main)
  if tensor.is(given) then given = {given} end
  if type(given) ~= "table" then raise("%s: options are a table {name = value}, this is %s", what, options.shown(given)) end
  local allowed, own, list = {}, {}, {}
  for name in pairs(shared) do allowed[name] = false end
  for name, value in pairs(given) do
    if type(name) == "number" then
      list[name] = value
    else
      own[name] = value
    end
  end
  if #list == 0 then
    for name in pairs(fields) do allowed[name] = false end
    own = options.check(own, allowed, what)
    local one = {}
    for name in pairs(fields) do one[name] = own[name] end
    return {one}, own
  end
  if is_numbers(list) then list = {list} end
  for i, one in ipairs(list) do
    list[i] = is_numbers(one) and {[main] = one} or options.check(one, fields, ("%s: series %d"):format(what, i))
  end
  return list, options.check(own, allowed, what)
end

local function where(list, i, what) return #list > 1 and ("%s: series %d: "):format(what, i) or what .. ": " end

local xy = {x = false, y = false, low = false, high = false, label = false, colour = false, dash = false, plain = false, width = false}

-- A series of points, checked.
local function points_of(kind, one, i, at)
  local layer = {kind = kind, index = i, dash = one.dash, plain = one.plain, width = one.width}
  layer.y = column(one.y, at .. "y")
  if one.x ~= nil then
    layer.x = column(one.x, at .. "x")
    same_length(layer.x, "x", layer.y, "y", at:gsub(": $", ""))
  else
    layer.x = {}
    for j = 1, #layer.y do layer.x[j] = j end
  end
  if (one.low ~= nil) ~= (one.high ~= nil) then raise("%s%s without %s", at, one.low ~= nil and "low" or "high", one.low ~= nil and "high" or "low") end
  if one.low ~= nil then
    layer.low, layer.high = column(one.low, at .. "low"), column(one.high, at .. "high")
    same_length(layer.low, "low", layer.y, "y", at:gsub(": $", ""))
    same_length(layer.high, "high", layer.y, "y", at:gsub(": $", ""))
  end
  layer.label, layer.colour = text_of(one.label, at .. "label"), colour_of(one.colour, i, at .. "colour")
  return layer
end

local function of_points(kind, given, what)
  local list, opt = series_of(given, xy, what, "y")
  local layers = {}
  for i, one in ipairs(list) do layers[i] = points_of(kind, one, i, where(list, i, what)) end
  local panel = panel_of(opt, layers, what)
  for i = 1, #list do
    hold(panel.x, layers[i].x)
    for _, values in ipairs {layers[i].y, layers[i].low or {}, layers[i].high or {}} do hold(panel.y, values) end
  end
  for _, name in ipairs {"x", "y"} do positive(panel[name], name, what) end
  return figure.new({panel}, opt.size, what)
end

---- the kinds ----

-- Lines, with bands where there are low and high.
function M.line(given) return of_points("line", given, "lsa.plot.line") end

-- Points.
function M.scatter(given) return of_points("points", given, "lsa.plot.scatter") end

local map = {z = false, blank = false, text = false, zlabel = false, zunit = false, zrange = false}

-- Rows of numbers as one list, row by row; NaN as false.
local function cells_of(z, blank, what)
  local rows = z
  if tensor.is(z) then
    if #z:shape() ~= 2 then raise("%s: z is a tensor [%s]; two dimensions are wanted", what, table.concat(z:shape(), ", ")) end
    rows = z:totable()
  end
  options.list(rows, what .. ": z")
  local out, columns, least, most = {}, nil, nil, nil
  for i, row in ipairs(rows) do
    if type(row) ~= "table" then raise("%s: z[%d] is %s; rows of numbers are wanted", what, i, options.shown(row)) end
    columns = columns or #row
    if #row ~= columns then raise("%s: z[%d] has %d values and z[1] has %d", what, i, #row, columns) end
    for j = 1, columns do
      local value = row[j]
      if blank and value ~= value then
        out[#out + 1] = false
      else
        value = finite(value, ("%s: z[%d][%d]"):format(what, i, j))
        least, most = math.min(least or value, value), math.max(most or value, value)
        out[#out + 1] = value
      end
    end
  end
  if not least then raise("%s: z has no number", what) end
  return out, #rows, columns, least, most
end

-- A map of z[row][column], the first row lowest. xrange, yrange: where its edges are (cells 0 .. n where not given); xnames, ynames: of each
-- column and row; text: numbers in the cells; zlabel, zunit, zrange: of the colours; stripes = {{from, to}, …}, stripes_label: heights to mark.
function M.heatmap(given)
  local what = "lsa.plot.heatmap"
  local allowed = {stripes_label = false}
  for _, names in ipairs {shared, map} do
    for name in pairs(names) do allowed[name] = false end
  end
  local opt = options.check(given, allowed, what)
  local z, rows, columns, least, most = cells_of(opt.z, opt.blank and options.boolean(opt.blank, what .. ": blank"), what)
  local layer = {kind = "image", z = z, rows = rows, columns = columns, text = opt.text, label = text_of(opt.zlabel, what .. ": zlabel"),
    unit = text_of(opt.zunit, what .. ": zunit")}
  layer.least, layer.most = range_of(opt.zrange, what .. ": zrange")
  layer.least, layer.most = layer.least or least, layer.most or most
  if layer.least == layer.most then layer.least, layer.most = layer.least - 0.5, layer.most + 0.5 end
  local panel = panel_of(opt, {layer}, what)
  for name, n in pairs {x = columns, y = rows} do
    local axis = panel[name]
    if axis.log then raise("%s: %slog; a map's axes are even", what, name) end
    if axis.names then
      list_of_texts(axis.names, n, ("%s: %snames"):format(what, name))
      if axis.low then raise("%s: both %snames and %srange", what, name, name) end
      axis.low, axis.high = -0.5, n - 0.5
    end
    axis.low, axis.high = axis.low or 0, axis.high or n
    axis.least, axis.most = axis.low, axis.high
  end
  layer.x0, layer.x1, layer.y0, layer.y1 = panel.x.low, panel.x.high, panel.y.low, panel.y.high
  if opt.stripes then
    for i, stripe in ipairs(options.list(opt.stripes, what .. ": stripes")) do range_of(stripe, ("%s: stripes[%d]"):format(what, i)) end
    panel.layers[#panel.layers + 1] = {kind = "stripes", list = opt.stripes, colour = gnuplot.colours[2],
      label = text_of(opt.stripes_label, what .. ": stripes_label")}
  end
  return figure.new({panel}, opt.size, what)
end

-- How often values lie where. bins: how many, between the least and the greatest of all series; xrange: between other ends.
function M.histogram(given)
  local what = "lsa.plot.histogram"
  local bins = type(given) == "table" and given.bins
  given = type(given) == "table" and options.copy(given) or given
  if type(given) == "table" then given.bins = nil end
  local list, opt = series_of(given, {values = false, label = false, colour = false}, what, "values")
  bins = bins and options.whole(bins, 1, what .. ": bins", 10000) or 30
  local all, low, high = {}, range_of(opt.xrange, what .. ": xrange")
  local least, most
  for i, one in ipairs(list) do
    local values = one.values
    if tensor.is(values) then values = values:reshape {values:count()} end
    all[i] = column(values, where(list, i, what) .. "values")
    for _, value in ipairs(all[i]) do least, most = math.min(least or value, value), math.max(most or value, value) end
  end
  low, high = low or least, high or most
  if low == high then low, high = low - 0.5, high + 0.5 end
  local layers = {}
  for i, values in ipairs(all) do
    local counts, edges = tensor.new(values, "f64"):histogram(bins, low, high)
    counts, edges = column(counts, what), column(edges, what)
    local at = where(list, i, what)
    layers[i] = {kind = "boxes", index = i, y = counts, from = edges, to = {unpack(edges, 2)}, label = text_of(list[i].label, at .. "label"),
      colour = colour_of(list[i].colour, i, at .. "colour")}
    layers[i].from = {unpack(edges, 1, bins)}
  end
  opt.ylabel = opt.ylabel or "count"
  local panel = panel_of(opt, layers, what)
  panel.x.low, panel.x.high = panel.x.low or low, panel.x.high or high
  hold(panel.x, {low, high})
  if not panel.y.log then hold(panel.y, {0}) end
  for i = 1, #all do hold(panel.y, layers[i].y) end
  if panel.y.log then panel.y.low, panel.y.high, panel.y.least = 0.5, 2 * panel.y.most, 0.5 end
  return figure.new({panel}, opt.size, what)
end

-- Bars beside names, from above to below. A group of several has one of each series.
function M.bars(given)
  local what = "lsa.plot.bars"
  local names = type(given) == "table" and given.names
  given = type(given) == "table" and options.copy(given) or given
  if type(given) == "table" then given.names = nil end
  local list, opt = series_of(given, {values = false, low = false, high = false, label = false, colour = false}, what, "values")
  list_of_texts(names, nil, what .. ": names")
  local layers, thick, places = {}, 0.8 / #list, {}
  for i = 1, #names do places[i] = #names - i end
  for i, one in ipairs(list) do
    local at = where(list, i, what)
    local layer = points_of("bars", {y = one.values or nil, low = one.low, high = one.high, label = one.label, colour = one.colour}, i, at)
    layer.values, layer.x, layer.y, layer.thick, layer.at = layer.y, nil, nil, thick * 0.92, {}
    same_length(names, "names", layer.values, "values", at:gsub(": $", ""))
    for j, place in ipairs(places) do layer.at[j] = place + (#list + 1 - 2 * i) / 2 * thick end
    layers[i] = layer
  end
  opt.grid = "xtics"
  local panel = panel_of(opt, layers, what)
  panel.y.names, panel.y.at, panel.y.low, panel.y.high = names, places, -0.6, #names - 0.4
  hold(panel.x, {0})
  for i = 1, #list do
    for _, values in ipairs {layers[i].values, layers[i].high or {}, layers[i].low or {}} do hold(panel.x, values) end
  end
  return figure.new({panel}, opt.size, what)
end

-- Plots above each other. share: of the height that each has, 1 where not given.
function M.stack(given)
  local what = "lsa.plot.stack"
  local allowed, list, own = {size = false, share = false}, {}, {}
  if type(given) ~= "table" then raise("%s: a list of plots is wanted, this is %s", what, options.shown(given)) end
  for name, value in pairs(given) do
    if type(name) == "number" then list[name] = value else own[name] = value end
  end
  own = options.check(own, allowed, what)
  local panels = {}
  for i, one in ipairs(options.list(list, what)) do
    if not figure.is(one) then raise("%s: [%d] is %s; plots are wanted", what, i, options.shown(one)) end
    for _, panel in ipairs(one.panels) do
      panel = options.copy(panel)
      panel.share = own.share and own.share[i] and finite(own.share[i], what .. ": share") or 1
      panels[#panels + 1] = panel
    end
  end
  return figure.new(panels, own.size or {900, math.min(10000, 200 + 260 * #panels)}, what)
end

---- ready ones ----

for _, name in ipairs {"accuracy", "recall", "misses", "residency", "traffic", "calibration", "table"} do
  M[name] = function(of, opt) return require("lsa.plot.results")[name](of, opt) end
end

local arity = require "lsa.arity"
arity.functions(M, "lsa.plot.")

local draw = arity.counted(function(x, y, opt)
  if y == nil or type(y) == "table" and not tensor.is(y) and y[1] == nil then x, y, opt = nil, x, y or opt end
  local own = options.copy(opt or {})
  own.x, own.y = x, y
  return M.line(own)
end, "lsa.plot")

return setmetatable(M, {__call = function(_, ...) return draw(...) end})
