-- Owns the terminal while a line is typed: libreadline's callback interface, so that Ctrl-C ends the wait.
local ffi = require "ffi"
local host = require "lsa.host"
local poll = require "posix.poll".poll

local M = {before = nil} -- lines that the one that is typed goes on from

ffi.cdef [[
void free(void *);
void *malloc(size_t);

typedef char **lsa_completion_fn(const char *, int, int);
typedef void lsa_line_fn(char *);
extern const char *rl_readline_name;
extern int rl_catch_signals, rl_attempted_completion_over, rl_completion_append_character, rl_completion_quote_character;
extern const char *rl_completer_word_break_characters, *rl_completer_quote_characters, *rl_library_version;
extern lsa_completion_fn *rl_attempted_completion_function;
void rl_callback_handler_install(const char *, lsa_line_fn *);
void rl_callback_handler_remove(void);
void rl_callback_read_char(void);
void rl_callback_sigcleanup(void);
void rl_free_line_state(void);
int rl_insert_text(const char *);
void rl_redisplay(void);
extern char *rl_line_buffer;
extern int rl_point, rl_completion_suppress_quote;
void using_history(void);
void add_history(const char *);
void stifle_history(int);
int read_history(const char *);
int append_history(int, const char *);
int history_truncate_file(const char *, int);
]]

local HISTORY_LINES = 2000

local lib
for _, name in ipairs { "libreadline.so.8", "libreadline.so.7", "readline" } do
  local ok, loaded = pcall(ffi.load, name)
  if ok then
    lib = loaded
    break
  end
end

M.version = lib and ffi.string(lib.rl_library_version)

local history_path

-- Lists for readline: the longest common prefix, then the matches, in memory that it frees.
local function to_matches(list)
  if #list == 0 then return nil end
  local common = list[1]
  for _, match in ipairs(list) do
    while match:sub(1, #common) ~= common do common = common:sub(1, -2) end
  end
  local strings = #list == 1 and list or { common, unpack(list) }
  local matches = ffi.cast("char **", ffi.C.malloc(ffi.sizeof "char *" * (#strings + 1)))
  for i, text in ipairs(strings) do
    matches[i - 1] = ffi.cast("char *", ffi.C.malloc(#text + 1))
    ffi.copy(matches[i - 1], text)
  end
  matches[#strings] = nil
  return matches
end

local complete

-- What `word`, which begins at byte `start` of the line, may become.
local function completions(word, start)
  local line = ffi.string(lib.rl_line_buffer):sub(1, lib.rl_point)
  local earlier = M.before or ""
  local list, from = complete(earlier .. line)
  from = from - 1 - #earlier
  local out = {}
  for i, text in ipairs(list) do
    out[i] = from >= start and line:sub(start + 1, from) .. text or text:sub(start - from + 1)
  end
  local only = #out == 1 and out[1] or word
  lib.rl_completion_suppress_quote = only:sub(-1) == "/" and 1 or 0 -- a folder goes on
  return to_matches(out)
end

-- Prepares editing with `complete_at(before)` (lua/lsa/prompt/complete.lua), and the history kept in `path` (or nil); once for all prompts.
-- Without libreadline, lines are read plainly.
function M.start(complete_at, path)
  local before = complete
  complete = complete_at
  if not lib or before then return end
  lib.rl_readline_name = "lsa"
  lib.rl_catch_signals = 0
  lib.rl_completer_word_break_characters = " \t\n\"'`@$><=;|&{(,[]})+-*/%^#~"
  lib.rl_completer_quote_characters = "\"'"
  lib.rl_attempted_completion_function = function(text, start)
    lib.rl_completion_append_character = 0 -- readline sets it anew for each completion
    lib.rl_attempted_completion_over = 1
    local ok, matches = pcall(completions, ffi.string(text), start)
    return ok and matches or nil
  end
  lib.using_history()
  lib.stifle_history(HISTORY_LINES)
  history_path = path
  if path then lib.read_history(path) end
end

local typed, ended

local on_line = lib and ffi.cast("lsa_line_fn *", function(line)
  ended = true
  lib.rl_callback_handler_remove()
  if line ~= nil then
    typed = ffi.string(line)
    ffi.C.free(line)
  end
end)

local function read_plainly(prompt)
  io.write(prompt)
  io.flush()
  local line = io.read "*l"
  if not line and host.interrupted() then
    print()
    return false
  end
  return line
end

-- One line; nil at the end of the input, false after Ctrl-C. indent: what the line begins with. colour: of the prompt, for a terminal.
function M.line(prompt, indent, colour)
  if colour then prompt = ("\1\27[%sm\2%s\1\27[0m\2"):format(colour, prompt) end
  if not lib then return read_plainly(prompt) end
  local waiting = { [0] = { events = { IN = true } }, [host.interrupt_fd] = { events = { IN = true } } }
  typed, ended = nil, false
  host.interrupted()
  io.flush()
  lib.rl_callback_handler_install(prompt, on_line)
  if indent and indent ~= "" then
    lib.rl_insert_text(indent)
    lib.rl_redisplay()
  end
  while not ended do
    local ready = poll(waiting)
    if host.interrupted() then
      lib.rl_free_line_state()
      lib.rl_callback_sigcleanup()
      lib.rl_callback_handler_remove()
      io.write "^C\n"
      return false
    end
    local input = waiting[0].revents
    if ready and (input.IN or input.HUP or input.ERR) then lib.rl_callback_read_char() end
  end
  return typed
end
jit.off(M.line) -- compiled code cannot be called back

-- Remembers what was typed, for this session and the next.
function M.remember(text)
  if not lib or not text:find "%S" then return end
  lib.add_history(text)
  if not history_path then return end
  if lib.append_history(1, history_path) ~= 0 then -- not there yet
    local file = io.open(history_path, "a")
    if file then file:close() end
    lib.append_history(1, history_path)
  end
  lib.history_truncate_file(history_path, HISTORY_LINES)
end

return M
