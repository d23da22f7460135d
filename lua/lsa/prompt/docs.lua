-- `lsa docs [folder]`: the pages of lua/docs, the README and what help says of every rule and kernel, as a site of plain HTML.
-- Markdown becomes HTML by cmark-gfm, as it is read elsewhere.
local help = require "lsa.prompt.help"
local lib = require "lsa.ffi"
local pages = require "lsa.prompt.pages"
local registry = require "lsa.registry"
local replace = require "lsa.files.replace"

local M = {}

local FAILED, BAD_USAGE = 1, 2

local usage = [[
usage: lsa docs [folder]    writes the manual as HTML into the folder, build/docs where none is given

Needs cmark-gfm (Debian: apt-get install cmark-gfm).
]]

local style = [[
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 sans-serif; color: #222; background: #fff }
nav { columns: 12rem; font-size: 90%; border-bottom: 1px solid #ccc; padding-bottom: 1rem }
nav a { display: block }
a { color: #0b57a4 } code, pre { font: 14px/1.4 monospace; background: #f4f4f4 }
pre { padding: .7rem; overflow-x: auto } table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { border: 1px solid #ddd; padding: .25rem .6rem; text-align: left; vertical-align: top }
img { max-width: 100% }
@media (prefers-color-scheme: dark) {
  body { background: #16181b; color: #ddd } code, pre { background: #22262b } a { color: #7ab7f5 } th, td, nav { border-color: #444 } }
]]

local function escaped(text) return (text:gsub("[&<>]", {["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;"})) end

local function quoted(path) return "'" .. path:gsub("'", "'\\''") .. "'" end

local function html_of(path)
  local pipe = io.popen("cmark-gfm -e table -e autolink " .. quoted(path))
  local text = pipe:read "*a"
  pipe:close()
  return text
end

-- Headings can be linked to by their words; links to pages lead to their HTML, others into the tree's files.
local function linked(html)
  html = html:gsub("<h(%d)>(.-)</h%d>", function(level, title)
    local id = title:gsub("<[^>]*>", ""):lower():gsub("[^%w]+", "-"):gsub("^%-+", ""):gsub("%-+$", "")
    return ('<h%s id="%s">%s</h%s>'):format(level, id, title, level)
  end)
  html = html:gsub('src="[^":]*lua/docs/', 'src="')
  return (html:gsub('href="([^"#:]+)%.md', function(path)
    local name = path:match "[^/]*$"
    if path == "README" or path == "../../README" then return 'href="index.html' end
    return pages.text(name) and ('href="%s.html'):format(name) or ('href="%s.md'):format(path)
  end))
end

local function page(title, body, names)
  local links = {'<a href="index.html">lsa</a>'}
  for _, name in ipairs(names) do links[#links + 1] = ('<a href="%s.html">%s</a>'):format(name, name) end
  return ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">' ..
    "<title>%s</title><style>%s</style></head>\n<body><nav>%s</nav>\n%s</body></html>\n"):format(escaped(title), style,
    table.concat(links, " "), body)
end

local function section(title, facts)
  return ('<h3 id="%s">%s</h3>\n<pre>%s</pre>\n'):format(title, title, escaped(help.text(facts)))
end

-- Help on all rules and kernels.
local function reference()
  local lsa = require "lsa"
  local out = {"<h1>Reference</h1>\n<p>What <code>?NAME</code> says at the prompt.</p>\n"}
  for _, kind in ipairs {"policies", "evictions", "schedules", "samplers"} do
    out[#out + 1] = ("<h2>%s</h2>\n"):format(kind)
    for _, name in ipairs(registry.names(kind)) do out[#out + 1] = section(name, help.about(lsa[kind][name])) end
  end
  out[#out + 1] = "<h2>kernels</h2>\n"
  local names = {}
  for name in pairs(lsa.kernels) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do out[#out + 1] = section(name, help.about(lsa.kernels[name])) end
  return table.concat(out)
end

function M.main(arguments)
  local folder = arguments[1] or lib.root .. "/build/docs"
  if folder == "--help" or folder == "-h" then
    io.write(usage)
    return 0
  elseif arguments[2] or folder:sub(1, 1) == "-" then
    io.stderr:write(usage)
    return BAD_USAGE
  elseif os.execute "command -v cmark-gfm >/dev/null" ~= 0 then
    io.stderr:write "lsa docs: cmark-gfm is missing (Debian: apt-get install cmark-gfm)\n"
    return FAILED
  end
  if os.execute("mkdir -p " .. quoted(folder)) ~= 0 then return FAILED end
  local names = pages.names()
  local all = {unpack(names)}
  all[#all + 1] = "reference"
  replace.write(folder .. "/index.html", page("lsa", linked(html_of(lib.root .. "/README.md")), all))
  for _, name in ipairs(names) do replace.write(("%s/%s.html"):format(folder, name), page(name, linked(html_of(pages.path(name))), all)) end
  replace.write(folder .. "/reference.html", page("reference", reference(), all))
  for _, file in ipairs(require "posix.dirent".dir(pages.folder)) do -- pictures
    local from = quoted(pages.folder .. "/" .. file)
    if (file:find "%.svg$" or file:find "%.png$") and os.execute(("cp %s %s"):format(from, quoted(folder))) ~= 0 then return FAILED end
  end
  print(("%s/index.html and %d pages"):format(folder, #all))
  return 0
end

return M
