-- Tab completion: what the end of what was typed may become. For the prompt and for notebooks.
--
--   list, from = complete.at(before, environment)    before: all that was typed up to the cursor. Each of the list stands in the
--                                                    place of before:sub(from)
--   complete.complete(text, environment)             of a name or a path alone: `lsa.kernels.to`, `x:su`
--
-- Names; within the braces of a call that has options (topics.lua), those and what they can be; within those of a rule, the rule's;
-- in strings what their option names – rules, formats, models – else files; after %run and ! files, too; after ? what has help.
--
-- Objects whose names cannot be seen from outside tell them: a metatable's `__names` is a table with them as keys, or a function
-- that gives a table or a list, and so is the field `__methods` of a C object.
local locals = require "lsa.prompt.session_locals"
local topics = require "lsa.prompt.topics"

local M = {}

local keywords = { "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "goto", "if", "in",
  "local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while" }

local MAX_CHAIN = 8

local function index(object, key) return object[key] end

local function add_names(found, names)
  if type(names) ~= "table" then return end
  for key, value in next, names do
    if type(key) == "number" and type(value) == "string" then key, value = value, true end
    if type(key) == "string" and found[key] == nil then found[key] = type(value) end
  end
end

-- Adds the string keys of `object` and of what its metatable leads to.
local function add_keys(found, object)
  if type(object) == "cdata" then
    local ok, methods = pcall(index, object, "__methods")
    object = ok and methods
  end
  for _ = 1, MAX_CHAIN do
    if type(object) == "table" then add_names(found, object) end
    local meta = debug.getmetatable(object)
    if type(meta) ~= "table" then return end
    local names = rawget(meta, "__names")
    add_names(found, type(names) == "function" and names(object) or names)
    object = rawget(meta, "__index")
    if type(object) ~= "table" then return end
  end
end

-- What `path` names, by its fields alone: nothing is called.
local function value_of(path, environment)
  local object, first = environment, true
  for name in path:gmatch "[^%.:]+" do
    local ok, value = pcall(index, object, name)
    if not ok or value == nil or not name:match "^[%a_][%w_]*$" then return nil end
    object, first = value, false
  end
  if first then return nil end
  return object
end

