local json = require "cjson"
local bpe = require "lsa.text.bpe"
local lsa = require "lsa.ffi"
local pretokenize = require "lsa.text.pretokenize"
local regex = require "lsa.text.regex"
local support = require "file_support"
local tokenizer = require "lsa.text.tokenizer"
local uniform = require("kernel_support").uniform
local utf8 = require "lsa.text.utf8"

local FOLDER = lsa.root .. "/tests/tokenizer/"
local cases = json.decode(support.read(FOLDER .. "cases.json"))

-- fn(tokenizer) of a folder whose tokenizer.json is this text.
local function with_text(text, vocab, fn)
  support.with_folder(function(folder)
    support.write(folder .. "/tokenizer.json", text)
    fn(tokenizer.open(folder, vocab), folder)
  end)
end

local function with_fixture(name, fn)
  with_text(support.read(FOLDER .. name .. ".json"), 1000, fn)
end

-- The message of a call that must fail at this file's line.
local function failure(fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  return message
end

describe("a tokenizer", function()
  for name, list in pairs(cases) do
    it("of " .. name .. ".json gives the ids and the text that the tokenizers package gives", function()
      with_fixture(name, function(t)
        local decoded = 0
        for _, case in ipairs(list) do
          local ids = t:encode(case.text)
          assert.equal(table.concat(case.ids, " "), table.concat(ids, " "), ("%q"):format(case.text))
          -- The package puts U+FFFD where bytes are no UTF-8; here they stay bytes.
          if not case.decoded:find("\239\191\189", 1, true) then
            assert.equal(case.decoded, t:decode(ids))
            decoded = decoded + 1
          end
        end
        assert.is_true(decoded > 20)
      end)
    end)
  end

  local all = json.decode(support.read(FOLDER .. "splits.json"))
  for name, case in pairs(all.splits) do
    it("cuts as the tokenizers package does by the pre-tokenizer " .. name, function()
      local split = pretokenize.splitter(case.pre_tokenizer)
      for i, text in ipairs(all.texts) do
        local lengths = {}
        for k, piece in ipairs(split({text}, true)) do lengths[k] = #piece end
        assert.equal(case.lengths[i], table.concat(lengths, " "), ("%q"):format(text))
      end
      assert.is_true(#all.texts > 100)
    end)
  end

  it("cuts at empty matches", function()
    local split = pretokenize.splitter {type = "Split", pattern = {Regex = "(?=(?:\\d{3})+$)"}, behavior = "Isolated"}
    assert.same({"1", "234", "567"}, split {"1234567"})
    assert.equal("-a-b-", pretokenize.normalizer {type = "Replace", pattern = {Regex = ""}, content = "-"} "ab")
  end)

  it("of bytes gives back any string, UTF-8 or not", function()
    local u = uniform(3)
    for _, name in ipairs {"deepseek", "fallback"} do
      with_fixture(name, function(t)
        for round = 1, 200 do
          local out = {}
          for i = 1, round % 40 do out[i] = string.char(math.floor(u(0, 256))) end
          local text = "a" .. table.concat(out)
          if name == "deepseek" then
            assert.equal(text, t:decode(t:encode(text)))
          else
            -- Each run between bad bytes begins with a space of its own in this kind.
            assert.equal((text:gsub(" ", "")), (t:decode(t:encode(text)):gsub(" ", "")))
          end
        end
        assert.equal("\255a\128\228\184", (t:decode(t:encode "\255a\128\228\184"):gsub(" ", "")))
      end)
    end
  end)

  it("of bytes makes strings in proportion to the text where bytes are no UTF-8", function()
    with_fixture("deepseek", function(t)
      local text = ("\255a\128"):rep(20000)
      collectgarbage()
      collectgarbage "stop"
      local before = collectgarbage "count"
      local ids = t:encode(text)
      local kilobytes = collectgarbage "count" - before
      collectgarbage "restart"
      -- A copy of the rest of the text at every such byte is more than 1 GB.
      assert.is_true(kilobytes < 1000 * #text / 1024, kilobytes)
      assert.equal(60000, #ids)
      assert.equal(text, t:decode(ids))
    end)
  end)

  it("of characters gives bytes that are no UTF-8 their tokens or the unknown one", function()
    with_fixture("partial", function(t)
      assert.same({4, 1, 4, 0, 2, 0}, t:encode "a\195a\255\169\193")
    end)
    with_fixture("few", function(t)
      local a = t:encode "a"
      assert.same({a[1], a[1]}, t:encode "a\255a")
    end)
  end)

  it("of bytes has its unknown token for a byte without one", function()
    local root = json.decode(support.read(FOLDER .. "few.json"))
    root.model.unk_token = "no"
    with_text(json.encode(root), 100, function(t)
      assert.is_true(failure(t.encode, t, "x"):find("the unknown token \"no\" is not in the vocabulary", 1, true) ~= nil)
    end)
    root.model.unk_token = "."
    with_text(json.encode(root), 100, function(t)
      assert.equal(".a..b", t:decode(t:encode "xaxyb"))
    end)
  end)

  it("does not slow down on one long run", function()
    with_fixture("deepseek", function(t)
      local text = ("ver"):rep(20000)
      local from = os.clock()
      assert.equal(text, t:decode(t:encode(text)))
      assert.is_true(os.clock() - from < 5)
    end)
  end)

  it("is the bytes where a folder has none and the vocabulary is 256", function()
    support.with_folder(function(folder)
      local t = tokenizer.open(folder, 256)
      local every = {}
      for i = 0, 255 do every[i + 1] = string.char(i) end
      local text = table.concat(every)
      local ids = t:encode(text)
      for i = 1, 256 do assert.equal(i - 1, ids[i]) end
      assert.equal(text, t:decode(ids))
      assert.equal("", t:decode(t:encode ""))
      assert.equal("tokenizer: 256 bytes", tostring(t))
      local message = failure(tokenizer.open, folder, 64)
      assert.is_true(message:find(folder .. "/tokenizer.json is not there", 1, true) ~= nil, message)
      for _, ids_of in ipairs {{256}, {-1}, {1.5}, {"a"}, {0 / 0}, "text", false} do
        assert.is_true(failure(t.decode, t, ids_of):find("^[^:]-tests/tokenizer_spec.lua:%d+: token") ~= nil)
      end
      assert.is_true(failure(t.encode, t, 5):find("the text to encode is a number", 1, true) ~= nil)
    end)
  end)

  it("knows the model's vocabulary", function()
    local text = support.read(FOLDER .. "deepseek.json")
    with_text(text, 300, function(t, folder)
      local message = failure(t.encode, t, "stoanber\208\179\208\190 verunwanted")
      assert.is_true(message:find("past the model's vocabulary of 300", 1, true) ~= nil, message)
      assert.is_true(message:find(folder, 1, true) ~= nil)
      assert.is_true(failure(t.decode, t, {0, 300}):find("token 2 is 300, the vocabulary is 0..299", 1, true) ~= nil)
    end)
    with_text(text, 1000, function(t)
      assert.equal("a", t:decode {999, t:encode("a")[1], 998})
      assert.is_true(tostring(t):find("byte-pair encoding of bytes, vocabulary 1000", 1, true) ~= nil)
    end)
  end)

  describe("refuses", function()
    local good = json.decode(support.read(FOLDER .. "deepseek.json"))
    for what, case in pairs {
      ["text that is not JSON"] = {"{", "Expected"},
      ["a number"] = {"3", "no JSON object"},
      ["no model"] = {{model = json.null}, "byte-pair encoding"},
      ["another model"] = {{model = {type = "Unigram", vocab = {}, merges = {}}}, "model type Unigram"},
      ["a prefix of parts of words"] = {{model = {type = "BPE", vocab = {}, merges = {}, continuing_subword_prefix = "##"}},
        "continuing_subword_prefix"},
      ["a merge of nothing"] = {{model = {vocab = {a = 0}, merges = {"a"}}}, 'merge 0 is "a"'},
      ["a merge of unknown tokens"] = {{model = {vocab = {a = 0, b = 1}, merges = {"a b"}}}, "merge 0"},
      ["another normalizer"] = {{normalizer = {type = "NFKC"}}, "normalizer NFKC is not supported"},
      ["another pre-tokenizer"] = {{pre_tokenizer = {type = "BertPreTokenizer"}}, "BertPreTokenizer is not supported"},
      ["bytes of bytes"] = {{pre_tokenizer = {type = "Sequence", pretokenizers = {{type = "ByteLevel"}, {type = "ByteLevel"}}}},
        "after ByteLevel, pre-tokenizer ByteLevel is not supported"},
      ["another behaviour"] = {{pre_tokenizer = {type = "Split", pattern = {String = "a"}, behavior = "Odd"}}, "Odd is not"},
      ["a broken expression"] = {{pre_tokenizer = {type = "Split", pattern = {Regex = "(a"}, behavior = "Isolated"}},
        "expression (a: end pattern with unmatched parenthesis"},
      ["another decoder"] = {{decoder = {type = "WordPiece"}}, "decoder WordPiece is not supported"},
      ["a first Metaspace after another"] = {{pre_tokenizer = {type = "Sequence", pretokenizers = {{type = "WhitespaceSplit"},
        {type = "Metaspace", replacement = "_", prepend_scheme = "first"}}}}, "prepend_scheme first is not supported"},
    } do
      it(what, function()
        local text = case[1]
        if type(text) == "table" then
          local root = {}
          for key, value in pairs(good) do root[key] = value end
          for key, value in pairs(text) do root[key] = value end
          text = json.encode(root)
        end
        support.with_folder(function(folder)
          support.write(folder .. "/tokenizer.json", text)
          local message = failure(tokenizer.open, folder, 1000)
          assert.is_true(message:find(case[2], 1, true) ~= nil, message)
          assert.is_true(message:find(folder .. "/tokenizer.json", 1, true) ~= nil, message)
        end)
      end)
    end
  end)
end)

describe("byte-pair encoding", function()
  -- Merges by looking at every pair, again and again.
  local function naive(vocab, ranks, piece)
    local parts = {}
    for i = 1, #piece do parts[i] = piece:sub(i, i) end
    while true do
      local best, at
      for i = 1, #parts - 1 do
        local rank = ranks[parts[i] .. " " .. parts[i + 1]]
        if rank and (not best or rank < best) then best, at = rank, i end
      end
      if not at then break end
      parts[at] = parts[at] .. table.remove(parts, at + 1)
    end
    for i, part in ipairs(parts) do parts[i] = vocab[part] end
    return parts
  end

  it("merges the lowest rank first and the leftmost of equals", function()
    local u = uniform(8)
    for _ = 1, 60 do
      local vocab, tokens, merges, ranks = {a = 0, b = 1, c = 2}, {"a", "b", "c"}, {}, {}
      for rank = 1, 25 do
        local left, right = tokens[1 + math.floor(u(0, #tokens))], tokens[1 + math.floor(u(0, #tokens))]
        if not vocab[left .. right] then
          tokens[#tokens + 1] = left .. right
          vocab[left .. right] = #tokens - 1
        end
        if not ranks[left .. " " .. right] then
          merges[#merges + 1] = {left, right}
          ranks[left .. " " .. right] = rank
        end
      end
      local coder = bpe.new {vocab = vocab, merges = merges, symbols = function(piece)
        local ids = {}
        for i = 1, #piece do ids[i] = vocab[piece:sub(i, i)] end
        return ids
      end}
      for n = 0, 60, 3 do
        local letters, out = {}, {}
        for i = 1, n do letters[i] = ("abc"):sub(1 + math.floor(u(0, 3))):sub(1, 1) end
        local piece = table.concat(letters)
        coder:encode(piece, out)
        assert.same(naive(vocab, ranks, piece), out)
        coder:encode(piece, out)                 -- from the cache, appended
        assert.equal(2 * #naive(vocab, ranks, piece), #out)
      end
    end
  end)
end)

describe("a regular expression", function()
  it("finds places like string.find, with Unicode's classes", function()
    local re = regex.compile "\\p{L}+|\\s+(?!\\S)"
    local text = "12 \195\169t\195\169  x"
    assert.same({4, 8}, {re:find(text, 1)})
    assert.same({9, 9}, {re:find(text, 9)})
    assert.same({11, 11}, {re:find(text, 10)})
    assert.is_nil(re:find(text, 12))
    assert.is_nil(regex.compile("x"):find("", 1))
    assert.same({1, 0}, {regex.compile("x*"):find("", 1)})
    assert.equal("regex x", tostring(regex.compile "x"))
  end)

  it("names a property that there is not", function()
    local message = failure(regex.compile, "a\\p{Nothing}")
    assert.equal("the regular expression a\\p{Nothing}: invalid character property name {Nothing}", message:match ": (the .*)")
  end)

  it("has Oniguruma's syntax", function()
    assert.same({4, 5}, {regex.compile("[\\p{L}&&[^a-z]]+"):find("abcDEf", 1)})
    assert.same({2, 3}, {regex.compile("[a-c[x-z]]+"):find("-az-", 1)})
    assert.same({1, 2}, {regex.compile("\\h+"):find("fFg", 1)})              -- a hexadecimal digit
    assert.same({2, 3}, {regex.compile("[[:digit:]]+"):find("a12", 1)})
    assert.is_nil(regex.compile("\\s"):find("\225\160\142", 1))              -- U+180E is no space
    assert.is_nil(regex.compile("\\p{Han}"):find("\227\128\130", 1))         -- nor is U+3002 Han
    assert.same({1, 3}, {regex.compile("\\w+"):find("e\204\129", 1)})        -- marks are of words
    assert.same({2, 4}, {regex.compile("[[:punct:]]+"):find("a,$=b", 1)})     -- symbols, too
    assert.same({3, 4}, {regex.compile("[^a[:^punct:]]+"):find("ab=]", 1)})
    assert.same({1, 5}, {regex.compile("[:punct]+"):find("punct", 1)})
    assert.same({1, 3}, {regex.compile("\\[[[:punct:]]\\]"):find("[$]", 1)})
  end)

  it("takes a run of any length", function()
    local text = ("word"):rep(250000)
    assert.same({1, 1000000}, {regex.compile("(?:\\p{L}|\\p{M})+"):find(text, 1)})
    assert.same({1, 1000000}, {regex.compile("[\\p{L}\\p{M}]+(?!\\S)"):find(text, 1)})
  end)
end)

describe("utf8", function()
  it("says where text is not UTF-8", function()
    for _, case in ipairs {{"caf\195\169"}, {""}, {"caf\233 x", 4}, {"\128", 1}, {"ab\228\184", 3}, {"a\237\160\128", 2},
      {"\192\128", 1}, {"\224\159\128", 1}, {"\240\143\191\191", 1}, {"\244\143\191\191"}, {"\244\144\128\128", 1},
      {"\239\191\191\245", 4}, {"a\0\127\194\128\223\191\195(", 8}} do
      assert.equal(case[2], utf8.invalid(case[1], 1), ("%q"):format(case[1]))
    end
    assert.equal(5, utf8.invalid("\255a\195\169\255", 2))
    assert.is_nil(utf8.invalid("\255", 2))
    assert.is_nil(utf8.invalid("\255", 3))
  end)

  it("steps over characters", function()
    local text = "a\195\169\226\150\129b"
    local at, back = {}, {}
    local i = 1
    while i <= #text do
      at[#at + 1] = i
      i = utf8.following(text, i)
    end
    while i > 1 do
      i = utf8.before(text, i)
      table.insert(back, 1, i)
    end
    assert.same({1, 2, 4, 7}, at)
    assert.same(at, back)
  end)
end)
