-- Sockets of libzmq: messages of several frames, which are Lua strings.
--
--   context = sockets.context()              of the process; sockets.context(address): the one that lies there
--   socket = context:socket(kind, options)   kind: "ROUTER", "REP", "PAIR", or "XPUB", which receives subscriptions
--   socket:bind(endpoint) socket:connect(endpoint)
--   socket:send(frames)                      false where a signal came first, or nothing can be sent
--   socket:receive()                         the frames of the message that waits, or nil
--   sockets.wait(list, milliseconds)         list: sockets and numbers of files; list's places that have something to read,
--                                            {[place] = true}; a signal ends the wait
--   socket:close() context:close()           what was sent is delivered first, within a second
local ffi = require "ffi"

ffi.cdef [[
typedef struct { unsigned char bytes[64] __attribute__((aligned(8))); } lsa_zmq_msg;
typedef struct { void *socket; int fd; short events, revents; } lsa_zmq_pollitem;
void *zmq_ctx_new(void);
int zmq_ctx_term(void *);
void *zmq_socket(void *, int);
int zmq_close(void *);
int zmq_setsockopt(void *, int, const void *, size_t);
int zmq_bind(void *, const char *);
int zmq_connect(void *, const char *);
int zmq_send(void *, const void *, size_t, int);
int zmq_msg_init(lsa_zmq_msg *);
int zmq_msg_recv(lsa_zmq_msg *, void *, int);
int zmq_msg_more(const lsa_zmq_msg *);
size_t zmq_msg_size(const lsa_zmq_msg *);
void *zmq_msg_data(lsa_zmq_msg *);
int zmq_msg_close(lsa_zmq_msg *);
int zmq_poll(lsa_zmq_pollitem *, int, long);
int zmq_errno(void);
const char *zmq_strerror(int);
]]

local ok, lib = pcall(ffi.load, "libzmq.so.5")
if not ok then error("a notebook's kernel needs libzmq (Debian: apt-get install libzmq5)", 0) end

local kinds = {PAIR = 0, REP = 4, ROUTER = 6, XPUB = 9}
local LINGER, SNDHWM, RCVHWM, VERBOSE, HANDOVER = 17, 23, 24, 40, 56
local DONTWAIT, SNDMORE, POLLIN = 1, 2, 1
local EINTR = 4
local LINGER_MS = 1000

local M = {}

local Context, Socket = {}, {}
Context.__index, Socket.__index = Context, Socket

local function check(what, failed)
  if failed then error(("%s: %s"):format(what, ffi.string(lib.zmq_strerror(lib.zmq_errno()))), 0) end
end

function M.context(address)
  local c = address and ffi.cast("void *", address) or lib.zmq_ctx_new()
  return setmetatable({c = c, address = tonumber(ffi.cast("uintptr_t", c))}, Context)
end

local function set(socket, option, value)
  lib.zmq_setsockopt(socket, option, ffi.new("int[1]", value), ffi.sizeof "int")
end

-- options.limit: messages that wait to be sent, 0 for any number.
function Context:socket(kind, options)
  local c = lib.zmq_socket(self.c, kinds[kind])
  check(kind .. " socket", c == nil)
  set(c, LINGER, LINGER_MS)
  if options and options.limit then
    set(c, SNDHWM, options.limit)
    set(c, RCVHWM, options.limit)
  end
  -- A front end that comes back under its name has the connection that is there.
  if kind == "ROUTER" then set(c, HANDOVER, 1) end
  if kind == "XPUB" then set(c, VERBOSE, 1) end -- every subscriber's
  return setmetatable({c = c, message = ffi.new "lsa_zmq_msg"}, Socket)
end

function Context:close()
  while lib.zmq_ctx_term(self.c) < 0 and lib.zmq_errno() == EINTR do end -- a signal came
end

function Socket:bind(endpoint) check("bind " .. endpoint, lib.zmq_bind(self.c, endpoint) ~= 0) end

function Socket:connect(endpoint) check("connect " .. endpoint, lib.zmq_connect(self.c, endpoint) ~= 0) end

function Socket:send(frames)
  for i, frame in ipairs(frames) do
    local flags = i < #frames and SNDMORE or 0
    while lib.zmq_send(self.c, frame, #frame, flags) < 0 do
      if lib.zmq_errno() ~= EINTR then return false end -- the front end is gone, say
    end
  end
  return true
end

function Socket:receive()
  local frames, message = {}, self.message
  repeat
    lib.zmq_msg_init(message)
    while lib.zmq_msg_recv(message, self.c, #frames == 0 and DONTWAIT or 0) < 0 do
      if lib.zmq_errno() ~= EINTR then return nil end
    end
    frames[#frames + 1] = ffi.string(lib.zmq_msg_data(message), lib.zmq_msg_size(message))
    local more = lib.zmq_msg_more(message) ~= 0
    lib.zmq_msg_close(message)
  until not more
  return frames
end

function Socket:close() lib.zmq_close(self.c) end

function M.wait(list, milliseconds)
  local items = ffi.new("lsa_zmq_pollitem[?]", #list)
  for i, each in ipairs(list) do
    local item = items[i - 1]
    item.events = POLLIN
    if type(each) == "number" then item.fd = each else item.socket = each.c end
  end
  local found = {}
  if lib.zmq_poll(items, #list, milliseconds) <= 0 then return found end
  for i = 1, #list do found[i] = items[i - 1].revents ~= 0 or nil end
  return found
end
jit.off(M.wait) -- an interrupt is raised as soon as it returns

return M
