-- Owns text <-> token ids of a model's folder: its tokenizer.json (byte-pair encoding, of bytes or with a byte fallback) or,
-- where there is none and the vocabulary is 256, the bytes themselves.
--
--   t = tokenizer.open(directory, vocab)
--   t:encode(text) -> list of ids       no token is added; special tokens written out in the text are recognised
--   t:decode(ids) -> text               special tokens are written out; the bytes are as the tokens give them
-- Any string can be encoded: bytes that are no UTF-8 are pieces of their own. What the vocabulary has neither a token nor
-- an unknown token for gives no ids, as everywhere in this format.
local ffi = require "ffi"
local json = require "cjson"
local bpe = require "lsa.text.bpe"
local byte_characters = require "lsa.text.byte_characters"
local lsa = require "lsa.ffi"
local pretokenize = require "lsa.text.pretokenize"
local ownership = require "lsa.ownership"
local raise = require "lsa.raise"
local regex = require "lsa.text.regex"
local utf8 = require "lsa.text.utf8"

local C = lsa.C

local M = {}

local function check_ids(ids, vocab)
  if type(ids) ~= "table" then raise("tokens are a list of ids, this is %s", raise.kind(ids)) end
  for i = 1, #ids do
    local id = ids[i]
    if type(id) ~= "number" or not (id >= 0 and id < vocab) or id ~= math.floor(id) then
      raise("token %d is %s, the vocabulary is 0..%d", i, tostring(id), vocab - 1)
    end
  end
end

local function check_text(text)
  if type(text) ~= "string" then raise("the text to encode is %s", raise.kind(text)) end
end

-- ---- bytes ----

local Bytes = {}
Bytes.__index = Bytes

function Bytes.encode(_, text)
  check_text(text)
  local ids = {}
  for i = 1, #text do ids[i] = text:byte(i) end
  return ids
end

function Bytes.decode(_, ids)
  check_ids(ids, 256)
  local out = {}
  for i = 1, #ids do out[i] = string.char(ids[i]) end
  return table.concat(out)
end

function Bytes.__tostring() return "tokenizer: 256 bytes" end

-- ---- tokenizer.json ----

local Json = {}
Json.__index = Json

local function optional(value)
  if value ~= json.null then return value end
end

local function refuse(condition, what)
  if condition then raise(what .. " is not supported") end
end

local function check_model(model)
  if type(model) ~= "table" or type(model.vocab) ~= "table" or type(model.merges) ~= "table" then
    raise "model has no vocab and merges: only byte-pair encoding is supported"
  end
  refuse(optional(model.type) and model.type ~= "BPE", "model type " .. tostring(model.type))
  refuse(optional(model.dropout) and model.dropout ~= 0, "dropout")
  for _, affix in ipairs {"continuing_subword_prefix", "end_of_word_suffix"} do
    refuse(optional(model[affix]) and model[affix] ~= "", affix)
  end
end

