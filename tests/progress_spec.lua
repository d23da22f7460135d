-- The progress line of scripts.
local process = require "process_support"
local progress = require "lsa.progress"

describe("a progress line", function()
  it("shows how far, how fast and what is left", function()
    local bar = progress(4, "needles")
    assert.equals("needles  [....................] 0/4", bar:text())
    bar:step()
    assert.is_truthy(bar:text():find "^needles  %[#####%.+%] 1/4  %S+ ?%S* ?%S*  %d:%d%d left$")
    bar:step(3, "last")
    assert.is_truthy(bar:text():find "^needles  %[####################%] 4/4  .*took %d:%d%d  last$")
  end)

  it("survives nothing to do, and more than was said", function()
    assert.is_truthy(progress(0):text():find("0/0", 1, true))
    local bar = progress(1)
    bar:step(5)
    assert.is_truthy(bar:text():find("5/1", 1, true))
  end)

  it("is silent where stderr is no terminal", function()
    local out, err, code = process.lsa { "-e", [[
      local bar = require "lsa.progress"(2, "x")
      bar:step() bar:step() bar:done()]] }
    assert.equals("", out)
    assert.equals("", err)
    assert.equals(0, code)
  end)
end)
