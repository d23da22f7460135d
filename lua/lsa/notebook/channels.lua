-- The thread of a kernel that never waits for Lua: it echoes heartbeats, publishes what the cell writes to its standard output
-- and error (of whatever comes from: print, C, child processes), forwards the other messages between them in order, and breaks
-- off the cell where the control channel asks for an interrupt or the end. core/host/main.c runs it in a Lua of its own.
--
-- The kernel's thread sends it over a socket: {"parent", header} (whose cell the output is from now on), {"publish", frames...},
-- {"control", frames...}, {"end"}; each is answered by {"done"}. It also sends the frames of control messages that the kernel has to answer.
local ffi = require "ffi"
local cjson = require "cjson"
local messages = require "lsa.notebook.messages"
local sockets = require "lsa.notebook.sockets"
local utf8 = require "lsa.text.utf8"

ffi.cdef [[
typedef long lsa_ssize;
lsa_ssize read(int, void *, size_t);
int dup2(int, int);
int getppid(void);
int getpid(void);
int kill(int, int);
void _exit(int);
]]

local SIGINT = 2
local PIECE, MAX_TEXT = 65536, 2 ^ 18 -- bytes read at once, and of one message
local GATHER_MS, IDLE_MS = 40, 1000   -- that output waits for more; between two looks at who started the kernel
local LAST_CHARACTER = 4              -- bytes that may be the start of a character

local piece = ffi.new("char[?]", PIECE)

-- All there is in the pipe, which must not block.
local function read_all(fd, text)
  local parts = {text}
  local bytes = #text
  repeat
    local n = tonumber(ffi.C.read(fd, piece, PIECE))
    if n > 0 then
      parts[#parts + 1] = ffi.string(piece, n)
      bytes = bytes + n
    end
  until n < PIECE or bytes >= MAX_TEXT
  return table.concat(parts)
end

-- Where to cut so that no character is in two messages.
local function whole_characters(text)
  for at = #text, math.max(#text - LAST_CHARACTER + 2, 1), -1 do
    local byte = text:byte(at)
    if byte < 0x80 then return #text end
    if byte >= 0xC0 then
      local length = byte >= 0xF0 and 4 or byte >= 0xE0 and 3 or 2
      return at + length - 1 > #text and not utf8.invalid(text:sub(1, at - 1), 1) and at - 1 or #text
    end
  end
  return #text
end

local function serve(given)
  local context = sockets.context(tonumber(given.context))
  local session = messages.session(given.key, given.session)
  local heartbeat, control, published = context:socket "REP", context:socket "ROUTER", context:socket("XPUB", {limit = 10000})
  local kernel = context:socket("PAIR", {limit = 0})
  kernel:connect(given.endpoint)
  local made, problem = pcall(function()
    heartbeat:bind(given.heartbeat)
    control:bind(given.control)
    published:bind(given.published)
  end)
  kernel:send {made and "ready" or problem}

  local parent = "{}"
  local streams = {{name = "stdout", fd = given.stdout, text = ""}, {name = "stderr", fd = given.stderr, text = ""}}
  local due, parent_process = nil, ffi.C.getppid() -- due: when output that waits is published

  local function publish(stream, all)
    local text = stream.text
    local cut = all and #text or whole_characters(text)
    if cut == 0 then return end
    published:send(session:frames("stream", {name = stream.name, text = messages.text(text:sub(1, cut))}, parent))
    stream.text = text:sub(cut + 1)
  end

  local function publish_all()
    for _, stream in ipairs(streams) do
      repeat
        stream.text = read_all(stream.fd, stream.text)
        local more = #stream.text >= MAX_TEXT
        publish(stream, true)
      until not more
    end
  end

  local function reply(message, kind, content)
    control:send(session:frames(kind, content, message.header, message.to))
  end

  local function controlled(frames)
    local message = session:message(frames)
    if not message then return end
    if message.kind == "interrupt_request" then
      ffi.C.kill(ffi.C.getpid(), SIGINT)
      reply(message, "interrupt_reply", {status = "ok"})
    else
      if message.kind == "shutdown_request" then ffi.C.kill(ffi.C.getpid(), SIGINT) end
      kernel:send(frames)
    end
  end

  -- From the kernel's thread. What the cell wrote before is published before.
  local function told(frames)
    local what = table.remove(frames, 1)
    publish_all()
    if what == "parent" then
      parent = frames[1]
    elseif what == "publish" then
      published:send(frames)
    elseif what == "control" then
      control:send(frames)
    else
      return true
    end
  end

  -- A subscription is answered, so that a front end knows from when on it misses nothing.
  local function subscribed(frame)
    if frame:byte() ~= 1 then return end
    published:send(session:frames("iopub_welcome", {subscription = frame:sub(2)}, nil, {frame:sub(2)}))
  end

  local list = {heartbeat, control, kernel, given.stdout, given.stderr, published}
  while true do
    local ready = sockets.wait(list, due and math.max(due - messages.milliseconds(), 0) or IDLE_MS)
    if ready[1] then
      local beat = heartbeat:receive()
      if beat then heartbeat:send(beat) end
    end
    if ready[2] then
      local frames = control:receive()
      if frames then controlled(frames) end
    end
    while ready[3] do
      local frames = kernel:receive()
      if not frames then break end
      if told(frames) then
        for _, socket in ipairs {heartbeat, control, published} do socket:close() end
        kernel:send {"done"}
        kernel:close()
        return
      end
      kernel:send {"done"}
    end
    local frames = ready[6] and published:receive()
    while frames do
      subscribed(frames[1])
      frames = published:receive()
    end
    for i, stream in ipairs(streams) do
      if ready[3 + i] then stream.text = read_all(stream.fd, stream.text) end
    end
    local bytes = #streams[1].text + #streams[2].text
    if bytes == 0 then
      due = nil
    elseif not due then
      due = messages.milliseconds() + GATHER_MS
    elseif messages.milliseconds() >= due or bytes >= MAX_TEXT then
      for _, stream in ipairs(streams) do publish(stream) end
      due = nil
    end
    if ffi.C.getppid() ~= parent_process then ffi.C._exit(1) end -- nobody is left who could ask for the end
  end
end

-- A kernel without channels is none.
return function(argument)
  local given = cjson.decode(argument)
  local ok, problem = xpcall(function() serve(given) end, debug.traceback)
  if ok then return end
  ffi.C.dup2(given.complaints, 2)
  io.stderr:write("lsa: ", problem, "\n")
  ffi.C._exit(1)
end
