-- Owns how a figure becomes a picture: gnuplot's commands for it, and gnuplot as a child process.
--
--   bytes = gnuplot.picture(figure, "png" | "svg" | "pdf" | "sixel")
--   gnuplot.commands(figure, kind)      the text that gnuplot reads
--
-- Data never become commands: numbers are written as numbers, and every byte of a text that is no letter or space is an octal escape
-- between double quotes, which gnuplot neither substitutes nor ends. Input and output are files without a name in memory, so
-- that nothing is left behind whatever happens.
local ffi = require "ffi"
local signal = require "posix.signal"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"
local raise = require "lsa.raise"
local text = require "lsa.plot.text"

ffi.cdef [[
int memfd_create(const char *, unsigned);
int posix_spawnp(int *, const char *, const void *, const void *, char *const *, char *const *);
int posix_spawn_file_actions_init(void *);
int posix_spawn_file_actions_destroy(void *);
int posix_spawn_file_actions_adddup2(void *, int, int);
extern char **environ;
]]

local C = ffi.C

local M = {program = "gnuplot"}

-- Of M. Okabe and K. Ito, "Color Universal Design", 2008: told apart by all kinds of sight, and in print. Black is for references.
M.colours = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#999999"}
local POINTS = {7, 5, 9, 13, 11, 4, 6, 8}

-- Cividis (J. Nuñez et al., PLOS ONE 13, 2018) at nine places: even steps in lightness, the same for all kinds of sight.
local PALETTE = {"#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838"}

local GREY, INK = "#d9d9d9", "#333333"

---- text and numbers ----

local function quoted(words)
  return '"' .. text.plain(words):gsub("[^%a ]", function(c) return ("\\%03o"):format(c:byte()) end) .. '"'
end

local function number(value) return ("%.12g"):format(value) end

