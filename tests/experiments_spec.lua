-- The experiment scripts, run small.
local cjson = require "cjson"
local lsa = require "lsa"
local files = require "file_support"
local process = require "process_support"

local sanitized = require("lsa.ffi").build:find "sanitize" ~= nil

-- What a script writes with these arguments.
local function output(script, arguments)
  local out = {}
  local function write(...)
    for i = 1, select("#", ...) do out[#out + 1] = tostring((select(i, ...))) end
  end
  local function say(...)
    write(...)
    write "\n"
  end
  local report = require "lsa.report"
  local written = report.write
  report.write = write
  local saved, chunk = _G.arg, assert(loadfile(lsa.root .. "/experiments/" .. script))
  setfenv(chunk, setmetatable({print = say, io = setmetatable({write = write}, {__index = io})}, {__index = _G}))
  arguments[0] = script
  _G.arg = arguments
  local ok, why = pcall(chunk)
  _G.arg, report.write = saved, written
  assert(ok, why)
  return table.concat(out)
end

-- Words without end, in a file.
local function with_text(fn)
  files.with_folder(function(folder)
    local path, words, state, list = folder .. "/text", {}, 1, {}
    for i = 1, 60 do words[i] = string.char(97 + i % 26, 97 + i % 5, 97 + i % 7, 97 + i % 11) end
    for i = 1, 4000 do
      state = state * 16807 % 2147483647
      list[i] = words[1 + state % 60] .. (state % 11 == 0 and ".\n" or " ")
    end
    files.write(path, table.concat(list))
    fn(path)
  end)
end

describe("experiments/policies.lua", function()
  it("has a row for every policy and budget, oracles too", function()
    with_text(function(text)
      local csv = output("policies.lua", {"--tokens", "1500", "--needles", "1", "--budgets", "0.1,0.2", "--text", text, "--csv"})
      local rows, names = {}, require("lsa.registry").names "policies"
      for line in csv:gmatch "[^\n]+" do rows[#rows + 1] = line end
      assert.matches("^select,budget,accuracy,digits,coverage,evidence,fetched_bytes,resident_bytes,resident_pct,cycles,failed,clipped,error", rows[1])
      assert.equal(1 + 2 * (#names - 1), #rows) -- without the labels' oracle and lsa_cap, with on_demand
      local found = {}
      for i = 2, #rows do
        local name, budget, _, _, coverage = rows[i]:match "^([%w_]+),([%d.]+),([%d.]+),([%d.]+),([%d.]+),"
        found[name .. (tonumber(budget) == 0.2 and "" or " less")] = tonumber(coverage)
      end
      assert.equal(1, found.full)
      assert.equal(1, found.on_demand)
      assert.is_true(found.oracle_budget >= found.native_topk and found.native_topk > found.none)
      local text_table = output("policies.lua", {"--tokens", "1500", "--needles", "1", "--budgets", "0.1", "--text", text,
        "--policies", "recency,oracle_native"})
      assert.matches("\nrecency +0.1 +[%d.]+%%", text_table)
    end)
  end)
end)

describe("experiments/evictions.lua", function()
  it("never lets a policy miss less than belady", function()
    with_text(function(text)
      local csv = output("evictions.lua", {"--tokens", "1200", "--steps", "200", "--text", text, "--csv"})
      local n = 0
      for line in csv:gmatch "\n([^\n]+)" do
        local rates = {}
        for cell in line:gmatch "[^,]+" do rates[#rates + 1] = tonumber(cell) or cell end
        for i = 6, #rates do assert.is_true(rates[5] <= rates[i] and rates[i] <= 1, line) end
        n = n + 1
      end
      assert.equal(2 * (4 + 4), n)
    end)
  end)
end)

-- A small run of train_indexer.lua; with n: killed where its n-th file operation would begin.
local function train(folder, text, n)
  local script = lsa.root .. "/experiments/train_indexer.lua"
  local words = ("needle -o %s --text %s --documents 3 --held 1 --lengths 246,492,983,1966 --before 0 --looks 1 --steps 600 --heads 4 --batch 8 --tokens 1500 --contexts 3 --items 1 " ..
    "--kinds single,words --voters all --layers all --thetas 0.5,0.7 --budgets 0.1"):format(folder, text)
  return process.shell(n and process.killed_at(n, script, words) or ("%s %s %s"):format(process.program, process.quote(script), words))
end

-- What a run says but for the time it took and what it found there.
local function tables_of(out)
  return (out:gsub("%[[^\n]*\n", ""))
end

describe("experiments/train_indexer.lua", function()
  it("ends with the same tables when it is killed again and again, and serves layer_search.lua", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local whole, problem, code = train(folder .. "/whole", text)
        assert.equal(0, code, problem)
        assert.matches("Memory Indexer, mean +[%d.]+%% +[%d.]+ +[%d.]+", whole)
        assert.matches("6 questions in 3 contexts of 1500 tokens, of part test", whole)
        assert.matches("full attention +[%d.]+%% +100.00%% +100.0%% +0 +0 ", whole)
        assert.is_nil(whole:find("± 0.00", 1, true))
        assert.matches("LSA, theta 0.5 +[%d.]+%% +[+-][%d.]+ ± [%d.]+ +[%d.]+%%", whole)
        assert.matches("\nrecency only 10 %% +[%d.]+%%", whole)

        local kills, out = 0, nil
        for attempt = 0, 40 do
          out, problem, code = train(folder .. "/killed", text, math.floor(25 * 1.5 ^ attempt))
          if code == 0 then break end
          assert.equal(137, code, problem)
          kills = kills + 1
        end
        assert.is_true(kills > 1, "the run was hardly killed")
        assert.equal(tables_of(whole), tables_of(out))
        assert.equal(files.read(folder .. "/whole/indexer.safetensors"), files.read(folder .. "/killed/indexer.safetensors"))

        local csv = output("layer_search.lua", {folder .. "/whole/train", folder .. "/whole/held", "--indexer",
          folder .. "/whole/indexer.safetensors", "--csv", "--k", "32"})
        local every, greedily = csv:match "^layers,ensemble[^\n]*\n(.-)\n\n[^\n]*\n(.*)$"
        local _, sets = every:gsub("[^\n]+", "")
        local _, steps = greedily:gsub("[^\n]+", "")
        assert.equal(3 + 2 * 4, sets)
        assert.equal(3, steps)
        local best, before = greedily:match "^%d,max,[^\n]*,([%d.]+)\n", math.huge
        for found in (every .. "\n"):gmatch ",([%d.]+)\n" do
          assert.is_true(tonumber(found) <= before)
          before = tonumber(found)
        end
        local alone = 0
        for found in ("\n" .. every .. "\n"):gmatch "\n%d,max,[^\n]*,([%d.]+)%f[\n]" do alone = math.max(alone, tonumber(found)) end
        assert.equal(tonumber(best), alone)
      end)
    end)
  end)
end)

describe("experiments/train_indexer.lua near answers", function()
  it("trains other steps, and the same from traces of more layers", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local function trained(name, ...)
          output("train_indexer.lua", {"needle", "-o", folder .. "/" .. name, "--text", text, "--documents", "2", "--held", "1", "--lengths", "246,492",
            "--before", "0", "--steps", "5", "--heads", "4", "--batch", "4", "--contexts", "0", "--kinds", "single", "--layers", "2", ...})
          return files.read(folder .. "/" .. name .. "/indexer.safetensors")
        end
        local all, near = trained "all", trained("near", "--before", "8")
        assert.is_string(near)
        assert.is_true(all ~= near)
        assert.equal(near, trained("layers", "--before", "8", "--traced", "all"))
      end)
    end)
  end)
end)

describe("experiments/paper_table.lua", function()
  it("has every way at every length, paired, and the same from two processes' results", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local function run(...)
          return output("paper_table.lua", {"--model", "needle", "--tokens", "1500,1800", "--contexts", "2", "--items", "1", "--kinds",
            "single,words", "--budgets", "0.1", "--text", text, ...})
        end
        local csv = run "--csv"
        local lines, found = {}, {}
        for line in csv:gmatch "[^\n]+" do lines[#lines + 1] = line end
        assert.equal(1 + 2 * 7 * 3 + 1 + 1, #lines)        -- lengths, ways, kinds and all of them; and what a further policy is beside LSA
        for i = 2, 43 do
          local policy, tokens, task, n, accuracy, low, high = lines[i]:match '^"?([^,"]+[^,]*)"?,(%d+),(%w+),(%d+),([%d.]+),([%d.]+),([%d.]+)'
          if policy then
            found[policy .. tokens .. task] = tonumber(n)
            assert.is_true(tonumber(low) <= tonumber(accuracy) and tonumber(accuracy) <= tonumber(high))
          end
        end
        assert.same({4, 2}, {found["full attention1500all"], found["random1800words"]})
        local json = cjson.decode(run "--json")
        assert.equal(42, #json.accuracy)
        -- LSA itself as a further policy is where LSA is, at all of its KV and bytes.
        local same = cjson.decode(run("--json", "--policies", "lsa_threshold:1")).beside_lsa[1]
        assert.same({8, 0, 1, 1}, {same.n, same.against_lsa, same.kv, same.fetched})
        assert.matches("1500 tokens: 4 questions in 2 contexts; 10 %% of the chunks, LSA at most 30 %%", run("--caps", "0.3"))
        local rest = {}
        for i = 1, 2 do
          assert.equal("", run("--results", folder .. "/" .. i, "--share", i .. "/2"))
          rest[i] = files.read(folder .. "/" .. i)
        end
        files.write(folder .. "/joined", table.concat(rest))
        local function without_times(text_of) return (text_of:gsub("([^\n]*),[^,\n]*(,[^,\n]*,[^,\n]*,[^,\n]*)\n", "%1%2\n")) end
        assert.equal(without_times(csv), without_times(run("--csv", "--results", folder .. "/joined")))
        assert.equal(files.read(folder .. "/joined"), table.concat(rest)) -- nothing was asked again
        assert.matches("all lengths.*full attention +8 .*Of the paper's claim", run("--results", folder .. "/joined"))
        assert.matches("1500 tokens: 2 questions in 1 contexts", run("--results", folder .. "/1", "--finished"))
        local ok, message = pcall(run, "--results", folder .. "/1", "--finished", "--seed", "2")
        assert.is_false(ok)
        assert.matches("no finished contexts", message)
      end)
    end)
  end)
end)

describe("experiments/tradeoff.lua", function()
  it("has every combination, and resumes; evictions never fetch less than belady", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local function run_in(where, ...)
          return output("tradeoff.lua", {"--model", "needle", "--tokens", "1500", "--needles", "4", "--stay", "2", "--items", "1", "--taus", "8,64",
            "--budgets", "0.1", "--evictions", "lru,belady", "--reserves", "1.5", "--text", text, "-o", where, ...})
        end
        local function run(...) return run_in(folder, ...) end
        local out = run()
        assert.matches("\nstream +tau +8 +[%d.]+%%", out)
        assert.matches("\ntraced +async +yes +", out)
        local csv = run "--csv"
        local _, streams = csv:gsub("\nlsa_threshold,", "")
        local _, rows = csv:gsub("\nlsa_topk,[^\n]*", "")
        assert.same({0, 16}, {streams, rows})
        for tau, lru, belady in csv:gmatch "\n(%d+),1.5,lru,0.1,(%d+),[^\n]*\n%d+,1.5,belady,0.1,(%d+)" do
          assert.is_true(tonumber(belady) <= tonumber(lru), tau)
        end
        local _, lines = files.read(folder .. "/stream.jsonl"):gsub("\n", "")
        assert.equal(8, lines)
        -- Shares are disjoint, and joined they are the whole.
        for _, name in ipairs {"stream", "traced"} do
          local keys = {joined = {}, whole = {}}
          local function take(list, where)
            for line in files.read(("%s/%s.jsonl"):format(where, name)):gmatch "[^\n]+" do list[#list + 1] = cjson.decode(line).key end
          end
          for i = 1, 2 do
            local where = folder .. "/" .. i
            if name == "stream" then run_in(where, "--share", i .. "/2") end
            take(keys.joined, where)
          end
          take(keys.whole, folder)
          for _, list in pairs(keys) do table.sort(list) end
          assert.equal(8, #keys.joined)
          assert.same(keys.whole, keys.joined)
        end
        os.execute(("cat '%s/1/stream.jsonl' '%s/2/stream.jsonl' >'%s/stream.jsonl'"):format(folder, folder, folder))
        assert.equal(out:match "stream.-The map", run():match "stream.-The map")
      end)
    end)
  end)
end)

describe("experiments/ablate_indexer.lua", function()
  it("has a row for each finished variation, and runs none twice", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local function run(only)
          return output("ablate_indexer.lua", {"needle", "-o", folder, "--only", only, "--with", ("--text %s --documents 1 --held 1 --lengths 600 --before 0 " ..
            "--steps 5 --batch 4 --tokens 1500 --contexts 1 --items 1 --kinds single --thetas 0.3 --budgets 0.1"):format(text)})
        end
        assert.matches("variation +seed +recall@64 +theta 0.3 +best 10 %%\nbase +1 +[%d.]+ +[%d.]+%% of 1 at [%d.]+%%", run "base")
        local both = run "heads_4"
        assert.matches("\nbase +1 .*\nheads_4 +1 ", both)
        assert.equal(both, run "nothing")
      end)
    end)
  end)

  it("rates variations by recall, of one run of the model: those with the same labels share traces", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local function run(only, looks)
          return output("ablate_indexer.lua", {"needle", "-o", folder, "--only", only, "--by", "recall", "--looks", looks, "--seeds", "1,2", "--with",
            ("--text %s --documents 1 --held 1 --lengths 600 --before 0 --steps 5 --batch 4 --kinds single"):format(text), "--asked",
            ("--text %s --tokens 1500 --contexts 1 --items 1 --kinds single --budgets 0.1,1"):format(text)})
        end
        assert.matches("variation +seeds +n +whole_0.1 +whole_1\nbase +2 +1 +[%d.]+ %([%d.]+%-[%d.]+%) +100.0 %(100.0%-100.0%)", run("base", "1"))
        assert.matches("\nbase +2 +1 .*\nheads_4 +2 +1 ", run("base,heads_4", "1"))
        local traces = require("pl.dir").getdirectories(folder .. "/traces")
        assert.equal(1, #traces)
        assert.matches("\nheads_4 +2 +1 ", run("heads_4", "9"))
        local error_text = select(2, pcall(output, "ablate_indexer.lua", {"needle", "-o", folder, "--by", "luck"}))
        assert.matches("%-%-by: luck; answers or recall", tostring(error_text))
      end)
    end)
  end)
