-- A Jupyter kernel: answers a front end's messages with what the prompt makes of them. `lsa.notebook.channels` is the other
-- thread, which goes on while a cell runs. https://jupyter-client.readthedocs.io/en/stable/messaging.html
local cjson = require "cjson"
local commands = require "lsa.prompt.commands"
local display = require "lsa.display"
local fcntl = require "posix.fcntl"
local histories = require "lsa.notebook.history"
local host = require "lsa.host"
local interrupts = require "lsa.interrupts"
local locals = require "lsa.prompt.session_locals"
local messages = require "lsa.notebook.messages"
local repl = require "lsa.prompt.repl"
local sockets = require "lsa.notebook.sockets"
local state_folder = require "lsa.prompt.state_folder"
local trace = require "lsa.prompt.traceback"
local unistd = require "posix.unistd"
local version = require "lsa.version"
local words = require "lsa.notebook.words"

local M = {}

local ENDPOINT = "inproc://channels"
local FOREVER, QUEUED_MS, INDENT = -1, 20, 2

local session, context, shell, channels, standard_input
local current          -- the message that is being answered
local count, history = 0, nil
local ending = false   -- a front end asked for the end

-- ---- what is sent ----

local controls = {} -- control messages that wait to be answered

-- Whole, whatever interrupts the cell that sends. What the cell writes afterwards must not overtake it in the pipes, hence the
-- wait for the other thread's answer.
local send = interrupts.method(function(what, frames)
  host.flush()
  table.insert(frames, 1, what)
  channels:send(frames)
  while true do
    sockets.wait({channels}, FOREVER)
    local answer = channels:receive()
    if answer and answer[1] == "done" then return end
    controls[#controls + 1] = answer
  end
end)

local function publish(kind, content)
  send("publish", session:frames(kind, content, current and current.header))
end

local function reply(message, kind, content)
  content.status = content.status or "ok"
  local frames = session:frames(kind, content, message.header, message.to)
  if message.channel == "control" then send("control", frames) else shell:send(frames) end
end

-- ---- rich output ----

-- Bytes as messages have them: text as UTF-8, pictures as base64.
local function in_json(representations)
  local data = {}
  for kind, bytes in pairs(representations) do
    local is_text = kind:find "^text/" or kind:find "%+xml$" or kind:find "json$"
    data[kind] = is_text and messages.text(bytes) or messages.base64(bytes)
  end
  return data
end

local shown = 0

local front = {}

function front.show(representations)
  shown = shown + 1
  local name = session.prefix .. "_" .. shown
  publish("display_data", {data = in_json(representations), metadata = {}, transient = {display_id = name}})
  return name
end

function front.update(name, representations)
  publish("update_display_data", {data = in_json(representations), metadata = {}, transient = {display_id = name}})
end

function front.clear(wait) publish("clear_output", {wait = wait}) end

-- ---- standard input ----

local function ask()
  if not current or not current.content.allow_stdin then error("this front end does not ask for input", 0) end
  while standard_input:receive() do end -- answers that came too late
  host.flush()
  standard_input:send(session:frames("input_request", {prompt = "", password = false}, current.header, current.to))
  while true do
    sockets.wait({standard_input}, FOREVER)
    local frames = standard_input:receive()
    local message = frames and session:message(frames)
    if message and message.kind == "input_reply" then return tostring(message.content.value or "") end
  end
end

-- ---- execution ----

-- The prompt that cells are typed at: what it would print is kept, to be shown when the cell has ended.
local prompt = repl.new()
repl.furnish(prompt)

function prompt:show(run, quiet)
  local function kept(...)
    local values = {n = select("#", ...), ...}
    if values.n == 0 then return end
    if values[1] ~= nil then
      rawset(_G, "___", rawget(_G, "__"))
      rawset(_G, "__", rawget(_G, "_"))
      rawset(_G, "_", values[1])
      self.outputs[self.number] = values[1]
    end
    for i = 1, quiet and 0 or values.n do self.values[#self.values + 1] = display.representations(values[i]) end
  end
  kept(run())
end

local RED, PLAIN = "\27[31m", "\27[0m"

local function failure(name, text)
  text = messages.text(text)
  local first, rest = text:match "^([^\n]*)\n?(.*)$"
  local lines = {RED .. first .. PLAIN}
  for line in rest:gmatch "[^\n]+" do lines[#lines + 1] = line end
  return {status = "error", ename = name, evalue = first, traceback = messages.list(lines)}
end

-- Runs code: the representations of its values, or nil and the content of an error.
local function evaluate(code, name)
  local run, problem, quiet
  if not commands.is_one(code) then
    run, problem, quiet = prompt:compile(code, name)
    if not run then return nil, failure("syntax", problem) end
  end
  prompt.values = {}
  local ok, result, interrupted = host.call("prompt", function()
    if run then prompt:show(run, quiet) else commands.run(code, prompt) end
  end)
  if prompt.after then prompt.after() end
  if prompt.then_run then
    prompt.then_run = nil
    return nil, failure("error", "a notebook has no prompt for that")
  end
  if ok or prompt.left == 0 then
    prompt.left = nil
    return prompt.values
  end
  prompt.left = nil
  if not run and not interrupted and commands.complaint then return nil, failure("error", commands.complaint) end
  result = trace.trim((result:gsub("\n\t[^\n]*/lua/lsa/notebook/kernel%.lua:.*$", "")))
  return nil, failure(interrupted and "interrupted" or "error", result)
end

local function user_expressions(expressions)
  local out = {}
  for name, code in pairs(type(expressions) == "table" and expressions or {}) do
    local values, problem = evaluate(code, "=" .. name)
    out[name] = values and {status = "ok", data = in_json(values[1] or {["text/plain"] = ""}), metadata = {}} or problem
  end
  return out
end

-- What the front end sent behind a cell that failed, before it was told so.
local function receive_queued()
  local list = {}
  local frames = sockets.wait({shell}, QUEUED_MS)[1] and shell:receive()
  while frames do
    list[#list + 1] = frames
    frames = shell:receive()
  end
  return list
end

local answers = {}

function answers.execute_request(message)
  local content = message.content
  local code, silent = content.code, content.silent == true
  local stored = content.store_history ~= false and not silent
  local cell
  send("parent", {message.header})
  if stored then
    count = count + 1
    cell = history:add(count, code)
    prompt.number, prompt.inputs[count] = count, code
  end
  if not silent then publish("execute_input", {code = code, execution_count = count}) end
  local payload = {}
  if code:match "^%s*exit%s*$" or code:match "^%s*quit%s*$" then
    payload[1] = {source = "ask_exit", keepkernel = false}
    code = ""
  end
  local values, problem = evaluate(code, ("=In[%d]"):format(count))
  local behind = problem and content.stop_on_error ~= false and receive_queued() or {}
  local answer = problem or {}
  answer.execution_count = count
  if problem then
    if not silent then publish("error", {ename = problem.ename, evalue = problem.evalue, traceback = problem.traceback}) end
  else
    for i, representations in ipairs(silent and {} or values) do
      local data = in_json(representations)
      if i == #values then
        if stored then cell[4] = data["text/plain"] end
        publish("execute_result", {execution_count = count, data = data, metadata = {}})
      else
        publish("display_data", {data = data, metadata = {}})
      end
    end
    answer.payload = messages.list(payload)
    answer.user_expressions = user_expressions(content.user_expressions)
  end
  reply(message, "execute_reply", answer)
  return behind
end

-- In the place of a cell behind one that failed.
local function abort(message)
  reply(message, "execute_reply", {status = "aborted", execution_count = count})
end

-- ---- questions ----

-- Front ends count characters, Lua bytes.
local function byte_place(text, characters)
  local at = 0
  for _ = 1, characters do
    if at >= #text then break end
    at = text:find("[^\128-\191]", at + 2) or #text + 1
    at = at - 1
  end
  return at
end

local function character_place(text, bytes)
  local _, continuing = text:sub(1, bytes):gsub("[\128-\191]", "")
  return bytes - continuing
end

function answers.complete_request(message)
  local code, cursor = message.content.code, message.content.cursor_pos
  local pos = byte_place(code, cursor or math.huge)
  local list, from = words.complete(code, pos, prompt.environment)
  reply(message, "complete_reply", {matches = messages.list(list), cursor_start = character_place(code, from - 1),
    cursor_end = character_place(code, pos), metadata = {}})
end

function answers.inspect_request(message)
  local code = message.content.code
  local pos = byte_place(code, message.content.cursor_pos or math.huge)
  local text = words.describe(code, pos, prompt.environment, message.content.detail_level == 1)
  reply(message, "inspect_reply", {found = text ~= nil, data = text and {["text/plain"] = messages.text(text)} or {}, metadata = {}})
end

function answers.is_complete_request(message)
  local code = message.content.code
  local run, _, incomplete
  if commands.is_one(code) then run = true else run, _, incomplete = prompt:compile(code) end
  if run then return reply(message, "is_complete_reply", {status = "complete"}) end
  reply(message, "is_complete_reply", incomplete and {status = "incomplete", indent = (" "):rep(INDENT * locals.depth(code))} or
    {status = "invalid"})
end

local function integer(value, default) return type(value) == "number" and value or default end

function answers.history_request(message)
  local asked = message.content
  local list
  if asked.hist_access_type == "range" then
    list = history:range(integer(asked.session, 0), integer(asked.start, 1), integer(asked.stop, math.huge))
  elseif asked.hist_access_type == "search" then
    list = history:search(tostring(asked.pattern or "*"), integer(asked.n), asked.unique == true)
  else
    list = history:tail(integer(asked.n))
  end
  local out = {}
  for i, entry in ipairs(list) do
    local code = messages.text(entry[3])
    out[i] = {entry[1], entry[2], asked.output and {code, entry[4] or cjson.null} or code}
  end
  reply(message, "history_reply", {history = messages.list(out)})
end

function answers.kernel_info_request(message)
  reply(message, "kernel_info_reply", {
    protocol_version = messages.VERSION, implementation = "lsa", implementation_version = version,
    language_info = {name = "lua", version = "5.1", mimetype = "text/x-lua", file_extension = ".lua", pygments_lexer = "lua",
      codemirror_mode = "lua"},
    banner = ("lsa %s, %s"):format(version, jit.version), debugger = false,
    help_links = messages.list {{text = "Lua 5.1", url = "https://www.lua.org/manual/5.1/"}, {text = "LuaJIT", url = "https://luajit.org/extensions.html"}},
  })
end

function answers.comm_info_request(message) reply(message, "comm_info_reply", {comms = {}}) end

-- There is nobody here whom widgets could talk to.
function answers.comm_open(message) publish("comm_close", {comm_id = message.content.comm_id, data = {}}) end

function answers.shutdown_request(message)
  ending = true
  reply(message, "shutdown_reply", {restart = message.content.restart == true})
end

-- ---- the loop ----

-- Answers a message, between the states that front ends show. aborting: cells are not run.
local function answer(message, aborting)
  local f, behind = answers[message.kind], nil
  if aborting and message.kind == "execute_request" then f = abort end
  current = message
  publish("status", {execution_state = "busy"})
  if f then
    local ok, result = xpcall(function() return f(message) end, debug.traceback)
    if ok then behind = result else io.stderr:write("lsa: ", message.kind, ": ", result, "\n") end
  end
  publish("status", {execution_state = "idle"})
  current = nil
  for _, frames in ipairs(behind or {}) do M.receive(frames, "shell", true) end
end

function M.receive(frames, channel, aborting)
  local message, problem = session:message(frames)
  if not message then
    io.stderr:write("lsa: left unanswered: ", problem, "\n")
    return
  end
  message.channel = channel
  answer(message, aborting)
end

local function serve()
  while not ending do
    local ready = sockets.wait({shell, channels}, controls[1] and 0 or FOREVER)
    host.interrupted() -- of a cell that is no more
    if ready[2] then controls[#controls + 1] = channels:receive() end
    while controls[1] do M.receive(table.remove(controls, 1), "control") end
    if ready[1] and not ending then
      local frames = shell:receive()
      if frames then M.receive(frames, "shell") end
    end
  end
end

-- ---- the beginning and the end ----

-- What is written to file `to` comes out of the other end, which is returned.
local function pipe_from(to)
  local out, into = unistd.pipe()
  unistd.dup2(into, to)
  unistd.close(into)
  fcntl.fcntl(out, fcntl.F_SETFL, fcntl.O_NONBLOCK)
  fcntl.fcntl(out, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
  return out
end

local function read_connection(path)
  local file, problem = io.open(path)
  if not file then error(problem, 0) end
  local text = file:read "*a"
  file:close()
  local ok, given = pcall(cjson.decode, text)
  if not ok or type(given) ~= "table" then error(path .. ": no connection file of Jupyter's", 0) end
  for _, name in ipairs {"transport", "ip", "key", "shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"} do
    if given[name] == nil then error(("%s: has no %s"):format(path, name), 0) end
  end
  if given.key ~= "" and given.signature_scheme ~= "hmac-sha256" then
    error(("%s: signatures by %s; hmac-sha256 is known here"):format(path, tostring(given.signature_scheme)), 0)
  end
  return given
end

-- What was sent is delivered first.
local function say_goodbye()
  if not context then return end
  send("end", {})
  for _, socket in ipairs {channels, shell, standard_input} do socket:close() end
  context:close()
  context = nil
end

-- Serves the front end whose connection file is `path` until it asks for the end.
function M.run(path)
  local given = read_connection(path)
  local function endpoint(name)
    return ("%s://%s%s%d"):format(given.transport, given.ip, given.transport == "ipc" and "-" or ":", given[name .. "_port"])
  end
  host.in_notebook()
  session = messages.session(given.key)
  context = sockets.context()
  channels = context:socket("PAIR", {limit = 0})
  channels:bind(ENDPOINT)
  shell, standard_input = context:socket "ROUTER", context:socket "ROUTER"
  shell:bind(endpoint "shell")
  standard_input:bind(endpoint "stdin")

  local nothing = fcntl.open("/dev/null", fcntl.O_RDONLY)
  unistd.dup2(nothing, 0)
  unistd.close(nothing)
  local complaints = unistd.dup(2)
  local out, err = pipe_from(1), pipe_from(2)
  io.stdout:setvbuf "no"
  host.thread("lsa.notebook.channels", messages.json {context = ("%.0f"):format(context.address), endpoint = ENDPOINT, key = given.key,
    session = session.id, heartbeat = endpoint "hb", control = endpoint "control", published = endpoint "iopub", stdout = out, stderr = err,
    complaints = complaints})
  sockets.wait({channels}, FOREVER)
  local problem = channels:receive()[1]
  if problem ~= "ready" then
    unistd.dup2(complaints, 2)
    error(problem, 0)
  end

  local state = state_folder()
  history = histories.open(state and state .. "/notebook_history")
  display.front = front
  require "lsa.notebook.input".install(ask)
  rawset(_G, "lsa", require "lsa")
  local exit = os.exit
  rawset(os, "exit", function(...)
    host.flush()
    say_goodbye()
    exit(...)
  end)
  publish("status", {execution_state = "starting"})
  serve()
  say_goodbye()
  unistd.dup2(complaints, 2)
  return 0
end

return M
