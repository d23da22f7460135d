-- Owns help: what there is to say about a value or a name. Nothing of it is written twice: calls that take options come from
-- topics.lua and the pages, rules from their files, kernels from their headers, all else from the comments in its source.
--
--   help.find(text, environment)     -> facts about what `text` names, or nil: a path like lsa.model or s:fork in the environment, a
--                                       rule, a kernel, an option, a page
--   help.names()                     -> the names of the latter, a table with them as keys; also of calls that have options, and tensors' ops
--   help.about(value, name)          -> facts about a value
--   help.text(facts, paint)          -> text;  help.source(facts) -> the source's text, or nil
--   help.overview()                  -> what there is at all
--   facts: title, signature, lines, options = {{name =, default =, text =}}, example, path, line, f
local arity = require "lsa.arity"
local inspect = require "lsa.prompt.inspect"
local lib = require "lsa.ffi"
local pages = require "lsa.prompt.pages"
local sources = require "lsa.prompt.sources"
local topics = require "lsa.prompt.topics"

local M = {}

local KINDS = {"policies", "evictions", "schedules", "samplers"}

local function index(object, key) return object[key] end

-- The value that a path names in the environment, without calling anything; nil where there is none.
function M.value_of(path, environment)
  local value, first = environment, true
  if not path:find "^[%a_]" then return nil end
  for name in path:gmatch "[^.:]+" do
    if not name:match "^[%a_][%w_]*$" then return nil end
    local ok, found = pcall(index, value, name)
    if not ok or found == nil then return nil end
    value, first = found, false
  end
  return not first and value or nil
end