-- A merge is {left, right} or "left right". Those of tokens that `spell` has no spelling for never come up.
local function read_merges(list, spell)
  local out = {}
  for i, merge in ipairs(list) do
    local left, right
    if type(merge) == "table" then
      left, right = merge[1], merge[2]
    else
      left, right = merge:match "^(%S+) (%S+)$"
    end
    if not left then raise("merge %d is %q", i - 1, tostring(merge)) end
    left, right = spell(left), spell(right)
    if left and right then out[#out + 1] = {left, right} end
  end
  return out
end

-- The ids that a piece starts from: its bytes' or its characters', each of what `unit` matches. Characters without a token
-- are the tokens <0x00> .. <0xFF> of their bytes where `fallback` is set and all of them are there, or the unknown token.
-- Unknown ones are held back until a token of the vocabulary proper, or the end, follows: the order of this format.
local function symbols(model, vocab, unit, fallback)
  local unknown = optional(model.unk_token)
  local function bytes(part)
    local ids = {}
    for i = 1, fallback and #part or 0 do
      ids[i] = vocab[("<0x%02X>"):format(part:byte(i))]
      if not ids[i] then return nil end
    end
    return ids[1] and ids
  end
  return function(piece)
    local out, held = {}, false
    local function release()
      if held then out[#out + 1] = model.vocab[unknown] or raise("the unknown token %q is not in the vocabulary", unknown) end
      held = false
    end
    for part in piece:gmatch(unit) do
      local id = vocab[part]
      local ids = not id and bytes(part)
      if id then
        release()
        out[#out + 1] = id
      elseif ids then
        for _, byte in ipairs(ids) do out[#out + 1] = byte end
      elseif unknown then
        if not model.fuse_unk then release() end
        held = true
      end
    end
    release()
    return out
  end
end

-- Whether the character of text at `at` is in a class; false past the ends.
local function in_class(class)
  local re
  return function(text, at)
    if at < 1 or at > #text then return false end
    re = re or regex.compile("\\G[" .. class .. "]")
    return re:find(text, at) ~= nil
  end
end

local is_space = in_class "\\p{White_Space}"
local is_word = in_class "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}"

-- Added tokens by the first byte of what is looked for, the longest first, and a pattern of those bytes.
local function added_finder(tokens)
  local by_first, class = {}, {}
  for _, token in ipairs(tokens) do
    local first = token.sought:sub(1, 1)
    if not by_first[first] then
      by_first[first] = {}
      table.insert(class, first == "\0" and "%z" or (first:gsub("%p", "%%%0")))
    end
    table.insert(by_first[first], token)
  end
  for _, list in pairs(by_first) do
    table.sort(list, function(a, b) return #a.sought > #b.sought end)
  end
  return by_first, "[" .. table.concat(class) .. "]"
end

-- What a token found at from..following - 1 takes of the text: with the spaces that it strips, those before it from `least` on.
local function taken(token, text, from, following, least)
  while token.lstrip and from > least and is_space(text, utf8.before(text, from)) do from = utf8.before(text, from) end
  while token.rstrip and is_space(text, following) do following = utf8.following(text, following) end
  return from, following
end

-- A function that calls on_text(piece) for what lies between added tokens and on_token(id) for them, in turn.
local function added_splitter(tokens)
  local by_first, class = added_finder(tokens)
  local function match(text, at)
    for _, token in ipairs(by_first[text:sub(at, at)]) do
      if text:sub(at, at + #token.sought - 1) == token.sought then return token end
    end
  end
  return function(text, on_text, on_token)
    local from, at = 1, #tokens > 0 and text:find(class)
    while at do
      local token = match(text, at)
      local following = at + (token and #token.sought or 1)
      if token and not (token.single_word and (is_word(text, utf8.before(text, at)) or is_word(text, following))) then
        local first, rest = taken(token, text, at, following, from)
        if first > from then on_text(text:sub(from, first - 1)) end
        on_token(token.id)
        from = rest
      end
      at = text:find(class, following)
    end
    if from <= #text then on_text(text:sub(from)) end
  end
end

-- Added tokens that are looked for in the text as it is, and those looked for after normalisation, normalised themselves.
local function read_added(list, normalize)
  local raw, normalized, by_id = {}, {}, {}
  for _, token in ipairs(optional(list) or {}) do
    token.sought = token.normalized and normalize(token.content) or token.content
    if token.sought ~= "" then
      table.insert(token.normalized and normalized or raw, token)
      by_id[token.id] = token.sought
    end
  end
  return raw, normalized, by_id
end

-- ---- decoders: functions from a list of tokens to a list of texts; `literal` has the places of added tokens ----

local decoders = {}

function decoders.ByteLevel()
  return function(tokens, literal)
    for i, token in ipairs(tokens) do
      if not literal[i] then tokens[i] = byte_characters.bytes(token) or token end
    end
    return tokens
  end
end

function decoders.ByteFallback()
  return function(tokens)
    for i, token in ipairs(tokens) do
      local hex = token:match "^<0x(%x%x)>$"
      if hex then tokens[i] = string.char(tonumber(hex, 16)) end
    end
    return tokens
  end
end

function decoders.Fuse()
  return function(tokens) return {table.concat(tokens)} end
end

function decoders.Replace(d)
  refuse(not optional(d.pattern.String), "a decoder's regular expression")
  local change = pretokenize.normalizer(d)
  return function(tokens)
    for i, token in ipairs(tokens) do tokens[i] = change(token) end
    return tokens
  end
end

function decoders.Strip(d)
  local content = d.content
  return function(tokens)
    for i, token in ipairs(tokens) do
      for _ = 1, d.start do
        if token:sub(1, #content) == content then token = token:sub(#content + 1) end
      end
      for _ = 1, d.stop do
        if token:sub(-#content) == content then token = token:sub(1, -#content - 1) end
      end
      tokens[i] = token
    end
    return tokens
  end
end

function decoders.Metaspace(d)
  local marks = optional(d.prepend_scheme) ~= "never" and d.add_prefix_space ~= false
  return function(tokens)
    for i, token in ipairs(tokens) do
      tokens[i] = pretokenize.replaced(token, d.replacement, i == 1 and marks and "" or " ")
    end
    return tokens
  end
end

local function decoder(d)
  if d.type == "Sequence" then
    local list = {}
    for i, part in ipairs(d.decoders) do list[i] = decoder(part) end
    return function(tokens, literal)
      for _, decode in ipairs(list) do tokens = decode(tokens, literal) end
      return tokens
    end
  end
  refuse(not decoders[d.type], "decoder " .. tostring(d.type))
  return decoders[d.type](d)
end

-- Builds everything out of a tokenizer.json's contents.
local function build(root, vocab)
  check_model(root.model)
  local model, self = root.model, setmetatable({vocab = vocab}, Json)
  local uses_bytes = pretokenize.uses_bytes(root.pre_tokenizer)
  local spell = uses_bytes and byte_characters.bytes or function(token) return token end
  local spelled = {}
  self.token_of = {}
  for token, id in pairs(model.vocab) do
    local spelling = spell(token)
    if spelling then spelled[spelling] = id end
    self.token_of[id] = token
  end
  -- A continuation byte begins a piece only where it is the whole of one that is not UTF-8.
  local unit = uses_bytes and "." or "[%z\1-\255][\128-\191]*"
  self.bpe = bpe.new {vocab = spelled, merges = read_merges(model.merges, spell), ignore_merges = optional(model.ignore_merges),
    symbols = symbols(model, spelled, unit, optional(model.byte_fallback) and not uses_bytes)}
  self.uses_bytes = uses_bytes
  self.normalize = pretokenize.normalizer(root.normalizer)
  self.split = pretokenize.splitter(root.pre_tokenizer)
  local raw, normalized, by_id = read_added(root.added_tokens, self.normalize)
  self.split_raw, self.split_normalized, self.added = added_splitter(raw), added_splitter(normalized), by_id
  self.to_text = optional(root.decoder) and decoder(root.decoder)
  return self
end

-- Text that is UTF-8: cut at added tokens, normalised, cut again, cut into pieces. `first`: all begins with it.
local function encode_run(self, text, first, out)
  local function token(id)
    out[#out + 1] = id
    first = false
  end
  self.split_raw(text, function(part)
    self.split_normalized(self.normalize(part), function(plain)
      for _, piece in ipairs(self.split({plain}, first)) do self.bpe:encode(piece, out) end
      first = false
    end, token)
  end, token)
end

local function encode(self, text)
  local out, at = {}, 1
  repeat
    local bad = utf8.invalid(text, at)
    local run = text:sub(at, bad and bad - 1 or -1)
    if run ~= "" then encode_run(self, run, at == 1, out) end
    if bad then
      self.bpe:encode(text:sub(bad, bad), out)
      at = bad + 1
    end
  until not bad
  return out
end

function Json:encode(text)
  check_text(text)
  local ok, out = pcall(encode, self, text)
  if not ok then raise("%s: %s", self.path, raise.words(out)) end
  for i = 1, #out do
    if out[i] >= self.vocab then
      raise("%s: token %d is past the model's vocabulary of %d", self.path, out[i], self.vocab)
    end
  end
  return out
end

-- Ids of the vocabulary that have no token give nothing.
function Json:decode(ids)
  check_ids(ids, self.vocab)
  local tokens, literal = {}, {}
  for i = 1, #ids do
    local added = self.added[ids[i]]
    local token = added or self.token_of[ids[i]]
    if token then
      tokens[#tokens + 1] = token
      literal[#tokens] = added ~= nil
    end
  end
  if not self.to_text then return table.concat(tokens, " ") end
  return table.concat(self.to_text(tokens, literal))
end

function Json:__tostring()
  return ("tokenizer: %s, byte-pair encoding of %s, vocabulary %d"):format(self.path,
    self.uses_bytes and "bytes" or "characters", self.vocab)
end

-- A whole file through the library's door to files.
local function read(path)
  local bytes = ffi.new "int64_t[1]"
  return ffi.string(ownership.take(C.lsa_free, "char", C.lsa_file_read_all, bytes, path, 2 ^ 28), bytes[0])
end

function M.open(directory, vocab)
  local path = directory .. "/tokenizer.json"
  if raise.check(C.lsa_file_exists(path)) == 0 then
    if vocab == 256 then return setmetatable({}, Bytes) end
    raise("%s is not there, and a vocabulary of %d is not one of bytes (256)", path, vocab)
  end
  local ok, root = pcall(json.decode, read(path))
  if not ok or type(root) ~= "table" then raise("%s: %s", path, ok and "is no JSON object" or root) end
  local built, self = pcall(build, root, vocab)
  if not built then raise("%s: %s", path, raise.words(self)) end
  self.path = path
  return self
end

return M
