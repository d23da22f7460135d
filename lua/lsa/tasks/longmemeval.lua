-- Owns the LongMemEval task (D. Wu et al., "LongMemEval", 2024): questions about a user's many chats with an assistant. path: the published
-- longmemeval_s.json, longmemeval_m.json or longmemeval_oracle.json, objects of question_id, question_type, question, answer, question_date,
-- haystack_session_ids, haystack_dates, haystack_sessions (lists of turns {role, content, has_answer}) and answer_session_ids.
--
--   task = lsa.tasks.longmemeval{model = model, path = "longmemeval_s.json", n = 50, generate = false}      evidence alone
--
-- Evidence are the turns that have the answer, or the sessions that do where no turn is marked: its residency is scored without
-- generating. An item's kind is its question_type, or "abstention". The model writes a line of up to 64 tokens. Right is one in which the
-- answer's words stand in this order, without case, articles and punctuation, and of an abstention one that says that it is not known.
-- The benchmark's own grade is a judge's, a large model's: for its script, a row of questions has id (question_id) and said (hypothesis).
local file = require "lsa.tasks.file"
local options = require "lsa.options"
local raise = require "lsa.raise"

local M = {}

local MOST = 64

local UNKNOWN = {" not know ", " dont know ", " do not have ", " dont have ", " no information ", " not mention", " didnt mention ", " not provided ",
  " not enough ", " cannot ", " cant ", " unknown ", " never "}

local function says_unknown(text)
  local said = file.words(text)
  for _, phrase in ipairs(UNKNOWN) do
    if said:find(phrase, 1, true) then return true end
  end
  return false
end

local function list(item, name, where)
  if type(item[name]) ~= "table" then raise("%s: %s is %s; a list is wanted", where, name, options.shown(item[name])) end
  return item[name]
end

-- Places in the order of the dates ("2023/05/20 (Sat) 02:21"), in which the benchmark tells the chats: one of its files has them in another.
local function by_date(dates)
  local order = {}
  for i in ipairs(dates) do order[i] = i end
  table.sort(order, function(a, b)
    local of_a, of_b = tostring(dates[a]), tostring(dates[b])
    if of_a ~= of_b then return of_a < of_b end
    return a < b
  end)
  return order
end

-- The chats as text; bytes of the turns that have the answer, and of the sessions that do.
local function history(item, where)
  local sessions, dates, ids = list(item, "haystack_sessions", where), list(item, "haystack_dates", where), list(item, "haystack_session_ids", where)
  if #dates ~= #sessions or #ids ~= #sessions then
    raise("%s: %d haystack_sessions, %d haystack_dates, %d haystack_session_ids", where, #sessions, #dates, #ids)
  end
  local parts, size, turns, whole, wanted = {}, 0, {}, {}, {}
  for _, id in ipairs(list(item, "answer_session_ids", where)) do wanted[id] = true end
  local function add(text)
    parts[#parts + 1] = text
    size = size + #text
  end
  add "I will give you several history chats between you and a user. Please answer the question based on the relevant chat history.\n\n\nHistory Chats:\n"
  for i, place in ipairs(by_date(dates)) do
    local session, from = sessions[place], size
    add(("\n### Session %d:\nSession Date: %s\nSession Content:\n"):format(i, tostring(dates[place])))
    for j, turn in ipairs(type(session) == "table" and session or {}) do
      add(("\n%s: "):format(file.text(turn, "role", ("%s: session %d, turn %d"):format(where, place, j))))
      local at = size
      add(file.text(turn, "content", ("%s: session %d, turn %d"):format(where, place, j)):match "^%s*(.-)%s*$" .. "\n")
      if turn.has_answer == true and size > at + 1 then turns[#turns + 1] = {at, size - 1} end
    end
    if wanted[ids[place]] then whole[#whole + 1] = {from, size} end
  end
  return table.concat(parts), #turns > 0 and turns or whole
end

local function parse(item, where)
  local id, answer = file.text(item, "question_id", where), file.text(item, "answer", where)
  local abstains, text, spans = id:find "_abs$" ~= nil, history(item, where)
  return {text = text, spans = spans, id = id, kind = abstains and "abstention" or file.text(item, "question_type", where), most = MOST, answer = answer,
    question = ("\nCurrent Date: %s\nQuestion: %s"):format(file.text(item, "question_date", where), file.text(item, "question", where)), lead = "Answer:",
    score = abstains and says_unknown or function(said) return file.says(said, answer) end}
end

function M.task(model, opt) return file.task(model, opt, "longmemeval.task", parse) end

return M
