-- A terminal with the prompt in it, for specs: keys in, screen text out.
local ffi = require "ffi"
local process = require "process_support"

ffi.cdef [[
int posix_openpt(int);
int grantpt(int);
int forkpty(int *, char *, const void *, const void *);
int execv(const char *, char *const *);
int setenv(const char *, const char *, int);
int kill(int, int);
int waitpid(int, int *, int);
void _exit(int);
ptrdiff_t read(int, void *, size_t);
ptrdiff_t write(int, const void *, size_t);
int close(int);
struct terminal_poll { int fd; short events, revents; };
int poll(struct terminal_poll *, unsigned long, int);
]]

local C = ffi.C
local POLLIN, SIGKILL, O_RDWR, O_NOCTTY = 1, 9, 2, 256
local PATIENCE_MS = 20000

local Terminal = {}
Terminal.__index = Terminal

-- Whether there are terminals to be had; a chroot may have none.
function Terminal.available()
  local fd = C.posix_openpt(O_RDWR + O_NOCTTY)
  local available = fd >= 0 and C.grantpt(fd) == 0
  if fd >= 0 then C.close(fd) end
  return available
end

-- Starts the executable with its state in `folder`, with arguments where there are any, and on a terminal of that kind ("dumb").
function Terminal.start(folder, arguments, kind)
  local words = {process.program, unpack(arguments or {})}
  local fd, argv = ffi.new "int[1]", ffi.new("const char *[?]", #words + 1)
  for i, word in ipairs(words) do argv[i - 1] = word end
  local pid = C.forkpty(fd, nil, nil, nil)
  if pid == 0 then
    C.setenv("XDG_STATE_HOME", folder, 1)
    C.setenv("TERM", kind or "dumb", 1)
    C.execv(process.program, ffi.cast("char *const *", argv))
    C._exit(127)
  end
  assert(pid > 0, "no terminal")
  return setmetatable({ fd = fd[0], pid = pid, screen = "", seen = 1 }, Terminal)
end

function Terminal:send(keys)
  assert(C.write(self.fd, keys, #keys) == #keys)
end

-- Reads what has come; false at the end, or after a long silence.
local function more(self)
  local waiting, buffer = ffi.new("struct terminal_poll", self.fd, POLLIN), ffi.new "char[4096]"
  if C.poll(waiting, 1, PATIENCE_MS) <= 0 then return false end
  local n = tonumber(C.read(self.fd, buffer, 4096))
  if n <= 0 then return false end
  self.screen = self.screen .. ffi.string(buffer, n):gsub("\r", "")
  return true
end

-- Waits until `text` appears after what was waited for before; gives what came before it.
function Terminal:expect(text)
  while true do
    local from, to = self.screen:find(text, self.seen, true)
    if from then
      local before = self.screen:sub(self.seen, from - 1)
      self.seen = to + 1
      return before
    end
    if not more(self) then error(("%q never came; the screen:\n%s"):format(text, self.screen), 2) end
  end
end

-- Waits until one of `texts` appears: which.
function Terminal:expect_one_of(texts)
  while true do
    for i, text in ipairs(texts) do
      local _, to = self.screen:find(text, self.seen, true)
      if to then
        self.seen = to + 1
        return i
      end
    end
    if not more(self) then error(("none of them ever came; the screen:\n%s"):format(self.screen), 2) end
  end
end

function Terminal:pause(seconds)
  C.poll(nil, 0, seconds * 1000)
  return self
end

-- Types a line at the prompt and gives what it prints, without the marks of the prompt.
function Terminal:enter(line)
  self:send(line .. "\r")
  self:expect(line .. "\n")
  while true do
    local from, to = self.screen:find("In%[%d+%]> ", self.seen)
    if from then
      local out = self.screen:sub(self.seen, from - 1)
      self.seen = to + 1
      return (out:gsub("Out%[%d+%]:[ \n]", ""))
    end
    if not more(self) then error(("no prompt came; the screen:\n%s"):format(self.screen), 2) end
  end
end

-- Waits for the end: the exit code.
function Terminal:wait()
  while more(self) do end
  local status = ffi.new "int[1]"
  C.waitpid(self.pid, status, 0)
  C.close(self.fd)
  self.pid = nil
  return status[0] % 128 == 0 and math.floor(status[0] / 256) or 128 + status[0] % 128
end

-- For after_each: nothing is left running.
function Terminal:stop()
  if not self.pid then return end
  C.kill(self.pid, SIGKILL)
  self:wait()
end

return Terminal
