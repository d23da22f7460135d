-- Owns plots as characters, for terminals that show no pictures, logs and pipes: lines and points as braille dots (two by four a
-- character), maps as shades, bars as blocks. Where there are several series each has a letter, at its last point and below.
local utf8 = require "lsa.text.utf8"

local M = {}

local WIDTH, HEIGHT = 64, 14       -- characters of a panel's inside
local SHADES = {[0] = " ", "░", "▒", "▓", "█"}
local DOTS = {{1, 8}, {2, 16}, {4, 32}, {64, 128}} -- of row and column in U+2800's block

local function length(words) return select(2, words:gsub("[^\128-\191]", "")) end

local function right(text, width) return (" "):rep(width - length(text)) .. text end
local function left(text, width) return text .. (" "):rep(width - length(text)) end

-- Texts of the user's on one line, without what a terminal would obey, and UTF-8.
local function plain(text)
  text = tostring(text)
  local bad = utf8.invalid(text, 1)
  while bad do
    text = text:sub(1, bad - 1) .. "?" .. text:sub(bad + 1)
    bad = utf8.invalid(text, bad)
  end
  return (text:gsub("[%z\1-\31\127]", " "):gsub("\194[\128-\159]", " "))
end

M.plain = plain

local function braille(dots) return string.char(0xE2, 0xA0 + math.floor(dots / 64), 0x80 + dots % 64) end

local prefixes = {{1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}, {1, ""}, {1e-3, "m"}, {1e-6, "µ"}, {1e-9, "n"}}

local function shown(value, unit)
  if unit == "B" or unit == "s" then
    for _, prefix in ipairs(prefixes) do
      if math.abs(value) >= prefix[1] and (unit == "s" or prefix[1] >= 1) then return ("%.3g %s%s"):format(value / prefix[1], prefix[2], unit) end
    end
    return ("%.3g %s"):format(value, unit)
  end
  if math.abs(value) >= 1000 and math.abs(value) < 1e7 then return ("%.0f"):format(value) end
  return ("%.3g%s"):format(value, unit == "%" and " %" or "")
end

---- ranges ----

local function scale(axis, size)
  local low, high = axis.low or axis.least, axis.high or axis.most
  local f = axis.log and math.log10 or function(v) return v end
  local a, b = f(low), f(high)
  if a == b then a, b = a - 0.5, b + 0.5 end
  return function(v)
    if axis.log and v <= 0 then return 0 end
    return math.floor((f(v) - a) / (b - a) * (size - 1) + 0.5)
  end, low, high
end

---- a canvas of dots ----

local Canvas = {}
Canvas.__index = Canvas

local function canvas()
  return setmetatable({dots = {}, over = {}}, Canvas)
end

function Canvas:dot(x, y)
  if x < 0 or y < 0 or x >= 2 * WIDTH or y >= 4 * HEIGHT then return end
  local column, row = math.floor(x / 2), HEIGHT - 1 - math.floor(y / 4)
  local at, value = row * WIDTH + column, DOTS[4 - y % 4][1 + x % 2]
  local old = self.dots[at] or 0
  if math.floor(old / value) % 2 == 0 then self.dots[at] = old + value end
end

function Canvas:line(x0, y0, x1, y1)
  local n = math.max(math.abs(x1 - x0), math.abs(y1 - y0), 1)
  for i = 0, n do
    self:dot(math.floor(x0 + (x1 - x0) * i / n + 0.5), math.floor(y0 + (y1 - y0) * i / n + 0.5))
  end
end

local function cell(x, y)
  local column, row = math.floor(x / 2), HEIGHT - 1 - math.floor(y / 4)
  return column >= 0 and row >= 0 and column < WIDTH and row < HEIGHT and row * WIDTH + column
end

-- A character in the place of dots; x and y as dots.
function Canvas:put(x, y, character)
  local at = cell(x, y)
  if at then self.over[at] = character end
end

function Canvas:taken(x, y) return self.over[cell(x, y)] ~= nil end

