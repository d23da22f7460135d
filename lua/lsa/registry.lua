-- Owns how a script's policy is found: by name in lua/lsa/<kind>/NAME.lua, as any file, or as a function.
-- Being there is being registered. A file that changes on disk is loaded anew by entry:refresh(), which says so once; a version
-- that does not load leaves the previous one in force and says why once.
--
--   entry = registry.open("policies", "recency")                 lua/lsa/policies/recency.lua
--   entry = registry.open("policies", {"random", seed = 7})      with options: entry.opt.seed
--   entry = registry.open("policies", "my/policy.lua")           a file of the user's
--   entry = registry.open("policies", function(cycle, opt) … end)
--   entry.fn(cycle, entry.opt)      entry:refresh() -> true when a new version took over
--   ok, result = entry:call(cycle)  pcall of fn(cycle, entry.opt) whose error names file and line
--   registry.names "policies"       sorted names
--   registry.options("policies", "h2o")      its options with their defaults, or nil where its file does not tell
--
-- A file may return its options with their defaults as a second value (false: none): then others are an error, and what is not given
-- is filled in. Of a rule without it, an option that its text never reads is warned of once.
--
-- A version of a file is loaded once, as require does, and the JIT's work with it: what a policy remembers
-- belongs in cycle.state or in the eviction object, for a file's own local variables serve all its users.
local options = require "lsa.options"
local raise = require "lsa.raise"

local M = {}

-- This file is <M.home>/registry.lua; the kinds are directories beside it.
M.home = debug.getinfo(1, "S").source:match "^@(.*)/registry%.lua$" or "lua/lsa"

-- What an entry of each kind is called in messages; a kind not listed is called by its directory's name.
M.singular = {policies = "policy", evictions = "eviction policy", schedules = "schedule"}

local heard = {} -- kinds of warnings: their places, and their words without numbers

-- Where it is reported what a rule does wrong; replaceable. A kind of the same rule's is said once, however many sessions have it.
function M.warn(text)
  local place, words = text:match "^(lsa: [^:\n]*:%d+:)(.*)$"
  local kind = (place or "") .. (words or text):gsub("%-?%d[%w.]*", "#"):gsub("%s+", " ")
  if heard[kind] then return end
  heard[kind] = true
  io.stderr:write(text, "\n")
end

-- What comes is said again: for a new statement at the prompt, and a rule's new version.
function M.forget() heard = {} end

-- Where it is said that a new version is in force.
function M.announce(text)
  io.stderr:write(text, "\n")
end

local Entry = {}
Entry.__index = Entry

local function singular(kind)
  return M.singular[kind] or kind
end

-- The file's text, or nil and why.
local function read(path)
  local file, why = io.open(path, "rb")
  if not file then return nil, why end
  local text, problem = file:read "*a"
  file:close()
  if not text then return nil, path .. ": " .. problem end
  return text
end

-- Lua shortens a long chunk name in messages; this puts the whole path back.
local function whole(text, path)
  local short = debug.getinfo(loadstring("", "@" .. path), "S").short_src
  if short == path then return text end
  return (text:gsub(short:gsub("%p", "%%%0"), (path:gsub("%%", "%%%%"))))
end

-- An error's text with a position in `path`, as xpcall's handler wants it: unchanged when it names one,
-- else after the innermost line of that file on the stack. Without a path, any Lua line will do.
function M.located(e, path)
  local text = tostring(e)
  if path then
    text = whole(text, path)
    if text:find(path .. ":", 1, true) then return text end
  elseif text:find "^[^\n]-:%d+: " then
    return text
  end
  local own = debug.getinfo(1, "S").source
  for level = 2, 250 do
    local info = debug.getinfo(level, "Sl")
    if not info then break end
    local here = info.source ~= own and info.currentline > 0
    if here and (not path or info.source == "@" .. path) then
      return ("%s:%d: %s"):format(path or info.short_src, info.currentline, text)
    end
  end
  return text
end

