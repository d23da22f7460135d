-- Owns regular expressions over Unicode text: Oniguruma, the engine whose syntax tokenizer.json files are written in.
--
--   regex.version()                      of Oniguruma; nil where there is none
--   re = regex.compile(pattern)          raises where the pattern is no expression
--   from, to = re:find(text, at)         1-based, like string.find; nil where there is no match. text is UTF-8
-- Unicode's version is the one of the system's Oniguruma.
local ffi = require "ffi"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"

ffi.cdef [[
typedef struct lsa_onig_regex lsa_onig_regex;
typedef struct {
    int allocated, count;
    int *from, *to;
    void *history;
} lsa_onig_region;
typedef struct {
    void *encoding;
    const char *part, *part_end;
} lsa_onig_error;
extern struct { char opaque; } OnigEncodingUTF8;
extern void *OnigDefaultSyntax;
int onig_initialize(void **encodings, int count);
int onig_new(lsa_onig_regex **, const char *pattern, const char *end, unsigned options, void *encoding, void *syntax,
             lsa_onig_error *);
void onig_free(lsa_onig_regex *);
lsa_onig_region *onig_region_new(void);
void onig_region_free(lsa_onig_region *, int itself);
int onig_search(lsa_onig_regex *, const char *text, const char *end, const char *start, const char *range,
                lsa_onig_region *, unsigned options);
const char *onig_version(void);
int onig_error_code_to_str(char *text, int code, ...);
]]

local MISMATCH, MOST_BYTES, ERROR_BYTES = -1, 2 ^ 31 - 1, 512

local M = {}
local Regex = {}
Regex.__index = Regex

local library
local function oniguruma()
  if not library then
    local ok, found = pcall(ffi.load, "libonig.so.5")
    if not ok then raise("regular expressions need libonig.so.5 (Debian package libonig5): %s", found) end
    local encoding = ffi.new("void *[1]", {ffi.cast("void *", found.OnigEncodingUTF8)})
    if found.onig_initialize(encoding, 1) ~= 0 then raise "libonig.so.5 does not start" end
    library = found
  end
  return library
end

function M.version()
  local ok, lib = pcall(oniguruma)
  return ok and ffi.string(lib.onig_version()) or nil
end

-- What a return code means; `about` has the part of the pattern that is wrong.
local function message(code, about)
  local text = ffi.new("char[?]", ERROR_BYTES)
  return ffi.string(text, oniguruma().onig_error_code_to_str(text, ffi.cast("int", code), about))
end

-- pattern with what [:punct:] means within brackets: symbols are in it, which Oniguruma before 6.9.9 leaves out.
local function with_symbols(pattern)
  local out, at, depth = {}, 1, 0
  while at <= #pattern do
    local first, rest = pattern:match("^(%[%^?%]?)()", at)
    local negated, after = pattern:match("^%[:(%^?)punct:%]()", at)
    local part, following = pattern:match("^(\\?[%z\1-\255])()", at)
    if depth > 0 and after then
      part, following = "[" .. negated .. "\\p{P}\\p{S}]", after
    elseif first then
      part, following, depth = first, rest, depth + 1
    elseif part == "]" and depth > 0 then
      depth = depth - 1
    end
    out[#out + 1] = part
    at = following
  end
  return table.concat(out)
end

function M.compile(pattern)
  local lib = oniguruma()
  local source = with_symbols(pattern)
  local function compile(out)
    local about, start = ffi.new "lsa_onig_error[1]", ffi.cast("const char *", source)
    local code = lib.onig_new(out, start, start + #source, 0, lib.OnigEncodingUTF8, lib.OnigDefaultSyntax, about)
    if code ~= 0 then raise("the regular expression %s: %s", pattern, message(code, about)) end
    return code
  end
  local function new_region(out)
    out[0] = lib.onig_region_new()
    if out[0] == nil then raise "out of memory for a regular expression" end
    return 0
  end
  return setmetatable({
    pattern = pattern,
    compiled = ownership.take(lib.onig_free, "lsa_onig_regex", compile),
    region = ownership.take(function(region) lib.onig_region_free(region, 1) end, "lsa_onig_region", new_region),
  }, Regex)
end

function Regex:find(text, at)
  if #text > MOST_BYTES then raise("a text of %d bytes is too long for a regular expression", #text) end
  local start = ffi.cast("const char *", text)
  local code = library.onig_search(self.compiled, start, start + #text, start + at - 1, start + #text, self.region, 0)
  if code == MISMATCH then return nil end
  if code < 0 then raise("the regular expression %s: %s", self.pattern, message(code)) end
  return self.region.from[0] + 1, self.region.to[0]
end

function Regex:__tostring() return "regex " .. self.pattern end

return M
