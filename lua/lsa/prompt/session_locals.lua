-- Lets locals of the prompt live on: rewrites a chunk's top-level `local` into assignments to session variables,
-- and makes the environment that holds them. Lines and what follows a name keep their places.
local M = {}

local opens = { ["function"] = 1, ["do"] = 1, ["if"] = 1, ["repeat"] = 1, ["end"] = -1, ["until"] = -1 }

-- The token at `at`: its kind ("name", "=", ... or "skip" for what does not matter here), and where it ends.
local function token(text, at)
  local level = text:match("^%-%-%[(=*)%[", at) or text:match("^%[(=*)%[", at)
  if level then
    local _, stop = text:find("]" .. level .. "]", at, true)
    return "skip", stop or #text
  end
  local _, stop = text:find("^%-%-[^\n]*", at)
  if not stop then _, stop = text:find("^%s+", at) end
  if stop then return "space", stop end
  _, stop = text:find("^[%a_][%w_]*", at)
  if stop then return "name", stop end
  _, stop = text:find("^%.?%d[%w_%.]*", at)
  if stop then return "skip", stop end
  local quote = text:match("^[\"']", at)
  if quote then
    local i = at + 1
    while i <= #text and text:sub(i, i) ~= quote do
      i = i + (text:sub(i, i) == "\\" and 2 or 1)
    end
    return "skip", math.min(i, #text)
  end
  return text:sub(at, at), at
end

-- All tokens but space, as {kind =, from =, to =, text =}; an unfinished string reaches to the end of the text.
function M.tokens(text)
  local list, at = {}, 1
  while at <= #text do
    local kind, stop = token(text, at)
    if kind ~= "space" then list[#list + 1] = { kind = kind, from = at, to = stop, text = text:sub(at, stop) } end
    at = stop + 1
  end
  return list
end

-- The chunk with its top-level locals made assignments, and the list of their names.
function M.lift(text)
  local list, names, edits, depth = M.tokens(text), {}, {}, 0
  for i, word in ipairs(list) do
    local next_word = list[i + 1]
    if word.kind == "name" then depth = depth + (opens[word.text] or 0) end
    if word.kind == "name" and word.text == "local" and depth == 0 and next_word and next_word.kind == "name" then
      edits[#edits + 1] = { from = word.from, to = word.to, text = "     " }
      if next_word.text == "function" then
        names[#names + 1] = list[i + 2] and list[i + 2].text
      else
        local last = i + 1
        names[#names + 1] = next_word.text
        while list[last + 1] and list[last + 1].kind == "," and list[last + 2] do
          last = last + 2
          names[#names + 1] = list[last].text
        end
        if not (list[last + 1] and list[last + 1].kind == "=") then
          edits[#edits + 1] = { from = list[last].to + 1, to = list[last].to, text = " = nil" }
        end
      end
    end
  end
  for i = #edits, 1, -1 do
    local edit = edits[i]
    text = text:sub(1, edit.from - 1) .. edit.text .. text:sub(edit.to + 1)
  end
  return text, names
end

local brackets = {["{"] = 1, ["("] = 1, ["["] = 1, ["}"] = -1, [")"] = -1, ["]"] = -1}

-- By how much a token deepens what it stands in.
function M.deepens(word)
  return word.kind == "name" and opens[word.text] or brackets[word.kind] or 0
end

-- How deep the text's end stands in blocks and brackets.
function M.depth(text)
  local depth = 0
  for _, word in ipairs(M.tokens(text)) do depth = math.max(0, depth + M.deepens(word)) end
  return depth
end

-- An environment in which declared names are the session's and all others are those of `outer`, the globals.
-- Returns it and declare(names).
function M.environment(outer)
  local declared, emptied = {}, {}
  outer = outer or _G
  local environment = setmetatable({}, {
    __names = function() return outer end,
    __index = function(_, name)
      if not emptied[name] then return outer[name] end
    end,
    __newindex = function(self, name, value)
      if not declared[name] then
        outer[name] = value
      else
        emptied[name] = value == nil or nil
        rawset(self, name, value)
      end
    end,
  })
  return environment, function(names)
    for _, name in ipairs(names) do declared[name] = true end
  end
end

return M
