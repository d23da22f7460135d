-- Owns regular expressions over Unicode text: the part of PCRE2 that tokenizers need.
--
--   re = regex.compile(pattern)          raises where the pattern is no expression
--   from, to = re:find(text, at)         1-based, like string.find; nil where there is no match. text is UTF-8
--   regex.valid(text)                    true, or false and the place of the first byte that is not UTF-8
-- Character classes follow Unicode's properties; ^ and $ match at lines, as in the dialect of tokenizer.json files.
local ffi = require "ffi"
local raise = require "lsa.raise"

ffi.cdef [[
typedef struct pcre2_code pcre2_code;
typedef struct pcre2_match_data pcre2_match_data;
pcre2_code *pcre2_compile_8(const char *, size_t, uint32_t, int *, size_t *, void *);
void pcre2_code_free_8(pcre2_code *);
int pcre2_jit_compile_8(pcre2_code *, uint32_t);
pcre2_match_data *pcre2_match_data_create_from_pattern_8(const pcre2_code *, void *);
void pcre2_match_data_free_8(pcre2_match_data *);
int pcre2_match_8(const pcre2_code *, const char *, size_t, size_t, uint32_t, pcre2_match_data *, void *);
size_t *pcre2_get_ovector_pointer_8(pcre2_match_data *);
size_t pcre2_get_startchar_8(pcre2_match_data *);
int pcre2_get_error_message_8(int, char *, size_t);
]]

local UTF, UCP, MULTILINE, NO_UTF_CHECK = 0x80000, 0x20000, 0x400, 0x40000000
local JIT_COMPLETE, NO_MATCH, UTF8_FIRST, UTF8_LAST = 1, -1, -3, -23

local M = {}
local Regex = {}
Regex.__index = Regex

local library
local function pcre2()
  if not library then
    local ok, found = pcall(ffi.load, "libpcre2-8.so.0")
    if not ok then raise("regular expressions need libpcre2-8.so.0 (Debian package libpcre2-8-0): " .. found) end
    library = found
  end
  return library
end

local function message(code)
  local text = ffi.new "char[256]"
  pcre2().pcre2_get_error_message_8(code, text, 256)
  return ffi.string(text)
end

function M.compile(pattern)
  local lib = pcre2()
  local code, offset = ffi.new "int[1]", ffi.new "size_t[1]"
  local compiled = lib.pcre2_compile_8(pattern, #pattern, UTF + UCP + MULTILINE, code, offset, nil)
  if compiled == nil then
    raise("the regular expression %q fails at byte %d: %s", pattern, tonumber(offset[0]), message(code[0]))
  end
  -- Where there is no JIT, matching interprets: slower, the same.
  lib.pcre2_jit_compile_8(compiled, JIT_COMPLETE)
  local data = lib.pcre2_match_data_create_from_pattern_8(compiled, nil)
  if data == nil then
    lib.pcre2_code_free_8(compiled)
    raise "out of memory for a regular expression"
  end
  return setmetatable({
    pattern = pattern,
    compiled = ffi.gc(compiled, lib.pcre2_code_free_8),
    data = ffi.gc(data, lib.pcre2_match_data_free_8),
    ends = lib.pcre2_get_ovector_pointer_8(data),
  }, Regex)
end

function Regex:find(text, at)
  local rc = library.pcre2_match_8(self.compiled, text, #text, at - 1, NO_UTF_CHECK, self.data, nil)
  if rc == NO_MATCH then return nil end
  if rc < 0 then raise("the regular expression %q: %s", self.pattern, message(rc)) end
  return tonumber(self.ends[0]) + 1, tonumber(self.ends[1])
end

function Regex:__tostring() return "regex " .. self.pattern end

local anything

function M.valid(text)
  if not text:find "[\128-\255]" then return true end
  anything = anything or M.compile ""
  local rc = library.pcre2_match_8(anything.compiled, text, #text, 0, 0, anything.data, nil)
  if rc <= UTF8_FIRST and rc >= UTF8_LAST then
    return false, tonumber(library.pcre2_get_startchar_8(anything.data)) + 1
  end
  return true
end

return M
