-- Owns the needle-in-a-haystack task: statements hidden in real text, each asked again at the end, as RULER's
-- "niah" tasks have it (C.-P. Hsieh et al., "RULER", 2024).
local M = {}

M.statement = "The magic number for %s is: %s."
M.question = "The magic number for %s is: "

-- Lower-case words of 4 to 8 letters in a text, each once, sorted.
function M.words(text)
  local seen, words = {}, {}
  for word in text:gmatch "%f[%a]%l+%f[%A]" do
    if #word >= 4 and #word <= 8 and not seen[word] then
      seen[word] = true
      words[#words + 1] = word
    end
  end
  table.sort(words)
  return words
end

local function digits(rng, n)
  local out = {}
  for i = 1, n do out[i] = string.char(48 + rng(10)) end
  return table.concat(out)
end

-- A context of exactly `length` bytes with `n` needles at depths spread evenly with some chance, and what to ask.
--   text: where the haystack is cut from (repeated when too short)     words: for two-word keys
-- Returns {text =, needles = {{key =, value =, question =, answer =, statement =, at = its byte offset, context = the text}, …}}.
-- Each question is to be appended to the text; the answer is what follows.
function M.build(rng, text, words, length, n, value_digits)
  local needles, taken, total = {}, {}, 0
  for i = 1, n do
    local key
    repeat key = words[1 + rng(#words)] .. "-" .. words[1 + rng(#words)] until not taken[key]
    taken[key] = true
    local value = digits(rng, value_digits or 5)
    local statement = " " .. M.statement:format(key, value) .. " "
    total = total + #statement
    needles[i] = {key = key, value = value, statement = statement, question = " " .. M.question:format(key),
      answer = value}
  end
  local room = length - total
  if room < n then error(("needle: %d needles do not fit in %d bytes"):format(n, length), 2) end
  while #text < room do text = text .. text end
  local from = rng(#text - room + 1)
  local hay, parts, last = text:sub(from + 1, from + room), {}, 0
  local at = 0
  for i, needle in ipairs(needles) do
    local cut = math.floor(room * (i - 1 + rng()) / n)
    parts[#parts + 1] = hay:sub(last + 1, cut)
    at = at + cut - last
    needle.at = at
    parts[#parts + 1] = needle.statement
    at = at + #needle.statement
    last = cut
  end
  parts[#parts + 1] = hay:sub(last + 1)
  local whole = table.concat(parts)
  for _, needle in ipairs(needles) do needle.context = whole end
  return {text = whole, needles = needles}
end

-- The chunks that hold a part of a needle's statement, in a session whose context begins with the haystack: from .. to - 1.
function M.chunks(model, needle)
  local rate = tonumber(model.config.csa_rate)
  local from = #model:tokens(needle.context:sub(1, needle.at + 1))         -- a space comes before and after
  local to = #model:tokens(needle.context:sub(1, needle.at + #needle.statement - 1))
  return math.floor(from / rate), math.floor((to - 1) / rate) + 1
end

-- Asks one needle of a fork whose context is prefilled: the question's last token and the answer, as the model gives it,
-- are decoded, so every answer token is chosen under the fork's policy.
-- Returns whether the whole value came out, how many of its digits did before the first wrong one, and, as means over the
-- decoded steps, {evidence = the share of the statement's chunks that was resident, coverage = the share of what the native
-- top-k would pick that was}.
function M.ask(session, needle)
  local model = session.model
  local question = model:tokens(needle.question)
  local last = table.remove(question)
  session:prefill(question)
  local expected = model:tokens(needle.answer)
  local from, to = M.chunks(model, needle)
  local right, exact, evidence, coverage = 0, true, 0, 0
  local token = last
  for i = 1, #expected do
    token = session:decode(token):argmax()
    if token ~= expected[i] then exact = false end
    if exact then right = right + 1 end
    local resident = session:resident()
    for chunk = from, to - 1 do
      if resident:has(chunk) then evidence = evidence + 1 end
    end
    local covered, total = session:coverage()
    coverage = coverage + (total > 0 and covered / total or 1)
  end
  return exact, right, {evidence = evidence / (#expected * (to - from)), coverage = coverage / #expected}
end

return M