end)

describe("experiments/recall_curve.lua", function()
  it("rates indexers by what one run of the model left; all of the chunks hold all that is needed", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local function run(...)
          return output("recall_curve.lua", {"needle", "-o", folder, "--text", text, "--tokens", "1500", "--contexts", "1", "--items", "2", "--kinds",
            "single,words", "--indexers", "default,native", "--budgets", "0.02,0.1,1", "--thetas", "-1,0.5,2", ...})
        end
        local json = run "--json"
        local rows, all = cjson.decode(json).recall, 0
        for _, row in ipairs(rows) do
          if row.kind == "all" then
            all = all + 1
            assert.is_true(row.n >= 1 and row.n <= 4)
            assert.is_true(row["whole_0.02"] <= row["whole_0.1"] and row["recall_0.02"] <= row["recall_0.1"])
            assert.is_true(row["whole_0.1"] <= row["recall_0.1"])
            assert.same({1, 1}, {row.whole_1, row.recall_1})
            assert.same({1, 1, 0}, {row["whole_theta_-1"], row["kept_theta_-1"], row.whole_theta_2})
          end
        end
        assert.equal(4, all)                       -- two indexers, two spans
        assert.equal(json, run "--json")           -- of what is there
        assert.matches("\ndefault +1 all +%d+ +[%d.]+", (run():gsub("%.safetensors", "")))
        assert.has_error(function() run("--seed", "2") end)
        local ok, message = pcall(run, "--voters", "0,9")
        assert.is_false(ok)
        assert.matches("%-%-voters: 9; the model has %d+ CSA layers", message)
      end)
    end)
  end)
