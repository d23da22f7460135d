-- How scripts' policies are found, reloaded and reported when broken.
local registry = require "lsa.registry"

describe("the registry", function()
  local directory, home, warn, warned, announce, told

  local function put(name, text)
    local file = assert(io.open(directory .. "/" .. name, "wb"))
    file:write(text)
    file:close()
    return directory .. "/" .. name
  end

  before_each(function()
    directory = os.tmpname()
    os.remove(directory)
    assert(os.execute("mkdir -p " .. directory .. "/policies") == 0)
    home, warn, warned, announce, told = registry.home, registry.warn, {}, registry.announce, {}
    registry.home = directory
    registry.warn = function(text) warned[#warned + 1] = text end
    registry.announce = function(text) told[#told + 1] = text end
    put("policies/newest.lua", "return function(cycle, opt) return cycle - (opt.back or 0) end")
    put("policies/all.lua", "return function(cycle) return 'all', cycle end")
    put("policies/README.md", "not a policy")
  end)

  after_each(function()
    registry.home, registry.warn, registry.announce = home, warn, announce
    os.execute("rm -r " .. directory)
  end)

  it("finds a policy by the name of its file, and lists the names sorted", function()
    assert.same({"all", "newest"}, registry.names "policies")
    local entry = registry.open("policies", "newest")
    assert.equal(10, entry.fn(10, entry.opt))
    assert.equal("newest", entry.name)
    assert.truthy(tostring(entry):find "^policy newest ")
    assert.same({}, registry.names "nothing")
  end)

  it("takes a name with options, a file, and a function", function()
    local spec = {"newest", back = 3}
    local entry = registry.open("policies", spec)
    assert.same({true, 7}, {entry:call(10)})
    spec.back = 5
    assert.same({true, 7}, {entry:call(10)})

    local file = registry.open("policies", put("mine.lua", "return function() return 'mine' end"))
    assert.same({true, "mine"}, {file:call()})

    local fn = registry.open("policies", {function(cycle, opt) return cycle, opt.x end, x = 2})
    assert.same({true, 1, 2}, {fn:call(1)})
    assert.same({true, 4, 9}, {fn:with{x = 9}:call(4)})
    assert.is_false(fn:refresh())
  end)

  it("keeps the options of a call after nil arguments", function()
    local entry = registry.open("policies", {function(a, b, opt) return a, b, opt.x end, x = 3})
    assert.same({true, nil, nil, 3}, {entry:call(nil, nil)})
  end)

  it("loads a version of a file once for all entries", function()
    local path = put("once.lua", "return function() return {} end")
    local a, b = registry.open("policies", path), registry.open("policies", path)
    assert.equal(a.fn, b.fn)
    put("once.lua", "return function() return {1} end")
    assert.is_true(a:refresh())
    assert.not_equal(a.fn, b.fn)
    assert.is_true(b:refresh())
    assert.equal(a.fn, b.fn)
    assert.same({("lsa: %s has changed; the new version is in force"):format(path)}, told)
  end)

  it("names what there is when a name is unknown, at the caller's line", function()
    local ok, why = pcall(function() registry.open("policies", "newset") end)
    assert.is_false(ok)
    assert.truthy(why:find "registry_spec.lua:%d+: no policy 'newset'; there are: all, newest;")
    ok, why = pcall(registry.open, "policies", "../outside")
    assert.is_false(ok)
    assert.truthy(why:find("../outside", 1, true))
    ok, why = pcall(registry.open, "policies", directory .. "/absent.lua")
    assert.is_false(ok)
    assert.truthy(why:find "absent.lua: No such file")
    ok, why = pcall(registry.open, "policies", directory .. "/policies/")
    assert.is_false(ok)
    assert.truthy(why:find "policies/: Is a directory")
  end)

  it("refuses what is no policy and says what it got", function()
    for _, spec in ipairs{{7}, {}, {nil}} do
      local ok, why = pcall(registry.open, "policies", spec)
      assert.is_false(ok)
      assert.truthy(why:find "at %[1%] of a table")
    end
    local ok, why = pcall(registry.open, "policies", 7)
    assert.is_false(ok)
    assert.truthy(why:find "this is a number")
    ok, why = pcall(registry.open, "policies", nil)
    assert.is_false(ok)
    assert.truthy(why:find "this is a nil")
  end)

  it("names file and line of a file that does not load", function()
    local cases = {
      {"return function(cycle\n return 1 end", "broken.lua:2: "},
      {"\n\nlocal x = nil + 1", "broken.lua:3: attempt to perform arithmetic"},
      {"error 'on purpose'", "broken.lua:1: on purpose"},
      {"error({})", "broken.lua:1: table"},
      {"return 7", "broken.lua: a file that is a policy returns a function, this one returns a number"},
      {"", "this one returns nothing"},
      {"\27LJ", "bytecode"},
    }
    for _, case in ipairs(cases) do
      local path = put("broken.lua", case[1])
      local ok, why = pcall(registry.open, "policies", path)
      assert.is_false(ok)
      assert.truthy(why:find(case[2], 1, true), why)
      assert.truthy(why:find(directory, 1, true), why)
    end
  end)

  it("names file and line of an error at run time, wherever it was raised", function()
    local path = put("policies/raises.lua", [[
return function(cycle)
  if cycle == 1 then error "one" end
  if cycle == 2 then return nil + 1 end
  if cycle == 3 then string.rep() end
  if cycle == 4 then error("bare", 0) end
  if cycle == 5 then error({}) end
  return cycle
end]])
    local entry = registry.open("policies", "raises")
    for cycle, line in ipairs{2, 3, 4, 5, 6} do
      local ok, why = entry:call(cycle)
      assert.is_false(ok)
      assert.truthy(why:find(path .. ":" .. line .. ": ", 1, true), why)
    end
    assert.same({true, 6}, {entry:call(6)})
    local fn = registry.open("policies", function() error("bare", 0) end)
    local ok, why = fn:call()
    assert.is_false(ok)
    assert.truthy(why:find "registry_spec.lua:%d+: bare$")
  end)

  it("checks the options that a file declares, fills in defaults, and tells them", function()
    put("policies/strict.lua", "return function(_, opt) return opt.theta, opt.of end, {theta = 0.5, of = false}")
    assert.same({true, 0.5}, {registry.open("policies", "strict"):call(1)})
    assert.same({true, 0.25}, {registry.open("policies", {"strict", theta = 0.25}):call(1)})
    assert.same({theta = 0.5, of = false}, registry.options("policies", "strict"))
    assert.is_nil(registry.options("policies", "newest"))
    assert.error_matches(function() registry.open("policies", {"strict", thetta = 1}) end,
      "policy strict: no option 'thetta'; there are: of, theta")
    for _, of in ipairs {{"strict", thetta = 1}, {"newest", {"strict", thetta = 1}}} do
      assert.error_matches(function() registry.open("policies", {"strict", of = of}) end, "no option 'thetta'")
    end
    assert.error_matches(function() registry.open("policies", put("odd.lua", "return function() end, 7")) end,
      "odd.lua: the second value of a policy is its options with their defaults")
  end)

  it("checks options again when a file is loaded anew", function()
    local path = put("mine.lua", "return function(_, opt) return opt.a end, {a = 1, b = 2}")
    local entry = registry.open("policies", {path, b = 3})
    put("mine.lua", "return function(_, opt) return opt.a end, {a = 4}")
    assert.is_false(entry:refresh())
    assert.same({true, 1}, {entry:call(0)})
    assert.truthy(warned[1]:find "no option 'b'; there are: a; the previous version stays in force")
    put("mine.lua", "return function(_, opt) return opt.a + opt.b end, {a = 4, b = 0}")
    assert.is_true(entry:refresh())
    assert.same({true, 7}, {entry:call(0)})
  end)

  it("warns once of options that a rule's text never reads", function()
    local path = put("mine.lua", "return function(_, opt)\n  local thetta = opt.theta -- opt.thetta\n  return thetta\nend")
    for _ = 1, 2 do registry.open("policies", {path, thetta = 1, theta = 2}) end
    assert.equal(1, #warned)
    assert.truthy(warned[1]:find "policy .*mine.lua never reads the option thetta$")
    registry.open("policies", {function() return {} end, x = 1})
    assert.truthy(warned[2]:find "registry_spec.lua:%d+ never reads the option x$")
    registry.open("policies", {put("all.lua", "return function(_, opt) for k in pairs(opt) do return k end end"), x = 1})
    registry.open("policies", {put("dots.lua", "return function(...) return select(2, ...).x end"), x = 1})
    registry.open("policies", {put("key.lua", "return function(_, o) return o['x'] end"), x = 1})
    assert.equal(2, #warned)
  end)

  it("knows the options of every rule of the library", function()
    registry.home = home
    for _, kind in ipairs {"policies", "evictions", "schedules", "samplers"} do
      assert.is_true(#registry.names(kind) > 0)
      for _, name in ipairs(registry.names(kind)) do
        local known = registry.options(kind, name)
        assert.equal("table", type(known), name)
        assert.error_matches(function() registry.open(kind, {name, thetta = 1}) end, "no option 'thetta'; [ti]")
        local file = assert(io.open(home .. "/" .. kind .. "/" .. name .. ".lua"))
        local text = file:read "*a"
        file:close()
        for option in text:gmatch "%f[%w]opt%.([%a_]+)" do assert.is_not_nil(known[option], name .. ": " .. option) end
      end
    end
  end)

  it("gives the whole path where Lua would shorten it", function()
    local long = directory .. "/" .. ("deep"):rep(20)
    assert(os.execute("mkdir " .. long) == 0)
    local path = long .. "/policy.lua"
    local file = assert(io.open(path, "w"))
    file:write "return function() error 'here' end"
    file:close()
    local ok, why = registry.open("policies", path):call()
    assert.is_false(ok)
    assert.equal(path .. ":1: here", why)
  end)

  it("takes over a file that changed on disk, however soon after", function()
    local path = put("mine.lua", "return function() return 1 end")
    local entry = registry.open("policies", path)
    assert.is_false(entry:refresh())
    for version = 2, 5 do
      put("mine.lua", "return function() return " .. version .. " end")
      assert.is_true(entry:refresh())
      assert.equal(version, entry.fn())
      assert.is_false(entry:refresh())
    end
    assert.same({}, warned)
  end)

  it("says once what a rule does wrong, however many sessions have it, and again after the next statement at the prompt", function()
    local processes = require "process_support"
    local path = put("wrong.lua", "return function(cycle) error('of ' .. cycle.n) end")
    local code = ([[
      model = model or lsa.model "needle"
      for i = 1, 5 do
        local s = model:session{select = %q, every = 2}
        s:prefill(("abc"):rep(20 + i))
        s:generate{n = 9}
      end]]):format(path)
    local _, errors = processes.lsa({"-e", code .. code})
    assert.matches("^lsa: [^\n]*wrong.lua:1: of %d+; the previous set stays in force\n$", errors)
    local statement = code:gsub("\n%s*", " ") .. "\n"
    _, errors = processes.lsa({}, statement .. statement)
    local _, lines = errors:gsub("stays in force", "")
    assert.equal(2, lines, errors)
  end)

  it("keeps the previous version of a file that broke, and says why once", function()
    local path = put("mine.lua", "return function() return 1 end")
    local entry = registry.open("policies", path)
    put("mine.lua", "\nreturn function( return 2 end")
    for _ = 1, 3 do
      assert.is_false(entry:refresh())
      assert.equal(1, entry.fn())
    end
    assert.equal(1, #warned)
    assert.truthy(warned[1]:find(path .. ":2:", 1, true), warned[1])
    assert.truthy(warned[1]:find "previous version stays in force")

    put("mine.lua", "return 3")
    assert.is_false(entry:refresh())
    assert.equal(2, #warned)
    os.remove(path)
    assert.is_false(entry:refresh())
    assert.is_false(entry:refresh())
    assert.equal(1, entry.fn())
    assert.equal(3, #warned)

    put("mine.lua", "return function() return 4 end")
    assert.is_true(entry:refresh())
    assert.equal(4, entry.fn())
    put("mine.lua", "return 3")
    entry:refresh()
    assert.equal(4, #warned)
  end)
end)
