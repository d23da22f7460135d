-- Plots: what reaches gnuplot, what comes back, what is refused, and the ready ones against counting by hand.
local lsa = require "lsa"
local files = require "file_support"
local gnuplot = require "lsa.plot.gnuplot"
local grid = require "lsa.prompt.results_table"
local intervals = require "lsa.intervals"
local process = require "process_support"
local terminal = require "lsa.plot.terminal"
local Terminal = require "terminal_support"

local plot = lsa.plot
local golden = require("lsa.ffi").root .. "/tests/golden/"

-- The numbers of the n-th block of data among gnuplot's commands, row by row.
local function block(p, n)
  local at = 0
  for text in gnuplot.commands(p, "svg"):gmatch "%$%w+ << END\n(.-)END\n" do
    at = at + 1
    if at == n then
      local rows = {}
      for line in text:gmatch "[^\n]+" do
        local row = {}
        for cell in line:gmatch "%S+" do row[#row + 1] = cell == "NaN" and cell or tonumber(cell) end
        rows[#rows + 1] = row
      end
      return rows
    end
  end
end

local function svg(p)
  local text = gnuplot.picture(p, "svg")
  assert.matches("^<%?xml", text)
  assert.matches("</svg>%s*$", text)
  return text
end

local function refused(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok, "accepted")
  assert.matches(pattern, message)
end

local nan = 0 / 0

describe("a plot", function()
  it("gives gnuplot the numbers of lists and tensors", function()
    local p = plot.line{x = {1, 2, 4}, y = lsa.tensor({0.5, 0.25, 1 / 3}, "f64"), low = {0, 0, 0}, high = {1, 1, 2}}
    assert.same({{1, 0.5, 0, 1}, {2, 0.25, 0, 1}, {4, 0.333333333333, 0, 2}}, block(p, 1))
    assert.same({{1, 7, 7, 7}, {2, 9, 9, 9}}, block(plot {7, 9}, 1))
    assert.same({{3, 7, 7, 7}, {5, 9, 9, 9}}, block(plot({3, 5}, lsa.tensor({7, 9}, "i64"), {title = "t"}), 1))
    local alone = lsa.tensor{7, 9}
    for _, given in ipairs {alone, {alone}, {7, 9}, {{7, 9}}} do
      assert.same({{1, 7, 7, 7}, {2, 9, 9, 9}}, block(plot.line(given), 1))
      assert.same({{7.5, 1, 1}, {8.5, 1, 1}}, block(plot.histogram(type(given) == "table" and {given[1], given[2], bins = 2} or {given, bins = 2}), 1))
    end
    local two = plot.scatter{alone, {3, 4}, title = "t"}
    assert.same({{{1, 7, 7, 7}, {2, 9, 9, 9}}, {{1, 3, 3, 3}, {2, 4, 4, 4}}}, {block(two, 1), block(two, 2)})
    assert.same({{1, 2}, {3, "NaN"}}, block(plot.heatmap{z = {{1, 2}, {3, nan}}, blank = true}, 1))
    assert.same({{1, 2, 3}, {4, 5, 6}}, block(plot.heatmap{z = lsa.tensor{{1, 2, 3}, {4, 5, 6}}}, 1))
    -- A histogram's middles, counts, widths; the last edge belongs to the last bin.
    assert.same({{0.5, 2, 1}, {1.5, 1, 1}, {2.5, 0, 1}, {3.5, 2, 1}}, block(plot.histogram{values = {0, 0.5, 1, 3, 4}, bins = 4}, 1))
    -- Bars: the first name highest; value, place, from, to, and the box around the place.
    local bars = block(plot.bars{names = {"a", "b"}, values = {3, 4}, low = {2, 3}, high = {5, 6}}, 1)
    assert.same({3, 1, 0, 3, 0.632, 1.368, 2, 5}, bars[1])
    assert.same({4, 0, 0, 4, -0.368, 0.368, 3, 6}, bars[2])
  end)

  it("of a million points draws what shows: the ends and extremes of each column", function()
    local n, random, y = 200000, require("lsa.cycle.rng").new(1), {}
    for i = 1, n do y[i] = random() end
    y[77777], y[99] = 50, -50
    local rows = block(plot.line{y = y}, 1)
    assert.is_true(#rows <= 4004 and #rows > 3000)
    local before, seen = 0, {}
    for _, row in ipairs(rows) do
      assert.is_true(row[1] > before and math.abs(y[row[1]] - row[2]) < 1e-9)
      before, seen[row[1]] = row[1], true
    end
    assert.is_true(seen[1] and seen[n] and seen[77777] and seen[99])
    for i = 1, n, 97 do -- no column has anything beyond what was kept of it
      local low, high = 1 / 0, -1 / 0
      for j = math.max(1, i - 201), math.min(n, i + 201) do
        local same = math.floor((j - 1) / (n - 1) * 1000) == math.floor((i - 1) / (n - 1) * 1000)
        if seen[j] and same then low, high = math.min(low, y[j]), math.max(high, y[j]) end
      end
      assert.is_true(low <= y[i] and y[i] <= high)
    end
    svg(plot.line{y = y, low = y, high = y})
    assert.equal(9000, #block(plot.line{x = lsa.rand({9000}, 1), y = lsa.rand({9000}, 2)}, 1)) -- x does not ascend
  end)

  it("is saved as what the ending says, and nothing else is left", function()
    files.with_folder(function(folder)
      local p = plot.line{{y = {1, 3, 2}, label = "a"}, {y = {2, 2, 2}, label = "b"}, title = "T", size = {640, 400}}
      assert.equal(p, p:save(folder .. "/a.png"):save(folder .. "/a.SVG"):save(folder .. "/a.pdf"))
      local png = files.read(folder .. "/a.png")
      assert.equal("\137PNG\r\n\26\n\0\0\0\13IHDR\0\0\2\128\0\0\1\144", png:sub(1, 24))
      assert.equal("IEND", png:sub(-8, -5))
      assert.matches("^<%?xml.*<svg.*</svg>%s*$", files.read(folder .. "/a.SVG"))
      local pdf = files.read(folder .. "/a.pdf")
      assert.equal("%PDF-", pdf:sub(1, 5))
      assert.matches("%%%%EOF%s*$", pdf)
      refused("a.gif: a plot is saved as .png, .svg or .pdf", p.save, p, folder .. "/a.gif")
      refused("save: path is nil; a file's name is wanted", p.save, p)
      assert.equal("a.SVG a.pdf a.png", files.names(folder))
    end)
  end)

  it("of every kind is drawn in every form", function()
    local x = lsa.randn({200}, 1)
    local kinds = {plot.line{x = {1, 10, 100}, y = {1, 2, 3}, xlog = true, xunit = "%", hline = 2, vline = 10},
      plot.line{y = x, low = x:sub(1), high = x:add(1)}, plot.line{y = {5}, low = {4}, high = {6}}, plot.line{y = {0, 0}},
      plot.scatter{{x = x, y = x}, {x = {1}, y = {2}, low = {1}, high = {3}, label = "b"}}, plot.heatmap{z = lsa.rand({3, 4}, 1), text = true, zunit = "%"},
      plot.heatmap{z = lsa.rand({70, 80}, 1), xrange = {0, 7}, stripes = {{3, 4}}, stripes_label = "here"}, plot.heatmap{z = {{1}}, xnames = {"100 %"}},
      plot.histogram{{values = x, label = "a"}, {values = lsa.rand({10, 10}, 2), label = "b"}, ylog = true}, plot.histogram{values = {1, 1}},
      plot.bars{{values = {1, 2}, label = "a"}, {values = {0, 4}, label = "b"}, names = {"x", "y"}, xunit = "B"}}
    kinds[#kinds + 1] = plot.stack{kinds[1], kinds[5], kinds[9]}
    for i, p in ipairs(kinds) do
      svg(p)
      assert.equal("\137PNG", gnuplot.picture(p, "png"):sub(1, 4), "kind " .. i)
      assert.equal("%PDF", gnuplot.picture(p, "pdf"):sub(1, 4), "kind " .. i)
      assert.is_true(#tostring(p) > 100, "kind " .. i)
    end
    assert.equal("\27P", gnuplot.picture(kinds[1], "sixel"):sub(1, 2))
  end)

  it("refuses what cannot be drawn, by the names and both values", function()
    refused("lsa.plot.line: x has 3 values and y has 2", plot.line, {x = {1, 2, 3}, y = {1, 2}})
    refused("plot_spec.lua:%d+: lsa.plot.line: low has 1 value and y has 2", function() plot.line{y = {1, 2}, low = {1}, high = {1, 2}} end)
    refused("lsa.plot.line: low without high", plot.line, {y = {1}, low = {1}})
    refused("lsa.plot.scatter: series 2: y%[2%] is nan; a finite number is wanted", plot.scatter, {{y = {1}}, {y = {1, nan}}})
    refused("y%[1%] is inf", plot.line, {y = {1 / 0}})
    refused("lsa.plot.line: y is nil; a list of numbers or a tensor is wanted", plot.line, {x = {1}})
    refused("y is empty", plot.line, {y = {}})
    refused("y%[1%] is \"1\"", plot.line, {y = {"1"}})
    refused("y is a tensor %[2, 2%]; one dimension is wanted", plot.line, {y = lsa.zeros{2, 2}})
    refused("xlog, and x is at 0; logarithms want numbers above 0", plot.line, {x = {0, 1}, y = {1, 2}, xlog = true})
    refused("lsa.plot.line: no option 'titel'", plot.line, {y = {1}, titel = "x"})
    refused("title is 7; a text is wanted", plot.line, {y = {1}, title = 7})
    refused("xrange is {2, 1}; the lower end comes first", plot.line, {y = {1}, xrange = {2, 1}})
    refused("colour is \"red\"; a colour is written as", plot.line, {y = {1}, colour = "red"})
    refused("z%[2%] has 1 values and z%[1%] has 2", plot.heatmap, {z = {{1, 2}, {1}}})
    refused("z%[1%]%[2%] is nan", plot.heatmap, {z = {{1, nan}}})
    refused("z has no number", plot.heatmap, {z = {{nan}}, blank = true})
    refused("xnames has 1 texts for 2 places", plot.heatmap, {z = {{1, 2}}, xnames = {"a"}})
    refused("lsa.plot.bars: names has 2 values and values has 3", plot.bars, {names = {"a", "b"}, values = {1, 2, 3}})
    refused("names is nil; a list", plot.bars, {values = {1}})
    refused("bins is 0; a whole number", plot.histogram, {values = {1}, bins = 0})
    refused("lsa.plot.stack: %[1%] is 1; plots are wanted", plot.stack, {1})
    refused("size%[1%] is 5", plot.line, {y = {1}, size = {5, 5}})
  end)

  it("takes texts as texts, whatever is in them", function()
    files.with_folder(function(folder)
      local bad = folder .. "/made"
      local texts = {('"; system "touch %s"; set title "x'):format(bad), ("`touch %s`"):format(bad), ("'\nsystem 'touch %s'\n'"):format(bad),
        ("@a $(touch %s) \\\" \\n %%s %%d {/:Bold b}_x^2"):format(bad), "\0\27]0;x\7\255\254", "END\nEND\n!touch " .. bad, "Füllung 100 % ✓"}
      for _, text in ipairs(texts) do
        local shown = svg(plot.line{{y = {1, 2}, label = text}, {y = {2, 1}, label = "b"}, title = text, xlabel = text, ylabel = text, yunit = text})
        svg(plot.bars{names = {text, "b"}, values = {1, 2}, title = text, references = {{kind = "reference", x = 1, label = text}}})
        svg(plot.heatmap{z = {{1}}, xnames = {text}, ynames = {text}, zlabel = text, stripes = {{0, 0.2}}, stripes_label = text})
        assert.equal("", files.names(folder), text)
        local words = text:match "touch" or text:match "Füllung 100 %% ✓"
        if words then assert.is_truthy(shown:find(words, 1, true), text) end
        assert.is_nil(tostring(plot.line{y = {1}, title = text}):find "[%z\27\7\255]")
      end
      local digits = "1,024 of 8,192: 7.5 %"
      assert.equal(2, select(2, svg(plot.bars{names = {digits}, values = {1}, title = digits}):gsub((digits:gsub("%%", "%%%%")), "")))
    end)
  end)

  it("says which package is missing, and what gnuplot says", function()
    files.with_folder(function(folder)
      local p, program = plot.line{y = {1, 2}}, gnuplot.program
      files.write(folder .. "/a.png", "old")
      gnuplot.program = "a gnuplot that is not there"
      local ok, why = pcall(p.save, p, folder .. "/a.png")
      local mime = getmetatable(p).__mime(p)
      gnuplot.program = "false"
      local failed, said = pcall(p.save, p, folder .. "/a.png")
      gnuplot.program = program
      assert.is_false(ok or failed)
      assert.matches("there is no gnuplot to draw with; Debian's package gnuplot%-nox has it", why)
      assert.matches("gnuplot ended with 1", said)
      assert.same({"text/plain"}, {next(mime), next(mime, "text/plain")})
      assert.equal("old", files.read(folder .. "/a.png"))
      assert.equal("a.png", files.names(folder))
      p.panels[1].layers[1].colour = "no colour'"
      refused("gnuplot ended with 1: .*line %d+: unrecognized color name", p.save, p, folder .. "/a.png")
    end)
  end)

  it("leaves no process and no open file behind", function()
    local posix, wait = require "posix.dirent", require "posix.sys.wait"
    local p = plot.line{y = {1, 2}}
    local function open_files()
      collectgarbage() -- of what others left
      collectgarbage()
      return #posix.dir "/proc/self/fd"
    end
    repeat local child = wait.wait(-1, wait.WNOHANG) until not child or child == 0
    gnuplot.picture(p, "svg")
    local before = open_files()
    for _ = 1, 3 do gnuplot.picture(p, "svg") end
    p.panels[1].layers[1].colour = "no colour"
    for _ = 1, 3 do pcall(gnuplot.picture, p, "svg") end
    assert.equal(before, open_files())
    assert.is_nil((wait.wait(-1, wait.WNOHANG)))
  end)

  it("has the forms that a notebook shows", function()
    local mime = getmetatable(plot {1}).__mime(plot.line{y = {1, 2}, title = "T"})
    assert.equal("\137PNG", mime["image/png"]:sub(1, 4))
    assert.matches("<svg", mime["image/svg+xml"])
    assert.matches("^T\n", mime["text/plain"])
  end)

  it("prints itself as characters", function()
    local lines = {}
    for line in tostring(plot.line{x = {0, 1}, y = {0, 1}, title = "T", xlabel = "x", ylabel = "y", yunit = "ms"}):gmatch "[^\n]+" do lines[#lines + 1] = line end
    assert.equal(18, #lines)
    assert.same({"T", "y (ms)"}, {lines[1], lines[2]})
    assert.equal("  1 ┤" .. (" "):rep(59) .. "⢀⣀⠤⠒⠉", lines[3])
    assert.matches("^0.5 ┤", lines[9])
    assert.equal("  0 ┤⣀⠤⠒⠉⠁", lines[16])
    assert.equal("    └" .. ("─"):rep(64), lines[17])
    assert.equal("     0" .. (" "):rep(30) .. "x" .. (" "):rep(31) .. "1", lines[18])
    -- Round numbers beside the axis, wherever the data ends.
    local text = tostring(plot.line{x = {0, 1}, y = {3, 103}, yunit = "%"})
    for _, tick in ipairs {"\n 50 %% ┤", "\n100 %% ┤"} do assert.matches(tick, "\n" .. text) end
    assert.is_nil(text:find("103 %", 1, true))
    assert.equal("a    │" .. ("█"):rep(24) .. " 1 kB\nlong │" .. ("█"):rep(48) .. " 2 kB",
      tostring(plot.bars{names = {"a", "long"}, values = {1000, 2000}, xunit = "B"}))
    local map = tostring(plot.heatmap{z = {{0, 4}, {1, nan}}, blank = true, zlabel = "mass"})
    assert.matches("│" .. (" "):rep(32) .. ("█"):rep(32), map)
    assert.matches("┤" .. ("░"):rep(32) .. ("·"):rep(32), map)
    assert.matches("0 to 4 mass", map)
    local two = tostring(plot.line{{y = {1, 1}, label = "LSA"}, {y = {2, 2}, label = "recency"}})
    assert.matches("a LSA   b recency", two)
    assert.matches("b\n.*a\n", two)
  end)
end)

describe("a terminal", function()
  it("is sent base64 in pieces by kitty's protocol", function()
    for text, code in pairs {[""] = "", f = "Zg==", fo = "Zm8=", foo = "Zm9v", ["\255\254\0\1"] = "//4AAQ=="} do assert.equal(code, terminal.base64(text)) end
  end)

  if Terminal.available() then
    -- What show() writes on a terminal that answers so.
    local function shown(code, answer, expected)
      files.with_folder(function(folder)
        local screen = Terminal.start(folder)
        local ok, problem = pcall(function()
          screen:expect "> "
          screen:send(code .. "\r")
          screen:expect "\27[c"
          screen:send(answer)
          screen:expect(expected)
          screen:expect "> "
          screen:send "2 + 3\r"
          screen:expect "5\n"
        end)
        screen:stop()
        if not ok then error(problem, 0) end
      end)
    end

    it("that knows kitty's protocol shows the picture", function() shown("lsa.plot({1, 2, 3}):show()", "\27_Gi=31;OK\27\\\27[?62;4c", "\27_Gf=100,a=T,m=1;iVBORw0KGgo") end)
    it("that knows sixel shows the picture", function() shown("lsa.plot{1, 2, 3}", "\27[?62;4;22c", "\27P") end)
    it("that knows neither shows characters", function() shown("lsa.plot{1, 2, 3}", "\27[?62;22c", "┤") end)
  end
end)

---- the ready ones ----

local function labels_of(p)
  local out = {}
  for _, layer in ipairs(p.panels[1].layers) do out[#out + 1] = layer.label end
  return out
end

local function result(select, budget, accuracy, resident)
  local low, high = intervals.wilson(accuracy * 20, 20)
  return {select = select, budget = budget, accuracy = accuracy, accuracy_low = low, accuracy_high = high, resident_pct = resident, n = 20}
end

describe("a ready plot", function()
  it("has accuracy against KV, a line for each policy, full attention as the line to reach", function()
    local rows = {result("full", 0.1, 0.95, 100), result("full", 0.2, 0.95, 100), result("lsa_topk", 0.2, 0.9, 20), result("lsa_topk", 0.1, 0.8, 10),
      result("random", 0.1, 0, 10), result("random", 0.2, 0.1, 20)}
    local t = grid.new(rows, {"select", "budget", "accuracy", "resident_pct"}, {}, {"select", "budget"})
    local p = t:plot{title = "Needles"}
    assert.same({"lsa_topk", "random", "full attention, 95.0 %"}, labels_of(p))
    local low, high = intervals.wilson(16, 20)
    local first = block(p, 1)
    assert.same({10, 80}, {first[1][1], first[1][2]})
    assert.same({20, 90}, {first[2][1], first[2][2]})
    assert.is_true(math.abs(first[1][3] - 100 * low) < 1e-9 and math.abs(first[1][4] - 100 * high) < 1e-9)
    assert.same({10, 0}, {block(p, 2)[1][1], block(p, 2)[1][2]})
    svg(p)
    refused("row 1 has resident_pct = nil; a number is wanted", plot.accuracy, {{select = "a", accuracy = 1}})
    refused("is no table of results", plot.accuracy, "x")
    refused("no row but full attention's", plot.accuracy, {rows[1]})
  end)

  it("tells policies apart by their options and by other axes", function()
    local rows = {}
    for _, every in ipairs {8, 64} do
      for _, recent in ipairs {0.1, 0.5} do
        rows[#rows + 1] = result("h2o", 0.1, 0.5, 10)
        rows[#rows].every, rows[#rows]["select.recent"] = every, recent
      end
    end
    local p = grid.new(rows, {}, {}, {"select", "select.recent", "every"}):plot()
    assert.same({"recent 0.1, every 8", "recent 0.5, every 8", "recent 0.1, every 64", "recent 0.5, every 64"}, labels_of(p))
  end)

  it("has recall by depth and length, the beginning above, what was not asked blank", function()
    local rows = {{tokens = 8192, depth = 0.05, accuracy = 1}, {tokens = 8192, depth = 0.01, accuracy = 0}, {tokens = 1024, depth = 1, accuracy = 1},
      {tokens = 1024, depth = 0.99, accuracy = 1}, {tokens = 1024, depth = 0.5, accuracy = 0}}
    local p = plot.recall(rows, {title = "R"})
    local cells = block(p, 1)
    assert.equal(10, #cells)
    assert.same({100, "NaN"}, cells[1])
    assert.same({0, "NaN"}, cells[5])
    assert.same({"NaN", 50}, cells[10])
    assert.same({"1K", "8K"}, p.panels[1].x.names)
    assert.equal("0–10 %", p.panels[1].y.names[10])
    svg(p)
    refused("row 1 has depth = 2; a share", plot.recall, {{tokens = 1, depth = 2, accuracy = 1}})
    -- A sweep's rows with their questions, a panel for each policy.
    local two = plot.recall{{select = "a", tokens = 1024, questions = {{depth = 0.5, accuracy = 1}}}, {select = "b", tokens = 1024, questions = {{depth = 0.5, accuracy = 0}}}}
    assert.equal(2, #two.panels)
    assert.equal("b", two.panels[2].title)
    assert.same({{100}, {0}}, {block(two, 1)[5], block(two, 2)[5]})
    -- gnuplot leaves out what would be outside the picture.
    local _, labels = svg(two):gsub("<text>depth</text>", "")
    assert.equal(2, labels)
  end)

  it("has the misses of evictions against belady", function()
    local pages = {}
    for i = 1, 300 do pages[i] = i * i % 37 end
    local t = lsa.sweep{evictions = {"belady", "lru", "fifo"}, grid = {capacity = {4, 8}}, run = function(o)
      return lsa.cache{pages = pages, capacity = o.capacity, evict = o.evict}
    end}
    local p = t:plot()
    assert.same({"belady (the least)", "lru", "fifo"}, labels_of(p))
    for i, name in ipairs {"belady", "lru", "fifo"} do
      for j, capacity in ipairs {4, 8} do
        local misses = lsa.cache{pages = pages, capacity = capacity, evict = name}.misses
        assert.equal(capacity, block(p, i)[j][1])
        assert.is_true(math.abs(block(p, i)[j][2] - 100 * misses / 300) < 1e-9)
      end
    end
    svg(p)
    -- One capacity: bars, the fewest first, belady the line to reach.
    local bars = plot.misses{{evict = "a", capacity = 4, hits = 1, misses = 9}, {evict = "belady", capacity = 4, hits = 8, misses = 2},
      {evict = "b", capacity = 4, hits = 5, misses = 5}}
    assert.same({"b", "a"}, bars.panels[1].y.names)
    assert.same({"belady, 20.0 %"}, labels_of(bars))
    svg(bars)
    -- A panel for each trace.
    local traces = plot.misses{{trace = "x", evict = "a", capacity = 4, hits = 1, misses = 9}, {trace = "y", evict = "a", capacity = 4, hits = 1, misses = 1}}
    assert.same({"x", "y"}, {traces.panels[1].title, traces.panels[2].title})
    refused("row 1 has evict = \"a\", misses = nil, capacity = 4", plot.misses, {{evict = "a", capacity = 4, hits = 4}})
  end)

  it("has what was resident at each step of a recording, and the evidence", function()
    files.with_folder(function(folder)
      local path = folder .. "/trace.safetensors"
      local model = lsa.model(golden .. "flash")
      local s, random, ids = model:session{select = "random", budget = 0.3, every = 4}, require("lsa.cycle.rng").new(1), {}
      for i = 1, 90 do ids[i] = random(tonumber(model.config.vocab)) end
      s:prefill(ids)
      s:record(path)
      local seen = {}
      for step = 1, 30 do
        s:decode(ids[step])
        seen[step] = {set = s:resident():copy(), n = s:resident():count()}
      end
      s:record(false)
      local p = plot.residency(path, {evidence = {{2, 4}}, title = "R"})
      local cells = block(p, 1)
      local chunks, steps = #cells, #cells[1]
      local resident, compared = 0, 0
      for step = 1, steps do
        local live = seen[step - (steps - 30)]
        for chunk = 0, chunks - 1 do
          local cell = cells[chunk + 1][step]
          if live and cell ~= "NaN" then
            assert.equal(live.set:has(chunk) and 100 or 0, cell, ("step %d chunk %d"):format(step, chunk))
            compared, resident = compared + 1, resident + (cell == 100 and 1 or 0)
          end
        end
      end
      assert.is_true(compared > 500 and resident > 100 and resident < compared - 100)
      svg(p)
      assert.same({{2, 4}}, p.panels[1].layers[2].list)
      refused("evidence%[1%] is {5, 4000}; chunks {from, to} within 0", plot.residency, path, {evidence = {{5, 4000}}})
      -- The session's own pictures are these.
      assert.same(plot.residency(path, {title = "own"}).panels, s:plot("residency", {title = "own"}).panels)
      assert.same(plot.traffic(s).panels, s:plot().panels)
      refused("plot is \"residence\"; it can be: traffic, residency; did you mean residency", s.plot, s, "residence")
      refused("there is none: s:record", function() s:fork():plot "residency" end)
      local by_function = s:fork{select = function(cycle) return cycle.newest(3) end}
      by_function:record(folder .. "/function.safetensors")
      by_function:generate{n = 20}
      svg(by_function:plot "residency") -- while it is being recorded

      local traffic = plot.traffic(s, {title = "T"})
      for i, row in ipairs(s:cycles()) do
        assert.same({row.t, row.fetched_bytes}, {block(traffic, 1)[i][1], block(traffic, 1)[i][2]})
        assert.equal(row.t, block(traffic, 2)[i][1])
        assert.is_true(math.abs(block(traffic, 2)[i][2] - row.stall_ms) <= 1e-9 * row.stall_ms)
      end
      svg(traffic)
      svg(plot.traffic{{s, label = "live"}, {lsa.replay(path, {select = "recency"}), label = "recency"}})
      refused("lsa.plot.traffic: .* has no cycles", plot.traffic, {{5}})
    end)
  end)

  it("has the calibration of an indexer, bin by bin", function()
    local function part(bins) return {bins = bins} end
    local empty = {from = 0.5, to = 1, count = 0, score = nan, golden = nan}
    local evaluated = {{name = "max", all = part{{from = 0, to = 0.5, count = 10, score = 0.25, golden = 0.5}, empty}, outside = part{empty, empty}}}
    local p = plot.calibration(evaluated)
    local low, high = intervals.wilson(5, 10)
    local row = block(p, 1)[1]
    assert.same({0.25, 50}, {row[1], row[2]})
    assert.is_true(math.abs(row[3] - 100 * low) < 1e-9 and math.abs(row[4] - 100 * high) < 1e-9)
    assert.same({{0.25, 10, 10, 10}}, block(p, 2))
    svg(p)
    refused("no bin has a chunk", plot.calibration, evaluated, {part = "outside"})
    refused("part is \"some\"; it can be: all, outside", plot.calibration, evaluated, {part = "some"})
    refused("is no evaluation", plot.calibration, {1})
  end)

  it("of any table has a result against the parameter with the most values, or bars", function()
    local t = lsa.sweep{policies = {"a", "b"}, taus = {8, 16, 32}, run = function(o)
      return {fetched_bytes = o.every * (o.select == "a" and 1000 or 2000), other = 1}
    end}
    local p = t:plot()
    assert.same({"a", "b"}, labels_of(p))
    assert.equal("every", p.panels[1].x.label)
    assert.equal("fetched", p.panels[1].y.label)
    assert.same({8, 8000}, {block(p, 1)[1][1], block(p, 1)[1][2]})
    assert.same({32, 64000}, {block(p, 2)[3][1], block(p, 2)[3][2]})
    assert.equal("other", t:plot{y = "other"}.panels[1].y.label)
    local bars = lsa.sweep{policies = {"a", "b"}, run = function(o) return {score = #o.select} end}:plot()
    assert.same({"a", "b"}, bars.panels[1].y.names)
    svg(p)
    svg(bars)
    refused("no column of results is of numbers", function() lsa.sweep{policies = {"a"}, run = function() return {x = "y"} end}:plot() end)
    refused("row 1 has nothing = nil", t.plot, t, {y = "nothing"})
  end)
end)

-- ./lsa prints what the README says.
describe("lsa.plot", function()
  it("draws from a script", function()
    files.with_folder(function(folder)
      local _, problem, code = process.lsa({"-e", ("require('lsa').plot({1, 4, 9}, {title = 'Squares'}):save(%q):show()"):format(folder .. "/a.png")})
      assert.equal("", problem)
      assert.equal(0, code)
      assert.equal("a.png", files.names(folder))
    end)
  end)
end)