end)

describe("experiments/batch.lua", function()
  it("has more LSA requests than full ones in the same memory, and the paper's counts", function()
    with_text(function(text)
      local out = output("batch.lua", {"--tokens", "3000", "--contexts", "2", "--needles", "4", "--answer", "6", "--memory", "2",
        "--every", "4", "--text", text, "--parts", "needles,paper"})
      local full, lsa_count = out:match "\nfull attention +(%d+)", out:match "\nLSA +(%d+)"
      assert.is_true(tonumber(full) >= 2 and tonumber(lsa_count) > tonumber(full))
      assert.matches("\n1M +11 %-> +30", out)
      assert.matches("full none does,\n +LSA none does", out)
    end)
  end)
end)

describe("experiments/cycle_cost.lua", function()
  it("measures cycles whose sets change by the share that is asked for", function()
    local row = cjson.decode(output("cycle_cost.lua", {"--config", "needle", "--shape", "vocab=100,experts=3", "--tokens", "4096", "--cycles", "3",
      "--heads", "4", "--rank", "16", "--every", "4", "--budget", "0.1", "--churn", "0.2", "--json"})).cycle[1]
    assert.same({4096, 1024, 102, 20, 0}, {row.tokens, row.chunks, row.resident, row.fetched, row.failed})
    for _, name in ipairs {"bytes", "cycle_ms", "policy_ms", "transfer_ms", "lsa_ms", "full_ms"} do assert.is_true(row[name] > 0, name) end
    assert.is_true(row.cycle_ms >= row.policy_ms + row.transfer_ms)
  end)

  it("refuses a shape that it cannot read", function()
    for shape, said in pairs {["experts"] = "experts; name=number is wanted", ["expert=2"] = "did you mean experts"} do
      local ok, why = pcall(output, "cycle_cost.lua", {"--config", "needle", "--shape", shape})
      assert.is_false(ok)
      assert.matches(said, why, 1, true)
    end
  end)
end)

