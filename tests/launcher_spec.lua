-- The launcher ./lsa, in a copy of the tree whose path has a space.
local process = require "process_support"
local shell, quote = process.shell, process.quote

describe("the launcher", function()
  local folder, tree, launcher

  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    tree = folder .. "/a tree"
    launcher = quote(tree .. "/lsa")
    -- Times stay as they are, so that the copy is as fresh as the original.
    local _, err, code = shell(([[
      mkdir -p %s/build && cd %s && cp -a lsa packages premake5.lua core kernels lua %s &&
      for entry in build/obj build/bin build/.built build/.built-cuda build/Makefile build/*.make build/*.so; do
        [ ! -e "$entry" ] || cp -a "$entry" %s/build
      done]]):format(quote(tree), quote(process.root), quote(tree), quote(tree)))
    assert(code == 0, err)
    _, err, code = shell(launcher .. " --version")
    assert(code == 0, err)
  end)

  teardown(function() os.execute("rm -rf " .. quote(folder)) end)

  it("starts the program at once when all is in place", function()
    local out, err, code = shell(launcher .. " -e 'print(1)'")
    assert.equals("1\n", out)
    assert.equals("", err)
    assert.equals(0, code)
  end)

  it("passes arguments and exit codes through, from any folder, by a link too", function()
    local link = folder .. "/link"
    assert.equals(0, os.execute(("ln -s %s %s"):format(launcher, quote(link))))
    local out, _, code = shell(("cd / && %s -e 'print(...) os.exit(3)' 'a b' c"):format(quote(link)))
    assert.equals("a b\tc\n", out)
    assert.equals(3, code)
    out = shell(("cd %s && ./lsa --release -e 'print(2)'"):format(quote(tree)))
    assert.equals("2\n", out)
  end)

  it("builds what changed, once, however many start at that moment", function()
    assert.equals(0, os.execute("touch " .. quote(tree .. "/core/host/main.c")))
    local out, err, code = shell(("for i in 1 2 3; do %s -e 'print(1)' & done; wait"):format(launcher))
    assert.equals("1\n1\n1\n", out)
    assert.equals("lsa: building (release)\n", err)
    assert.equals(0, code)
  end)

  it("notices a file that went", function()
    local extra = quote(tree .. "/core/base/extra.c")
    assert.equals(0, os.execute("echo 'int lsa_extra(void); int lsa_extra(void) { return 1; }' > " .. extra))
    local ask = launcher .. [[ -e 'require "ffi".cdef "int lsa_extra(void);"
      local ok = pcall(function() return require "lsa.ffi".C.lsa_extra end) print(ok)']]
    assert.equals("true\n", (shell(ask)))
    assert.equals(0, os.execute("rm " .. extra))
    assert.equals("false\n", (shell(ask)))
  end)

  it("shows the compiler's words when a build fails, and tries again", function()
    local main = quote(tree .. "/core/host/main.c")
    assert.equals(0, os.execute(("cp %s %s && echo 'broken;' >> %s"):format(main, quote(folder .. "/main.c"), main)))
    for _ = 1, 2 do
      local out, err, code = shell(launcher .. " -e 'print(1)'")
      assert.equals("", out)
      assert.is_truthy(err:find("core/host/main.c:%d+:%d+: ") and err:find "lsa: the build failed\n$")
      assert.equals(1, code)
    end
    assert.equals(0, os.execute(("cp %s %s"):format(quote(folder .. "/main.c"), main)))
    local out, _, code = shell(launcher .. " -e 'print(1)'")
    assert.equals("1\n", out)
    assert.equals(0, code)
  end)
end)