-- Columns of numbers as a block of data by name; nil is a missing one.
local function block(out, name, columns)
  out[#out + 1] = ("$%s << END"):format(name)
  local n = #columns[1]
  for i = 1, n do
    local cells = {}
    for j, column in ipairs(columns) do cells[j] = column[i] == nil and "NaN" or number(column[i]) end
    out[#out + 1] = table.concat(cells, " ")
  end
  out[#out + 1] = "END"
  return "$" .. name
end

---- a panel ----

local formats = {B = "%.0s %cB", s = "%.0s %cs", ["%"] = "%g %%"}

local function label_of(label, unit)
  if not unit or formats[unit] then return label or "" end
  return ("%s (%s)"):format(label or "", unit)
end

-- 1, 2 and 5 of each decade between two numbers, decades alone where these are many.
local function log_ticks(low, high)
  local out, from, to = {}, math.floor(math.log10(low)), math.ceil(math.log10(high))
  for decade = from, to do
    for _, digit in ipairs(to - from > 3 and {1} or {1, 2, 5}) do
      local at = digit * 10 ^ decade
      if at >= low * 0.999 and at <= high * 1.001 then out[#out + 1] = number(at) end
    end
  end
  return #out > 1 and "(" .. table.concat(out, ", ") .. ")"
end

local function axis(out, name, a)
  out[#out + 1] = ("set %slabel %s textcolor rgb '%s'"):format(name, quoted(label_of(a.label, a.unit)), INK)
  out[#out + 1] = ("set format %s %s"):format(name, ("'%s'"):format(a.names and "" or formats[a.unit] or "%g"))
  out[#out + 1] = ("unset logscale %s"):format(name)
  if a.log then out[#out + 1] = ("set logscale %s"):format(name) end
  local low, high = a.low, a.high
  if a.log then low, high = low or a.least / 1.15, high or a.most * 1.15 end
  out[#out + 1] = ("set %srange [%s:%s]"):format(name, low and number(low) or "*", high and number(high) or "*")
  local ticks = a.log and log_ticks(low, high)
  if a.names then
    local parts = {} -- names of ticks are formats to gnuplot
    for i, shown in ipairs(a.names) do parts[i] = ("%s %s"):format(quoted((shown:gsub("%%", "%%%%"))), number(a.at and a.at[i] or i - 1)) end
    ticks = "(" .. table.concat(parts, ", ") .. ")"
  end
  out[#out + 1] = ("set %stics nomirror out scale 0.5 %s %s textcolor rgb '%s'"):format(name, a.names and "norotate" or "", ticks or "autofreq", INK)
end

-- How a layer is drawn: adds its data to `out` and its parts of the plot command to `plots`.
local draw = {}

local function style(layer)
  return ("lc rgb '%s' lw %s dt %s"):format(layer.colour, layer.width or 2, layer.dash or 1)
end

local function titled(layer) return layer.label and "title " .. quoted(layer.label) or "notitle" end

-- Of a line of very many points over ascending x, what shows: the first, the least, the greatest and the last of each of 1,000 columns
-- (U. Jugel et al., "M4", VLDB 2014).
local MOST_POINTS, COLUMNS = 8000, 1000

local function thinned(layer)
  local x, y, n = layer.x, layer.y, #layer.x
  if n <= MOST_POINTS then return layer end
  for i = 2, n do
    if x[i] < x[i - 1] then return layer end
  end
  local out = setmetatable({x = {}, y = {}, low = layer.low and {}, high = layer.high and {}}, {__index = layer})
  local function keep(i)
    local at = #out.x + 1
    out.x[at], out.y[at] = x[i], y[i]
    if layer.low then out.low[at], out.high[at] = layer.low[i], layer.high[i] end
  end
  local span, i = math.max(x[n] - x[1], 1e-300), 1
  while i <= n do
    local column, last, least, most = math.floor((x[i] - x[1]) / span * COLUMNS), i, i, i
    while last < n and math.floor((x[last + 1] - x[1]) / span * COLUMNS) == column do
      last = last + 1
      if y[last] < y[least] then least = last end
      if y[last] > y[most] then most = last end
    end
    local places, before = {i, math.min(least, most), math.max(least, most), last}, nil
    for _, place in ipairs(places) do
      if place ~= before then keep(place) end
      before = place
    end
    i = last + 1
  end
  return out
end

function draw.line(layer, name, out, plots)
  layer = thinned(layer)
  local data = block(out, name, {layer.x, layer.y, layer.low or layer.y, layer.high or layer.y})
  if layer.low and #layer.x > 1 then
    plots[#plots + 1] = ("%s using 1:3:4 with filledcurves fc rgb '%s' fs transparent solid 0.16 noborder notitle"):format(data, layer.colour)
  end
  if layer.low and #layer.x == 1 then
    plots[#plots + 1] = ("%s using 1:2:3:4 with yerrorbars lc rgb '%s' lw 1 pt 0 notitle"):format(data, layer.colour)
  end
  local points = #layer.x <= 60 and not layer.plain
  plots[#plots + 1] = ("%s using 1:2 with %s %s %s %s"):format(data, points and "linespoints" or "lines", style(layer),
    points and ("pt %d ps 0.9"):format(POINTS[(layer.index - 1) % #POINTS + 1]) or "", titled(layer))
end

function draw.points(layer, name, out, plots)
  local data = block(out, name, {layer.x, layer.y, layer.low or layer.y, layer.high or layer.y})
  local look = ("lc rgb '%s' pt %d ps %s"):format(layer.colour, POINTS[(layer.index - 1) % #POINTS + 1], #layer.x > 400 and 0.4 or 0.9)
  if layer.low then plots[#plots + 1] = ("%s using 1:2:3:4 with yerrorbars lc rgb '%s' lw 1 pt 0 notitle"):format(data, layer.colour) end
  plots[#plots + 1] = #layer.x > 50000 and ("%s using 1:2 with dots lc rgb '%s' %s"):format(data, layer.colour, titled(layer)) or
    ("%s using 1:2 with points %s %s"):format(data, look, titled(layer))
end

function draw.boxes(layer, name, out, plots)
  local middle, width = {}, {}
  for i = 1, #layer.y do middle[i], width[i] = (layer.from[i] + layer.to[i]) / 2, layer.to[i] - layer.from[i] end
  local data = block(out, name, {middle, layer.y, width})
  plots[#plots + 1] = ("%s using 1:2:3 with boxes fc rgb '%s' fs solid 0.75 border lc rgb '%s' %s"):format(data, layer.colour,
    layer.colour, titled(layer))
end

-- Bars that lie, for names of any length to be read.
function draw.bars(layer, name, out, plots)
  local zero, from, to = {}, {}, {}
  for i, at in ipairs(layer.at) do zero[i], from[i], to[i] = 0, at - layer.thick / 2, at + layer.thick / 2 end
  local data = block(out, name, {layer.values, layer.at, zero, layer.values, from, to, layer.low or layer.values, layer.high or layer.values})
  plots[#plots + 1] = ("%s using 1:2:3:4:5:6 with boxxyerror fc rgb '%s' fs solid 0.8 noborder %s"):format(data, layer.colour, titled(layer))
  if layer.low then plots[#plots + 1] = ("%s using 1:2:7:8 with xerrorbars lc rgb '%s' lw 1.2 pt 0 notitle"):format(data, INK) end
end

function draw.image(layer, name, out, plots)
  local stops = {}
  for i, colour in ipairs(PALETTE) do stops[i] = ("%g '%s'"):format((i - 1) / (#PALETTE - 1), colour) end
  out[#out + 1] = "set palette defined (" .. table.concat(stops, ", ") .. ")"
  out[#out + 1] = ("set cbrange [%s:%s]"):format(number(layer.least), number(layer.most))
  out[#out + 1] = ("set format cb '%s'"):format(formats[layer.unit] or "%g")
  out[#out + 1] = ("set cblabel %s offset character 1.2,0 textcolor rgb '%s'"):format(quoted(label_of(layer.label, layer.unit)), INK)
  out[#out + 1] = ("set colorbox; set cbtics nomirror out scale 0.5 textcolor rgb '%s'"):format(INK)
  local w, h, n = (layer.x1 - layer.x0) / layer.columns, (layer.y1 - layer.y0) / layer.rows, layer.rows * layer.columns
  out[#out + 1] = ("$%s << END"):format(name)
  for i = 0, layer.rows - 1 do
    local cells = {}
    for j = 1, layer.columns do
      local value = layer.z[i * layer.columns + j]
      cells[j] = value and number(value) or "NaN"
    end
    out[#out + 1] = table.concat(cells, " ")
  end
  out[#out + 1] = "END"
  local data = ("$%s matrix using (%s + %s * $1):(%s + %s * $2)"):format(name, number(layer.x0 + w / 2), number(w), number(layer.y0 + h / 2), number(h))
  if n <= 4096 then -- as rectangles, which no viewer smoothes
    plots[#plots + 1] = ("%s:(%s):(%s):3 with boxxyerror fc palette fs solid noborder notitle"):format(data, number(w / 2), number(h / 2))
  else
    plots[#plots + 1] = data .. ":3 with image notitle"
  end
  if not layer.text then return end
  local middle = (layer.least + layer.most) / 2
  for _, part in ipairs {{"<", "#ffffff"}, {">=", "#000000"}} do
    plots[#plots + 1] = ("%s:($3 %s %s ? sprintf('%s', $3) : '') with labels textcolor rgb '%s' notitle"):format(data,
      part[1], number(middle), layer.unit == "%" and "%.0f" or "%.3g", part[2])
  end
end

-- A straight line that the data are read against.
function draw.reference(layer, _, out)
  local from, to
  if layer.y then from, to = "graph 0, first " .. number(layer.y), "graph 1, first " .. number(layer.y)
  elseif layer.x then from, to = ("first %s, graph 0"):format(number(layer.x)), ("first %s, graph 1"):format(number(layer.x))
  else from, to = "graph 0, graph 0", "graph 1, graph 1" end
  out[#out + 1] = ("set arrow from %s to %s nohead lc rgb '%s' lw 1.2 dt 2 back"):format(from, to, "#555555")
  if layer.label then
    local at = layer.x and ("first %s, graph 1 offset 0,0.6 center"):format(number(layer.x)) or
      layer.y and ("graph 0.01, first %s offset 0,0.6 left"):format(number(layer.y)) or "graph 0.56, graph 0.5 left"
    out[#out + 1] = ("set label %s at %s textcolor rgb '#555555' font ',10'"):format(quoted(layer.label), at)
  end
end

-- Heights that matter, marked beside the map, which they would hide.
function draw.stripes(layer, _, out, plots)
  for _, stripe in ipairs(layer.list) do
    out[#out + 1] = ("set label %s at graph 1.003, first %s left textcolor rgb '%s' font ',9' front"):format(quoted "◀",
      number((stripe[1] + stripe[2]) / 2), layer.colour)
  end
  if layer.label then plots[#plots + 1] = ("keyentry with points pt %s lc rgb '%s' %s"):format(quoted "◀", layer.colour, titled(layer)) end
end

local function panel_commands(out, panel, number_of)
  out[#out + 1] = "unset arrow; unset label; unset colorbox"
  local title = panel.title or ""
  out[#out + 1] = ("set title %s font ':Bold,%d' textcolor rgb '%s'"):format(quoted(title), #title <= 60 and 14 or #title <= 75 and 12 or 10, INK)
  axis(out, "x", panel.x)
  axis(out, "y", panel.y)
  local labels, image = 0, false
  for _, layer in ipairs(panel.layers) do
    if layer.label and layer.kind ~= "reference" and layer.kind ~= "image" then labels = labels + 1 end
    image = image or layer.kind == "image"
  end
  local one = labels == 1 and #panel.layers == 1
  out[#out + 1] = (labels == 0 or one) and "set key off" or image and
    ("set key above right horizontal samplen 2 textcolor rgb '%s'"):format(INK) or
    ("set key outside right top Left reverse samplen 2 spacing 1.2 textcolor rgb '%s'"):format(INK)
  out[#out + 1] = image and "unset grid" or ("set grid %s back lt 1 dt solid lc rgb '%s' lw 1"):format(panel.grid or "ytics", GREY)
  local plots = {}
  for i, layer in ipairs(panel.layers) do draw[layer.kind](layer, ("p%dd%d"):format(number_of, i), out, plots) end
  out[#out + 1] = "plot " .. table.concat(plots, ", \\\n  ")
end

---- a figure ----

local PNG_FONT, SVG_FAMILY = "Sans,11", "DejaVu Sans,Helvetica,Arial,sans-serif"

local terminals = {
  png = ("set terminal pngcairo noenhanced background rgb 'white' size %%d,%%d font '%s'"):format(PNG_FONT),
  svg = ("set terminal svg noenhanced background rgb 'white' size %%d,%%d dynamic font '%s,13'"):format(SVG_FAMILY),
  pdf = ("set terminal pdfcairo noenhanced background rgb 'white' size %%g,%%g font '%s'"):format(PNG_FONT),
  sixel = "set terminal sixelgd noenhanced truecolor size %d,%d",
}

local CHARACTER, NAME_ROOM = 8, 50 -- pixels: of a name of a tick, and what stands left of all
local MOST_LEFT = 0.4              -- of the width

function M.commands(figure, kind)
  local width, height = figure.width, figure.height
  if kind == "pdf" then width, height = width / 96, height / 96 end -- inches
  local out = {"set encoding utf8", terminals[kind]:format(width, height), "set datafile missing 'NaN'",
    ("set border 3 lc rgb '%s' lw 1"):format(INK), "set style fill solid", "set bars 0.6"}
  local panels = figure.panels
  if #panels > 1 then out[#out + 1] = "set multiplot" end
  local total, above = 0, 0
  for _, panel in ipairs(panels) do total = total + (panel.share or 1) end
  local left, right = 0.11, 0.97
  for _, panel in ipairs(panels) do
    for _, name in ipairs(panel.y.names or {}) do left = math.max(left, (NAME_ROOM + CHARACTER * #name) / figure.width) end
    for _, layer in ipairs(panel.layers) do right = math.min(right, layer.kind == "image" and 0.84 or #panel.layers > 1 and 0.78 or 0.97) end
  end
  for i, panel in ipairs(panels) do
    if #panels > 1 then
      local top, bottom = 1 - above / total, 1 - (above + (panel.share or 1)) / total
      above = above + (panel.share or 1)
      out[#out + 1] = ("set lmargin at screen %g; set rmargin at screen %g"):format(math.min(left, MOST_LEFT), right)
      out[#out + 1] = ("set tmargin at screen %g; set bmargin at screen %g"):format(top - (panel.title and 44 or 10) / figure.height,
        bottom + (panel.x.label and 66 or 30) / figure.height)
    end
    panel_commands(out, panel, i)
  end
  if #panels > 1 then out[#out + 1] = "unset multiplot" end
  return table.concat(out, "\n") .. "\n"
end

---- the child process ----

local CLOEXEC = 1

local function file_in_memory()
  local fd = C.memfd_create("lsa.plot", CLOEXEC)
  if fd < 0 then raise("lsa.plot: no memory for a file (errno %d)", ffi.errno()) end
  return fd
end

local function write(fd, bytes)
  local at = 1
  while at <= #bytes do
    local n, why = unistd.write(fd, bytes:sub(at, at + 2 ^ 20 - 1))
    if not n then raise("lsa.plot: %s", why) end
    at = at + n
  end
  unistd.lseek(fd, 0, unistd.SEEK_SET)
end

local function read(fd)
  local parts = {}
  unistd.lseek(fd, 0, unistd.SEEK_SET)
  repeat
    local part, why = unistd.read(fd, 2 ^ 20)
    if not part then raise("lsa.plot: %s", why) end
    parts[#parts + 1] = part
  until part == ""
  return table.concat(parts)
end

-- Starts the program with these files as standard input, output and errors: its process, or nil and the error's number.
local function start(files)
  local actions, pid = ffi.new "uint64_t[64]", ffi.new "int[1]" -- more than any C library's posix_spawn_file_actions_t
  C.posix_spawn_file_actions_init(actions)
  for i, fd in ipairs(files) do C.posix_spawn_file_actions_adddup2(actions, fd, i - 1) end
  -- -d: no file of the user's that would change what comes out. A file that it opens itself is read in blocks, its standard input byte
  -- by byte.
  local argv = ffi.new("const char *[4]", {M.program, "-d", "/dev/stdin"})
  local rc = C.posix_spawnp(pid, M.program, actions, nil, ffi.cast("char *const *", argv), C.environ)
  C.posix_spawn_file_actions_destroy(actions)
  return rc == 0 and pid[0] or nil, rc
end

-- Waits for a process, which an error, Ctrl-C's among them, does not leave behind.
local function finish(pid)
  local ok, how, code = pcall(function()
    local found, reason, status
    repeat found, reason, status = wait.wait(pid) until found
    return reason, status
  end)
  if ok then return how, code end
  signal.kill(pid, signal.SIGKILL)
  wait.wait(pid)
  error(how, 0)
end

local ABSENT = "lsa.plot: there is no gnuplot to draw with; Debian's package gnuplot-nox has it: apt-get install gnuplot-nox"

local function run(files, commands)
  write(files[1], commands)
  local pid, rc = start(files)
  if not pid then
    if rc == 2 then raise(ABSENT) end
    raise("lsa.plot: %s cannot be started (errno %d)", M.program, rc)
  end
  local how, code = finish(pid)
  local out, errors = read(files[2]), read(files[3])
  if code == 127 then raise(ABSENT) end
  if code ~= 0 or out == "" then
    raise("lsa.plot: gnuplot %s %s: %s", how == "exited" and "ended with" or how, tostring(code), errors:gsub("%s+$", ""))
  end
  return out
end

local function with_files(commands)
  local files = {}
  local ok, result = pcall(function()
    for i = 1, 3 do files[i] = file_in_memory() end
    return run(files, commands)
  end)
  for _, fd in ipairs(files) do unistd.close(fd) end
  if not ok then error(result, 0) end
  return result
end

function M.picture(figure, kind)
  local bytes = with_files(M.commands(figure, kind))
  if kind ~= "svg" then return bytes end
  return (bytes:gsub('font%-family=":Bold"', ('font-family="%s" font-weight="bold"'):format(SVG_FAMILY))) -- as which gnuplot writes a bold font
end

return M