local function from_root(path)
  return path:sub(1, #lib.root + 1) == lib.root .. "/" and path:sub(#lib.root + 2) or path
end

-- ---- what has options ----

-- Text of a page as a terminal shows it: without links and code marks.
local function unmarked(text) return (text:gsub("%[([^%]]*)%]%([^%)]*%)", "%1"):gsub("`", "")) end

local function default_text(default, row)
  if default then return inspect.literal(default) end
  return row and unmarked(row.default) or ""
end

-- Rows of a topic's options: the code has the names and defaults, the pages the words. Those that calls share are described once.
function M.options_of(topic)
  if not topic.defaults then return {} end
  local own, shared, list = pages.options(topic.name), topic.shares and pages.options "model:session" or {}, {}
  for name, default in pairs(topic.defaults()) do
    local row = own[name] or shared[name]
    list[#list + 1] = {name = name, default = default_text(default ~= true and default or false, row), text = row and unmarked(row.text) or ""}
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

local function of_topic(topic)
  local text, path, line = sources.text(topic.f())
  local example
  for _, one in ipairs(pages.examples(topic.page)) do
    if not example and one.text:find(topic.name:match "[.:].*$", 1, true) then example = one.text end
  end
  return {title = topic.name, signature = topic.call, lines = {topic.about}, options = M.options_of(topic), example = example, f = topic.f(),
    path = path, line = line, page = topic.page, source = text}
end

local function of_rule(rule)
  local options = {}
  for i, option in ipairs(rule:option_list()) do
    options[i] = {name = option.name, default = default_text(option.default), text = option.text}
  end
  local file = io.open(rule.path)
  local text = file and file:read "*a"
  if file then file:close() end
  return {title = rule.name, signature = ("a %s"):format(require("lsa.registry").singular[rule.kind] or rule.kind:gsub("s$", "")),
    lines = rule.header, options = options, example = rule:example(), path = rule.path, line = 1, source = text, page = rule.kind}
end

-- ---- what has a source ----

local function of_kernel(kernel)
  local path = ("%s/kernels/%s.h"):format(lib.root, kernel.name)
  local file = io.open(path)
  local lines, text = {}, file and file:read "*a"
  if file then file:close() end
  for comment in (text or ""):gmatch "/%*(.-)%*/" do
    for line in comment:gmatch "[^\n]+" do lines[#lines + 1] = line:gsub("^%s*%*? ?", "") end
    lines[#lines + 1] = ""
  end
  return {title = "lsa.kernels." .. kernel.name, signature = tostring(kernel), lines = lines, path = text and path, line = 1, source = text}
end

local function of_function(f, name)
  local text, path, line = sources.text(f)
  local short = name and name:match "[%w_]+$" or "function"
  local parameters = sources.parameters(f)
  if name and name:find ":" then parameters = parameters:gsub("^self,? ?", "") end
  local facts = {title = name or "function", signature = ("%s(%s)"):format(name or "function", parameters), f = f,
    path = path, line = line, source = text}
  if not path then
    facts.lines = {debug.getinfo(f, "S").what == "C" and "a function of C" or "a function that was typed"}
    return facts
  end
  facts.lines = sources.mentions(path, short)
  for _, comment in ipairs(sources.above(path, line)) do facts.lines[#facts.lines + 1] = comment end
  if path:find "/tasks/init%.lua$" then facts.lines = sources.header((path:gsub("init%.lua$", short .. ".lua"))) end
  if #facts.lines == 0 then facts.lines = pages.mentions(short) end
  return facts
end

-- The functions of an object, through its metatable.
local function methods_of(value)
  if type(value) == "cdata" then
    local ok, methods = pcall(index, value, "__methods")
    return ok and type(methods) == "table" and methods or nil
  end
  local meta = debug.getmetatable(value)
  local methods = type(meta) == "table" and rawget(meta, "__index")
  return type(methods) == "table" and methods or nil
end

-- The file of an object's class: where the shortest path to one of its methods leads, since parts of a class lie deeper.
local function file_of(methods)
  local best
  for _, f in pairs(methods) do
    local path = type(f) == "function" and debug.getinfo(arity.original(f), "S").source:match "^@(.*)"
    if path and path:sub(1, #lib.root) == lib.root and (not best or #path < #best or #path == #best and path < best) then best = path end
  end
  return best
end

local function of_object(value, name, methods)
  local path = require("lsa.tensor.tensor").is(value) and lib.root .. "/lua/lsa/tensor/tensor.lua" or file_of(methods)
  local lines = {}
  for line in (inspect.text(value) .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
  lines[#lines + 1] = ""
  for _, line in ipairs(path and sources.header(path) or {}) do lines[#lines + 1] = line end
  return {title = name or type(value), lines = lines, path = path, line = 1}
end

local function of_page(name)
  local text = pages.text(name)
  if not text then return nil end
  local lines = {}
  for line in text:gmatch "([^\n]*)\n" do lines[#lines + 1] = line end
  return {title = name, lines = lines, path = pages.path(name), line = 1}
end

function M.about(value, name)
  local catalogue = package.loaded["lsa.catalogue"]
  local kernels = package.loaded["lsa.tensor.kernels"]
  if catalogue and catalogue.is_rule(value) then return of_rule(value) end
  if kernels and type(value) == "table" and kernels[rawget(value, "name")] == value then return of_kernel(value) end
  if type(value) == "function" then
    local topic = topics.of(value)
    return topic and of_topic(topic) or of_function(value, name)
  end
  local methods = methods_of(value)
  if methods then return of_object(value, name, methods) end
  local meta = debug.getmetatable(value)
  local is_module = type(value) == "table" and name and not (type(meta) == "table" and meta.__tostring)
  local page = is_module and of_page(name:match "[%w_]+$")
  if page then return page end
  local lines = {}
  for line in (inspect.text(value) .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
  return {title = name or type(value), signature = "a " .. type(value), lines = lines}
end

-- ---- by name ----

local function of_option(name)
  local lines, options = {"an option of:"}, {}
  for _, topic in ipairs(topics.list) do
    for _, option in ipairs(M.options_of(topic)) do
      if option.name == name then
        lines[#lines + 1] = "  " .. topic.call
        if not options[1] or options[1].text == "" then options[1] = option end
      end
    end
  end
  if #lines == 1 then return nil end
  return {title = name, lines = lines, options = options}
end

local rooms = {"", "cycle/", "session/", "serve/", "train/", "files/", "text/", "tensor/", "tasks/"}

-- A module by its name, such as `cycle`, which policies are given; or what its header says of a field: `cycle.scores`.
local function of_module(text)
  local module, field = text:match "^([%a_][%w_]*)%.?([%w_]*)$"
  for _, room in ipairs(module and rooms or {}) do
    local path = ("%s/lua/lsa/%s%s.lua"):format(lib.root, room, module)
    local lines = sources.header(path)
    if #lines > 0 and field ~= "" then
      local about = {}
      for _, line in ipairs(lines) do
        if line:match "^%s*(.-)%s%s%s" and line:match "^%s*(.-)%s%s%s":find("%f[%w_]" .. field .. "%f[^%w_]") then about[#about + 1] = line end
      end
      lines = about
    end
    if #lines > 0 then return {title = text, lines = lines, path = path, line = 1} end
  end
end

function M.find(text, environment)
  text = text:match "^%s*[\"']?(.-)[\"']?%s*$"
  if text == "" then return nil end
  if topics[text] then return of_topic(topics[text]) end
  local value = M.value_of(text, environment)
  if value == nil then value = M.value_of(text, _G) end
  if value ~= nil then return M.about(value, text) end
  local lsa = require "lsa"
  for _, kind in ipairs(KINDS) do
    for _, name in ipairs(require "lsa.registry".names(kind)) do
      if name == text then return of_rule(lsa[kind][name]) end
    end
  end
  local ok, kernel = pcall(index, lsa.kernels, text)
  local zeros = lsa.zeros({1})
  local found, op = pcall(index, zeros, text)
  if found and type(op) == "function" then
    local facts = of_function(op, "x:" .. text)
    if ok and kernel ~= nil then facts.lines[#facts.lines + 1] = ("The kernel of that name: ?lsa.kernels.%s"):format(text) end
    return facts
  end
  if ok and kernel ~= nil then return of_kernel(kernel) end
  local member = M.value_of(text, {lsa = lsa}) or M.value_of("lsa." .. text, {lsa = lsa})
  if member ~= nil then return M.about(member, "lsa." .. text) end
  for _, topic in ipairs(topics.list) do
    if topic.name:match "[.:]([%w_]+)$" == text then return of_topic(topic) end
  end
  return of_option(text) or of_page(text) or of_module(text)
end

function M.names()
  local lsa, names = require "lsa", {}
  local function add(name) names[name] = true end
  for _, kind in ipairs(KINDS) do
    for _, name in ipairs(require "lsa.registry".names(kind)) do add(name) end
  end
  for _, kernel in pairs(lsa.kernels) do add(kernel.name) end
  for _, name in ipairs(pages.names()) do add(name) end
  for _, one in ipairs(topics.list) do
    add(one.name)
    for option in pairs(one.defaults and one.defaults() or {}) do add(option) end
  end
  for name in pairs(methods_of(lsa.zeros {1})) do
    if type(name) == "string" and name:sub(1, 1) ~= "_" then add(name) end
  end
  return names
end

-- ---- text ----

local WIDTH = 100

-- Words after `first`, broken so that lines go on below the first one's text.
local function wrapped(first, text, room)
  local lines, line = {}, first
  for word in text:gmatch "%S+" do
    if #line + 1 + #word > WIDTH and #line > room then
      lines[#lines + 1] = line
      line = (" "):rep(room) .. word
    else
      line = line .. (#line > room and " " or "") .. word
    end
  end
  lines[#lines + 1] = line
  return lines
end

local function option_lines(options)
  local out, names, defaults = {}, 0, 0
  for _, option in ipairs(options) do
    names = math.max(names, #option.name)
    if #option.default <= 14 then defaults = math.max(defaults, #option.default) end
  end
  for _, option in ipairs(options) do
    local text = #option.default > 14 and ("%s (default: %s)"):format(option.text, option.default) or option.text
    local shown = #option.default > 14 and "" or option.default
    local first = ("  %-" .. names .. "s  %-" .. defaults .. "s  "):format(option.name, shown)
    for _, line in ipairs(wrapped(first, text, #first)) do out[#out + 1] = (line:gsub("%s+$", "")) end
  end
  return out
end

local function plainly(text) return text end

-- paint(text) shows a heading.
function M.text(facts, paint)
  paint = paint or plainly
  local out = {}
  local function add(line) out[#out + 1] = line end
  add(paint(facts.title) .. (facts.signature and facts.signature ~= facts.title and "   " .. facts.signature or ""))
  for _, line in ipairs(facts.lines or {}) do add(line) end
  if facts.options and #facts.options > 0 then
    add(paint "options")
    for _, line in ipairs(option_lines(facts.options)) do add(line) end
  end
  if facts.example then
    add(paint "example")
    for line in (facts.example .. "\n"):gmatch "(.-)\n" do add("  " .. line) end
  end
  if facts.path then
    add(("%s %s:%d%s"):format(paint "file", from_root(facts.path), facts.line or 1,
      facts.page and pages.text(facts.page) and ("   page lua/docs/%s.md"):format(facts.page) or ""))
  end
  return table.concat(out, "\n")
end

function M.source(facts)
  if facts.source then return facts.source end
  if not facts.path then return nil end
  local file = io.open(facts.path)
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

function M.overview()
  local out = {"Help is there for everything by name: ?lsa.model, ?s:fork, ?h2o, ?softmax, ?budget; ??h2o is the source.", ""}
  for _, topic in ipairs(topics.list) do out[#out + 1] = ("  %-18s %s"):format(topic.name, topic.about) end
  out[#out + 1] = ""
  out[#out + 1] = "Rules:   lsa.policies  lsa.evictions  lsa.schedules  lsa.samplers      Tensors: ?tensors   Kernels: lsa.kernels"
  out[#out + 1] = "Prompt:  %magic lists its commands; In, Out and _ hold what was"
  out[#out + 1] = "Pages:   " .. table.concat(pages.names(), "  ")
  return table.concat(out, "\n")
end

return M
