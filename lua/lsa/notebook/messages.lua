-- Owns the form of Jupyter's messages: frames, signatures, headers, JSON.
--
--   session = messages.session(key, id)      key: of the connection file; id: the kernel's name in headers, made where not given
--   session:frames(kind, content, parent, to)   a message's frames; content: JSON, or a table; parent: the text of the header
--                                            that it answers; to: whom, the frames before the delimiter
--   session:message(frames)                  {kind, content, header = its text, to}, or nil and what is wrong with it
--   messages.json(value)                     messages.list makes of a table a JSON array, messages.text of any bytes UTF-8
--   messages.base64(bytes)  messages.milliseconds(), of a clock that only goes on
local ffi = require "ffi"
local cjson = require "cjson"
local utf8 = require "lsa.text.utf8"

ffi.cdef [[
int sodium_init(void);
void randombytes_buf(void *, size_t);
int sodium_memcmp(const void *, const void *, size_t);
char *sodium_bin2hex(char *, size_t, const unsigned char *, size_t);
char *sodium_bin2base64(char *, size_t, const unsigned char *, size_t, int);
size_t crypto_auth_hmacsha256_statebytes(void);
int crypto_auth_hmacsha256_init(void *, const char *, size_t);
int crypto_auth_hmacsha256_update(void *, const char *, unsigned long long);
int crypto_auth_hmacsha256_final(void *, unsigned char *);
typedef struct { long seconds, nanoseconds; } lsa_timespec;
int clock_gettime(int, lsa_timespec *);
]]

local ok, sodium = pcall(ffi.load, "libsodium.so.23")
if not ok then error("a notebook's kernel needs libsodium (Debian: apt-get install libsodium23)", 0) end
sodium.sodium_init()

local HASH_BYTES, DELIMITER = 32, "<IDS|MSG>"
local BASE64 = 1 -- sodium_base64_VARIANT_ORIGINAL

local M = {}

M.VERSION = "5.4" -- of the messaging protocol

local function hex(bytes, n)
  local text = ffi.new("char[?]", 2 * n + 1)
  sodium.sodium_bin2hex(text, 2 * n + 1, bytes, n)
  return ffi.string(text, 2 * n)
end

local function random_name()
  local bytes = ffi.new "unsigned char[16]"
  sodium.randombytes_buf(bytes, 16)
  return hex(bytes, 16)
end

function M.base64(bytes)
  local size = math.floor((#bytes + 2) / 3) * 4 + 1
  local text = ffi.new("char[?]", size)
  sodium.sodium_bin2base64(text, size, bytes, #bytes, BASE64)
  return ffi.string(text)
end

-- cjson writes {} for every empty table; a list that is empty is written as this name, and then as a list.
local EMPTY = random_name()

function M.list(values) return #values > 0 and values or EMPTY end

-- Front ends refuse a message that is no UTF-8: other bytes become U+FFFD.
function M.text(bytes)
  local at = utf8.invalid(bytes, 1)
  if not at then return bytes end
  local parts, from = {}, 1
  while at do
    parts[#parts + 1] = bytes:sub(from, at - 1) .. "\239\191\189"
    from = at + 1
    at = utf8.invalid(bytes, from)
  end
  return table.concat(parts) .. bytes:sub(from)
end

function M.json(value) return (cjson.encode(value):gsub('"' .. EMPTY .. '"', "[]")) end

local function clock(which)
  local time = ffi.new "lsa_timespec"
  ffi.C.clock_gettime(which, time)
  return time
end

function M.milliseconds()
  local time = clock(1)
  return tonumber(time.seconds) * 1e3 + tonumber(time.nanoseconds) / 1e6
end

-- UTC with microseconds.
local function now()
  local time = clock(0)
  return os.date("!%Y-%m-%dT%H:%M:%S", tonumber(time.seconds)) .. (".%06dZ"):format(tonumber(time.nanoseconds) / 1000)
end

local Session = {}
Session.__index = Session

function M.session(key, id)
  local bytes = tonumber(sodium.crypto_auth_hmacsha256_statebytes())
  return setmetatable({key = key, id = id or random_name(), count = 0, state = ffi.new("uint64_t[?]", bytes / 8 + 2),
    hash = ffi.new("unsigned char[?]", HASH_BYTES), prefix = random_name()}, Session)
end

-- Of the frames from `first`; "" where the connection has no key, and nothing is signed.
function Session:signature(frames, first)
  if self.key == "" then return "" end
  sodium.crypto_auth_hmacsha256_init(self.state, self.key, #self.key)
  for i = first, first + 3 do sodium.crypto_auth_hmacsha256_update(self.state, frames[i], #frames[i]) end
  sodium.crypto_auth_hmacsha256_final(self.state, self.hash)
  return hex(self.hash, HASH_BYTES)
end

function Session:frames(kind, content, parent, to)
  self.count = self.count + 1
  local header = M.json {msg_id = self.prefix .. "_" .. self.count, session = self.id, username = "kernel", date = now(), msg_type = kind,
    version = M.VERSION}
  local frames = {}
  for i, name in ipairs(to or {kind}) do frames[i] = name end
  local at = #frames
  frames[at + 1] = DELIMITER
  frames[at + 3], frames[at + 4], frames[at + 5] = header, parent or "{}", "{}"
  frames[at + 6] = type(content) == "string" and content or M.json(content)
  frames[at + 2] = self:signature(frames, at + 3)
  return frames
end

function Session:message(frames)
  local at = 1
  while frames[at] and frames[at] ~= DELIMITER do at = at + 1 end
  if #frames < at + 5 then return nil, ("a message of %d frames, without its parts"):format(#frames) end
  local given, own = frames[at + 1], self:signature(frames, at + 2)
  if #given ~= #own or sodium.sodium_memcmp(given, own, #own) ~= 0 then return nil, "a message that is not signed with the connection's key" end
  local read, header, content = pcall(function() return cjson.decode(frames[at + 2]), cjson.decode(frames[at + 5]) end)
  if not read or type(header) ~= "table" or type(header.msg_type) ~= "string" or type(content) ~= "table" then
    return nil, "a message that is no JSON"
  end
  local to = {}
  for i = 1, at - 1 do to[i] = frames[i] end
  return {kind = header.msg_type, content = content, header = frames[at + 2], to = to}
end

return M
