-- A progress line for scripts, on stderr and only where that is a terminal; in a notebook a bar that moves.
--
--   local bar = require "lsa.progress"(#questions, "needles")
--   for _, question in ipairs(questions) do ask(question); bar:step() end
--   bar:done()
--
-- bar:step(n, note) adds n (default 1) and shows the note; bar:text() is the line.
local display = require "lsa.display"
local unistd = require "posix.unistd"
local C = require("lsa.ffi").C

local REDRAW_NS = 1e8
local BAR = 20

local HTML = '<div style="display:flex;align-items:center;gap:8px"><div style="width:160px;height:8px;border-radius:4px;' ..
  'background:rgba(128,128,128,0.25)"><div style="width:%.1f%%;height:8px;border-radius:4px;background:#0072b2"></div></div>' ..
  '<code style="background:none;font-size:90%%">%s</code></div>'

local Bar = {}
Bar.__index = Bar

local function now() return tonumber(C.lsa_clock_ns()) end

local function duration(seconds)
  if seconds < 3600 then return ("%d:%02d"):format(seconds / 60, seconds % 60) end
  return ("%d:%02d:%02d"):format(seconds / 3600, seconds / 60 % 60, seconds % 60)
end

local function rate(per_second)
  if per_second >= 1000 then return ("%.3g k/s"):format(per_second / 1000) end
  if per_second >= 1 then return ("%.3g/s"):format(per_second) end
  return ("%.3g s each"):format(1 / per_second)
end

local function share_of(self) return self.total > 0 and math.min(self.count / self.total, 1) or 1 end

-- How far, how fast, what is left, behind `first`.
local function words(self, first)
  local seconds, share, parts = (now() - self.began) / 1e9, share_of(self), {self.label ~= "" and self.label or nil}
  parts[#parts + 1] = ("%s%d/%d"):format(first, self.count, self.total)
  if self.count > 0 and seconds > 0 then
    parts[#parts + 1] = rate(self.count / seconds)
    if share < 1 then parts[#parts + 1] = duration(seconds / self.count * (self.total - self.count)) .. " left" end
  end
  if share >= 1 then parts[#parts + 1] = "took " .. duration(seconds) end
  if self.note then parts[#parts + 1] = self.note end
  return table.concat(parts, "  ")
end

-- label, how far, how fast, what is left.
function Bar:text()
  local full = math.floor(share_of(self) * BAR)
  return words(self, ("[%s%s] "):format(("#"):rep(full), ("."):rep(BAR - full)))
end

function Bar:__mime()
  return {["text/plain"] = self:text(), ["text/html"] = HTML:format(100 * share_of(self), display.escape(words(self, "")))}
end

local function draw(self)
  if display.front then self.shown = self.shown and self.shown:update(self) or display(self) end
  if self.terminal then io.stderr:write("\r", self:text(), "\27[K") end
end

function Bar:step(n, note)
  self.count = self.count + (n or 1)
  self.note = note or self.note
  local t = now()
  if t - self.drawn >= REDRAW_NS then
    self.drawn = t
    draw(self)
  end
end

-- Leaves the finished line.
function Bar:done()
  draw(self)
  if self.terminal then io.stderr:write "\n" end
end

return function(total, label)
  local t = now()
  return setmetatable({
    total = total, label = label or "", count = 0, began = t, drawn = t - REDRAW_NS, terminal = unistd.isatty(2) == 1,
  }, Bar)
end