function Canvas:row(row)
  local out = {}
  for column = 0, WIDTH - 1 do
    local at = row * WIDTH + column
    out[column + 1] = self.over[at] or self.dots[at] and braille(self.dots[at]) or " "
  end
  return table.concat(out)
end

---- layers ----

local paint = {}

function paint.line(c, layer, x, y, letter)
  for i = 1, #layer.x do
    c:line(x(layer.x[math.max(1, i - 1)]), y(layer.y[math.max(1, i - 1)]), x(layer.x[i]), y(layer.y[i]))
  end
  local at = #layer.x
  while letter and at > 1 and c:taken(x(layer.x[at]), y(layer.y[at])) do at = at - 1 end -- where another's letter is not
  if letter then c:put(x(layer.x[at]), y(layer.y[at]), letter) end
end

function paint.points(c, layer, x, y, letter)
  for i = 1, #layer.x do
    if letter then c:put(x(layer.x[i]), y(layer.y[i]), letter) else c:dot(x(layer.x[i]), y(layer.y[i])) end
  end
end

function paint.boxes(c, layer, x, y)
  for i = 1, #layer.y do
    for column = x(layer.from[i]), math.max(x(layer.from[i]), x(layer.to[i]) - 1) do c:line(column, math.max(0, y(0)), column, y(layer.y[i])) end
  end
end

function paint.image(c, layer)
  local span = layer.most > layer.least and layer.most - layer.least or 1
  for row = 0, HEIGHT - 1 do
    for column = 0, WIDTH - 1 do
      local i, j = math.floor((HEIGHT - 1 - row + 0.5) / HEIGHT * layer.rows), math.floor((column + 0.5) / WIDTH * layer.columns)
      local value = layer.z[i * layer.columns + j + 1]
      c.over[row * WIDTH + column] = value and SHADES[math.floor((value - layer.least) / span * 4 + 0.5)] or "·"
    end
  end
end

function paint.reference(c, layer, x, y)
  for i = 0, 2 * WIDTH - 1, 4 do
    if layer.y then c:dot(i, y(layer.y)) elseif not layer.x then c:dot(i, math.floor(i * 2 * HEIGHT / WIDTH)) end
  end
  for i = 0, layer.x and 4 * HEIGHT - 1 or -1, 3 do c:dot(x(layer.x), i) end
end

function paint.stripes(c, layer, _, y)
  for _, stripe in ipairs(layer.list) do
    for at = y(stripe[1]), y(stripe[2]), 4 do c:put(2 * WIDTH - 1, at, "◄") end
  end
end

---- a panel ----

local TICKS = 4 -- round numbers beside an axis, and one more

