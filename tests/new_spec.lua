-- `lsa new`, `lsa docs`, `lsa completion`, and --help of every command.
local files = require "file_support"
local process = require "process_support"
local quote, shell = process.quote, process.shell

local function names_of(folder)
  local names = {}
  for _, name in ipairs(require "posix.dirent".dir(folder)) do
    if name:sub(1, 1) ~= "." then names[#names + 1] = name end
  end
  return names
end

local function in_folder(fn)
  files.with_folder(function(folder)
    fn(folder, function(words) return shell(("cd %s && %s %s"):format(quote(folder), quote(process.program), words)) end)
  end)
end

describe("lsa new", function()
  for _, kind in ipairs {"policy", "eviction", "schedule", "experiment"} do
    it("writes a start of an " .. kind .. " whose spec passes", function()
      in_folder(function(folder, lsa)
        local out, err, code = lsa("new " .. kind .. " my_own")
        assert.same({"", 0}, {err, code})
        assert.is_truthy(out:find("lsa test my_own_spec.lua", 1, true))
        assert.is_nil(files.read(folder .. "/my_own.lua"):find "NAME")
        out, err, code = lsa "test my_own_spec.lua"
        assert.equal(0, code, out .. err)
        assert.matches("[1-9]%d* passed, 0 failed\n$", out)
      end)
    end)
  end

  it("overwrites nothing, and says what is no name or kind", function()
    in_folder(function(folder, lsa)
      files.write(folder .. "/mine_spec.lua", "kept")
      local _, err, code = lsa "new policy mine"
      assert.equal(2, code)
      assert.matches("mine_spec.lua is there already", err)
      assert.same({"mine_spec.lua"}, names_of(folder))
      _, err, code = lsa "new policy 'a b'"
      assert.equal(2, code)
      assert.matches('"a b" is no name', err)
      _, err, code = lsa "new model x"
      assert.equal(2, code)
      assert.matches("^usage: lsa new policy|eviction|schedule|experiment NAME", err)
    end)
  end)

  it("and lsa docs say so where nothing can be written, and leave nothing that is cut off", function()
    in_folder(function(folder)
      for _, words in ipairs {"new policy mine", "docs ."} do
        -- No file may grow.
        local out, _, code = shell(("cd %s && { trap '' XFSZ; ulimit -f 0; %s %s; } 2>&1"):format(quote(folder), quote(process.program), words))
        assert.matches("File too large", out)
        assert.is_true(code > 0)
        assert.same({}, names_of(folder))
      end
    end)
  end)

  it("has options in its starts that help tells about", function()
    in_folder(function(_, lsa)
      lsa "new schedule mine"
      local out = lsa [[-e 'for _, o in ipairs {"every", "soon", "nats"} do print(require("lsa.registry").options("schedules", "mine.lua")[o]) end']]
      assert.equal("64\n16\n2\n", out)
    end)
  end)
end)

describe("--help", function()
  for _, command in ipairs {"test", "bench", "doctor", "new", "docs", "completion", "kernel"} do
    it("of " .. command .. " goes to stdout", function()
      local out, err, code = process.lsa {command, "--help"}
      assert.matches("^usage: lsa " .. command, out)
      assert.same({"", 0}, {err, code})
    end)
  end

  it("is there for every experiment", function()
    for _, name in ipairs(names_of(process.root .. "/experiments")) do
      local is_rule = name:find "%.lua$" and files.read(process.root .. "/experiments/" .. name):find "\nreturn function"
      if name:find "%.lua$" and not is_rule then
        local out, err, code = process.lsa {process.root .. "/experiments/" .. name, "--help"}
        assert.same({"", 0}, {err, code}, name)
        assert.is_truthy(files.read(process.root .. "/experiments/" .. name):find("report:done()", 1, true), name)
        for _, option in ipairs {"json", "csv", "debug"} do assert.is_truthy(out:find("--" .. option, 1, true), name) end
      end
    end
  end)
end)

describe("lsa completion", function()
  local bash = shell "command -v bash" ~= ""
  local it = bash and it or pending

  local function completed(words)
    local script = [[eval "$(%s completion bash)"; COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _lsa; printf '%%s\n' "${COMPREPLY[@]}"]]
    return (shell("bash -c " .. quote(script:format(quote(process.program), words))))
  end

  it("completes commands, kinds, files, and a script's own options", function()
    assert.equal("doctor\ndocs\n", completed "lsa doc")
    assert.equal("eviction\nexperiment\n", completed "lsa new e")
    assert.matches("/quickstart.lua\n", completed(("lsa %s/experiments/quick"):format(process.root)))
    assert.equal("--needles\n", completed(("lsa %s/experiments/quickstart.lua --need"):format(process.root)))
    assert.equal("--json\n", completed(("lsa %s/experiments/quickstart.lua --js"):format(process.root)))
  end)

  it("completes what options can be, in lists, too", function()
    local policies = ("lsa %s/experiments/policies.lua --policies "):format(process.root)
    assert.equal("lsa_topk\nlsa_topp\n", completed(policies .. "lsa_top"))
    assert.equal("full,recency\n", completed(policies .. "full,rec"))
    assert.equal("ruler\n", completed(("lsa %s/experiments/quickstart.lua --model ru"):format(process.root)))
    assert.equal("s3fifo\n", completed(("lsa %s/experiments/evictions.lua --tokens 8 --evictions s3"):format(process.root)))
    assert.equal("cuda\n", completed "lsa bench --device cu")
  end)

  it("is what the shells can read", function()
    local _, err, code = shell(("%s completion zsh | sed 1d | bash -n"):format(quote(process.program)))
    assert.same({"", 0}, {err, code})
    _, err, code = process.lsa {"completion", "fish"}
    assert.equal(2, code)
    assert.matches("bash|zsh", err)
  end)
end)

describe("lsa.tasks", function()
  it("prints a line on each task", function()
    local lsa = require "lsa"
    for _, name in ipairs(lsa.tasks.names()) do assert.matches("\n" .. name .. " +%a", tostring(lsa.tasks)) end
  end)
end)

describe("lsa docs", function()
  local it = shell "command -v cmark-gfm" ~= "" and it or pending

  it("makes a site whose links lead somewhere", function()
    in_folder(function(folder, lsa)
      local out, err, code = lsa "docs site"
      assert.same({"", 0}, {err, code})
      assert.matches("^site/index.html and %d+ pages\n$", out)
      local session = files.read(folder .. "/site/session.html")
      assert.is_truthy(session:find("<td><code>granularity</code></td>", 1, true))
      assert.is_truthy(files.read(folder .. "/site/reference.html"):find('<h3 id="h2o">', 1, true))
      for _, name in ipairs(names_of(folder .. "/site")) do
        for to in files.read(folder .. "/site/" .. name):gmatch '[hs]r[ec]f?="([%w_]+%.%l+)' do
          assert.is_truthy(io.open(folder .. "/site/" .. to), ("%s links to %s"):format(name, to))
        end
      end
    end)
  end)
end)