-- Whether a rule of file `path` is the library's own.
function M.is_built_in(path) return path ~= nil and path:sub(1, #M.home + 1) == M.home .. "/" end

-- f(…), a rule of file `path` or what calls one: true and its results, or false and a message that names the file and line. A
-- script's rule may take for ever, so Ctrl-C reaches it in the middle of a masked change, too.
function M.protected(path, f, ...)
  local function located(e) return M.located(e, path) end
  if M.is_built_in(path) then return raise.calling(f, located, ...) end
  return raise.calling_unmasked(f, located, ...)
end

-- Loaded files by path: {text =, fn =, defaults =}.
local loaded = {}

-- Runs a policy file's text: the function that it returns and its options, or nil and a message with file and line.
local function evaluate(kind, path, text)
  local known = loaded[path]
  if known and known.text == text then return known.fn, known.defaults end
  if text:byte(1) == 27 then return nil, path .. ": bytecode, where Lua source is expected" end
  local chunk, why = loadstring(text, "@" .. path)
  if not chunk then return nil, whole(why, path) end
  local ok, fn, defaults = M.protected(path, chunk)
  if not ok then return nil, fn end
  if type(fn) ~= "function" then
    return nil, ("%s: a file that is a %s returns a function, this one returns %s"):format(
      path, singular(kind), fn == nil and "nothing" or "a " .. type(fn))
  end
  if defaults ~= nil and type(defaults) ~= "table" then
    return nil, ("%s: the second value of a %s is its options with their defaults, {name = value}; this is a %s"):format(
      path, singular(kind), type(defaults))
  end
  loaded[path] = {text = text, fn = fn, defaults = defaults}
  return fn, defaults
end

-- The names that a kind has, sorted.
function M.names(kind)
  local names = {}
  local there, files = pcall(require("posix.dirent").dir, M.home .. "/" .. kind)
  for _, file in ipairs(there and files or {}) do names[#names + 1] = file:match "^([%w_][%w_%-]*)%.lua$" end
  table.sort(names)
  return names
end

-- The path that a name or file stands for, or nil and a message.
local function locate(kind, name)
  if name:find "^[%w_][%w_%-]*$" then
    local path = M.home .. "/" .. kind .. "/" .. name .. ".lua"
    if read(path) then return path end
  elseif name:find("/", 1, true) or name:find "%.lua$" then
    local text, why = read(name)
    if text then return name end
    return nil, ("%s: %s"):format(singular(kind), why)
  end
  local list, names = M.names(kind), {}
  for _, one in ipairs(list) do names[one] = true end
  return nil, ("no %s '%s'; there are: %s; or give a file (name.lua) or a function%s"):format(
    singular(kind), name, #list == 0 and "none" or table.concat(list, ", "), require "lsa.nearest".hint(name, names))
end

-- What a rule that declares nothing does with its options shows in its text alone: one that its last parameter is never asked for
-- by name is said once. A rule that hands that parameter on, or walks it, may read any.
local told = setmetatable({}, {__mode = "k"})

local function warn_of_unread(fn, opt, text, called)
  if told[fn] or not next(opt) or not text then return end
  told[fn] = true
  local info = debug.getinfo(fn, "S")
  local lines, at = {}, 0
  for line in (text .. "\n"):gmatch "(.-)\n" do
    at = at + 1
    if at >= info.linedefined and at <= info.lastlinedefined then lines[#lines + 1] = line:gsub("%-%-.*", "") end
  end
  local name, last = nil, 0
  repeat
    last = last + 1
    local following = debug.getlocal(fn, last)
    name = following or name
  until not following
  local body = table.concat(lines, "\n"):gsub("function%s*[%w_.:]*%s*%b()", "", 1)
  for use in body:gmatch("%f[%w_]" .. (name or "opt") .. "%f[^%w_]%s*(..?)") do
    if not use:find "^%." and not use:find "^%[[\"']" then return end
  end
  if body:find "%.%.%." then return end
  local unread = {}
  for option in pairs(opt) do
    local word = tostring(option):gsub("%p", "%%%0")
    if not body:find("[%.\"']" .. word .. "%f[^%w_]") then unread[#unread + 1] = tostring(option) end
  end
  table.sort(unread)
  if #unread > 0 then M.warn(("lsa: %s never reads the option %s"):format(called, table.concat(unread, ", "))) end
end

-- The specifications that a policy's `of` holds: one, or a list of them.
local function check_nested(of)
  if type(of) == "table" and (of[2] ~= nil or type(of[1]) == "table") then
    for _, one in ipairs(of) do M.open("policies", one) end
  elseif type(of) == "string" or type(of) == "table" then
    M.open("policies", of)
  end
end

-- The options that a rule is called with: those given, checked and filled in where the rule declares its own.
local function options_of(entry, defaults)
  if not defaults then return options.copy(entry.given) end
  local opt = options.check(entry.given, defaults, ("%s %s"):format(singular(entry.kind), entry.name))
  if entry.kind == "policies" and entry.given.of ~= nil then check_nested(entry.given.of) end
  return opt
end

-- The options of a rule by name or file with their defaults; nil where it does not tell.
function M.options(kind, name)
  local path, why = locate(kind, name)
  if not path then raise(why) end
  local fn, defaults = evaluate(kind, path, assert(read(path)))
  if not fn then error(defaults, 0) end
  return defaults and options.copy(defaults)
end

-- Opens `spec`: a name, a file's path, a function, or {any of these, option = value, …}.
function M.open(kind, spec)
  local what, opt = spec, {}
  if type(spec) == "table" then
    what = spec[1]
    for key, value in pairs(spec) do
      if key ~= 1 then opt[key] = value end
    end
  end
  local entry = setmetatable({kind = kind, opt = opt, given = options.copy(opt)}, Entry)
  if type(what) == "function" then
    local info = debug.getinfo(what, "S")
    entry.fn, entry.name = what, raise.place(what)
    entry.source = info.source:match "^@(.*)"
    warn_of_unread(what, opt, entry.source and read(entry.source), "the " .. entry.name)
    return entry
  end
  if type(what) ~= "string" then
    raise("a %s is a name, a file, a function, or {one of these, option = value}; this is a %s%s",
      singular(kind), type(what), type(spec) == "table" and " at [1] of a table" or "")
  end
  local path, why = locate(kind, what)
  if not path then raise(why) end
  local text = assert(read(path))
  local fn, defaults = evaluate(kind, path, text)
  if not fn then error(defaults, 0) end
  entry.fn, entry.name, entry.path, entry.source, entry.text = fn, what, path, path, text
  entry.opt = options_of(entry, defaults)
  if not defaults then warn_of_unread(fn, opt, text, entry:called()) end
  return entry
end

local announced = {} -- path -> the text that was said to be in force

-- Loads the file anew when its bytes changed, which is said. Returns true when a new version took over.
function Entry:refresh()
  if not self.path then return false end
  local text, why = read(self.path)
  if text == self.text then
    self.complained = nil
    return false
  end
  local fn, defaults, opt
  if text then
    fn, defaults = evaluate(self.kind, self.path, text)
    why = defaults
  end
  if fn then
    local ok, checked = pcall(options_of, self, defaults)
    if ok then
      opt = checked
      if not defaults then warn_of_unread(fn, opt, text, self:called()) end
    else
      fn, why = nil, ("%s: %s"):format(self.path, raise.words(checked))
    end
  end
  if not fn then
    if self.complained ~= (text or why) then
      self.complained = text or why
      M.warn(("lsa: %s; the previous version stays in force"):format(why))
    end
    return false
  end
  self.fn, self.opt, self.text, self.complained = fn, opt, text, nil
  if announced[self.path] ~= text then -- once, however many use it
    announced[self.path] = text
    M.forget()
    M.announce(("lsa: %s has changed; the new version is in force"):format(self.path))
  end
  return true
end

-- fn(…, opt) in protected mode: true and its results, or false and a message that names file and line.
function Entry:call(...)
  local n, args = select("#", ...), {...}
  args[n + 1] = self.opt
  return M.protected(self.source, self.fn, unpack(args, 1, n + 1))
end

-- How a message calls it that begins with its place.
function Entry:called() return self.path and singular(self.kind) .. " " .. self.name or "the " .. singular(self.kind) end

-- What is wrong with the rule's answer, as a message that names where the rule is: nothing of it is on the stack any more.
function Entry:blame(problem)
  local info = debug.getinfo(self.fn, "S")
  local at = ("%s:%d: "):format(self.path or info.short_src, info.linedefined)
  local text = raise.words(problem)
  return text:sub(1, #at) == at and text or at .. text
end

-- The same policy under other options.
function Entry:with(opt)
  local spec = {self.path or self.fn}
  for key, value in pairs(opt) do spec[key] = value end
  return M.open(self.kind, spec)
end

function Entry:__tostring()
  return ("%s %s%s"):format(singular(self.kind), self.name, self.path and self.path ~= self.name and
    " (" .. self.path .. ")" or "")
end

return M