-- Round numbers of a range, in steps of 1, 2 or 5 of a power of ten.
local function round_numbers(low, high)
  local step = 10 ^ math.floor(math.log10((high - low) / TICKS))
  local factor = 10
  for _, one in ipairs {5, 2, 1} do
    if (high - low) / (step * one) <= TICKS then factor = one end
  end
  local out, first = {}, math.ceil(low / (step * factor) - 1e-9)
  for i = first, math.floor(high / (step * factor) + 1e-9) do out[#out + 1] = i ~= 0 and i * step * factor or 0 end -- not -0
  return out
end

local function axis_name(axis)
  if not axis.label then return nil end
  return plain(axis.label) .. (axis.unit and not ({B = true, s = true, ["%"] = true})[axis.unit] and " (" .. plain(axis.unit) .. ")" or "")
end

local function name_at(axis, place)
  for i in ipairs(axis.names) do
    if (axis.at and axis.at[i] or i - 1) == place then return plain(axis.names[i]) end
  end
end

local function drawn(out, panel)
  local x, x_low, x_high = scale(panel.x, 2 * WIDTH)
  local y, y_low, y_high = scale(panel.y, 4 * HEIGHT)
  local c, legend, labelled = canvas(), {}, 0
  for _, layer in ipairs(panel.layers) do
    if layer.label and (layer.kind == "line" or layer.kind == "points") then labelled = labelled + 1 end
  end
  for _, layer in ipairs(panel.layers) do
    local letter
    if labelled > 1 and layer.label and (layer.kind == "line" or layer.kind == "points") then
      letter = string.char(97 + #legend % 26)
      legend[#legend + 1] = letter .. " " .. plain(layer.label)
    elseif layer.label and (layer.kind == "stripes" or layer.kind == "reference") then
      legend[#legend + 1] = (layer.kind == "stripes" and "◄ " or "⠂⠂ ") .. plain(layer.label)
    elseif layer.kind == "image" then
      legend[#legend + 1] = ("%s to █: %s to %s %s"):format("' '", shown(layer.least, layer.unit), shown(layer.most, layer.unit), plain(layer.label or ""))
    end
    paint[layer.kind](c, layer, x, y, letter)
  end
  local ticks = {}
  if panel.y.names then
    for i in ipairs(panel.y.names) do
      local at = panel.y.at and panel.y.at[i] or i - 1
      ticks[HEIGHT - 1 - math.floor(y(at) / 4)] = plain(panel.y.names[i])
    end
  elseif panel.y.log or not (y_high > y_low) then
    ticks[0], ticks[HEIGHT - 1] = shown(y_high, panel.y.unit), shown(y_low, panel.y.unit)
  else
    for _, at in ipairs(round_numbers(y_low, y_high)) do ticks[HEIGHT - 1 - math.floor(y(at) / 4)] = shown(at, panel.y.unit) end
  end
  local margin = 0
  for _, text in pairs(ticks) do margin = math.max(margin, length(text)) end
  if axis_name(panel.y) then out[#out + 1] = axis_name(panel.y) end
  for row = 0, HEIGHT - 1 do
    out[#out + 1] = (right(ticks[row] or "", margin) .. (ticks[row] and " ┤" or " │") .. c:row(row):gsub("[ ]+$", ""))
  end
  out[#out + 1] = (" "):rep(margin + 1) .. "└" .. ("─"):rep(WIDTH)
  local first, last = shown(x_low, panel.x.unit), shown(x_high, panel.x.unit)
  if panel.x.names then first, last = name_at(panel.x, 0) or "", name_at(panel.x, #panel.x.names - 1) or "" end
  local name = axis_name(panel.x) or ""
  local room = WIDTH - length(first) - length(last) - length(name)
  local before = math.max(1, math.floor(room / 2))
  out[#out + 1] = (" "):rep(margin + 2) .. first .. (" "):rep(before) .. name .. (" "):rep(math.max(1, room - before)) .. last
  if #legend > 0 then out[#out + 1] = (" "):rep(margin + 2) .. table.concat(legend, "   ") end
end

-- Bars as lines of text, which need no axes.
local function bars(out, panel)
  local names, margin, most, series = panel.y.names, 0, 0, 0
  for _, layer in ipairs(panel.layers) do
    if layer.kind == "bars" then
      series = series + 1
      for _, value in ipairs(layer.values) do most = math.max(most, value) end
    end
  end
  for _, name in ipairs(names) do margin = math.max(margin, length(plain(name))) end
  for i, name in ipairs(names) do
    local head = plain(name)
    for _, layer in ipairs(panel.layers) do
      if layer.kind == "bars" then
        local value = layer.values[i]
        local full = most > 0 and math.max(0, math.floor(value / most * (WIDTH - 16) + 0.5)) or 0
        out[#out + 1] = ("%s │%s %s%s"):format(left(head, margin), ("█"):rep(full), shown(value, panel.x.unit),
          series > 1 and "  " .. plain(layer.label or "") or "")
        head = ""
      end
    end
  end
  if axis_name(panel.x) then out[#out + 1] = (" "):rep(margin + 2) .. axis_name(panel.x) end
end

function M.of(figure)
  local out = {}
  for _, panel in ipairs(figure.panels) do
    if panel.title then out[#out + 1] = plain(panel.title) end
    local as_bars = false
    for _, layer in ipairs(panel.layers) do as_bars = as_bars or layer.kind == "bars" end
    if as_bars then bars(out, panel) else drawn(out, panel) end
  end
  return table.concat(out, "\n")
end

return M