describe("experiments/context_cost.lua", function()
  it("measures every length from one prefill, alone and in a batch", function()
    with_text(function(text)
      local out = output("context_cost.lua", {"--tokens", "400,900", "--every", "8", "--cycles", "1", "--requests", "2", "--text", text, "--json"})
      local rows = cjson.decode(out).contexts
      assert.equal(2, #rows)
      for i, tokens in ipairs {400, 900} do
        assert.equal(tokens, rows[i].tokens)
        for _, name in ipairs {"prefill_s", "prefill_us", "full_ms", "lsa_ms", "cycle_ms", "cycle_pct", "rss", "full_batch", "lsa_batch"} do
          assert.is_true(rows[i][name] > 0, name)
        end
        assert.is_true(rows[i].cycle_pct < 100)
        assert.equal(0, rows[i].failed)
      end
      assert.is_true(rows[1].prefill_s < rows[2].prefill_s)
    end)
  end)

  it("measures synthetic contexts, of which the end alone is prefilled", function()
    with_text(function(text)
      local options = {"--fill", "1", "--tokens", "1100,1500", "--every", "8", "--cycles", "1", "--text", text, "--json"}
      local rows = cjson.decode(output("context_cost.lua", options)).contexts
      for i, tokens in ipairs {1100, 1500} do
        assert.equal(tokens, rows[i].tokens)
        assert.equal(cjson.null, rows[i].prefill_s)
        for _, name in ipairs {"prefill_us", "full_ms", "lsa_ms", "cycle_ms", "rss"} do assert.is_true(rows[i][name] > 0, name) end
      end
      local ok, why = pcall(output, "context_cost.lua", {"--fill", "1", "--tokens", "1024,1500"})
      assert.is_false(ok)
      assert.matches("1024 is not longer", tostring(why))
    end)
  end)

  it("refuses lengths that do not grow", function()
    local ok, why = pcall(output, "context_cost.lua", {"--tokens", "400,300"})
    assert.is_false(ok)
    assert.matches("%-%-tokens: 300 is no length, or not longer than the one before", tostring(why))
  end)
end)

describe("experiments/memory.lua", function()
  it("measures both tiers in processes of their own, and uses a saved context again", function()
    with_text(function(text)
      files.with_folder(function(folder)
        local command = ("%s %s --tokens 5000 --steps 8 --chunks 2048 --save-every 3000 --text %s --directory %s --csv"):format(
          process.program, process.quote(lsa.root .. "/experiments/memory.lua"), text, folder)
        local csv, problem, code = process.shell(command)
        assert.equal(0, code, problem)
        local share = {}
        for name, rss, pss, part in csv:gmatch "\n([^,\n]+[^\n]-),(%-?%d+),(%-?%d+),%-?%d+,(%-?[%d.]+)," do
          share[name] = {tonumber(rss), tonumber(pss), tonumber(part)}
        end
        assert.is_true(share["context; cold tier on disk"] ~= nil and share["context; everything resident"][2] > 0)
        assert.is_true(share["pool; in memory"][2] > 2048 * 21 * 584 * 0.9)
        if not sanitized then assert.is_true(share["pool; on disk"][3] < 0.6) end -- a sanitizer keeps what is freed
        local saved = folder .. "/context-5000-1-f32.safetensors"
        local before = files.read(saved)
        assert.equal(0, select(3, process.shell(command)))
        assert.is_true(before == files.read(saved))
      end)
    end)
  end)
end)

describe("experiments/pictures.lua", function()
  it("draws one of each", function()
    files.with_folder(function(folder)
      local said = output("pictures.lua", {"--tokens", "1024", "--items", "3", "--budget", "0.1", "--form", "svg", "--into", folder})
      assert.matches("residency +" .. folder:gsub("%p", "%%%0") .. "/residency.svg +[1-9]%d* +0 +%d+\n", said) -- cycles, failed, clipped
      assert.equal("calibration.svg misses.svg recall.svg residency.svg traffic.svg", files.names(folder))
      for name in files.names(folder):gmatch "%S+" do assert.matches("</svg>%s*$", files.read(folder .. "/" .. name)) end
    end)
  end)
end)
