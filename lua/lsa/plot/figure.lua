-- Owns plots as scripts have them: one panel or several above each other, to be saved, shown, and put into notebooks.
--
--   plot:save "recall.png"      by the file's ending: .png, .svg or .pdf; returns the plot
--   plot:show()                 in a notebook below the cell; on a terminal the picture where that can show one (kitty's protocol, sixel),
--                               else of characters. The prompt shows so what an expression gives
--   tostring(plot)              the picture of characters
--
-- A panel is {title =, x = axis, y = axis, layers = {…}, share = of the figure's height}; an axis {label =, unit =, log =, low =, high =
-- (its range), least =, most = (of the data), names = (of the places 0, 1, …, or of `at`)}. Layers are what lua/lsa/plot/gnuplot.lua draws.
local display = require "lsa.display"
local gnuplot = require "lsa.plot.gnuplot"
local options = require "lsa.options"
local raise = require "lsa.raise"
local replace = require "lsa.files.replace"
local text = require "lsa.plot.text"

local M = {}

local Figure = {}
Figure.__index = Figure

local WIDTH, HEIGHT = 900, 540

function Figure:save(path)
  options.path(path, "save: path")
  local kind = path:lower():match "%.(%w+)$"
  if kind ~= "png" and kind ~= "svg" and kind ~= "pdf" then raise("%s: a plot is saved as .png, .svg or .pdf", path) end
  replace.write(path, gnuplot.picture(self, kind))
  return self
end

function Figure:show()
  if display.front then
    display.show(self)
    return
  end
  local terminal = require "lsa.plot.terminal"
  local kind = terminal.kind()
  if kind then terminal.show(kind, gnuplot.picture(self, kind == "sixel" and "sixel" or "png")) else print(self) end
end

Figure.__show = Figure.show

function Figure:__tostring() return text.of(self) end

-- The forms of a plot that a notebook shows. A map of many cells is smaller as PNG than as SVG.
function Figure.__mime(self)
  local out = {["text/plain"] = tostring(self)}
  local ok, png = pcall(gnuplot.picture, self, "png")
  if not ok then return out end
  out["image/png"] = png
  local svg = gnuplot.picture(self, "svg")
  if #svg < 2 ^ 19 then out["image/svg+xml"] = svg end
  return out
end

function M.is(value) return getmetatable(value) == Figure end

-- size: {width, height} in pixels, or nil.
function M.new(panels, size, what)
  if size ~= nil then
    options.list(size, what .. ": size")
    options.whole(size[1], 100, what .. ": size[1]", 10000)
    options.whole(size[2], 100, what .. ": size[2]", 10000)
  end
  return setmetatable({panels = panels, width = size and size[1] or WIDTH, height = size and size[2] or HEIGHT}, Figure)
end

raise.kinds[#raise.kinds + 1] = {M.is, "a plot"}

require("lsa.arity").methods(Figure, "plot:")

return M