-- The sorted completions of `text`, each with the whole path in front.
function M.complete(text, environment)
  local path, separator, prefix = text:match "^(.*)([%.:])([%w_]*)$"
  local found = {}
  if path then
    local object = value_of(path, environment)
    if object == nil then return {} end
    add_keys(found, object)
  else
    path, separator, prefix = "", "", text
    add_keys(found, environment)
    add_keys(found, _G)
    for _, word in ipairs(keywords) do found[word] = "keyword" end
  end
  local list = {}
  for name, kind in pairs(found) do
    local fits = name:sub(1, #prefix) == prefix and name:match "^[%a_][%w_]*$"
    local hidden = name:sub(1, 1) == "_" and prefix == "" or separator == ":" and kind ~= "function"
    if fits and not hidden then list[#list + 1] = path .. separator .. name end
  end
  table.sort(list)
  return list
end

-- ---- where the cursor stands ----

-- The unclosed "{" and "(" before the place `last` of a list of tokens, the innermost first, as places in the list.
local function unclosed(list, last)
  local out, depth = {}, 0
  for i = last, 1, -1 do
    local kind = list[i].kind
    if kind == "}" or kind == ")" or kind == "]" then
      depth = depth + 1
    elseif kind == "{" or kind == "(" or kind == "[" then
      if depth == 0 then out[#out + 1] = i else depth = depth - 1 end
    end
  end
  return out
end

-- The path that ends at the place `last` of the tokens: "model:session".
local function path_before(list, last)
  local parts, want_name = {}, true
  for i = last, 1, -1 do
    local word = list[i]
    if word.kind ~= (want_name and "name" or word.kind) or not want_name and word.kind ~= "." and word.kind ~= ":" then break end
    table.insert(parts, 1, word.text)
    want_name = not want_name
  end
  return table.concat(parts)
end

-- The topic of the call whose brace or parenthesis opens at `at`.
local function topic_at(list, at, environment)
  local path = path_before(list, at - 1)
  if path == "" then return nil end
  local f = value_of(path, environment)
  local topic = type(f) == "function" and topics.of(f) or topics[path]
  local method = not topic and f == nil and path:match "[:.]([%w_]+)$"
  for _, one in ipairs(topics.list) do
    topic = topic or method and one.name:match "[:.]([%w_]+)$" == method and one or nil
  end
  return topic
end

-- The option whose value the brace at `at`, or a brace around it, belongs to: `select` of select = {"h2o", …
local function option_around(list, braces, i)
  for j = i, #braces do
    local at = braces[j]
    if list[at].kind ~= "{" then return nil end
    local before = list[at - 1]
    if before and before.kind == "=" and list[at - 2] and list[at - 2].kind == "name" then return list[at - 2].text end
    if not before or before.kind ~= "," and before.kind ~= "{" then return nil end
  end
end

local function unquoted(text) return text:match "^[\"'](.*)[\"']$" end

local function rule_options(kind, name)
  local registry = require "lsa.registry"
  for _, one in ipairs(kind and {kind} or {"policies", "evictions", "schedules", "samplers"}) do
    local ok, found = pcall(registry.options, one, name)
    if ok and found then return found end
  end
end

-- Names of options where the cursor is at a key of a table with options; nil elsewhere.
local function option_names(list, last, environment)
  local braces = unclosed(list, last)
  local at = braces[1]
  if not at or list[at].kind ~= "{" or not (list[last].kind == "{" or list[last].kind == "," or list[last].kind == ";") then return nil end
  local first = list[at + 1]
  local rule = at < last and first and first.kind == "skip" and unquoted(first.text)
  if rule then
    local option = option_around(list, braces, 1)
    local kind = option and topics.values[option]
    return rule_options(type(kind) == "string" and kind or nil, rule)
  end
  local before = list[at - 1]
  local call = at
  if before and (before.kind == "(" or before.kind == ",") then call = braces[2] end
  local topic = call and topic_at(list, call, environment)
  return topic and topic.defaults and topic.defaults()
end

-- ---- strings ----

-- Names that begin with `prefix`, of a folder's files; folders with their slash.
local function file_names(prefix)
  local folder, start = prefix:match "^(.*/)([^/]*)$"
  folder, start = folder or "", start or prefix
  local where = folder:gsub("^~/", (os.getenv "HOME" or "~") .. "/")
  local ok, names = pcall(require "posix.dirent".dir, where == "" and "." or where)
  local stat, list = require "posix.sys.stat", {}
  for _, name in ipairs(ok and names or {}) do
    if name:sub(1, #start) == start and (start ~= "" or name:sub(1, 1) ~= ".") and name ~= "." and name ~= ".." then
      local found = stat.stat(where .. name)
      local is_folder = found and stat.S_ISDIR(found.st_mode) ~= 0
      list[#list + 1] = folder .. name .. (is_folder and "/" or "")
    end
  end
  table.sort(list)
  return list
end

local function choices(kind)
  if type(kind) == "table" then return kind end
  if kind == "models" then return require "lsa.model".names() end
  return kind and require "lsa.registry".names(kind) or {}
end

local function fitting(names, prefix)
  local list = {}
  for _, name in ipairs(names) do
    if name:sub(1, #prefix) == prefix then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

-- What the string, the token after `last`, may be: by its option, or by the call that it is given to; else files.
local function strings(list, last, prefix, environment)
  local word, kind = list[last], nil
  if word and word.kind == "=" and list[last - 1] and list[last - 1].kind == "name" then
    kind = topics.values[list[last - 1].text]
  elseif word and (word.kind == "{" or word.kind == ",") then
    local braces = unclosed(list, last)
    local option = option_around(list, braces, 1)
    kind = option and topics.values[option]
  elseif word and (word.kind == "name" or word.kind == "(") then
    local path = path_before(list, word.kind == "(" and last - 1 or last)
    kind = (path == "lsa.model" or topics.of(value_of(path, environment)) == topics["lsa.model"]) and "models"
  end
  local named = fitting(choices(kind), prefix)
  return #named > 0 and named or file_names(prefix)
end

-- What there may be help for: names of values, and what help knows by name alone.
local function helped(word, environment)
  local found, list = {}, M.complete(word, environment)
  for _, name in ipairs(list) do found[name] = true end
  for name in pairs(require "lsa.prompt.help".names()) do
    if name:sub(1, #word) == word and not found[name] then list[#list + 1] = name end
  end
  table.sort(list)
  return list
end

function M.at(before, environment)
  local asked = before:match "^%s*%??%?([%w_.:]*)$"
  if asked then return helped(asked, environment), #before - #asked + 1 end
  local word = before:find "^%s*[%%!]" and before:match "%S*$"
  if word then
    if before:find "^%s*%%%a*$" then return fitting(require "lsa.prompt.commands".names(), word), #before - #word + 1 end
    if before:find "^%s*!" or before:find "^%s*%%%a+%s" and not before:find "^%s*%%time" and not before:find "^%s*%%bench" then
      return file_names(word:gsub("^!", "")), #before - #word:gsub("^!", "") + 1
    end
  end
  local list = locals.tokens(before)
  local last = list[#list]
  if last and last.kind == "skip" and last.to == #before and last.text:find "^[\"']" and not (#last.text > 1 and unquoted(last.text)) then
    return strings(list, #list - 1, last.text:sub(2), environment), last.from + 1
  end
  local text = before:match "[%w_.:]*$"
  if last and last.kind == "skip" and last.to == #before and text ~= "" and not text:find "^[%a_]" then return {}, #before + 1 end
  local from = #before - #text + 1
  local names = text:find "^[%w_]*$" and list[1] and option_names(list, #list - (text == "" and 0 or 1), environment)
  if names then
    local keys = {}
    for name in pairs(names) do keys[#keys + 1] = name end
    local found = fitting(keys, text)
    if #found > 0 then
      for i, name in ipairs(found) do found[i] = name .. " = " end
      return found, from
    end
  end
  return M.complete(text, environment), from
end

return M
