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
      mkdir -p %s/build && cd %s && cp -a lsa .packages premake5.lua core kernels lua %s &&
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

  it("runs what is built where nothing can be written, and says so when that is stale", function()
    local me = shell "id -u"
    if me == "0\n" and not shell("su nobody -s /bin/sh -c id"):find "nobody" then return pending "nobody who may not write" end
    shell("chmod a+rx " .. quote(folder) .. "; find " .. quote(tree) .. " -type d -exec chmod a+rx {} +; chmod -R a+r " .. quote(tree))
    local function run()
      local as = me == "0\n" and "su nobody -s /bin/sh -c " or "sh -c "
      return shell("cd / && " .. as .. quote(launcher .. " -e 'print(1)'"))
    end
    if me ~= "0\n" then shell("chmod -R a-w " .. quote(tree)) end
    local out, err, code = run()
    assert.same({"1\n", "", 0}, {out, err, code})
    shell("touch " .. quote(tree .. "/core/host/main.c"))
    out, err, code = run()
    assert.same({"1\n", "lsa: what is built is older than the tree, which cannot be written; it runs all the same\n", 0}, {out, err, code})
    shell("chmod -R u+w " .. quote(tree))
    shell(launcher .. " --version")
  end)

  it("says what it is about to install, and installs nothing when it is refused", function()
    local bin = folder .. "/bin"
    shell("mkdir -p " .. quote(bin))
    process.write(bin .. "/id", "#!/bin/sh\necho 0\n")
    process.write(bin .. "/apt-get", "#!/bin/sh\necho \"$@\" >> " .. quote(folder .. "/installed") .. "\n")
    shell("chmod +x " .. quote(bin) .. "/*")
    local list = quote(tree .. "/.packages")
    shell(("cp %s %s.kept; echo 'run no-such-package nothing' >> %s"):format(list, list, list))
    local run = ("rm -f %s; cd / && PATH=%s:$PATH "):format(quote(tree .. "/build/.not-installed"), quote(bin))
    local out, err = shell(run .. launcher .. " -e 1 </dev/null")
    assert.equal("1\n", out)
    assert.matches("lsa: installing no%-such%-package; Ctrl%-C within a second refuses", err)
    assert.is_truthy(process.shell("cat " .. quote(folder .. "/installed")):find "install .*no%-such%-package")
    os.remove(folder .. "/installed")
    out = shell(run .. "sh -c " .. quote("printf 'n\\n' | script -qec " .. quote(launcher .. " -e 1") .. " /dev/null"))
    assert.matches("apt%-get install no%-such%-package%? %[Y/n%]", out)
    assert.equal("", (shell("cat " .. quote(folder .. "/installed") .. " 2>/dev/null || true")))
    shell(("mv %s.kept %s"):format(list, list))
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
    assert.equals("lsa: building (release)\n", (err:gsub("lsa: building: %d+ of %d+, %d+ s\n", "")))
    assert.equals(0, code)
  end)

  it("says on a terminal how far it is", function()
    shell("touch " .. quote(tree .. "/core/host/main.c"))
    local slow = folder .. "/slow"
    shell("mkdir -p " .. quote(slow))
    process.write(slow .. "/gcc", "#!/bin/sh\nsleep 1.5\nexec gcc-real \"$@\"\n")
    shell(("ln -sf \"$(command -v gcc)\" %s; chmod +x %s"):format(quote(slow .. "/gcc-real"), quote(slow .. "/gcc")))
    local out = shell(("PATH=%s:$PATH CC=gcc script -qec %s /dev/null"):format(quote(slow), quote(launcher .. " -e 1")))
    assert.matches("lsa: building: %d+ of [1-9]%d*, [1-9]%d* s", out)
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
